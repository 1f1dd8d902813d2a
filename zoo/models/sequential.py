"""sequential(items, trunk, objective): every next-item model of the zoo is this, configured."""

import jax
import jax.numpy as jnp

from zoo.items import Items
from zoo.layers import Trunk
from zoo.objectives import Objective
from zoo.recommender import Recommender
from zoo.retrieval import dot_match, scorer

Array = jax.Array


def sequential(items: Items, trunk: Trunk, objective: Objective) -> Recommender:
    """A history encoder over item vectors, scored by inner product with the same vectors.

    The catalogue's item matrix is computed once a step and shared by input and output (tied).
    """

    def init(key, catalogue, batch):
        a, b = jax.random.split(key)
        item_params = items.init(a, catalogue, batch["items"])["params"]
        x = jnp.zeros((*batch["items"].shape, items.width))
        return {"items": item_params, "trunk": trunk.init(b, x, batch)["params"]}

    def item_vectors(params, catalogue, ids, key):
        rngs = {"dropout": key}
        return items.apply({"params": params["items"]}, catalogue, ids, True, rngs=rngs)

    def states(params, x, batch, train, key=None):
        rngs = {"dropout": key} if train else None
        return trunk.apply({"params": params["trunk"]}, x, batch, train, rngs=rngs)

    def loss(params, catalogue, batch, key):
        item_key, trunk_key, negative_key = jax.random.split(key, 3)
        if objective.name == "ce":
            table = item_vectors(params, catalogue, None, item_key)
            vectors, matrix = (lambda ids: jnp.take(table, ids, axis=0)), (lambda: table)
        else:
            vectors = lambda ids: item_vectors(params, catalogue, ids, item_key)  # noqa: E731
            matrix = lambda: item_vectors(params, catalogue, None, item_key)  # noqa: E731
        h = states(params, vectors(batch["items"]), batch, True, trunk_key)
        targets = batch["targets"].reshape(-1)
        weights = (targets > 0).astype(jnp.float32)
        q = h.reshape(-1, h.shape[-1])
        value = objective(q, targets, weights, vectors, matrix, catalogue, negative_key)
        return value, {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        table = items.apply({"params": params["items"]}, catalogue)
        return {"table": table, "valid": catalogue["valid"]}

    def encode(params, index, batch):
        h = states(params, jnp.take(index["table"], batch["items"], axis=0), batch, False)
        at = jnp.broadcast_to(batch["query"][:, None, None], (len(h), 1, h.shape[-1]))
        return objective.scaled(jnp.take_along_axis(h, at, axis=1)[:, 0])

    def match(params, index, query, ids):
        return dot_match(objective.items(index["table"]), query, ids)

    return scorer(init, loss, index, encode, match)
