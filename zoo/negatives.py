"""Negative samples: item ids drawn uniformly or by their counts, and the probabilities for logQ."""

import jax
import jax.numpy as jnp

Array = jax.Array

TICKS = 2**30  # shares become whole numbers of this many, so that sums are exact


def sample_uniform(key: Array, shape: tuple[int, ...], n_items: int | Array) -> Array:
    """int32 ids of `shape`, uniform on 1..n_items (real items, without padding; may be traced)."""
    return jax.random.randint(key, shape, 1, n_items + 1, dtype=jnp.int32)


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
