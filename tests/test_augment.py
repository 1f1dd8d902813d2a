"""Other views of a packed batch: what is dropped, what moves, what stays the same in sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.schema import Ragged
from pipelines.transforms import pack
from zoo.augment import complementary_mixup, drop_items

drop = jax.jit(drop_items)


def packed(length: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(30)[: rng.integers(2, 8)] + 1 for _ in range(12)]
    return pack(Ragged.of([[], *rows]), length, scheme="last")


def compacted(batch: dict, row: int, segment: int) -> list[tuple[int, int]]:
    """(item, position) of what a segment holds, in order."""
    at = np.flatnonzero(np.asarray(batch["segments"])[row] == segment)
    return [(int(batch["items"][row, c]), int(batch["positions"][row, c])) for c in at]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_what_is_left_is_a_history_of_its_own(rate):
    before = packed()
    after = jax.tree.map(np.asarray, drop(jax.random.key(0), before, rate))
    assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
        k: (v.shape, v.dtype) for k, v in before.items()
    }
    lost = 0
    for row, nth in np.argwhere(before["targets"]):
        segment = before["segments"][row, before["ends"][row, nth]]
        old, new = (compacted(b, row, segment) for b in (before, after))
        assert [p for _, p in new] == list(range(len(new))) and new
        items = iter([i for i, _ in old])
        assert all(i in items for i, _ in new), "survivors stay in order"
        end = after["ends"][row, nth]
        assert after["segments"][row, end] == segment
        assert after["items"][row, end] == new[-1][0], "the query is the newest survivor"
        if rate == 1.0:
            assert [i for i, _ in new] == [old[-1][0]]
        lost += len(old) - len(new)
    assert (lost > 0) == (rate > 0)
    for name in ("targets", "users"):
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_array_equal(after["items"] > 0, after["segments"] > 0)
    np.testing.assert_array_equal(after["ends"][before["targets"] == 0], 0)


def test_items_fall_at_the_rate():
    """A segment of 400 items: the share dropped is the rate, within four deviations."""
    length = 400
    row = np.arange(length, dtype=np.int32)[None]
    batch = {"items": row + 1, "segments": row * 0 + 1, "positions": row}
    batch |= {"ends": np.array([[length - 1]], np.int32), "targets": np.array([[5]], np.int32)}
    share = [float(np.mean(drop(jax.random.key(s), batch, 0.2)["segments"] == 0)) for s in range(4)]
    assert abs(np.mean(share) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 1600)
    assert len(set(share)) > 1


def test_two_streams_swap_and_keep_their_sum():
    rng = np.random.default_rng(0)
    streams = rng.normal(size=(2, 40, 8, 4)).astype(np.float32)
    mask = rng.random((40, 8)) < 0.7
    mixed = np.asarray(complementary_mixup(jax.random.key(1), streams, mask))
    swapped = (mixed[0] == streams[1]).all(-1)
    np.testing.assert_array_equal(mixed[0], np.where(swapped[..., None], streams[1], streams[0]))
    np.testing.assert_array_equal(mixed[1], np.where(swapped[..., None], streams[0], streams[1]))
    np.testing.assert_array_equal(mixed.sum(0), streams.sum(0))
    assert 0 < swapped[mask].mean() < 0.6 and not swapped[~mask].any()


@pytest.mark.parametrize("m", [1, 3])
def test_any_number_of_streams_keeps_its_sum(m):
    streams = jax.random.normal(jax.random.key(0), (m, 50, 4))
    mixed = complementary_mixup(jax.random.key(2), streams, jnp.ones(50, bool), 1.0)
    np.testing.assert_allclose(mixed.sum(0), streams.sum(0), atol=1e-6)
    assert bool(jnp.all(mixed == streams)) == (m == 1)
