"""RQ-VAE: an autoencoder with residual codebooks: k-means start, dead codes moved, usage watched.

With z = encoder(x), r_1 = z, e_l the row of codebook l nearest to r_l (Lee et al., 2022, arXiv
2203.01941; for item ids: TIGER, Rajput et al., 2023, arXiv 2305.05065):

    loss = |x - decoder(sum of e_l)|^2 + sum_l |sg[r_l] - e_l|^2 + beta |r_l - sg[e_l]|^2

The argmin has no gradient; `gradient` says what stands in for it:
    ste        e_l passes the decoder's gradient straight to r_l; r_{l+1} = sg[r_l - e_l]
    rotation   e_l is r_l rotated and rescaled, with that map held constant (Fifty et al., 2024,
               arXiv 2410.06424); its value differs from e_l by about 1e-6
    residual   straight through the sum alone; r_{l+1} = r_l - e_l keeps its gradients (MMGRec)
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import lax

from zoo.kmeans import check_vectors, kmeans, nearest, sample, squared_distances
from zoo.letter import Letter, check_teacher, collaborative, diversity, grouped
from zoo.optim import optimizer
from zoo.sinkhorn import balanced

Array = jax.Array
Params = Any
GRADIENTS = ("ste", "rotation", "residual")
DECAY_NOT = r"(bias|codebooks)"


class Mlp(nn.Module):
    """Dense layers with an activation between them."""

    widths: tuple[int, ...]
    activation: str = "relu"
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act = {"relu": nn.relu, "sigmoid": nn.sigmoid}[self.activation]
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, use_bias=self.bias, name=f"layer_{i}")(act(x) if i else x)
        return x


class RQVAE(nn.Module):
    """Vectors [n,f] to codes and back; sizes as in TIGER. Parameters are float32."""

    features: int
    hidden: tuple[int, ...] = (512, 256, 128)
    width: int = 32
    levels: int = 3
    size: int = 256
    gradient: str = "ste"
    decoder: str = "relu"  # activation; the encoder's is always relu
    bias: bool = True
    balance: float = 0.0  # > 0: the last level's codes by Sinkhorn with this epsilon, in training

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> dict[str, Array]:
        """Of float32 x [n,f]: z [n,d], codes int32 [n,c], residuals, chosen and passed [n,c,d],
        quantised [n,d], x_hat [n,f]. `train` puts the stand-in for the argmin's gradient in."""
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient is '{self.gradient}'; expected {', '.join(GRADIENTS)}.")
        shape = (self.levels, self.size, self.width)
        codebooks = self.param("codebooks", nn.initializers.normal(self.width**-0.5), shape)
        z = rest = Mlp((*self.hidden, self.width), "relu", self.bias, name="encoder")(x)
        levels = []
        for level, codebook in enumerate(codebooks):
            levels.append(self._level(rest, codebook, train, level == self.levels - 1))
            rest = rest - levels[-1]["passed"]
        out = {name: jnp.stack([level[name] for level in levels], 1) for name in levels[0]}
        quantised = out["passed"].sum(1)
        if train and self.gradient == "residual":
            quantised = z + lax.stop_gradient(quantised - z)
        decoder = Mlp((*self.hidden[::-1], self.features), self.decoder, self.bias, name="decoder")
        return {"z": z, **out, "quantised": quantised, "x_hat": decoder(quantised)}

    def _level(self, rest: Array, codebook: Array, train: bool, last: bool) -> dict[str, Array]:
        if train and last and self.balance > 0:
            distances = lax.stop_gradient(squared_distances(rest, codebook))
            codes = balanced(distances, self.balance).argmax(1).astype(jnp.int32)
        else:
            codes = nearest(rest, codebook)
        chosen = codebook[codes]
        stand_in = {"ste": straight, "rotation": rotated, "residual": lambda r, e: e}
        passed = stand_in[self.gradient](rest, chosen) if train else chosen
        return {"codes": codes, "residuals": rest, "chosen": chosen, "passed": passed}


def nested(arrays: dict[str, Array]) -> Params:
    """Parameters of arrays by their path, as in {"encoder/layer_0/bias": ...}."""
    return unflatten_dict(arrays, sep="/")


def straight(r: Array, e: Array) -> Array:
    """e in value, r in gradient [n,d] (Bengio et al., 2013)."""
    return r + lax.stop_gradient(e - r)


def rotated(r: Array, e: Array) -> Array:
    """e [n,d] as a constant rotation and rescaling of r [n,d] (arXiv 2410.06424, section 4.2)."""

    def length(x: Array) -> Array:
        return jnp.linalg.norm(x, axis=1, keepdims=True)

    u, q = (lax.stop_gradient(x / (length(x) + 1e-8)) for x in (r, e))
    w = (u + q) / jnp.maximum(length(u + q), 1e-6)
    scale = lax.stop_gradient(length(e) / (length(r) + 1e-6))
    along_w, along_u = ((r * y).sum(1, keepdims=True) for y in (w, u))
    return (r - 2 * along_w * w + 2 * along_u * q) * scale


def rqvae_loss(
    out: dict[str, Array], x: Array, commitment: float = 0.25, mean: bool = False
) -> tuple[Array, dict[str, Array]]:
    """The loss above, the mean over rows, and its parts by name.

    Squares are summed over columns, or with `mean` averaged (MMGRec's scale).
    """
    reduce = jnp.mean if mean else jnp.sum
    r, e, sg = out["residuals"], out["chosen"], lax.stop_gradient
    parts = {
        "reconstruction": reduce((x - out["x_hat"]) ** 2, -1).mean(),
        "codebook": reduce((sg(r) - e) ** 2, -1).sum(1).mean(),
        "commitment": reduce((r - sg(e)) ** 2, -1).sum(1).mean(),
    }
    loss = parts["reconstruction"] + parts["codebook"] + commitment * parts["commitment"]
    return loss, parts


@partial(jax.jit, static_argnames="size")
def usage(codes: Array, size: int) -> dict[str, Array]:
    """By level [c] of codes int[n,c]: `used` codes, `perplexity` exp(-sum p ln p), `largest`."""
    counts = jax.vmap(lambda level: jnp.bincount(level, length=size), 1)(codes)
    p = counts / codes.shape[0]
    perplexity = jnp.exp(-jax.scipy.special.xlogy(p, p).sum(1))
    return {"used": (counts > 0).sum(1), "perplexity": perplexity, "largest": counts.max(1)}


def collapsed(codes: Array, size: int) -> Array:
    """bool[c]: levels whose perplexity is below a tenth of their codes, the sign of collapse."""
    return usage(codes, size)["perplexity"] < 0.1 * size


@partial(jax.jit, static_argnames=("module", "steps"))
def start_by_kmeans(module: RQVAE, params: Params, x: Array, key: Array, steps: int = 10) -> Params:
    """Parameters whose codebooks are the residual k-means of the encoded x [n,f], n >= size."""
    rest, codebooks = module.apply({"params": params}, x)["z"], []
    for level in range(module.levels):
        codebook = kmeans(rest, jax.random.fold_in(key, level), module.size, steps)
        codebooks.append(codebook)
        rest = rest - codebook[nearest(rest, codebook)]
    return {**params, "codebooks": jnp.stack(codebooks)}


@partial(jax.jit, static_argnames="module")
def reset_dead(module: RQVAE, params: Params, x: Array, key: Array) -> Params:
    """Codes that no row of x [n,f] chooses move to the residuals of distinct rows, n >= size.

    Level after level, so that each level sees what the mended ones before it leave over.
    """
    rest, codebooks = module.apply({"params": params}, x)["z"], []
    for level, codebook in enumerate(params["codebooks"]):
        dead = jnp.bincount(nearest(rest, codebook), length=module.size) == 0
        drawn = sample(rest, jax.random.fold_in(key, level), module.size)
        codebooks.append(jnp.where(dead[:, None], drawn, codebook))
        rest = rest - codebooks[-1][nearest(rest, codebooks[-1])]
    return {**params, "codebooks": jnp.stack(codebooks)}


def fit_rqvae(
    module: RQVAE,
    x: Array,
    seed: int = 0,
    epochs: int = 1000,
    batch: int = 1024,
    rate: float = 1e-3,
    weight_decay: float = 0.01,
    commitment: float = 0.25,
    reset_every: int = 10,
    reset_until: float = 2 / 3,
    letter: Letter | None = None,
) -> tuple[Params, list[dict[str, Any]]]:
    """Parameters fitted to standardised float32 x [n,f], and each epoch's loss and usage.

    AdamW in whole batches (rows left over wait for another epoch's order). Dead codes are reset
    every `reset_every` epochs (0: never) during the first `reset_until` of them. letter: further
    terms of the loss (letter.py). Raises ValueError for NaN and for fewer rows than codes,
    FloatingPointError, naming the epoch, when the loss is not finite.
    """
    check_vectors(x, module.size)
    x = jnp.asarray(x, jnp.float32)
    if letter is not None:
        check_teacher(letter, len(x), module.width)
    first, start, key = jax.random.split(jax.random.key(seed), 3)
    params = jax.jit(module.init)(first, x[:1])["params"]
    params = start_by_kmeans(module, params, x, start)
    tx = optimizer(rate, weight_decay=weight_decay, no_decay=DECAY_NOT)
    state, history = tx.init(params), []
    weights = None if letter is None else letter._replace(teacher=None)
    epoch = jax.jit(partial(_epoch, module, tx, min(batch, len(x)), commitment, weights))
    known = {"x": x, "teacher": None if letter is None else letter.teacher}
    for i in range(epochs):
        order, reset = jax.random.split(jax.random.fold_in(key, i))
        if reset_every and i and i % reset_every == 0 and i < reset_until * epochs:
            params = reset_dead(module, params, x, reset)
        params, state, metrics = epoch(params, state, known, order)
        history.append(jax.device_get(metrics))
        if not np.isfinite(history[-1]["loss"]):
            raise FloatingPointError(
                f"RQ-VAE: the loss of epoch {i} is {history[-1]['loss']}: lower rate (now {rate}), "
                "and standardise the vectors."
            )
    return params, history


def _epoch(module: RQVAE, tx, batch: int, commitment: float, letter, params, state, known, key):
    """One pass in an order of its own; metrics are means over steps, usage over the whole of x."""
    x, teacher = known["x"], known["teacher"]
    rows = jax.random.permutation(key, x.shape[0])[: x.shape[0] // batch * batch]
    apart, group_key = jax.random.split(jax.random.fold_in(key, 1))
    group = None if letter is None else grouped(params["codebooks"], letter.groups, group_key)

    def objective(params, rows):
        out = module.apply({"params": params}, x[rows], train=True)
        loss, parts = rqvae_loss(out, x[rows], commitment)
        if letter is None:
            return loss, parts
        key = jax.random.fold_in(apart, rows[0])
        parts["diversity"] = diversity(params["codebooks"], out["codes"], group, key)
        loss += letter.beta * parts["diversity"]
        if teacher is not None:
            parts["collaborative"] = collaborative(out["quantised"], teacher[rows])
            loss += letter.alpha * parts["collaborative"]
        return loss, parts

    def step(carry, rows):
        params, state = carry
        (loss, parts), grads = jax.value_and_grad(objective, has_aux=True)(params, rows)
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), {"loss": loss, **parts}

    (params, state), metrics = lax.scan(step, (params, state), rows.reshape(-1, batch))
    codes = module.apply({"params": params}, x)["codes"]
    return params, state, {**jax.tree.map(jnp.mean, metrics), **usage(codes, module.size)}
