"""The loop: exact randomness, metrics of every step, a loud stop on NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.recommender import Recommender
from zoo.train import create, make_step, train


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
