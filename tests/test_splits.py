"""splits.py: each protocol against a plain loop, hashes, leaks, and the published counts."""

import hashlib
import struct
from dataclasses import replace

import numpy as np
import pytest

from pipelines.interactions import filter_items, histories, k_core
from pipelines.merging import merge
from pipelines.schema import DataError, Dataset, Events, Ragged, Split
from pipelines.sources import from_arrays, load
from pipelines.splits import SPLITS, check_leakage, cold_mask, make_split, part_hashes


def random_dataset(seed: int = 0, n_users: int = 30, n_items: int = 40, **columns) -> Dataset:
    """Users with 1 to 20 different items, few distinct times."""
    draw = np.random.default_rng(seed)
    pairs = []
    for user in range(n_users):
        chosen = draw.permutation(n_items)[: 1 + user % 20]
        pairs += [(user, item) for item in chosen]
    users, items = draw.permutation(pairs).T
    times = draw.integers(0, 25, len(users))
    return from_arrays(users, items, times, item_columns={"item_id": range(n_items)}, **columns)


def with_newcomers() -> Dataset:
    """Every seventh user comes after all others."""
    data = random_dataset(seed=3)
    return replace(data, times=data.times + 25 * (data.users % 7 == 0))


def lists(rows: Ragged) -> list[list[int]]:
    return [rows[r].tolist() for r in range(len(rows))]


def as_rows(events: Events) -> list[tuple]:
    columns = events.users.tolist(), lists(events.history), lists(events.positives)
    return list(zip(*columns, strict=True))


# --- protocols -----------------------------------------------------------------------------


def test_leave_one_out():
    data = random_dataset()
    split = make_split(data, "leave-one-out", tie_seed=2)
    past = lists(histories(data, 2))
    long = [u for u in range(1, data.n_users + 1) if len(past[u]) >= 3]
    assert lists(split.train) == [p[:-2] if len(p) >= 3 else p for p in past]
    assert as_rows(split.valid) == [(u, past[u][:-2], past[u][-2:-1]) for u in long]
    assert as_rows(split.test) == [(u, past[u][:-1], past[u][-1:]) for u in long]
    short = [u for u in range(1, data.n_users + 1) if len(past[u]) < 3]
    assert short and split.notes["train_only_users"] == short
    assert split.protocol == "loo-full-v1" and split.ordered and split.candidates is None
    assert split.notes["order"] == "time" and split.notes["tie_seed"] == 2


def test_random_draws_the_shares_of_every_user():
    data = random_dataset()
    split = make_split(data, "random", seed=5)
    for user in range(1, data.n_users + 1):
        mine = data.items[data.users == user]
        n = len(mine)
        held = 2 if n < 10 else int(0.2 * n)
        shares = (n - held, held // 2, held - held // 2) if n >= 3 else (n, 0, 0)
        parts = [split.train[user].tolist()]
        for events in (split.valid, split.test):
            row = np.flatnonzero(events.users == user)
            parts.append(events.positives[row[0]].tolist() if len(row) else [])
            assert all(events.history[r].tolist() == parts[0] for r in row)
        assert tuple(map(len, parts)) == shares
        assert sorted(sum(parts, [])) == sorted(mine.tolist())
        in_file = [item for item in mine.tolist() if item in parts[0]]
        assert parts[0] == in_file
    assert split.protocol == "mm-random-v1" and not split.ordered
    assert make_split(data, "random", seed=6).hash != split.hash


def test_random_shuffles_users_independently_of_the_file():
    data = from_arrays(np.repeat(range(400), 5), np.tile(range(5), 400))
    test = make_split(data, "random").test.positives.values
    assert np.bincount(test, minlength=6)[1:].min() > 50  # 80 expected for each of 5 items


def test_labels_keep_sets_and_drop_users_unknown_to_train():
    data = from_arrays(
        users=[1, 1, 1, 2, 2, 3, 1, 3, 4, 4],
        items=[5, 6, 7, 5, 8, 6, 9, 7, 7, 9],
        labels=[0, 2, 1, 2, 2, 0, 0, 1, 1, 0],
    )
    split = make_split(data)
    assert split.name == "labels" and split.protocol == "mm-random-v1" and not split.ordered
    assert lists(split.train) == [[], [1, 5], [], [2], [5]]
    assert as_rows(split.valid) == [(1, [1, 5], [3]), (3, [2], [3]), (4, [5], [3])]
    assert as_rows(split.test) == [(1, [1, 5], [2])]
    assert split.notes["dropped_test_users"] == [2]
    assert split.notes["dropped_test_interactions"] == 2
    assert split.notes["dropped_valid_users"] == [] and "order" not in split.notes


def test_global_time_asks_for_every_late_interaction_with_a_past():
    data = with_newcomers()
    split = make_split(data, "global-time", tie_seed=1)
    times = np.sort(data.times)
    t1, t2 = times[int(0.8 * len(times))], times[int(0.9 * len(times))]
    key = np.random.default_rng(1).random(len(times))
    rows = sorted(range(len(times)), key=lambda r: (data.users[r], data.times[r], key[r]))
    train = [[data.items[r] for r in rows if data.users[r] == u and data.times[r] < t1]
             for u in range(data.n_users + 1)]  # fmt: skip
    assert lists(split.train) == train

    def expected(low: float, high: float) -> list[tuple]:
        events = []
        for r in (r for r in rows if low <= data.times[r] < high):
            mine = [q for q in rows if data.users[q] == data.users[r]]
            past = [int(data.items[q]) for q in mine if data.times[q] < data.times[r]]
            user = int(data.users[r]) if train[data.users[r]] else 0
            if past:
                events.append((user, past, [int(data.items[r])]))
        return events

    assert as_rows(split.valid) == expected(t1, t2)
    assert as_rows(split.test) == expected(t2, np.inf)
    assert 0 in split.test.users and split.notes["t1"] == t1 and split.notes["t2"] == t2


def test_cold_items_leave_train_and_are_asked_for():
    data = random_dataset()
    split, loo = make_split(data, "cold-items", seed=4), make_split(data, "leave-one-out")
    drawn = np.random.default_rng(4).permutation(np.arange(1, data.n_items + 1))
    cold = set(drawn[: data.n_items // 10].tolist())
    assert split.notes["cold_items"] == sorted(cold) and split.candidates is None
    warm = [[i for i in row if i not in cold] for row in lists(loo.train)]
    assert lists(split.train) == warm

    def expected(events: Events, want_cold: bool) -> list[tuple]:
        rows = []
        for user, past, (item,) in as_rows(events):
            past = [i for i in past if i not in cold]
            if (item in cold) == want_cold and past:
                rows.append((user if warm[user] else 0, past, [item]))
        return rows

    assert as_rows(split.valid) == expected(loo.valid, False)
    assert as_rows(split.test) == expected(loo.test, True)
    mask = cold_mask(split, data.n_items)
    assert mask[list(cold)].all() and not mask[0]


def test_cold_items_drop_events_with_nothing_left_to_read():
    cold, *warm = np.random.default_rng(0).permutation(np.arange(1, 11)).tolist()
    rows = [[cold, warm[0], warm[1]], [warm[0], warm[1], cold], [warm[1], warm[2], warm[3]]]
    data = from_arrays(
        np.repeat([1, 2, 3], 3), sum(rows, []), item_columns={"item_id": range(1, 11)}
    )
    split = make_split(data, "cold-items")
    assert lists(split.train) == [[], [], [warm[0]], [warm[1]]]
    assert as_rows(split.valid) == [(2, [warm[0]], [warm[1]]), (3, [warm[1]], [warm[2]])]
    assert as_rows(split.test) == [(2, [warm[0], warm[1]], [cold])]


def test_cold_mask_is_what_train_has_not_seen():
    data = random_dataset()
    split = make_split(data, "leave-one-out")
    seen = set(split.train.values.tolist())
    mask = cold_mask(split, data.n_items)
    assert mask.tolist() == [i > 0 and i not in seen for i in range(data.n_items + 1)]


# --- names, hashes -------------------------------------------------------------------------


def test_protocol_names_are_aliases():
    plain = random_dataset()
    labelled = replace(plain, labels=(np.arange(len(plain.users)) % 3).astype(np.int8))
    assert make_split(plain).name == "leave-one-out"
    assert make_split(labelled).name == "labels"
    assert make_split(plain, "mm-random-v1").name == "random"
    assert make_split(labelled, "mm-random-v1").name == "labels"
    for name, (protocol, _) in SPLITS.items():
        if protocol != "mm-random-v1":
            assert make_split(plain, protocol).hash == make_split(plain, name).hash


def test_unknown_name_lists_the_nearest():
    with pytest.raises(
        DataError, match=r"unknown split 'leave_one_out'; nearest \['leave-one-out'"
    ):
        make_split(random_dataset(), "leave_one_out")


def test_hash_is_sha256_of_names_seeds_ids_and_arrays():
    data = from_arrays([1, 1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 2, 3, 1])
    digest = hashlib.sha256(b"leave-one-out|loo-full-v1|(0, 7)")
    digest.update(hashlib.sha256(b"\x001\x002").digest())
    digest.update(hashlib.sha256(b"\x001\x002\x003\x004").digest())
    arrays = [
        [[1, 2], [1, 2]],  # users of validation and test
        [[1, 2, 2], [1, 2, 2], [3, 3], [1, 2, 3, 2, 3], [4, 1]],  # train, (history, positives) x 2
        [[0, 0, 2, 3], [0, 2, 3], [0, 1, 2], [0, 3, 5], [0, 1, 2]],  # their offsets
    ]
    for values in sum(arrays, []):
        digest.update(f"|{len(values)}|".encode() + struct.pack(f"<{len(values)}q", *values))
    assert make_split(data, tie_seed=7).hash == digest.hexdigest()


def test_parts_of_merged_data_have_the_hash_of_their_own_split():
    """Leave-one-out divides every part as it is divided alone; a draw over all users does not."""
    a, b = (random_dataset(seed, name=name) for seed, name in ((1, "a"), (2, "b")))
    a, b = (replace(d, times=np.arange(len(d.users))) for d in (a, b))  # no two at one time
    both, a, b = (k_core(d, 4, 2) for d in (merge([a, b]), a, b))
    for name, alike in (("leave-one-out", True), ("random", False), ("cold-items", False)):
        parts = part_hashes(make_split(both, name), both)
        alone = {d.name: make_split(d, name).hash for d in (a, b)}
        assert list(parts) == ["a", "b"] and len(set(parts.values())) == 2
        assert (parts == alone) is alike
    assert part_hashes(make_split(a), a) == {}


def test_hash_sees_seeds_ids_and_order():
    data = from_arrays([1, 1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 2, 3, 1])
    ids = data.item_ids.copy()
    ids[1] = "other"
    splits = [
        make_split(data),
        make_split(data, tie_seed=1),
        make_split(data, seed=1),
        make_split(replace(data, item_ids=ids)),
        make_split(replace(data, items=data.items[::-1].copy())),
    ]
    assert len({split.hash for split in splits}) == 5
    assert make_split(data).hash == splits[0].hash


# --- errors --------------------------------------------------------------------------------


def test_empty_parts_are_errors():
    short = from_arrays([1, 1, 2], [1, 2, 1])
    with pytest.raises(DataError, match="split 'leave-one-out': no validation events in 3"):
        make_split(short)
    with pytest.raises(DataError, match="split 'labels': no test events"):
        make_split(replace(short, labels=np.array([0, 1, 0], np.int8)))
    few_items = from_arrays([1, 1, 1], [1, 2, 3])
    with pytest.raises(DataError, match="split 'cold-items': no test events"):
        make_split(few_items, "cold-items")


def test_splits_say_what_they_need():
    data = from_arrays([1, 1, 1], [1, 2, 3])
    with pytest.raises(DataError, match="'global-time' needs timestamps"):
        make_split(data, "global-time")
    with pytest.raises(DataError, match="'labels' needs a column x_label or split"):
        make_split(data, "labels")


def test_repeated_items_are_refused_with_the_way_out():
    data = from_arrays(["ann", "ann", "ann", "ann"], ["a", "b", "c", "a"])
    with pytest.raises(DataError, match=r"user 'ann' asks for item 'a'.*drop_duplicates"):
        make_split(data)


# --- leaks ---------------------------------------------------------------------------------


def with_test(split: Split, **changes) -> Split:
    return replace(split, test=replace(split.test, **changes))


@pytest.fixture
def loo() -> tuple[Dataset, Split]:
    data = from_arrays(["u"] * 4 + ["v"] * 4, ["a", "b", "c", "d", "b", "e", "a", "c"])
    return data, make_split(data)


def test_leak_into_train(loo):
    data, split = loo
    rows = lists(split.train)
    rows[1].append(split.test.positives[0][0])
    with pytest.raises(DataError, match="test event 0 of user 'u' asks for item 'd'.*train"):
        check_leakage(replace(split, train=Ragged.of(rows)), data)


def test_leak_into_history(loo):
    data, split = loo
    past = lists(split.test.history)
    past[1].append(int(split.test.positives[1][0]))
    with pytest.raises(DataError, match="test event 1 of user 'v' asks for item 'c'.*own history"):
        check_leakage(with_test(split, history=Ragged.of(past)), data)


def test_foreign_train_interaction(loo):
    data, split = loo
    rows = lists(split.train)
    rows[2].append(4)
    with pytest.raises(DataError, match="train row of user 'v' holds item 'd', which is not"):
        check_leakage(replace(split, train=Ragged.of(rows)), data)


@pytest.mark.parametrize("name", ["history", "positives"])
def test_empty_row(loo, name):
    data, split = loo
    rows = Ragged.of([[], lists(getattr(split.test, name))[1]])
    with pytest.raises(DataError, match=f"test: expected 2 rows of {name}, none empty"):
        check_leakage(with_test(split, **{name: rows}), data)


def test_positives_twice_and_in_both_parts():
    data = from_arrays([1] * 5, list("abcde"), labels=[0, 1, 1, 2, 2])
    split = make_split(data)
    twice = with_test(split, positives=Ragged.of([[4, 5, 4]]))
    with pytest.raises(DataError, match="asks for item 'd'.*in its positives a second time"):
        check_leakage(twice, data)
    both = with_test(split, positives=Ragged.of([[4, 3]]))
    with pytest.raises(DataError, match="asks for item 'c'.*in the user's validation items"):
        check_leakage(both, data)
    trained = with_test(split, positives=Ragged.of([[4, 1]]))
    with pytest.raises(DataError, match="asks for item 'a'.*in the user's train interactions"):
        check_leakage(trained, data)


def test_late_or_cold_items_in_train():
    data = with_newcomers()
    for name in ("global-time", "cold-items"):
        split = make_split(data, name)
        rows = lists(split.train)
        taken = {(u, i) for u, row in enumerate(rows) for i in row}
        asked = {
            (u, i)
            for events in (split.valid, split.test)
            for u, _, positives in as_rows(events)
            for i in positives
        }
        late = [
            (u, i)
            for u, i in zip(data.users.tolist(), data.items.tolist(), strict=True)
            if (u, i) not in taken | asked
            and (name == "global-time" or i in split.notes["cold_items"])
        ]
        user, item = late[0]
        rows[user].append(item)
        with pytest.raises(DataError, match="not an interaction that this split may train on"):
            check_leakage(replace(split, train=Ragged.of(rows)), data)


# --- real data -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, users, cold_tests",
    [
        ("amazon-beauty", 22363, 138),
        ("amazon-sports", 35598, 317),
        ("amazon-instruments", 17112, 33),
    ],
)
def test_real_leave_one_out(real_data, folder, users, cold_tests):
    data = load(real_data / folder)
    split = make_split(data)
    assert split.name == "leave-one-out" and split.notes["order"] == "file"
    assert len(split.valid) == len(split.test) == users
    assert len(split.train.values) == len(data.users) - 2 * users
    cold = cold_mask(split, data.n_items)
    assert cold[split.test.positives.values].sum() == cold_tests


@pytest.mark.parametrize(
    "folder, part, sizes, cold_tests",
    [
        ("tiktok", None, (59541, 3046, 6125), 448),
        ("amazon-graph", "baby", (118551, 21682, 20559), 3),
        ("amazon-graph", "sports", (218409, 40029, 37899), 26),
    ],
)
def test_real_labels(real_data, folder, part, sizes, cold_tests):
    data = load(real_data / folder, part)
    split = make_split(data)
    held = [split.valid.positives.values, split.test.positives.values]
    assert (len(split.train.values), len(held[0]), len(held[1])) == sizes
    assert cold_mask(split, data.n_items)[held[1]].sum() == cold_tests
    if folder == "tiktok":
        assert len(split.test) == 6125 and (split.train.lengths[1:] == 0).sum() == 10
        assert split.notes["dropped_test_interactions"] == 5


@pytest.mark.parametrize(
    "folder, points, train, train_users, events, warm, cold_interactions",
    [
        ("ml-100k", (889237269, 891382309), 79999, 751, (9715, 9828), 9683, 149),
        ("ml-latest-small", (1450452394, 1494071221), 71672, 512, (8884, 8908), 8201, 707),
    ],
)
def test_real_global_time(
    real_data, folder, points, train, train_users, events, warm, cold_interactions
):
    data = load(real_data / folder)
    if folder == "ml-latest-small":
        data = k_core(filter_items(data, data.columns["image"] != ""))
    split = make_split(data, "global-time")
    assert (split.notes["t1"], split.notes["t2"]) == points
    assert len(split.train.values) == train and (split.train.lengths > 0).sum() == train_users
    assert (len(split.valid), len(split.test)) == events
    cold = cold_mask(split, data.n_items)
    assert (~cold[split.test.positives.values]).sum() == warm
    assert cold[data.items[data.times >= points[1]]].sum() == cold_interactions


@pytest.mark.parametrize(
    "folder, cold, events, empty",
    [("amazon-beauty", 1210, 2289, 13), ("amazon-sports", 1835, 3518, 17)],
)
def test_real_cold_items(real_data, folder, cold, events, empty):
    split = make_split(load(real_data / folder), "cold-items")
    assert len(split.notes["cold_items"]) == cold and len(split.test) == events
    assert (split.train.lengths[1:] == 0).sum() == empty
