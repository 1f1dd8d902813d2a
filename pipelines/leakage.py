"""Proof that nothing held out reaches training: no graph, feature, negative or vocabulary."""

import numpy as np

from pipelines.schema import DataError, Dataset, Events, Ragged, Split


def check_leakage(split: Split, dataset: Dataset) -> None:
    """Raise DataError, naming user and item, where the answer can be read off the question.

    No positive is in its user's train row or (ordered splits) in its history; nothing is in
    validation and test of the same user; by global time train ends before validation begins;
    cold items are not in train; every event has a history and a positive.
    """
    for part, events in (("validation", split.valid), ("test", split.test)):
        _check_rows(split, part, events, dataset)
        trained = split.train.take(events.users)  # row 0, of unknown users, is empty
        _refuse_common(split, part, events, trained, "the user's train interactions", dataset)
        if split.ordered:
            _refuse_common(split, part, events, events.history, "its own history", dataset)
    if not split.ordered:
        asked = _validation_of(split)
        _refuse_common(split, "test", split.test, asked, "the user's validation items", dataset)
    _check_train(split, dataset)


def _validation_of(split: Split) -> Ragged:
    """Row r: the validation items of the user of test event r, empty where there are none."""
    positives = split.valid.positives
    with_empty = Ragged(positives.values, np.append(0, positives.offsets))  # row 0 is empty
    rows = np.zeros(len(split.train), np.int64)
    rows[split.valid.users] = np.arange(len(positives)) + 1
    return with_empty.take(rows[split.test.users])


def _check_rows(split: Split, part: str, events: Events, dataset: Dataset) -> None:
    for name, rows in (("history", events.history), ("positives", events.positives)):
        if len(rows) != len(events) or (rows.lengths == 0).any():
            raise DataError(
                f"split '{split.name}', {part}: expected {len(events)} rows of {name}, none "
                f"empty; found {len(rows)} rows, {(rows.lengths == 0).sum()} empty."
            )
    keys = np.sort(_keys(events.positives, dataset.n_items))
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        _refuse(split, part, events, int(twice[0]), "its positives a second time", dataset)


def _keys(rows: Ragged, n_items: int) -> np.ndarray:
    """int64: one number a (row, item)."""
    return rows.rows.astype(np.int64) * (n_items + 1) + rows.values


def _common(one: Ragged, other: Ragged, n_items: int) -> np.ndarray:
    """int64: the keys of `one` whose item is also in the same row of `other`."""
    if (one.lengths == 1).all():  # a comparison is ten times faster than the sort of isin
        rows = np.repeat(np.arange(len(one)), other.lengths)
        rows = rows[one.values[rows] == other.values]
        return rows * (n_items + 1) + one.values[rows]
    keys = _keys(one, n_items)
    return keys[_among(keys, _keys(other, n_items))]


def _among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """bool: which keys occur in `others`; one sort, where isin makes both sides distinct first."""
    others = np.append(np.sort(others), np.iinfo(np.int64).max)
    return others[np.searchsorted(others, keys)] == keys


def _refuse_common(
    split: Split, part: str, events: Events, other: Ragged, where: str, dataset: Dataset
) -> None:
    leaked = _common(events.positives, other, dataset.n_items)
    if len(leaked):
        _refuse(split, part, events, int(leaked[0]), where, dataset)


def _refuse(
    split: Split, part: str, events: Events, key: int, where: str, dataset: Dataset
) -> None:
    row, item = divmod(key, dataset.n_items + 1)
    user = events.users[row]
    who = f"user '{dataset.user_ids[user]}'" if user else "a user without train interactions"
    raise DataError(
        f"{dataset.name}, split '{split.name}': {part} event {row} of {who} asks for item "
        f"'{dataset.item_ids[item]}', which is also in {where}. If the user repeats items, "
        "call interactions.drop_duplicates(dataset) first."
    )


def _check_train(split: Split, dataset: Dataset) -> None:
    """Train rows hold the user's own interactions only, early ones and warm ones."""
    width = dataset.n_items + 1
    pairs = dataset.users.astype(np.int64) * width + dataset.items
    allowed = np.ones(len(pairs), bool)
    if "t1" in split.notes:
        allowed &= dataset.times < split.notes["t1"]
    if "cold_items" in split.notes:
        allowed &= ~np.isin(dataset.items, split.notes["cold_items"])
    keys = _keys(split.train, dataset.n_items)
    foreign = keys[~_among(keys, pairs[allowed])]
    if len(foreign):
        user, item = divmod(int(foreign[0]), width)
        raise DataError(
            f"{dataset.name}, split '{split.name}': the train row of user "
            f"'{dataset.user_ids[user]}' holds item '{dataset.item_ids[item]}', which is not an "
            "interaction that this split may train on."
        )
