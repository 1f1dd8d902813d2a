"""Where things stand in packed rows: who sees whom, what ends a segment, what is asked for.

A row holds the segments of several histories one after the other, numbered from 1; 0 is padding.
The legend of axis letters stands in zoo/layers.py.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def segment_mask(segments: Array, causal: bool = True) -> Array:
    """bool[b,1,l,l]: a query sees its own segment, with `causal` only itself and what came before.

    Padding (segment 0) sees padding only, so no row is fully masked.
    """
    same = segments[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    earlier = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    return (same & earlier[None] if causal else same)[:, None]


def newest_columns(segments: Array) -> Array:
    """bool [b,l]: the last column of each segment, and of the padding where that ends no row."""
    return segments != jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))


def columns_behind(segments: Array) -> Array:
    """int32 [b,l]: how many columns of its (contiguous) segment stand behind each."""
    column = jnp.arange(segments.shape[1], dtype=jnp.int32)
    ends = jnp.where(newest_columns(segments), column[None], segments.shape[1] - 1)
    return jax.lax.cummin(ends, axis=1, reverse=True) - column[None]


def at_columns(x: Array, columns: Array | None, axis: int = 1) -> Array:
    """x at `columns` int[b,s] of an axis, [b,l,...] to [b,s,...]; None: all of it."""
    if columns is None:
        return x
    b, s = columns.shape
    index = columns.reshape(b, *(1,) * (axis - 1), s, *(1,) * (x.ndim - axis - 1))
    return jnp.take_along_axis(x, index, axis=axis)
