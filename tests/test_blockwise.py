"""Rows in blocks: equal to all at once, whatever the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.blockwise import in_blocks


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 6, 7, 100])
def test_blocks_give_what_one_call_gives(rows):
    x, names = jnp.arange(14.0).reshape(7, 2), jnp.arange(7)
    largest = []

    def function(x, names):
        largest.append(len(x))
        return {"sum": x.sum(1), "both": x * names[:, None]}

    made = jax.jit(lambda *a: in_blocks(function, rows, *a))(x, names)
    assert largest[0] <= max(rows, 1)
    for name, whole in function(x, names).items():
        np.testing.assert_array_equal(made[name], whole)
