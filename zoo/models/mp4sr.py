"""MP4SR: one trunk over the streams of all modalities, pretrained by contrast among them.

MP4SR (Zhang et al. 2023, arXiv 2303.11879), for any number of modalities m that the catalogue has:

    z^m = Experts_m(Pool_m(features^m)); h^m = trunk(z^m + position) at the newest item, shared
    pretrain  sum_m NIP_m + `contrast` x sum over pairs CMCL, with items dropped at random and
              vectors exchanged between the streams (zoo/contrast.py, zoo/augment.py)
    finetune  an ID joins inputs and candidates: f_i = sum_m cos(h^m, z^m_i + id_i) / temperature,
              full softmax over the items that training has seen (as never-seen ones would only
              be pushed away)

Several rows an item, which Pool weighs, are made by `zoo embed --sentences 10`, or come from the
caller: features [n,s,f] with catalogue["rows"] bool[n,s].
What an item lacks has no term in its sum, and a history without a modality no say in that stream.
The order of `modalities` matters to CMCL, which is not symmetric: the first one's states are its
rows, which in the paper are the text's, as here where none are named.
Train:  zoo train mp4sr --data amazon-beauty --out runs/mp4sr
"""

from itertools import combinations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import losses
from zoo.augment import complementary_mixup, drop_items
from zoo.contrast import cmcl, nip
from zoo.experts import Content, present, read, wanted
from zoo.layers import Stack, Table, Trunk, check_fits
from zoo.models import sequential
from zoo.objectives import Objective
from zoo.recommender import Incremental, Recommender
from zoo.retrieval import dot_match
from zoo.scorer import scorer

Array = jax.Array

# Regexes of the parameters that a stage trains: fine-tuning goes on with all of them.
TRAINABLE: dict[str, tuple[str, ...]] = {"pretrain": (r".*",), "finetune": (r".*",)}


class Streams(nn.Module):
    """Item ids to one vector a modality, and whether there is one: ([...,m,d], bool[...,m]).

    With an ID, which every stream adds, an item that training has seen has all its vectors.
    """

    width: int = 64
    modalities: tuple[str, ...] | None = None  # None: all that the catalogue has, text first
    with_id: bool = False
    experts: int = 8
    dropout: float = 0.2
    official: bool = False

    @nn.compact
    def __call__(self, catalogue: dict, ids: Array | None = None, train: bool = False):
        names = wanted(catalogue, self.modalities)
        names = sorted(names, key=lambda m: m != "text") if self.modalities is None else names
        x = jnp.stack([self._content(m)(catalogue, ids, train) for m in names], axis=-2)
        there = jnp.stack([present(catalogue, m, ids) for m in names], axis=-1)
        if not self.with_id:
            return x, there
        seen = present(catalogue, "id", ids)[..., None]
        row = read(Table(len(catalogue["valid"]), self.width, name="id")(), ids)
        return x + jnp.where(seen, row, 0)[..., None, :], there | seen

    def _content(self, modality: str) -> Content:
        fields = (self.width, self.experts, "norm", self.dropout, self.official)
        return Content(modality, *fields, name=modality)


def mp4sr(
    stage: str = "finetune",
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    max_len: int = 50,
    dropout: float = 0.2,
    multiplier: int = 4,
    experts: int = 8,
    adaptor_dropout: float = 0.2,
    modalities: tuple[str, ...] | None = None,
    temperature: float = 0.07,
    drop_rate: float = 0.2,
    mix_rate: float = 0.5,
    contrast: float = 0.01,
    official: bool = False,
    dtype: str = "float32",
) -> Recommender:
    """The recommender of a stage, `pretrain` or `finetune`, on batches of the scheme `last`.

    drop_rate, mix_rate: the most that a batch's own rate is drawn from. `official` follows the
    published code where it differs from the paper: zoo/contrast.py, experts.Pool, and the
    padding item among the candidates of fine-tuning (a zero vector here, so a logit of 0); not in
    its random drop, which is undefined on parallel hardware. Kernels start as Flax draws them
    (LeCun normal), where that code takes N(0, .02).
    Raises ValueError for an unknown stage.
    """
    if stage not in TRAINABLE:
        raise ValueError(f"stage is '{stage}'; expected one of {', '.join(TRAINABLE)}.")
    items = Streams(width, modalities, stage == "finetune", experts, adaptor_dropout, official)
    stack = Stack(layers, "post", heads, "gelu", multiplier, dropout, 1e-12, jnp.dtype(dtype))
    trunk = Trunk(max_len, scale=False, dropout=dropout, stack=stack, norm=True)
    objective = Objective("ce", temperature=temperature)

    def init(key, catalogue, batch):
        a, b = jax.random.split(key)
        item_params = items.init(a, catalogue, batch["items"])["params"]
        x = jnp.zeros((*batch["items"].shape, width))
        return {"items": item_params, "trunk": trunk.init(b, x, batch)["params"]}

    def streams(params, catalogue, ids, key=None):
        rngs = None if key is None else {"dropout": key}
        return items.apply({"params": params["items"]}, catalogue, ids, key is not None, rngs=rngs)

    def states(params, x, there, batch, ends, key=None):
        """Unit states [b,s,m,d] at `ends` [b,s]; zero where the segment has no such modality."""
        m = x.shape[2]
        every = {k: jnp.tile(batch[k], (m, 1)) for k in ("segments", "positions")}
        x = jnp.moveaxis(x, 2, 0).reshape(-1, *batch["items"].shape[1:], width)
        h = sequential.states(trunk, params, x, every, key, jnp.tile(ends, (m, 1)))
        h = losses.normalise(jnp.moveaxis(h.reshape(m, *ends.shape, width), 0, 2))
        return h * _heard(there, batch["segments"], ends)[..., None]

    def pretrain(params, catalogue, batch, key):
        keys = jax.random.split(key, 5)
        length, targets = batch["items"].shape[1], batch["targets"].reshape(-1)
        ids = jnp.concatenate([batch["items"], batch["targets"]], axis=1)
        x, there = streams(params, catalogue, ids, keys[0])
        rate = jax.random.uniform(keys[1], (), maxval=drop_rate)
        kept = drop_items(keys[2], batch, rate)
        z, x = losses.normalise(x[:, length:].reshape(len(targets), -1, width)), x[:, :length]
        x = _exchanged(keys[3], x, there[:, :length], mix_rate)
        h = states(params, x, there[:, :length], kept, kept["ends"], keys[4])
        h = h.reshape(z.shape)
        real, held = targets > 0, there[:, length:].reshape(len(targets), -1)
        return _contrasts(h, z, targets, real, held)

    def _contrasts(h, z, targets, real, held):
        m = h.shape[1]
        heard = real[:, None] & jnp.any(h != 0, axis=-1)
        own = (heard & held).astype(jnp.float32)
        predicted = sum(
            nip(h[:, i], z[:, i], targets, temperature, own[:, i], official) for i in range(m)
        )
        crossed = sum(
            cmcl(
                h[:, i],
                h[:, j],
                targets,
                temperature,
                (heard[:, i] & heard[:, j]).astype(jnp.float32),
                official,
            )
            for i, j in combinations(range(m), 2)
        )
        metrics = {"targets": jnp.sum(real.astype(jnp.float32)), "nip": predicted}
        if m > 1:
            metrics["cmcl"] = crossed
        return predicted + contrast * crossed, metrics

    def finetune(params, catalogue, batch, key):
        item_key, trunk_key = jax.random.split(key)
        x, there = streams(params, catalogue, None, item_key)
        ids = batch["items"]
        q = states(params, x[ids], there[ids], batch, batch["ends"], trunk_key)
        targets = batch["targets"].reshape(-1)
        weights = (targets > 0).astype(jnp.float32)
        q, among = q.reshape(len(targets), -1), _with_padding(catalogue) if official else catalogue
        value = objective(q, targets, weights, None, lambda: _joined(x, there), among, key)
        return value, {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        x, there = streams(params, catalogue, None)
        table = _joined(x, there)
        return {"table": table, "inputs": x, "there": there, "valid": catalogue["valid"]}

    def encode(params, index, batch):
        check_fits(batch, max_len)  # the trunk reads rows that have lost their query
        x, there = (jnp.take(index[k], batch["items"], axis=0) for k in ("inputs", "there"))
        h = states(params, x, there, batch, batch["query"][:, None])
        return h.reshape(len(h), -1) / temperature

    def match(params, index, query, ids):
        return dot_match(index["table"], query, ids)

    def begin(index, b):
        m = index["inputs"].shape[1]
        return {"read": trunk.empty(m * b, width), "heard": jnp.zeros((b, m), bool)}

    def extend(params, index, memory, ids, times=None):
        del times
        heard = memory["heard"] | jnp.take(index["there"], ids, axis=0)
        x = jnp.moveaxis(jnp.take(index["inputs"], ids, axis=0), 1, 0).reshape(-1, 1, width)
        h, read = trunk.apply({"params": params["trunk"]}, x, {}, False, memory["read"])
        h = losses.normalise(jnp.moveaxis(h.reshape(-1, len(ids), width), 0, 1)) * heard[..., None]
        return h.reshape(len(ids), -1) / temperature, {"read": read, "heard": heard}

    value, grows = pretrain if stage == "pretrain" else finetune, Incremental(begin, extend)
    return scorer(init, value, index, encode, match, incremental=grows)


def _joined(x: Array, there: Array) -> Array:
    """Unit vectors of all streams side by side [n,m d]: their inner products sum the cosines."""
    return (losses.normalise(x) * there[..., None]).reshape(len(x), -1)


def _heard(there: Array, segments: Array, ends: Array) -> Array:
    """bool[b,s,m]: does the segment hold, up to there, an item with the modality?"""
    own = jnp.take_along_axis(segments, ends, axis=1)
    inside = (own[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    inside &= jnp.arange(segments.shape[1])[None, None, :] <= ends[:, :, None]
    return jnp.any(inside[..., None] & there[:, None], axis=2)


def _exchanged(key: Array, x: Array, there: Array, most: float) -> Array:
    """Mixup between the streams of x [b,l,m,d], where an item has all of them."""
    mixed = complementary_mixup(key, jnp.moveaxis(x, 2, 0), jnp.all(there, axis=2), most)
    return jnp.moveaxis(mixed, 0, 2)


def _with_padding(catalogue: dict) -> dict:
    """The catalogue with the padding item among the candidates."""
    valid, popularity = jnp.asarray(catalogue["valid"]), jnp.asarray(catalogue["popularity"])
    return {**catalogue, "valid": valid.at[0].set(True), "popularity": popularity.at[0].set(1.0)}
