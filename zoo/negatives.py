"""Negative samples: item ids drawn uniformly or by their counts, and the probabilities for logQ."""

import jax
import jax.numpy as jnp

from zoo.graph import Side, first

Array = jax.Array

TICKS = 2**30  # shares become whole numbers of this many, so that sums are exact


def sample_uniform(key: Array, shape: tuple[int, ...], n_items: int | Array) -> Array:
    """int32 ids of `shape`, uniform on 1..n_items (real items, without padding; may be traced)."""
    return jax.random.randint(key, shape, 1, n_items + 1, dtype=jnp.int32)


def sample_among(key: Array, shape: tuple[int, ...], among: Array) -> Array:
    """int32 ids of `shape`, uniform on those that `among` bool[n] marks; 0 if it marks none."""
    ends = jnp.cumsum(among, dtype=jnp.int32)
    nth = jax.random.randint(key, shape, 0, jnp.maximum(ends[-1], 1), dtype=jnp.int32)
    ids = jnp.searchsorted(ends, nth, side="right").astype(jnp.int32)
    return jnp.where(ends[-1] > 0, ids, 0)


def sample_by_counts(key: Array, shape: tuple[int, ...], counts: Array) -> Array:
    """int32 ids of `shape`, drawn with replacement in proportion to `counts` [n].

    Counts are weights >= 0, such as train counts or their power .75; row 0 is padding and never
    drawn, nor is an item of count 0. Shares are kept to 1e-9. Without any count the ids are 0.
    """
    counts = counts.astype(jnp.float32).at[0].set(0)
    total = jnp.sum(counts)
    shares = counts / jnp.where(total > 0, total, 1)
    ends = jnp.cumsum(jnp.round(shares * TICKS).astype(jnp.int32))
    ticks = jax.random.randint(key, shape, 0, jnp.maximum(ends[-1], 1), dtype=jnp.int32)
    ids = jnp.searchsorted(ends, ticks, side="right").astype(jnp.int32)
    return jnp.where(total > 0, ids, 0)


def log_probability(counts: Array) -> Array:
    """ln Q [n], float32, of a draw by `counts` [n]; -inf for row 0 and for items of count 0.

    The losses floor it at ln 1e-10.
    """
    counts = counts.astype(jnp.float32).at[0].set(0)
    return jnp.log(counts) - jnp.log(jnp.maximum(jnp.sum(counts), 1e-30))


def sample_unseen(key: Array, users: Array, history: Side, popularity: Array) -> tuple:
    """(items int32 [p], found bool [p]): for each user one item that training has seen, outside
    the user's own train items, uniform. `found` is False for a user who has every item.

    history: the forward side of the interaction graph; popularity [n]: train counts, above 0 for
    every item of a history. Nothing is rejected: the r-th item that a user with the sorted
    history c does not have is the (r+j)-th of all, j the first place where c_j has more than
    r + j others before it.
    """
    seen = (popularity > 0) & (jnp.arange(len(popularity)) > 0)
    ids = jnp.nonzero(seen, size=len(seen), fill_value=0)[0].astype(jnp.int32)
    before = jnp.cumsum(seen, dtype=jnp.int32) - seen
    start, end = history.starts[users], history.ends[users]
    free = jnp.sum(seen, dtype=jnp.int32) - (end - start)
    nth = jax.random.randint(key, users.shape, 0, jnp.maximum(free, 1), dtype=jnp.int32)
    later = lambda at: before[history.columns[at]] - (at - start) > nth  # noqa: E731
    own = first(start, end, later) - start
    return jnp.where(free > 0, ids[jnp.minimum(nth + own, len(ids) - 1)], 0), free > 0
