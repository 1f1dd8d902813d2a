"""Rows in blocks: what a block computes stays in a CPU's cache, and bounds memory anywhere."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def in_blocks(function: Callable[..., Any], rows: int, *arrays: Any) -> Any:
    """function(*arrays), computed at most `rows` leading rows at a time; arrays: pytrees of them.

    Equal to one call where the function treats every row by itself. The blocks are as even as can
    be; what is missing in the last one is zeros, whose results are dropped.
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    count = -(-n // max(rows, 1))
    if count <= 1:
        return function(*arrays)
    each = -(-n // count)
    cut = jax.tree.map(lambda x: _cut(x, count, each), arrays)
    made = lax.map(lambda parts: function(*parts), cut)
    return jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:n], made)


def _cut(x: Array, count: int, each: int) -> Array:
    spare = count * each - x.shape[0]
    return jnp.pad(x, ((0, spare), *[(0, 0)] * (x.ndim - 1))).reshape(count, each, *x.shape[1:])
