"""fuse(a, b): two recommenders as one; a counting model as the prior of a neural one.

`mixture`  softmax(a) + weight * b / sum b    either may vote an item up
`product`  a + weight * ln(b + epsilon)       b is a prior on a's softmax: both must agree

a's scores are logits, b's count-like numbers >= 0, both over the candidates left by `exclude`. The
weight is chosen on validation (benchmarks/fusion.py); the parts are trained or counted apart.
"""

import jax
import jax.numpy as jnp

from zoo.recommender import Recommender
from zoo.scorer import scorer

Array = jax.Array
WAYS = ("mixture", "product")


def fuse(
    a: Recommender,
    b: Recommender,
    weight: float = 1.0,
    how: str = "mixture",
    epsilon: float = 1e-3,
) -> Recommender:
    """One recommender of two; parameters {'a': ..., 'b': ...}. Memory of a query: O(n).

    Parameters may hold a `weight`, in place of the one here: many can be tried by one compilation.
    """
    if how not in WAYS:
        raise ValueError(f"how is '{how}'; expected one of {', '.join(WAYS)}.")
    if a.match is None or b.match is None:
        raise ValueError(
            "a fusion adds up the scores of all items; a model that searches (tiger, mmgrec, "
            "liger, mql4grec) scores only what it finds, so it takes no prior."
        )

    def init(key, catalogue, batch):
        first, second = jax.random.split(key)
        return {"a": a.init(first, catalogue, batch), "b": b.init(second, catalogue, batch)}

    def loss(params, catalogue, batch, key):
        first, second = jax.random.split(key)
        value_a, metrics = a.loss(params["a"], catalogue, batch, first)
        value_b, _ = b.loss(params["b"], catalogue, batch, second)
        return value_a + value_b, metrics

    def index(params, catalogue):
        parts = {"a": a.index(params["a"], catalogue), "b": b.index(params["b"], catalogue)}
        return {**parts, "valid": catalogue["valid"]}

    def scores(part, params, index, batch):
        name = "a" if part is a else "b"
        query = part.encode(params[name], index[name], batch)
        items = jnp.arange(len(index["valid"]))
        return part.match(params[name], index[name], query, items)

    def encode(params, index, batch):
        w = params.get("weight", weight)
        logits, counts = (scores(part, params, index, batch) for part in (a, b))
        counts = jnp.maximum(counts, 0.0)
        if how == "product":
            return logits + w * jnp.log(counts + epsilon)
        left = _left(index["valid"], batch)
        chance = jax.nn.softmax(jnp.where(left, logits, -1e9))
        counts = jnp.where(left, counts, 0.0)
        total = jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1e-30)
        return chance + w * counts / total

    def match(params, index, query, items):
        if items.ndim == 1:
            return jnp.take(query, items, axis=1)
        return jnp.take_along_axis(query, items, axis=1)

    def prepare(catalogue, parts=1):
        return b.prepare(catalogue, parts) | a.prepare(catalogue, parts)

    def draw(params, catalogue, key):
        first, second = jax.random.split(key)
        return b.draw(params["b"], a.draw(params["a"], catalogue, first), second)

    return scorer(init, loss, index, encode, match, prepare=prepare, draw=draw)


def _left(valid: Array, batch: dict) -> Array:
    """bool[b,n]: candidates that the history does not take away."""
    rows = jnp.arange(len(batch["items"]))[:, None]
    left = jnp.broadcast_to(valid[None, :], (len(batch["items"]), len(valid)))
    return left.at[rows, batch["exclude"]].set(False) if "exclude" in batch else left
