"""HSTU reads the past alone, by gradient and by the clock, wherever its history stands in a row."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.models import build
from zoo.models import hstu as module
from zoo.models.hstu import BUCKETS, HSTUTrunk, bucket

LENGTH = 8
by_bias = pytest.mark.parametrize("time_bias", ["target", "self", "none"])
by_clock = pytest.mark.parametrize("time_bias", ["target", "self"])


def batch() -> dict[str, np.ndarray]:
    """A row of two histories and padding; the gaps are of many sizes, so many buckets are read."""
    times = np.array([[0, 50, 4000, 0, 3, 900, 90_000, 0]], np.int32)
    return {
        "segments": np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32),
        "positions": np.array([[0, 1, 2, 0, 1, 2, 3, 0]], np.int32),
        "times": times,
        "target_times": np.array([[50, 4000, 9000, 3, 900, 90_000, 10**7, 0]], np.int32),
    }


@cache
def made(time_bias: str):
    """(trunk, params, x [1,l,d]); biases large enough to be seen."""
    trunk = HSTUTrunk(LENGTH, 2, 2, 4, 4, 0.0, 0.0, time_bias)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, LENGTH, 8)), jnp.float32)
    params = jax.jit(trunk.init)(jax.random.key(0), x, batch())["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.5, p.shape), p.dtype), params)
    return trunk, params, x


def states(time_bias: str, x=None, **changed) -> np.ndarray:
    _, params, own = made(time_bias)
    return np.asarray(run(time_bias)(params, own if x is None else x, batch() | changed))


@cache
def run(time_bias: str):
    trunk = made(time_bias)[0]
    return jax.jit(lambda params, x, batch: trunk.apply({"params": params}, x, batch))


def reaches() -> np.ndarray:
    """bool[l,l]: row i may read column j, for the rows that hold an item."""
    s = batch()["segments"][0]
    return (s[:, None] == s[None, :]) & np.tri(LENGTH, dtype=bool) & (s > 0)[None, :]


@by_bias
def test_by_gradient_a_row_reads_its_own_past_and_all_of_it(time_bias):
    trunk, params, x = made(time_bias)
    total = lambda x: trunk.apply({"params": params}, x, batch())[0].sum(-1)  # noqa: E731
    touched = np.abs(jax.jit(jax.jacobian(total))(x)[:, 0]).max(-1) > 0
    np.testing.assert_array_equal(touched[:7], reaches()[:7])


@by_bias
def test_a_later_item_leaves_the_rows_before_it_as_they_were(time_bias):
    plain = states(time_bias)
    for j in range(7):
        other = states(time_bias, made(time_bias)[2].at[0, j].multiply(-1.0))
        np.testing.assert_array_equal(np.abs(other - plain)[0, :7].max(-1) > 0, reaches()[:7, j])


@by_clock
def test_the_clock_of_a_later_event_leaves_the_rows_before_it_as_they_were(time_bias):
    """An event that happens at another time moves its own row and later ones; the row before it,
    too, where rows are asked at the time of what comes next."""
    plain, b = states(time_bias), batch()
    for j in (1, 4, 6):
        times, asked = b["times"].copy(), b["target_times"].copy()
        times[0, j] += 5 * 10**6
        asked[0, j - 1] += 5 * 10**6
        other = states(time_bias, times=times, target_times=asked)
        moved = reaches()[:7, j]
        moved[j] |= time_bias == "self"
        moved[j - 1] |= time_bias == "target"
        np.testing.assert_array_equal(np.abs(other - plain)[0, :7].max(-1) > 0, moved)


@by_bias
def test_a_history_further_right_or_on_another_clock_is_the_same(time_bias):
    alone = {k: v[:, 3:7] for k, v in batch().items()}
    trunk, params, x = made(time_bias)
    states = trunk.apply({"params": params}, x[:, 3:7], alone)
    for left in (1, 4):
        pads = lambda z, left=left: np.pad(z, ((0, 0), (left, 0), (0, 0))[: z.ndim])  # noqa: E731
        rows = {k: pads(v) for k, v in alone.items()}
        rows |= {k: rows[k] + 77 for k in ("times", "target_times")}
        padded = trunk.apply({"params": params}, pads(np.asarray(x[:, 3:7])), rows)
        np.testing.assert_allclose(padded[:, left:], states, atol=1e-5)


def test_buckets_are_bytes_made_once_for_all_layers(monkeypatch):
    calls = []

    def counted(gaps):
        calls.append(gaps.shape)
        return bucket(gaps)

    trunk, params, x = made("target")
    monkeypatch.setattr(module, "bucket", counted)
    trunk.apply({"params": params}, x, batch())
    assert calls == [(1, LENGTH, LENGTH)]
    far = bucket(jnp.array([0, 2**31 - 1, -(2**31) + 1]))
    assert far.dtype == jnp.uint8 and far.tolist() == [0, 71, 71] and far.max() < BUCKETS


@by_clock
def test_times_that_are_read_have_to_be_there(time_bias):
    trunk, params, x = made(time_bias)
    timeless = {k: batch()[k] for k in ("segments", "positions")}
    with pytest.raises(ValueError, match="has no 'times': give the times of the history"):
        trunk.apply({"params": params}, x, timeless)
    free, params, _ = made("none")
    assert np.isfinite(free.apply({"params": params}, x, timeless)).all()


def test_an_unknown_time_bias_is_named():
    with pytest.raises(ValueError, match="unknown time_bias 'targets'; nearest: target"):
        build("hstu", time_bias="targets")
