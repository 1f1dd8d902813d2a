"""Operations of matrix products, counted in what was traced."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from pipelines.sources import from_arrays
from zoo.fitting import Run
from zoo.flops import matmul_flops
from zoo.mesh import make_mesh


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


def shop():
    rng = np.random.default_rng(0)
    rows = {"users": np.repeat(np.arange(40), 6), "items": rng.integers(0, 30, 240)}
    return zoo.load_data(from_arrays(**rows, times=np.tile(np.arange(6), 40), name="few"))


def a_step(data, shape: tuple[int, int], dispatch: int = 1) -> float:
    mesh, settings = make_mesh(*shape), zoo.settings_for("sasrec", batch=8, steps=4)
    fields, settings = {"width": 8, "layers": 1, "max_len": 8}, replace(settings, dispatch=dispatch)
    with jax.set_mesh(mesh):
        catalogue = data.catalogue(make_mesh(4, 2))  # as many rows of padding
        return Run("sasrec", fields, data.split, catalogue, settings, mesh).stepper.flops


def test_a_step_is_the_same_work_on_every_mesh_and_in_every_dispatch():
    data = shop()
    one = a_step(data, (1, 1))
    assert one > 0 and a_step(data, (1, 1), dispatch=4) == one
    np.testing.assert_allclose([a_step(data, shape) for shape in ((4, 2), (8, 1))], one, rtol=0.02)


def test_a_budget_says_how_many_steps():
    data, fields = shop(), {"width": 8, "layers": 1, "max_len": 8}
    settings = zoo.settings_for("sasrec", batch=8, flops=3e6)
    fitted, _ = zoo.fit("sasrec", data, settings=settings, **fields)
    own = fitted.flops / fitted.steps
    assert fitted.steps > 3 and abs(fitted.flops - 3e6) <= own / 2
    with pytest.raises(ValueError, match="steps is 5 and flops .*: give one"):
        zoo.fit("sasrec", data, settings=replace(settings, steps=5), **fields)
