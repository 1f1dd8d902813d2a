"""sequential(items, trunk, objective): every next-item model of the zoo is this, configured."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.items import Items
from zoo.names import check
from zoo.objectives import HISTORY, Objective
from zoo.places import columns_behind
from zoo.recommender import Incremental, Recommender
from zoo.retrieval import dot_match
from zoo.scorer import scorer

Array = jax.Array


class Reading(NamedTuple):
    """What the trunk reads of a batch, and at which columns it is asked for which items.

    x are item vectors [b,l,d]; `columns` [b,s] or, for all of them, None; targets as many.
    """

    init: Callable[..., dict[str, Any]]  # (key, width) -> parameters of its own
    learn: Callable[..., tuple]  # (params, x, batch, key) -> x, batch, columns, targets [b,s]
    ask: Callable[..., tuple]  # (params, x, batch) -> x, batch, column [b] of the query


def _learn(params, x, batch, key):
    return x, batch, batch.get("ends"), batch["targets"]


def _ask(params, x, batch):
    """The query's own state; a trunk that looks ahead must not see what came after it."""
    seen = jnp.arange(x.shape[1])[None, :] <= batch["query"][:, None]
    return x, {**batch, "segments": batch["segments"] * seen}, batch["query"]


next_item = Reading(lambda key, width: {}, _learn, _ask)
ALIGN = ("left", "right")


def counted_back(batch: dict[str, Array], newest: int) -> dict[str, Array]:
    """The batch with positions that count back from `newest`, each history's last."""
    return {**batch, "positions": newest - columns_behind(batch["segments"])}


def aligned(align: str, max_len: int) -> Reading:
    """`left`: positions count from the oldest item, so that a history grows without being read
    anew; `right`: back from the newest, which is then always at the same one."""
    check(align=(align, ALIGN))
    if align == "left":
        return next_item

    def learn(params, x, batch, key):
        return _learn(params, x, counted_back(batch, max_len - 1), key)

    def ask(params, x, batch):
        x, batch, column = _ask(params, x, batch)
        return x, counted_back(batch, max_len - 1), column

    return next_item._replace(learn=learn, ask=ask)


class Head(NamedTuple):
    """What stands between states and the items they are compared with."""

    init: Callable[..., dict[str, Any]]  # (key, width, rows) -> parameters of its own
    query: Callable[[dict, Array], Array]  # (params, states [...,d]) -> [...,e]
    items: Callable[..., Array]  # (params, vectors [...,d], their ids, None: all) -> [...,e]


tied = Head(lambda key, width, rows: {}, lambda params, h: h, lambda params, x, ids=None: x)


def states(
    trunk: nn.Module,
    params: dict,
    x: Array,
    batch: dict[str, Array],
    key: Array | None = None,
    columns: Array | None = None,
) -> Array:
    """[b,l,d], or [b,s,d] at `columns` int[b,s], of the trunk of params["trunk"]; with a key, as in
    training."""
    own, rngs = {"params": params["trunk"]}, None if key is None else {"dropout": key}
    return trunk.apply(own, x, batch, key is not None, columns=columns, rngs=rngs)


def sequential(
    items: Items,
    trunk: nn.Module,
    objective: Objective,
    reading: Reading = next_item,
    head: Head = tied,
) -> Recommender:
    """A history encoder over item vectors, scored by inner product with the same vectors.

    The catalogue's item matrix is computed once a step and shared by input and output (tied).
    trunk: (x [b,l,d], batch, train, columns=int[b,s] or None) -> states [b,s,d] at the columns, or
    [b,l,d], as layers.Trunk.
    """

    def init(key, catalogue, batch):
        a, b, c = jax.random.split(key, 3)
        item_params = items.init(a, catalogue, batch["items"])["params"]
        x = jnp.zeros((*batch["items"].shape, items.width))
        params = {"items": item_params, "trunk": trunk.init(b, x, batch)["params"]}
        own = head.init(jax.random.fold_in(c, 1), items.width, len(catalogue["valid"]))
        return params | reading.init(c, items.width) | own

    def item_vectors(params, catalogue, ids, key):
        rngs = {"dropout": key}
        return items.apply({"params": params["items"]}, catalogue, ids, True, rngs=rngs)

    def loss(params, catalogue, batch, key):
        item_key, trunk_key, negative_key, read_key = jax.random.split(key, 4)
        if objective.name == "ce":
            table = item_vectors(params, catalogue, None, item_key)
            vectors, matrix = (lambda ids, role: jnp.take(table, ids, axis=0)), (lambda: table)
        else:
            own = lambda role: jax.random.fold_in(item_key, role)  # noqa: E731
            vectors = lambda ids, role: item_vectors(params, catalogue, ids, own(role))  # noqa: E731
            matrix = lambda: item_vectors(params, catalogue, None, item_key)  # noqa: E731
        x = vectors(batch["items"], HISTORY)
        x, batch, columns, targets = reading.learn(params, x, batch, read_key)
        h = states(trunk, params, x, batch, trunk_key, columns)
        targets = targets.reshape(-1)
        weights = (targets > 0).astype(jnp.float32)
        q = head.query(params, h.reshape(-1, h.shape[-1]))
        compared = lambda ids, role: head.items(params, vectors(ids, role), ids)  # noqa: E731
        every = lambda: head.items(params, matrix())  # noqa: E731
        value = objective(q, targets, weights, compared, every, catalogue, negative_key)
        return value, {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        table = items.apply({"params": params["items"]}, catalogue)
        own = {} if head is tied else {"compared": head.items(params, table)}
        return {"table": table, "valid": catalogue["valid"], **own}

    def encode(params, index, batch):
        x = jnp.take(index["table"], batch["items"], axis=0)
        x, batch, column = reading.ask(params, x, batch)
        h = states(trunk, params, x, batch, columns=column[:, None])
        return objective.scaled(head.query(params, h[:, 0]))

    def match(params, index, query, ids):
        return dot_match(objective.items(index.get("compared", index["table"])), query, ids)

    def begin(index, b):
        del index
        return trunk.empty(b, items.width)

    def extend(params, index, memory, ids, times=None):
        x = jnp.take(index["table"], ids, axis=0)[:, None]
        batch = {} if times is None else {"times": times[:, None]}
        h, memory = trunk.apply({"params": params["trunk"]}, x, batch, False, memory)
        return objective.scaled(head.query(params, h[:, 0])), memory

    grows = reading is next_item and getattr(trunk, "causal", False)
    incremental = Incremental(begin, extend) if grows else None
    return scorer(init, loss, index, encode, match, incremental=incremental)
