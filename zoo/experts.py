"""Content to item vectors through a mixture of experts, and several content rows pooled to one.

UniSRec (arXiv 2206.05941) whitens text vectors with experts whose gate is noisy while training;
MP4SR (arXiv 2303.11879) pools the rows of an item first and normalises what its experts say.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Dropout

Array = jax.Array
zeros = nn.initializers.zeros_init()
NOISE_FLOOR = 0.01
KINDS = ("whitening", "norm")


def whiten(x: Array, kernel: Array, bias: Array) -> Array:
    """W_k (x - b_k) for each expert: x [...,f], kernel [k,f,d], bias [k,f] to [...,k,d].

    Parametric whitening, UniSRec eq. 2, as W_k x - W_k b_k: x is not copied for each expert.
    """
    return _each(x, kernel) - _row(jnp.einsum("kf,kfd->kd", bias, kernel), x)


def noisy_gates(x: Array, gate: Array, spread: Array, noise: Array | None = None) -> Array:
    """softmax(x W_gate + noise (softplus(x W_noise) + 0.01)), UniSRec eq. 3-4.

    x [...,f], gate and spread [f,k], noise [...,k] from N(0,1), None at serving; to [...,k].
    """
    logits = x @ gate
    if noise is not None:
        logits = logits + noise * (jax.nn.softplus(x @ spread) + NOISE_FLOOR)
    return jax.nn.softmax(logits)


class Experts(nn.Module):
    """x [...,f] to sum_k g_k(x) expert_k(x) [...,d]; every expert takes part.

    kind `whitening` (UniSRec): expert_k = W_k (x - b_k), dropout on x, noisy gates. kind `norm`
    (MP4SR): expert_k = LN(dropout(W_k x + b_k)), gates without noise. Gates start at zero, so
    that training begins with the mean of the experts.
    """

    width: int = 64
    experts: int = 8
    kind: str = "whitening"
    dropout: float = 0.2
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        x = x.astype(jnp.float32)
        gates, each = {"whitening": self._whitening, "norm": self._norm}[self._known()](x, train)
        return jnp.einsum("...k,...kd->...d", gates, each)

    def _known(self) -> str:
        if self.kind not in KINDS:
            raise ValueError(f"kind is '{self.kind}'; expected one of {', '.join(KINDS)}.")
        return self.kind

    def _whitening(self, x: Array, train: bool) -> tuple[Array, Array]:
        f, k = x.shape[-1], self.experts
        # k independent experts, averaged, shrink by sqrt(k): their mean has the size of an ID row.
        initial = nn.initializers.variance_scaling(k * 0.02**2, "fan_in", "normal", batch_axis=0)
        kernel = self.param("kernel", initial, (k, f, self.width))
        bias = self.param("bias", zeros, (k, f))
        gate = self.param("gate", zeros, (f, k))
        spread = self.param("noise", zeros, (f, k))
        shape = (*x.shape[:-1], k)
        noise = jax.random.normal(self.make_rng("dropout"), shape) if train else None
        gates = noisy_gates(x, gate, spread, noise)
        x = Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        return gates, whiten(x, kernel, bias)

    def _norm(self, x: Array, train: bool) -> tuple[Array, Array]:
        f, k, d = x.shape[-1], self.experts, self.width
        initial = nn.initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
        kernel = self.param("kernel", initial, (k, f, d))
        y = _each(x, kernel) + _row(self.param("bias", zeros, (k, d)), x)
        y = Dropout(self.dropout, name="dropout")(y, deterministic=not train)
        y = (y - jnp.mean(y, -1, keepdims=True)) * jax.lax.rsqrt(
            jnp.var(y, -1, keepdims=True) + self.epsilon
        )
        scale = self.param("norm_scale", nn.initializers.ones_init(), (k, d))
        y = y * _row(scale, x) + _row(self.param("norm_bias", zeros, (k, d)), x)
        return jax.nn.softmax(x @ self.param("gate", zeros, (f, k))), y


class Pool(nn.Module):
    """x [...,s,f], mask [...,s] to sum_j a_j x_j [...,f], a = softmax_j((x_j W_1 + b_1) W_2 + b_2).

    MP4SR's pooling of an item's rows: two linear maps with no activation between. Rows that the
    mask leaves out are not read. `official` is the published code: no gradient reaches the maps, so
    that nothing but decay moves them, and padding rows of zeros take part in the softmax.
    """

    hidden: int = 64
    official: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        x = jnp.where(mask[..., None], x.astype(jnp.float32), 0)
        logits = nn.Dense(1, name="out")(nn.Dense(self.hidden, name="in")(x))[..., 0]
        if self.official:
            weights = jax.lax.stop_gradient(jax.nn.softmax(logits))
        else:
            weights = jax.nn.softmax(jnp.where(mask, logits, -1e9)) * mask
        return jnp.einsum("...s,...sf->...f", weights, x)


class Content(nn.Module):
    """A modality of the catalogue to item vectors [...,d], zero where an item lacks it.

    With a mask `catalogue["rows"][modality]` bool[n,s] its features are s rows an item, [n,s,f] or
    side by side [n,s f] as `zoo embed --sentences` leaves them: these are pooled first.
    """

    modality: str
    width: int = 64
    experts: int = 8
    kind: str = "whitening"
    dropout: float = 0.2
    official: bool = False

    @nn.compact
    def __call__(self, catalogue: dict, ids: Array | None = None, train: bool = False) -> Array:
        x = read(catalogue["features"][self.modality], ids)
        there = present(catalogue, self.modality, ids)
        rows = _rows(catalogue, self.modality)
        if rows is not None:
            rows = read(rows, ids)
            x = x.reshape(*rows.shape, -1)
            x = Pool(official=self.official, name="pool")(x, rows)
        mixture = Experts(self.width, self.experts, self.kind, self.dropout, name="experts")
        return jnp.where(there[..., None], mixture(x, train), 0)


def read(table: Array, ids: Array | None) -> Array:
    """Rows `ids` of a table, or all of it."""
    return jnp.asarray(table) if ids is None else jnp.take(table, ids, axis=0)


def present(catalogue: dict, name: str, ids: Array | None = None) -> Array:
    """bool[...]: items that have the modality; for `id`, those that training has seen."""
    seen = catalogue["popularity"] > 0 if name == "id" else catalogue["present"][name]
    return read(catalogue["valid"] & seen, ids)


def wanted(catalogue: dict, modalities: tuple[str, ...] | None) -> tuple[str, ...]:
    """The modalities named, or all that the catalogue has, in order. Raises ValueError."""
    has = sorted(catalogue.get("features", {}))
    chosen = tuple(has) if modalities is None else tuple(modalities)
    absent = [m for m in chosen if m not in has]
    if absent or not chosen:
        raise ValueError(
            f"the model reads content {list(chosen) or '(any)'}; the catalogue has {has}. "
            "Add features to the data, or name modalities that it has."
        )
    return chosen


def _rows(catalogue: dict, name: str) -> Array | None:
    rows, shape = catalogue.get("rows", {}).get(name), catalogue["features"][name].shape
    if rows is None and len(shape) == 3:
        raise ValueError(
            f"features['{name}'] has several rows an item, shape {shape}, and catalogue['rows'] "
            f"has no mask for them: put bool{list(shape[:2])} there, False for padding rows."
        )
    return rows


def _each(x: Array, kernel: Array) -> Array:
    return jnp.einsum("...f,kfd->...kd", x, kernel)


def _row(x: Array, like: Array) -> Array:
    """[k,d] with leading axes for each of the [...,f] of `like`."""
    return x.reshape((1,) * (like.ndim - 1) + x.shape)
