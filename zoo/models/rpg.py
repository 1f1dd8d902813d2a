"""RPG: long unordered semantic ids, all their codes predicted at once, every item scored exactly.

Hou et al. 2025 (KDD, arXiv 2506.05781). An item is the set of its D codes; what the history holds
of it is the mean of their vectors. State h gives D heads h_d = h + SiLU(W_d h), and
    ln p_d(v) = log softmax_v cos(h_d, e_{d,v}) / temperature,   score = mean_d ln p_d(c_d)
with W_d zero at the start. Nothing is searched: below a million items the sum over codes is a
gather. The codes are those of product quantisation (`--codes opq`).
Train:  zoo train rpg --data amazon-beauty --codes opq --out runs/rpg
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Stack, Trunk, init_normal
from zoo.losses import mean, normalise
from zoo.models import sequential
from zoo.models.generative import one_vocabulary
from zoo.recommender import Recommender
from zoo.scorer import scorer

Array = jax.Array
UNSPELLED = -1e9  # the score of an item without codes


class CodeSum(nn.Module):
    """The mean of an item's code vectors, and its codes' log-probabilities under a state.

    levels: codes of an item; size: codes a level can hold.
    """

    levels: int
    size: int = 256
    width: int = 64
    temperature: float = 0.05

    def setup(self):
        self.codes = self.param("codes", init_normal, (self.levels, self.size, self.width))
        shape = (self.levels, self.width, self.width)
        self.heads = self.param("heads", nn.initializers.zeros, shape)

    def __call__(self, codes: Array) -> Array:
        """[...,d] of codes int[...,c]; zero where an item has none."""
        rows = jnp.arange(self.levels).reshape((1,) * (codes.ndim - 1) + (-1,)) * self.size
        flat = self.codes.reshape(-1, self.width)
        x = jnp.take(flat, jnp.maximum(codes, 0) + rows, axis=0)
        return jnp.mean(x, axis=-2) * (codes[..., :1] >= 0)

    def log_p(self, h: Array) -> Array:
        """ln p float32 [p,c,v] of every code under states [p,d]."""
        own = h[:, None] + nn.silu(jnp.einsum("pd,cde->pce", h, self.heads))
        cosine = jnp.einsum("pce,cve->pcv", normalise(own), normalise(self.codes))
        return jax.nn.log_softmax(cosine.astype(jnp.float32) / self.temperature)


def rpg(
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    multiplier: int = 2,
    max_len: int = 50,
    dropout: float = 0.5,
    temperature: float = 0.05,
    size: int = 256,
) -> Recommender:
    """score = mean over an item's codes of ln p; `size`: codes a level, as they were quantised."""
    trunk = Trunk(max_len, True, dropout, Stack(layers, "pre", heads, "gelu", multiplier, dropout))

    def codes_of(holder) -> CodeSum:
        return CodeSum(holder["codes"].shape[1], size, width, temperature)

    def init(key, catalogue, batch):
        a, b = jax.random.split(key)
        x = jnp.zeros((*batch["items"].shape, width))
        first = catalogue["codes"][:1]
        return {
            "items": codes_of(catalogue).init(a, first)["params"],
            "trunk": trunk.init(b, x, batch)["params"],
        }

    def apply(params, holder, method, *args):
        return codes_of(holder).apply({"params": params["items"]}, *args, method=method)

    def states(params, holder, batch, key=None, columns=None):
        x = apply(params, holder, None, jnp.take(holder["codes"], batch["items"], axis=0))
        return sequential.states(trunk, params, x, batch, key, columns)

    def loss(params, catalogue, batch, key):
        h = states(params, catalogue, batch, key)
        targets = batch["targets"].reshape(-1)
        wanted = jnp.take(catalogue["codes"], targets, axis=0)
        log_p = apply(params, catalogue, "log_p", h.reshape(-1, width))
        own = jnp.take_along_axis(log_p, jnp.maximum(wanted, 0)[:, :, None], axis=-1)[..., 0]
        weights = ((targets > 0) & (wanted[:, 0] >= 0)).astype(jnp.float32)
        return -mean(jnp.mean(own, axis=-1), weights), {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        return {"codes": catalogue["codes"], "valid": catalogue["valid"]}

    def encode(params, index, batch):
        h = states(params, index, batch, columns=batch["query"][:, None])
        return apply(params, index, "log_p", h[:, 0])

    def match(params, index, query, ids):
        codes = jnp.take(index["codes"], ids, axis=0, mode="clip")  # c levels, or b c levels
        safe = jnp.maximum(codes, 0)
        total = 0.0
        for level in range(query.shape[1]):
            at = safe[..., level]
            if at.ndim == 1:
                total += jnp.take(query[:, level], at, axis=1)
            else:
                total += jnp.take_along_axis(query[:, level], at, axis=1)
        spelled = (codes[..., 0] >= 0).reshape((-1, codes.shape[-2]))
        return jnp.where(spelled, total / query.shape[1], UNSPELLED)

    def prepare(catalogue, parts=1):
        if not isinstance(catalogue.get("codes", {}), dict):
            return catalogue  # ready already
        name, codes, sizes = one_vocabulary(catalogue)
        if max(sizes) > size:
            raise ValueError(
                f"the codes '{name}' go up to {max(sizes)} a level, the model has room for {size}: "
                f"set --model.size {max(sizes)}."
            )
        kept = {k: v for k, v in catalogue.items() if k not in ("codes", "sizes")}
        return {**kept, "codes": codes}

    every = scorer(init, loss, index, encode, match, prepare=prepare)

    def recommend(params, index, batch, k):
        """Without items that have no codes: they rank last, and nobody wants to see them."""
        items, scores = every.recommend(params, index, batch, k)
        listed = scores > UNSPELLED / 2
        return jnp.where(listed, items, 0), jnp.where(listed, scores, -jnp.inf)

    return every._replace(recommend=recommend)
