"""The loop: exact randomness, metrics of every step, a loud stop on NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.recommender import Recommender
from zoo.train import create, make_dispatch, make_step, train


def toy(loss):
    """A recommender of one number, of which only init and loss are used."""
    blank = (None,) * 5
    return Recommender(lambda key, catalogue, batch: {"x": jnp.zeros(())}, loss, *blank)


def noisy(params, catalogue, batch, key):
    return jnp.sum((params["x"] - batch) ** 2) + jax.random.normal(key), {"seen": jnp.sum(batch)}


def run(loss, until, report=lambda step, metrics: None, state=None):
    recommender, chain = toy(loss), optax.sgd(0.1)
    state = create(recommender, chain, {}, jnp.ones(2)) if state is None else state
    batches = (jnp.full(2, float(n)) for n in range(int(state.step), until))
    step = jax.jit(make_step(recommender, chain, seed=3))
    return train(step, state, {}, batches, until, report)


def test_every_step_is_reported_once_in_order():
    heard = []
    run(noisy, 5, lambda step, metrics: heard.append((step, metrics["seen"])))
    assert heard == [(n + 1, 2.0 * n) for n in range(5)]


def test_interrupted_equals_whole():
    whole = run(noisy, 6)
    broken = run(noisy, 6, state=run(noisy, 2))
    assert int(broken.step) == 6
    np.testing.assert_array_equal(whole.params["x"], broken.params["x"])


def test_randomness_differs_by_step():
    heard = []
    flat = lambda p, c, b, key: (jax.random.normal(key), {})  # noqa: E731
    run(flat, 4, lambda step, metrics: heard.append(metrics["loss"]))
    assert len(set(heard)) == 4


def test_nan_stops_and_names_step_and_quantity():
    def bad(params, catalogue, batch, key):
        return jnp.log(2.5 - batch[0]) + params["x"], {}

    with pytest.raises(FloatingPointError, match="loss is nan at step 4"):
        run(bad, 9)


def stacked(until: int, stack: int, state=None, seed: int = 3):
    """The noisy run with `stack` steps a dispatch; what it drew, one number a dispatch."""
    recommender = toy(noisy)._replace(draw=lambda _, c, key: {"drawn": jax.random.normal(key)})
    chain = optax.sgd(0.1)
    state = create(recommender, chain, {}, jnp.ones(2)) if state is None else state
    first, heard = int(state.step), []
    batches = (
        jnp.stack([jnp.full(2, float(n + i)) for i in range(stack)])
        for n in range(first, until, stack)
    )
    step = jax.jit(make_dispatch(recommender, chain, seed))
    report = lambda n, metrics: heard.append((n, metrics["seen"]))  # noqa: E731
    return train(step, state, {}, batches, until, report, stack), heard


def test_a_dispatch_of_several_steps_is_those_steps():
    state, heard = stacked(6, 3)
    np.testing.assert_array_equal(state.params["x"], run(noisy, 6).params["x"])
    assert heard == [(n + 1, 2.0 * n) for n in range(6)]
    again, _ = stacked(6, 3, stacked(3, 3)[0])
    np.testing.assert_array_equal(state.params["x"], again.params["x"])


def test_a_dispatch_draws_once_and_each_anew():
    drawn = lambda p, c, b, key: (c["drawn"], {})  # noqa: E731
    recommender = toy(drawn)._replace(draw=lambda _, c, key: {"drawn": jax.random.normal(key)})
    chain = optax.sgd(0.1)
    dispatch = jax.jit(make_dispatch(recommender, chain))
    state, first = dispatch(create(recommender, chain, {}, None), {}, jnp.ones((3, 2)))
    _, second = dispatch(state, {}, jnp.ones((3, 2)))
    assert len(set(first["loss"].tolist())) == 1
    assert float(first["loss"][0]) != float(second["loss"][0])


def test_nan_within_a_dispatch_names_its_step():
    def bad(params, catalogue, batch, key):
        return jnp.log(2.5 - batch[0]) + params["x"], {}

    recommender, chain = toy(bad), optax.sgd(0.1)
    state = create(recommender, chain, {}, jnp.ones(2))
    batches = iter([jnp.arange(6.0)[:, None] * jnp.ones((6, 2))])
    with pytest.raises(FloatingPointError, match="loss is nan at step 4"):
        train(jax.jit(make_dispatch(recommender, chain)), state, {}, batches, 6, stack=6)
