"""The contract: a recommender is a NamedTuple of pure functions.

Two data types cross it. A `catalogue` is a pytree of per-item arrays with n rows, row 0 the
padding item and the last rows padding up to a round number:

    valid       bool[n]            rows that may be recommended
    popularity  float32[n]         train counts
    features    {m: float32[n,f]}  content vectors by modality
    present     {m: bool[n]}       which items have the modality
    users       float32[u]         train counts of the users, row 0 the unknown one

    codes       {v: int32[n,c]}    semantic ids by vocabulary, -1 where an item has none
    sizes       {v: int32[c]}      codes of each level

Models that need more make it themselves, once, in `prepare`: the graph family turns
    train       {users: int32[e], items: int32[e]}   the train interactions
into sparse matrices (graph.py).

A `batch` is a dict of arrays (pipelines/schema.py names the keys). Both are arguments, never
constants, so they shard, and jit compiles once for all catalogues of a size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Params = Any  # nested dict of arrays with hand-given names
Catalogue = dict[str, Any]
Batch = dict[str, Array]
Index = Any  # pytree: item vectors, or a trie


def unchanged(catalogue: Catalogue, parts: int = 1) -> Catalogue:
    """The catalogue as it is: most models prepare nothing."""
    del parts
    return catalogue


def undrawn(params: Params, catalogue: Catalogue, key: Array) -> Catalogue:
    """The catalogue as it is: most models draw nothing."""
    del params, key
    return catalogue


class ReadAgain(ValueError):
    """This model cannot read a history one event at a time; the message says why."""


class Incremental(NamedTuple):
    """Reading a history one event at a time, for models whose past does not change with it.

    After the same events `extend` gives the query that `encode` gives, at the cost of one event.
    A memory holds as many events as the model has positions: the caller counts (serve.Session).
    `times` are seconds since the first event, int32 [b], for models that read them. `extend` raises
    ReadAgain where its parameters rule it out, such as those that read the time of the target.
    """

    begin: Callable[..., Any]  # (index, b) -> memory of b empty histories
    extend: Callable[..., tuple[Any, Any]]  # (params, index, memory, items [b], times) -> query, m.


class Recommender(NamedTuple):
    """Pure functions; jit, grad, vmap and compose them. b batch, k results, c candidates.

    `encode` and `match` are the two halves of `score`: full ranking goes through the catalogue
    in blocks and must not encode the user again for each one. A model that searches instead of
    scanning has no `match` and is measured by the lists it recommends. `prepare` runs once a data
    set, on the host; `draw` once a dispatch of steps (an epoch), on the device: pruned graphs,
    vectors of an encoder that has learned since.
    """

    init: Callable[..., Params]  # (key, catalogue, batch) -> params
    loss: Callable[..., tuple[Array, dict[str, Array]]]  # (params, catalogue, batch, key)
    index: Callable[..., Index]  # (params, catalogue) -> index
    recommend: Callable[..., tuple[Array, Array]]  # (params, index, batch, k) -> [b,k], [b,k]
    score: Callable[..., Array]  # (params, index, batch, candidates [b,c]) -> [b,c]
    encode: Callable[..., Any]  # (params, index, batch) -> query, a pytree of [b,...]
    match: Callable[..., Array] | None  # (params, index, query, items [c] or [b,c]) -> [b,c]
    prepare: Callable[..., Catalogue] = unchanged  # (catalogue, parts: devices) -> catalogue
    draw: Callable[..., Catalogue] = undrawn  # (params, catalogue, key) -> catalogue
    incremental: Incremental | None = None  # where the model allows it
