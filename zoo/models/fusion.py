"""fuse(a, b): two recommenders as one; a counting model as the prior of a neural one.

Read as a product of experts: exp(a) * (b + epsilon)^weight, so that b's score, a count-like number
>= 0, works as a prior on a's softmax. The weight is chosen on validation; both parts stay as they
are. Specs: sequential models, section 2, the untested hypothesis.
"""

import jax
import jax.numpy as jnp

from zoo.recommender import Recommender
from zoo.retrieval import scorer


def fuse(a: Recommender, b: Recommender, weight: float = 1.0, epsilon: float = 1e-3) -> Recommender:
    """Score = a + weight * ln(b + epsilon), b's scores >= 0. Parameters: {'a': ..., 'b': ...}."""

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

    def encode(params, index, batch):
        return {
            "a": a.encode(params["a"], index["a"], batch),
            "b": b.encode(params["b"], index["b"], batch),
        }

    def match(params, index, query, items):
        first = a.match(params["a"], index["a"], query["a"], items)
        second = b.match(params["b"], index["b"], query["b"], items)
        return first + weight * jnp.log(jnp.maximum(second, 0.0) + epsilon)

    return scorer(init, loss, index, encode, match)
