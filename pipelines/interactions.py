"""Histories from rows: k-core, filters, duplicates, order in time, a description and findings."""

from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.schema import DataError, Dataset, Ragged


def k_core(dataset: Dataset, users: int = 5, items: int = 5) -> Dataset:
    """Drop items with < `items` and users with < `users` interactions, repeated until stable.

    External ids are kept, inner ids are given anew in the same order.
    """
    rows = np.ones(len(dataset.users), bool)
    while True:
        of_item = np.bincount(dataset.items[rows], minlength=dataset.n_items + 1)
        kept = rows & (of_item[dataset.items] >= items)
        of_user = np.bincount(dataset.users[kept], minlength=dataset.n_users + 1)
        kept &= of_user[dataset.users] >= users
        if kept.sum() == rows.sum():
            break
        rows = kept
    # Both counts stand at the fixed point, so they say who stays.
    return _shrink(dataset, rows, of_user >= users, of_item >= items, f"{users},{items}-core")


def filter_items(dataset: Dataset, keep: np.ndarray) -> Dataset:
    """Only the items with `keep` (bool [n_items+1]) and the users who have one of them."""
    if keep.shape != (dataset.n_items + 1,) or keep.dtype != bool:
        raise DataError(
            f"keep: expected bool [{dataset.n_items + 1}], one an inner item id, found "
            f"{keep.dtype} {list(keep.shape)}."
        )
    rows = keep[dataset.items]
    counts = np.bincount(dataset.users[rows], minlength=dataset.n_users + 1)
    return _shrink(dataset, rows, counts > 0, keep, f"filter_items to {keep[1:].sum()}")


def drop_duplicates(dataset: Dataset, keep: str = "last") -> Dataset:
    """One interaction a user and item: the first or the last in time (file order without times).

    The rows that stay keep their file order.
    """
    if keep not in ("first", "last"):
        raise DataError(f"keep: expected 'first' or 'last', found {keep!r}.")
    times = np.zeros(len(dataset.users)) if dataset.times is None else dataset.times
    order = np.lexsort((times, dataset.items, dataset.users))  # stable: equal times by file order
    pairs = _pairs(dataset)[order]
    change = pairs[1:] != pairs[:-1]
    chosen = np.append(change, True) if keep == "last" else np.append(True, change)
    rows = np.zeros(len(order), bool)
    rows[order[chosen]] = True
    everyone, everything = np.ones(dataset.n_users + 1, bool), np.ones(dataset.n_items + 1, bool)
    return _shrink(dataset, rows, everyone, everything, f"drop_duplicates keep={keep}")


def _pairs(dataset: Dataset) -> np.ndarray:
    """int64 [e]: one number a (user, item)."""
    return dataset.users.astype(np.int64) * (dataset.n_items + 1) + dataset.items


def _shrink(
    dataset: Dataset, rows: np.ndarray, users: np.ndarray, items: np.ndarray, step: str
) -> Dataset:
    """The named rows, users and items with new inner ids; the step goes into the source."""
    if not rows.any():
        raise DataError(f"{dataset.name}: {step} leaves no interactions; ask for less.")
    users, items = users.copy(), items.copy()
    users[0] = items[0] = True
    new_user = (np.cumsum(users) - 1).astype(np.int32)
    new_item = (np.cumsum(items) - 1).astype(np.int32)

    def column(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[rows]

    def table(arrays: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[keep] for name, values in arrays.items()}

    return replace(
        dataset,
        users=new_user[dataset.users[rows]],
        items=new_item[dataset.items[rows]],
        user_ids=dataset.user_ids[users],
        item_ids=dataset.item_ids[items],
        times=column(dataset.times),
        ratings=column(dataset.ratings),
        labels=column(dataset.labels),
        columns=table(dataset.columns, items),
        features=table(dataset.features, items),
        present=table(dataset.present, items),
        user_columns=table(dataset.user_columns, users),
        source={**dataset.source, "filters": [*dataset.source.get("filters", []), step]},
    )


def time_order(dataset: Dataset, tie_seed: int = 0) -> np.ndarray:
    """int64 [e]: rows by user, then by (time, random key); by file order without times.

    The key is default_rng(tie_seed).random(rows) over the rows in file order, so equal times
    are ordered anew by every tie seed.
    """
    if dataset.times is None:
        return np.argsort(dataset.users, kind="stable")
    key = np.random.default_rng(tie_seed).random(len(dataset.users))
    return np.lexsort((key, dataset.times, dataset.users))


def histories(dataset: Dataset, tie_seed: int = 0) -> Ragged:
    """Row u: the items of user u, oldest first (n_users + 1 rows, row 0 empty)."""
    return by_user(dataset, time_order(dataset, tie_seed))


def by_user(dataset: Dataset, rows: np.ndarray) -> Ragged:
    """Items of the rows (which are sorted by user) as one row a user, row 0 empty."""
    counts = np.bincount(dataset.users[rows], minlength=dataset.n_users + 1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    times = None if dataset.times is None else dataset.times[rows]
    return Ragged(dataset.items[rows], offsets, times)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Counts, lengths of histories (of users who have one), modalities and the order in time."""
    of_user = np.bincount(dataset.users, minlength=dataset.n_users + 1)[1:]
    of_item = np.bincount(dataset.items, minlength=dataset.n_items + 1)[1:]
    lengths = of_user[of_user > 0]
    unsorted, equal = _time_counts(dataset)
    return {
        "name": dataset.name,
        "users": dataset.n_users,
        "items": dataset.n_items,
        "interactions": len(dataset.users),
        "density": len(dataset.users) / (dataset.n_users * dataset.n_items),
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_mean": float(lengths.mean()),
        "length_max": int(lengths.max()),
        "users_without_interactions": int((of_user == 0).sum()),
        "items_without_interactions": int((of_item == 0).sum()),
        "repeated_pairs": len(dataset.users) - len(np.unique(_pairs(dataset))),
        "modalities": {name: float(there[1:].mean()) for name, there in dataset.present.items()},
        "order": "file" if dataset.times is None else "time",
        "unsorted_times": unsorted,
        "equal_times": equal,
    }


def _time_counts(dataset: Dataset) -> tuple[int, int]:
    """Steps back in time in file order, and steps of length 0, both within a user."""
    if dataset.times is None:
        return 0, 0
    in_file = np.argsort(dataset.users, kind="stable")
    same_user = np.diff(dataset.users[in_file]) == 0
    back = np.diff(dataset.times[in_file]) < 0
    equal = np.diff(dataset.times[np.lexsort((dataset.times, dataset.users))]) == 0
    return int((same_user & back).sum()), int((same_user & equal).sum())


def validate(dataset: Dataset) -> list[str]:
    """Findings in plain words, one a line; empty where nothing is remarkable.

    Raises DataError where the arrays contradict each other: nothing can be made of those.
    """
    _check_shapes(dataset)
    facts = describe(dataset)
    short = int((np.bincount(dataset.users, minlength=dataset.n_users + 1)[1:] < 3).sum())
    equal = f"{facts['equal_times']} interactions share user and time with another: order by seed"
    findings = [
        (facts["repeated_pairs"], f"{facts['repeated_pairs']} repeated user-item pairs"),
        (short, f"{short} users with fewer than 3 interactions: train only in leave-one-out"),
        (
            facts["items_without_interactions"],
            f"{facts['items_without_interactions']} items without interactions",
        ),
        (facts["equal_times"], equal),
        (dataset.times is None, "no timestamps: the file order is taken as the order"),
    ]
    findings += [
        (share < 1, f"{share:.1%} of the items have the modality '{name}'")
        for name, share in facts["modalities"].items()
    ]
    for name, values in dataset.features.items():
        empty = int((~values[1:].any(1)).sum())
        findings.append((empty, f"{empty} items have only zeros as '{name}' features"))
    return [text for found, text in findings if found]


def _check_shapes(dataset: Dataset) -> None:
    for name, values, top in (
        ("users", dataset.users, dataset.n_users),
        ("items", dataset.items, dataset.n_items),
    ):
        low, high = (values.min(), values.max()) if len(values) else (0, 0)
        if values.dtype != np.int32 or low < 1 or high > top:
            raise DataError(
                f"{dataset.name}: expected {name} as int32 ids 1..{top}, found {values.dtype} "
                f"{low}..{high} in {len(values)} rows."
            )
    for name in ("items", "times", "ratings", "labels"):
        values = getattr(dataset, name)
        if values is not None and len(values) != len(dataset.users):
            raise DataError(
                f"{dataset.name}: expected {len(dataset.users)} {name}, found {len(values)}."
            )
    tables = {**dataset.columns, **dataset.features, **dataset.present}
    for name, values in tables.items():
        if len(values) != dataset.n_items + 1:
            raise DataError(
                f"{dataset.name}: expected {dataset.n_items + 1} rows of '{name}', one an item "
                f"and row 0 empty, found {len(values)}."
            )
