"""Positions counted back from the newest item: the same one for it in training and when asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.models import build
from zoo.models.sequential import aligned, next_item

MODELS = {"sasrec": {}, "hstu": {"time_bias": "none", "qk_width": 4, "v_width": 4}}
both = pytest.mark.parametrize("name", MODELS)
CATALOGUE = {"valid": np.arange(9) > 0, "popularity": np.ones(9, np.float32)}


def made(name: str, align: str):
    fields = {"width": 8, "layers": 1, "max_len": 6, "align": align}
    recommender = build(name, **fields, **MODELS[name])
    params = recommender.init(jax.random.key(0), CATALOGUE, rows([1, 2, 3]))
    spread = lambda p: jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    params = jax.tree.map(spread, params)
    return recommender, params, recommender.index(params, CATALOGUE)


def rows(history: list[int], length: int = 6) -> dict[str, np.ndarray]:
    n = len(history)
    padded = lambda x: np.array([[*x, *[0] * (length - n)]], np.int32)  # noqa: E731
    query = np.array([n - 1], np.int32)
    kept = {"items": padded(history), "segments": padded([1] * n), "positions": padded(range(n))}
    return {**kept, "users": np.ones(1, np.int32), "query": query}


def test_the_newest_item_stands_at_the_last_position_in_training_and_when_asked():
    reading = aligned("right", 10)
    packed = {"segments": np.array([[1, 1, 1, 2, 2, 0]], np.int32), "targets": None}
    _, batch, columns, _ = reading.learn({}, jnp.ones((1, 6, 2)), packed, None)
    assert batch["positions"][0, :5].tolist() == [7, 8, 9, 8, 9] and columns is None
    _, batch, column = reading.ask({}, jnp.ones((1, 6, 2)), rows([1, 2, 3]))
    assert batch["positions"][0, :3].tolist() == [7, 8, 9] and column.tolist() == [2]
    assert aligned("left", 10) is next_item
    with pytest.raises(ValueError, match="unknown align 'middle'"):
        aligned("middle", 10)


@both
def test_asked_of_an_earlier_event_what_came_after_it_moves_nothing(name):
    recommender, params, index = made(name, "right")
    short, long = rows([1, 2, 3]), rows([1, 2, 3, 4, 5]) | {"query": np.array([2], np.int32)}
    query = [recommender.encode(params, index, batch) for batch in (short, long)]
    np.testing.assert_allclose(*query, rtol=1e-5, atol=1e-6)


@both
def test_one_history_counted_from_either_side(name):
    """The same parameters read a full history alike, a shorter one at other positions."""
    (recommender, params, index), (other, *_) = made(name, "right"), made(name, "left")
    read = lambda of, history: np.asarray(of.encode(params, index, rows(history)))  # noqa: E731
    full = [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(read(recommender, full), read(other, full), rtol=1e-5)
    assert np.abs(read(recommender, full[:3]) - read(other, full[:3])).max() > 0.01


@both
def test_only_from_the_oldest_can_a_history_grow_without_being_read_anew(name):
    assert made(name, "left")[0].incremental is not None
    assert made(name, "right")[0].incremental is None
