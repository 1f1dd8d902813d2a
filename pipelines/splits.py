"""The named, hashed splits: who is trained on what, who is asked what; leakage checks."""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.interactions import by_user, histories, time_order
from pipelines.leakage import check_leakage
from pipelines.schema import DataError, Dataset, Events, Ragged, Split

TRAIN, VALID, TEST = 0, 1, 2
MIN_LENGTH = 3  # shorter histories have nothing left to learn from: they stay in train


def make_split(dataset: Dataset, name: str = "auto", seed: int = 0, tie_seed: int = 0) -> Split:
    """Divide a data set by a named protocol, check it for leaks and hash it.

    name      a split (leave-one-out, random, labels, global-time, cold-items), a protocol
              (loo-full-v1, mm-random-v1, global-time-v1, cold-items-v1), or auto: the file's own
              labels where it has them, else leave-one-out
    seed      draws the random split and the cold items
    tie_seed  orders interactions of equal time

    Raises DataError for an unknown name, an empty part, or what `check_leakage` finds.
    """
    name = _resolve(name, dataset)
    protocol, build = SPLITS[name]
    train, valid, test, notes = build(dataset, seed, tie_seed)
    for part, events in (("validation", valid), ("test", test)):
        if not len(events):
            raise DataError(
                f"{dataset.name}, split '{name}': no {part} events in {len(dataset.users)} "
                f"interactions of {dataset.n_users} users. Take another split or more data."
            )
    ordered = name not in UNORDERED
    facts = {"order": "file" if dataset.times is None else "time"} if ordered else {}
    notes = {"seed": seed, "tie_seed": tie_seed, **facts, **notes}
    digest = _hash(name, protocol, (seed, tie_seed), dataset, (train, valid, test))
    split = Split(name, protocol, train, valid, test, digest, ordered, notes=notes)
    check_leakage(split, dataset)
    return split


def _resolve(name: str, dataset: Dataset) -> str:
    if name == "auto":
        return "leave-one-out" if dataset.labels is None else "labels"
    if name == "mm-random-v1":
        return "random" if dataset.labels is None else "labels"
    names = {protocol: split for split, (protocol, _) in SPLITS.items()}
    names |= {split: split for split in SPLITS}
    if name not in names:
        near = difflib.get_close_matches(name, [*names, "auto"], 3, 0.3)
        raise DataError(
            f"unknown split {name!r}; nearest {near}, all: auto, {', '.join(sorted(names))}."
        )
    return names[name]


Parts = tuple[Ragged, Events, Events, dict[str, Any]]


def _leave_one_out(dataset: Dataset, seed: int, tie_seed: int) -> Parts:
    """Test = last item, validation = last but one, train = the rest; evaluation.md 3.1."""
    past = histories(dataset, tie_seed)
    starts, ends, long = past.offsets[:-1], past.offsets[1:], past.lengths >= MIN_LENGTH
    train = _slices(past, starts, np.where(long, ends - 2, ends))
    users = np.flatnonzero(long).astype(np.int32)
    starts, ends = starts[long], ends[long]

    def events(back: int) -> Events:
        history = _slices(past, starts, ends - back)
        return Events(users, history, _single(past.values[ends - back]))

    short = np.flatnonzero((past.lengths > 0) & ~long)
    return train, events(2), events(1), {"train_only_users": short.tolist()}


def _random(dataset: Dataset, seed: int, tie_seed: int) -> Parts:
    """The splitter of MMRec with a seed: shuffle, then a share of every user; evaluation.md 3.2.

    Users with fewer than 3 interactions, which its 5-core data do not have, stay in train.
    """
    shuffled = np.random.default_rng(seed).permutation(len(dataset.users))
    order = shuffled[np.argsort(dataset.users[shuffled], kind="stable")]
    n = np.bincount(dataset.users, minlength=dataset.n_users + 1)
    held = np.where(n < 10, 2, (0.2 * n).astype(np.int64))
    valid = held // 2
    test = held - valid
    valid[n < MIN_LENGTH] = test[n < MIN_LENGTH] = 0
    users = dataset.users[order]
    from_end = np.cumsum(n)[users] - np.arange(len(order))  # 1 at the last row of the user
    labels = np.zeros(len(order), np.int8)
    labels[order] = np.select(
        [from_end <= test[users], from_end <= (test + valid)[users]], [TEST, VALID], TRAIN
    )
    return _by_label(dataset, labels)


def _labels(dataset: Dataset, seed: int, tie_seed: int) -> Parts:
    """The division that the file itself states (x_label of MMRec, or a column split)."""
    if dataset.labels is None:
        raise DataError(
            f"{dataset.name}: split 'labels' needs a column x_label or split (0, 1, 2) in the "
            "interactions; found none. Use 'random' or 'leave-one-out'."
        )
    return _by_label(dataset, dataset.labels)


def _by_label(dataset: Dataset, labels: np.ndarray) -> Parts:
    """Sets, not sequences. Users without train interactions are not asked anything."""
    rows = np.argsort(dataset.users, kind="stable")
    parts = [by_user(dataset, rows[labels[rows] == part]) for part in (TRAIN, VALID, TEST)]
    train, *held = parts
    known = train.lengths > 0
    notes: dict[str, Any] = {}
    events = []
    for part, positives in zip(("valid", "test"), held, strict=True):
        asked = positives.lengths > 0
        users = np.flatnonzero(asked & known)
        events.append(Events(users.astype(np.int32), train.take(users), positives.take(users)))
        notes[f"dropped_{part}_users"] = np.flatnonzero(asked & ~known).tolist()
        notes[f"dropped_{part}_interactions"] = int(positives.lengths[~known].sum())
    return train, *events, notes


def _global_time(dataset: Dataset, seed: int, tie_seed: int) -> Parts:
    """Two points in time divide everybody; evaluation.md 3.3, next-item reading.

    Every held-out interaction of a user with a strictly earlier one is an event of its own.
    """
    if dataset.times is None:
        raise DataError(f"{dataset.name}: split 'global-time' needs timestamps; found none.")
    n = len(dataset.users)
    t1, t2 = np.sort(dataset.times)[[int(0.8 * n), int(0.9 * n)]]
    order = time_order(dataset, tie_seed)
    past = by_user(dataset, order)
    users, items, times = dataset.users[order], past.values, past.times
    train = by_user(dataset, order[times < t1])
    new_user = np.append(True, np.diff(users) != 0)
    new_time = new_user | np.append(True, np.diff(times) != 0)
    rows = np.arange(n)
    starts = np.maximum.accumulate(np.where(new_user, rows, 0))
    earlier = np.maximum.accumulate(np.where(new_time, rows, 0))  # end of the strictly earlier
    known = train.lengths[users] > 0

    def events(held: np.ndarray) -> Events:
        asked = held & (earlier > starts)
        history = _slices(past, starts[asked], earlier[asked])
        who = np.where(known, users, 0)[asked].astype(np.int32)
        return Events(who, history, _single(items[asked]))

    notes = {"t1": t1.item(), "t2": t2.item()}
    return train, events((times >= t1) & (times < t2)), events(times >= t2), notes


def _cold_items(dataset: Dataset, seed: int, tie_seed: int) -> Parts:
    """A tenth of the items is taken out of train and asked for in test; evaluation.md 3.4.

    On leave-one-out: cold items leave every train row and history; validation asks for warm
    items, test for cold ones. The cold set stands in notes["cold_items"].
    """
    drawn = np.random.default_rng(seed).permutation(np.arange(1, dataset.n_items + 1))
    cold = np.zeros(dataset.n_items + 1, bool)
    cold[drawn[: dataset.n_items // 10]] = True
    train, valid, test, notes = _leave_one_out(dataset, seed, tie_seed)
    train = _without(train, cold)
    valid = _asked(valid, train, cold, want_cold=False)
    test = _asked(test, train, cold, want_cold=True)
    return train, valid, test, {**notes, "cold_items": np.flatnonzero(cold).tolist()}


def _asked(events: Events, train: Ragged, cold: np.ndarray, want_cold: bool) -> Events:
    """Events whose positive is (or is not) cold, on warm histories that are not empty."""
    history = _without(events.history, cold)
    rows = np.flatnonzero((cold[events.positives.values] == want_cold) & (history.lengths > 0))
    users = events.users[rows]
    users = np.where(train.lengths[users] > 0, users, 0).astype(np.int32)
    return Events(users, history.take(rows), events.positives.take(rows))


SPLITS: dict[str, tuple[str, Callable[[Dataset, int, int], Parts]]] = {
    "leave-one-out": ("loo-full-v1", _leave_one_out),
    "random": ("mm-random-v1", _random),
    "labels": ("mm-random-v1", _labels),
    "global-time": ("global-time-v1", _global_time),
    "cold-items": ("cold-items-v1", _cold_items),
}
UNORDERED = ("random", "labels")


def _slices(past: Ragged, starts: np.ndarray, ends: np.ndarray) -> Ragged:
    """Row r is past.values[starts[r]:ends[r]], with its times; rows may overlap."""
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return past.at(np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths), offsets)


def _single(values: np.ndarray) -> Ragged:
    return Ragged(values, np.arange(len(values) + 1, dtype=np.int64))


def _without(rows: Ragged, drop: np.ndarray) -> Ragged:
    """The rows without the items in `drop` (bool [n_items+1])."""
    kept = ~drop[rows.values]
    before = np.concatenate([[0], np.cumsum(kept)])
    return rows.at(np.flatnonzero(kept), before[rows.offsets].astype(np.int64))


def cold_mask(split: Split, n_items: int) -> np.ndarray:
    """bool [n_items+1]: items without a train interaction; False at the padding id 0."""
    return (np.bincount(split.train.values, minlength=n_items + 1) == 0) & (
        np.arange(n_items + 1) > 0
    )


def _hash(
    name: str,
    protocol: str,
    seeds: tuple[int, int],
    dataset: Dataset,
    parts: tuple[Ragged, Events, Events],
) -> str:
    """sha256 over the names, the seeds, the external ids and every array, as little-endian."""
    digest = hashlib.sha256(f"{name}|{protocol}|{seeds}".encode())
    for ids in (dataset.user_ids, dataset.item_ids):
        digest.update(hashlib.sha256("\0".join(ids).encode()).digest())
    train, valid, test = parts
    rows = [train, valid.history, valid.positives, test.history, test.positives]
    arrays = [valid.users, test.users, *(r.values for r in rows), *(r.offsets for r in rows)]
    for values in arrays:
        digest.update(f"|{len(values)}|".encode())
        digest.update(np.ascontiguousarray(values, "<i8").tobytes())
    return digest.hexdigest()


def part_hashes(split: Split, dataset: Dataset) -> dict[str, str]:
    """Of merged data (merging.py) {name: hash} of every data set in it, {} for other data.

    A hash is that of the data set's own split where this one divides it alike.
    """
    seeds = split.notes.get("seed"), split.notes.get("tie_seed")
    names = dataset.source.get("merged", ())
    return {
        name: _hash(split.name, split.protocol, seeds, *_part(split, dataset, name))
        for name in names
    }


def _part(split: Split, dataset: Dataset, name: str) -> tuple[Dataset, tuple]:
    """One data set of a merged one, by its own ids, and what the split makes of it."""
    users, user_ids = _own(dataset.user_ids, name)
    items, item_ids = _own(dataset.item_ids, name)
    inner = lambda rows: replace(rows, values=items[rows.values])  # noqa: E731

    def events(of: Events) -> Events:
        first = of.positives.values[of.positives.offsets[:-1]]  # a user may be unknown: 0
        rows = np.flatnonzero(items[first])
        history, positives = inner(of.history.take(rows)), inner(of.positives.take(rows))
        return Events(users[of.users[rows]], history, positives)

    train = inner(split.train.take(np.append(0, np.flatnonzero(users))))
    own = replace(dataset, user_ids=user_ids, item_ids=item_ids)
    return own, (train, events(split.valid), events(split.test))


def _own(ids: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids NAME:ID of merged data to the data set's inner ids, 0 for those of others; its ids."""
    start = f"{name}:"
    own = np.array([x.startswith(start) for x in ids], bool)
    told = np.array([ids[0], *(x.removeprefix(start) for x in ids[own])], object)
    return np.where(own, np.cumsum(own), 0), told
