"""Packing keeps every pair once; the loader resumes exactly; events say what was asked."""

import numpy as np
import pytest

from pipelines.loader import (
    Arrays,
    BatchRows,
    Loader,
    event_batches,
    pair_loader,
    requests,
    sequence_loader,
)
from pipelines.schema import (
    EVENT_KEYS,
    SEQUENCE_KEYS,
    DataError,
    Events,
    Ragged,
    Split,
    check_batch,
)
from pipelines.transforms import Packed, best_fit, ladder, pack, windows


def histories(seed=0, users=40, longest=30) -> Ragged:
    rng = np.random.default_rng(seed)
    return Ragged.of([[]] + [rng.integers(1, 99, rng.integers(0, longest)) for _ in range(users)])


def pairs_of(rows: dict) -> list[tuple[int, int, int]]:
    """(user, input, target) of every valid column."""
    at = rows["targets"] > 0
    return sorted(zip(rows["users"][at], rows["items"][at], rows["targets"][at], strict=True))


def test_pack_holds_every_pair_once():
    data = histories()
    rows = pack(data, 8)
    check_batch(rows, SEQUENCE_KEYS)
    expected = [
        (u, a, b) for u in range(len(data)) for a, b in zip(data[u][:-1], data[u][1:], strict=True)
    ]
    assert pairs_of(rows) == sorted(expected)


def test_an_unknown_end_to_count_from_is_told():
    with pytest.raises(DataError, match="align is 'middle'; expected one of left, right"):
        pack(histories(), 8, "middle")


@pytest.mark.parametrize("align", ["left", "right"])
def test_segments_are_contiguous_histories(align):
    rows = pack(histories(), 8, align)
    for items, targets, segments, positions in zip(
        rows["items"], rows["targets"], rows["segments"], rows["positions"], strict=True
    ):
        for s in range(1, segments.max() + 1):
            at = np.flatnonzero(segments == s)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            assert np.array_equal(items[at[1:]], targets[at[:-1]])  # what came next is next
            first = 0 if align == "left" else 8 - len(at)
            assert np.array_equal(positions[at], first + np.arange(len(at)))


def test_every_prefix_is_a_segment_with_one_target():
    data = histories()
    rows = pack(data, 8, scheme="last")
    expected = sorted(
        (u, tuple(data[u][max(0, t - 8) : t]), data[u][t])
        for u in range(len(data))
        for t in range(1, len(data[u]))
    )
    found = []
    for r in range(len(rows["items"])):
        for nth, (end, target) in enumerate(zip(rows["ends"][r], rows["targets"][r], strict=True)):
            at = np.flatnonzero(rows["segments"][r] == nth + 1)
            assert (target > 0) == bool(len(at))
            if len(at):
                assert at[-1] == end and np.array_equal(rows["positions"][r][at], range(len(at)))
                found.append((rows["users"][r][end], tuple(rows["items"][r][at]), target))
    assert sorted(found) == expected


@pytest.mark.parametrize("scheme", ["rest", "whole"])
@pytest.mark.parametrize("align", ["left", "right"])
def test_every_item_is_the_target_of_the_others_once(align, scheme):
    data = histories(users=150)  # longer than a row, some of no item and of one
    assert {0, 1} <= set(data.lengths[1:]) and data.lengths.max() > 9
    rows = pack(data, 8, align, scheme=scheme)
    without = (
        (lambda items, t: np.delete(items, t)) if scheme == "rest" else (lambda items, t: items)
    )
    expected = sorted(
        (u, tuple(without(data[u], t)[-8:]), data[u][t])
        for u in range(len(data))
        for t in range(len(data[u]))
        if len(data[u]) > 1
    )
    found = []
    for r in range(len(rows["items"])):
        for nth, (end, target) in enumerate(zip(rows["ends"][r], rows["targets"][r], strict=True)):
            at = np.flatnonzero(rows["segments"][r] == nth + 1)
            assert (target > 0) == bool(len(at))
            if len(at):
                first = 0 if align == "left" else 8 - len(at)
                assert np.array_equal(rows["positions"][r][at], first + np.arange(len(at)))
                assert at[-1] == end and np.ptp(rows["users"][r][at]) == 0
                found.append((rows["users"][r][end], tuple(rows["items"][r][at]), target))
    assert sorted(found) == expected


def test_a_set_never_holds_its_own_target():
    rng = np.random.default_rng(0)
    data = Ragged.of([[], *(rng.permutation(50)[: rng.integers(1, 20)] + 1 for _ in range(30))])
    timed = Ragged(data.values, data.offsets, np.arange(len(data.values)))
    rows = pack(timed, 8, scheme="rest")
    assert "times" not in rows, "what was left out is not what came next"
    for r, segments in enumerate(rows["segments"]):
        for s in range(1, segments.max() + 1):
            assert rows["targets"][r, s - 1] not in rows["items"][r][segments == s]
    again = pack(timed, 8, scheme="rest")
    assert all(np.array_equal(rows[k], again[k]) for k in rows)


def test_cloze_rows_hold_whole_histories():
    data = histories(longest=8)
    rows = pack(data, 8, scheme="cloze")
    assert np.array_equal(rows["items"], rows["targets"])
    long = np.flatnonzero(data.lengths > 1)
    kept = np.bincount(rows["users"][rows["items"] > 0], minlength=len(data))
    assert np.array_equal(kept[long], data.lengths[long]) and kept.sum() == kept[long].sum()


def test_times_count_from_the_first_item_of_the_segment():
    times = np.array([0, 1000, 1060, 1100, 5_000_000_000, 5_000_000_007])
    data = Ragged(np.array([9, 1, 2, 3, 4, 5]), np.array([0, 1, 4, 6]), times)
    row = {k: x[0].tolist() for k, x in pack(data, 4).items()}  # three pairs fit in one row
    columns = zip(row["items"], row["times"], row["target_times"], strict=True)
    by_item = {item: (time, target_time) for item, time, target_time in columns}
    assert by_item[1] == (0, 60) and by_item[2] == (60, 100) and by_item[4] == (0, 7)
    asked = requests(data.take(np.array([1, 2])), np.array([1, 2]), 3)
    assert asked["times"].tolist() == [[0, 60, 100], [0, 7, 0]]
    assert asked["target_times"].tolist() == [[60, 100, 100], [7, 7, 0]]


def test_an_unknown_scheme_is_named():
    with pytest.raises(DataError, match="expected one of next, last, cloze, rest"):
        Packed(histories(), 8, scheme="lost")


def test_packing_is_dense():
    rows = pack(histories(users=400, longest=12), 20)
    assert (rows["segments"] > 0).mean() > 0.95


def test_windows_align_to_the_newest():
    user, start, size = windows(Ragged.of([[1, 2, 3, 4, 5, 6], [7]]), 2)
    assert user.tolist() == [0, 0, 0] and start.tolist() == [0, 1, 3] and size.tolist() == [1, 2, 2]


def test_best_fit_never_overfills():
    sizes = np.random.default_rng(0).integers(1, 11, 500)
    row, column, _ = best_fit(sizes, 10)
    used = np.zeros((row.max() + 1, 10), int)
    for r, c, s in zip(row, column, sizes, strict=True):
        used[r, c : c + s] += 1
    assert used.max() == 1 and used.sum() == sizes.sum()


def test_one_epoch_shows_every_row_once_and_epochs_differ():
    source = BatchRows(23, 5, seed=3)
    epochs = [[source[e * source.per_epoch + i] for i in range(source.per_epoch)] for e in (0, 1)]
    seen = [np.concatenate(e) for e in epochs]
    assert all(sorted(s[s >= 0]) == list(range(23)) for s in seen)
    assert not np.array_equal(*seen)


def test_processes_share_the_global_batch():
    whole, parts = BatchRows(23, 6), [BatchRows(23, 6, process=p, processes=2) for p in (0, 1)]
    for i in range(whole.per_epoch):
        assert np.array_equal(whole[i], np.concatenate([p[i] for p in parts]))


@pytest.mark.parametrize("scheme", ["next", "last", "cloze", "rest"])
def test_short_histories_stand_in_narrow_rows_and_nothing_is_lost(scheme):
    """An epoch over rows of several widths shows what one over wide rows does, segment by segment:
    the same items, positions and targets."""
    data = histories(users=60, longest=70)
    widths = ladder(64, narrowest=4)
    assert widths == (4, 16, 64) and ladder(50) == (50,) and ladder(2000) == (125, 500, 2000)

    def seen(loader):
        found, shapes = [], set()
        for _ in range(loader.per_epoch):
            batch = next(iter(loader))
            shapes.add(batch["items"].shape)
            keys = ("users", "items", "positions", "targets")
            for row, segments in enumerate(batch["segments"]):
                for s in range(1, segments.max() + 1):
                    at = np.flatnonzero(segments == s)
                    own = [batch[k][row][at] for k in keys[:3]]
                    if scheme in ("last", "rest"):
                        own.append(batch["targets"][row][batch["ends"][row] == at[-1]])
                    else:
                        own.append(batch["targets"][row][at])
                    found.append(tuple(tuple(x.tolist()) for x in own))
        return sorted(found), shapes

    wide, one = seen(sequence_loader(split_of(data), 4, 64, scheme=scheme))
    narrow, many = seen(sequence_loader(split_of(data), 4, 64, scheme=scheme, widths=widths))
    assert narrow == wide and one == {(4, 64)} and many == {(64, 4), (16, 16), (4, 64)}
    short = Ragged.of([[]] + [[1, 2, 3]] * 9)  # all of one width
    loader = sequence_loader(split_of(short), 4, 64, scheme=scheme, widths=widths)
    assert [x["items"].shape for x in loader.examples] == [(64, 4)]


@pytest.mark.parametrize("widths", [(), (2, 8)])
def test_batches_of_several_widths_resume_and_are_shared_as_those_of_one(widths):
    split = split_of(histories())
    make = lambda **own: sequence_loader(split, 4, 8, seed=1, widths=widths, **own)  # noqa: E731
    first, second, halves = make(), make(), [make(process=p, processes=2) for p in (0, 1)]
    for n in range(first.per_epoch + 3):
        whole = next(iter(first))
        parts = [next(iter(half)) for half in halves]
        for k, x in whole.items():
            np.testing.assert_array_equal(x, np.concatenate([part[k] for part in parts]))
        if n == 4:
            second.resume(first.place())
        if n > 4:
            again = next(iter(second))
            assert all(np.array_equal(whole[k], again[k]) for k in whole)


def test_resume_gives_the_very_next_batch():
    rows = Packed(histories(), 8)
    first, second = Loader(rows, 4, seed=1), Loader(rows, 4, seed=1)
    for _ in range(7):
        next(iter(first))
    second.resume(first.place())
    for _ in range(5):
        a, b = next(iter(first)), next(iter(second))
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_no_pairs_is_an_error():
    with pytest.raises(DataError, match="fewer than two items"):
        Loader(Packed(Ragged.of([[1], [2]]), 8), 4)


def test_gather_fills_with_padding():
    out = Arrays({"x": np.arange(6).reshape(3, 2) + 1}).take(np.array([2, -1]))
    assert out["x"].tolist() == [[5, 6], [0, 0]]


def test_event_batches_cover_all_events_once():
    data = histories(users=50, longest=70)
    events = Events(
        np.arange(1, 51, dtype=np.int32),
        data.take(np.arange(1, 51)),
        data.take(np.full(50, int(np.argmax(data.lengths)))),
    )
    seen = []
    for batch in event_batches(events, length=20, batch=16):
        check_batch(batch, EVENT_KEYS)
        for r in np.flatnonzero(batch["weight"]):
            history = events.history[int(batch["event"][r])]
            n = min(len(history), 20)
            assert batch["items"][r, :n].tolist() == history[len(history) - n :].tolist()
            assert sorted(batch["exclude"][r][batch["exclude"][r] > 0]) == sorted(history)
            assert batch["query"][r] == max(n - 1, 0)
            seen.append(int(batch["event"][r]))
    assert sorted(seen) == list(range(50))


def test_requests_hold_the_newest_items_and_exclude_all():
    batch = requests(Ragged.of([[4, 5, 6]]), np.array([1], np.int32), 2)
    assert batch["items"].tolist() == [[5, 6]] and batch["query"].tolist() == [1]
    assert batch["exclude"].tolist() == [[4, 5, 6]]


def split_of(data: Ragged) -> Split:
    empty = Events(np.zeros(0, np.int32), Ragged.of([]), Ragged.of([]))
    return Split("random", "mm-random-v1", data, empty, empty, "x", ordered=False)


def test_pairs_are_every_interaction_once_an_epoch():
    data = histories()
    loader = pair_loader(split_of(data), 32, stack=2)
    check_batch({k: x[0] for k, x in loader.example.items()}, SEQUENCE_KEYS)
    expected = sorted((u, int(i)) for u in range(len(data)) for i in data[u])
    batches = [next(iter(loader)) for _ in range(-(-loader.per_epoch // 2))]
    flat = {k: np.concatenate([b[k].reshape(-1) for b in batches]) for k in batches[0]}
    epoch = {k: x[: loader.per_epoch * 32] for k, x in flat.items()}
    real = epoch["targets"] > 0
    assert batches[0]["targets"].shape == (2, 32, 1)
    pairs = zip(epoch["users"][real].tolist(), epoch["targets"][real].tolist(), strict=True)
    assert sorted(pairs) == expected


def test_stacked_batches_are_the_plain_ones_and_resume():
    data = histories()
    plain = [b["targets"] for b, _ in zip(pair_loader(split_of(data), 16), range(6), strict=False)]
    loader = pair_loader(split_of(data), 16, stack=3)
    first = next(iter(loader))["targets"]
    place = loader.place()
    other = pair_loader(split_of(data), 16, stack=3)
    other.resume(place)
    second = next(iter(other))["targets"]
    np.testing.assert_array_equal(np.concatenate([first, second]), np.stack(plain))
