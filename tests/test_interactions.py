"""interactions.py: k-core, filters, duplicates, order in time, description and findings."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.interactions import (
    describe,
    drop_duplicates,
    filter_items,
    histories,
    k_core,
    time_order,
    validate,
)
from pipelines.schema import DataError, Dataset
from pipelines.sources import from_arrays, load


def random_dataset(seed: int = 0, rows: int = 300, n_users: int = 40, n_items: int = 30) -> Dataset:
    """Skewed counts, few distinct times, an item that nobody touched."""
    draw = np.random.default_rng(seed)
    users = (n_users * draw.random(rows) ** 2).astype(int)
    items = (n_items * draw.random(rows) ** 2).astype(int)
    return from_arrays(
        users,
        items,
        times=draw.integers(0, 20, rows),
        ratings=draw.integers(1, 6, rows),
        labels=draw.integers(0, 3, rows),
        item_columns={
            "item_id": range(n_items + 1),
            "title": [f"t{i}" for i in range(n_items + 1)],
        },
        features={"image": np.arange(n_items + 1, dtype=np.float32)[:, None]},
    )


def rows_of(data: Dataset) -> list[tuple]:
    """Interactions in external ids, in file order."""
    return list(
        zip(
            data.user_ids[data.users],
            data.item_ids[data.items],
            data.times.tolist(),
            data.ratings.tolist(),
            data.labels.tolist(),
            strict=True,
        )
    )


def core_by_hand(rows: list[tuple], users: int, items: int) -> list[tuple]:
    while True:
        of_item = [row[1] for row in rows]
        kept = [row for row in rows if of_item.count(row[1]) >= items]
        of_user = [row[0] for row in kept]
        kept = [row for row in kept if of_user.count(row[0]) >= users]
        if len(kept) == len(rows):
            return rows
        rows = kept


@pytest.mark.parametrize("users, items", [(5, 5), (3, 8), (8, 1)])
def test_k_core_equals_the_loop(users, items):
    data = random_dataset()
    core = k_core(data, users, items)
    assert rows_of(core) == core_by_hand(rows_of(data), users, items)
    assert 0 < core.n_users < data.n_users and core.n_items < data.n_items
    assert np.bincount(core.users)[1:].min() >= users
    assert np.bincount(core.items)[1:].min() >= items


def test_k_core_shrinks_every_item_table():
    core = k_core(random_dataset())
    numbers = core.item_ids[1:].astype(int)
    assert core.columns["title"].tolist() == ["", *(f"t{i}" for i in numbers)]
    np.testing.assert_array_equal(core.features["image"][1:, 0], numbers)
    assert not core.features["image"][0].any()
    assert core.present["image"].tolist() == [False] + [True] * core.n_items
    assert core.users.dtype == core.items.dtype == np.int32
    assert core.source["filters"] == ["5,5-core"] and validate(core)


def test_k_core_of_nothing_left():
    with pytest.raises(DataError, match="100,100-core leaves no interactions"):
        k_core(random_dataset(), 100, 100)


def test_filter_items_keeps_the_named_ones():
    data = random_dataset()
    keep = np.zeros(data.n_items + 1, bool)
    keep[[3, 9, 31]] = True
    few = filter_items(data, keep)
    wanted = set(data.item_ids[[3, 9]])
    assert rows_of(few) == [row for row in rows_of(data) if row[1] in wanted]
    assert few.item_ids.tolist() == ["", *data.item_ids[[3, 9, 31]]]
    assert set(few.user_ids[1:]) == {row[0] for row in rows_of(few)}
    with pytest.raises(DataError, match=r"expected bool \[32\].*found int64 \[2\]"):
        filter_items(data, np.array([3, 9]))


def test_drop_duplicates_by_time_then_by_file_order():
    users, items, times = [1, 1, 1, 1, 2, 2], [7, 7, 8, 7, 7, 7], [5, 9, 1, 2, 3, 3]
    data = from_arrays(users, items, times, ratings=range(6))
    assert drop_duplicates(data).ratings.tolist() == [1, 2, 5]
    assert drop_duplicates(data, keep="first").ratings.tolist() == [2, 3, 4]
    assert drop_duplicates(replace(data, times=None)).ratings.tolist() == [2, 3, 5]
    with pytest.raises(DataError, match="expected 'first' or 'last', found 'any'"):
        drop_duplicates(data, keep="any")


def test_histories_order_equal_times_by_the_seeded_key():
    data = random_dataset()
    for tie_seed in (0, 1):
        key = np.random.default_rng(tie_seed).random(len(data.users))
        past = histories(data, tie_seed)
        assert len(past) == data.n_users + 1 and len(past[0]) == 0
        for user in range(1, data.n_users + 1):
            mine = [r for r in range(len(key)) if data.users[r] == user]
            mine.sort(key=lambda r: (data.times[r], key[r]))
            assert past[user].tolist() == data.items[mine].tolist()
    assert (time_order(data, 0) != time_order(data, 1)).any()


def test_histories_without_times_are_in_file_order():
    past = histories(from_arrays([2, 1, 2, 2], [9, 5, 7, 9]))
    assert [past[u].tolist() for u in range(3)] == [[], [1], [3, 2, 3]]
    assert past.values.dtype == np.int32 and past.offsets.dtype == np.int64


def test_describe():
    data = from_arrays(
        [1, 1, 1, 1, 2, 2, 3],
        [10, 20, 10, 30, 10, 20, 30],
        times=[1, 3, 2, 2, 7, 7, 0],
        item_columns={"item_id": [10, 20, 30, 40], "title": ["a", "", "c", "d"]},
    )
    facts = describe(data)
    assert (facts["users"], facts["items"], facts["interactions"]) == (3, 4, 7)
    assert facts["density"] == 7 / 12
    lengths = [facts[f"length_{name}"] for name in ("min", "median", "mean", "max")]
    assert lengths == [1, 2.0, 7 / 3, 4]
    assert facts["items_without_interactions"] == 1 and facts["users_without_interactions"] == 0
    assert facts["repeated_pairs"] == 1 and facts["modalities"] == {"text": 0.75}
    assert (facts["order"], facts["unsorted_times"], facts["equal_times"]) == ("time", 1, 2)


def test_validate_tells_what_is_remarkable():
    clean = from_arrays([1, 1, 1], [1, 2, 3], times=[1, 2, 3])
    assert validate(clean) == []
    data = from_arrays(
        [1, 1, 1, 2, 2],
        [1, 2, 1, 1, 2],
        item_columns={"item_id": [1, 2, 3, 4], "title": ["a", "b", "", "d"]},
        features={"image": np.array([[1.0], [0.0], [1.0], [1.0]])},
    )
    assert validate(data) == [
        "1 repeated user-item pairs",
        "1 users with fewer than 3 interactions: train only in leave-one-out",
        "2 items without interactions",
        "no timestamps: the file order is taken as the order",
        "75.0% of the items have the modality 'text'",
        "1 items have only zeros as 'image' features",
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"users": np.array([0, 1, 1], np.int32)},
            r"users as int32 ids 1\.\.1, found int32 0\.\.1",
        ),
        (
            {"items": np.array([1, 2, 9], np.int32)},
            r"items as int32 ids 1\.\.3, found int32 1\.\.9",
        ),
        ({"items": np.array([1, 2, 3])}, "found int64"),
        ({"times": np.arange(2)}, "expected 3 times, found 2"),
        ({"columns": {"title": np.array(["", "a"], object)}}, "expected 4 rows of 'title'"),
    ],
)
def test_validate_refuses_arrays_that_contradict(change, message):
    with pytest.raises(DataError, match=message):
        validate(replace(from_arrays([1, 1, 1], [1, 2, 3], times=[1, 2, 3]), **change))


LENGTHS = {  # min, median, mean, max and density as published
    "amazon-beauty": (5, 6, 8.88, 204, 0.000734),
    "amazon-sports": (5, 6, 8.32, 296, 0.000453),
    "amazon-instruments": (5, 6, 7.96, 131, 0.001274),
    "tiktok": (1, 3, 7.38, 604, 0.0011),
    "ml-100k": (20, 65, 106.04, 737, 0.06305),
}


@pytest.mark.parametrize("folder", LENGTHS)
def test_real_lengths(real_data, folder):
    facts = describe(load(real_data / folder))
    shortest, median, mean, longest, density = LENGTHS[folder]
    assert (facts["length_min"], facts["length_median"]) == (shortest, median)
    assert facts["length_max"] == longest
    assert facts["length_mean"] == pytest.approx(mean, abs=0.005)
    assert facts["density"] == pytest.approx(density, abs=5e-6)
    assert facts["repeated_pairs"] == 0


def test_real_posters_and_5_core(real_data):
    data = load(real_data / "ml-latest-small")
    assert describe(data)["items_without_interactions"] == 9742 - 9724
    posters = filter_items(data, data.columns["image"] != "")
    assert (posters.n_users, posters.n_items, len(posters.users)) == (610, 4888, 93226)
    core = k_core(posters)
    assert (core.n_users, core.n_items, len(core.users)) == (610, 3548, 89591)
    assert core.source["filters"] == ["filter_items to 4888", "5,5-core"]
