"""Operations of matrix products, counted in what was traced."""

import jax
import jax.numpy as jnp
import pytest

from zoo.flops import matmul_flops


def count(f, *shapes):
    return matmul_flops(jax.make_jaxpr(f)(*(jnp.ones(s) for s in shapes)))


def test_a_product_counts_twice_its_sides_and_elementwise_work_nothing():
    assert count(lambda a, b: jnp.tanh(a @ b), (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    batched = lambda a, b: jnp.einsum("bij,bjd->bid", a, b)  # noqa: E731
    assert count(batched, (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
    assert count(lambda a: a * a, (3, 5)) == 0


def test_a_scan_counts_every_turn_and_a_branch_the_dearest():
    turned = lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, length=6)[0]  # noqa: E731
    assert count(turned, (5, 5)) == 6 * 2 * 5**3
    branch = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)  # noqa: E731
    assert count(branch, (5, 5)) == 2 * 2 * 5**3


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: jax.vmap(f)])
def test_what_stands_inside_counts(wrap):
    f = wrap(lambda a: jnp.dot(a, jnp.ones(5)))
    assert count(f, (4, 5)) == 2 * 4 * 5


def test_a_gradient_is_three_products_and_a_convolution_its_kernel():
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)  # noqa: E731
    assert count(jax.grad(loss, (0, 1)), (5, 7), (3, 5)) == 3 * 2 * 3 * 5 * 7
    convolved = lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID")  # noqa: E731
    assert count(convolved, (2, 3, 8, 8), (6, 3, 2, 2)) == 2 * (2 * 6 * 4 * 4) * (3 * 2 * 2)
