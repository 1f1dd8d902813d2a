"""A Recommender from its two halves: full ranking and scores follow from encode and match."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from zoo.recommender import Recommender
from zoo.retrieval import Match, scan_top_k

Array = jax.Array


def scorer(
    init: Callable,
    loss: Callable,
    index: Callable,
    encode: Callable,
    match: Callable,
    **hooks: Callable,
) -> Recommender:
    """A Recommender from its two halves: `recommend` and `score` follow from encode and match.

    hooks: `prepare` and `draw`, for models that have them.

    index(params, catalogue) must return a dict with 'valid' bool[n]; a batch may hold 'exclude'
    int[b,h]. match(params, index, query, items) takes items [c] (one block for all rows) and
    [b,c] (candidates of each row), and returns [b,c].
    """

    def recommend(params, index, batch, k):
        query = encode(params, index, batch)
        return best(partial(match, params, index, query), index, query, k, batch.get("exclude"))

    def score(params, index, batch, candidates):
        return match(params, index, encode(params, index, batch), candidates)

    return Recommender(init, loss, index, recommend, score, encode, match, **hooks)


def best(
    match: Match, index: Any, query: Any, k: int, exclude: Array | None = None
) -> tuple[Array, Array]:
    """The k best items and scores [b,k] for an encoded query; match(items) -> [b,c]."""
    valid = index["valid"]
    return scan_top_k(match, len(valid), k, valid, exclude, len(jax.tree.leaves(query)[0]))
