"""From what was read to a Dataset: inner ids, numbers, item tables with a padding row."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.readers import content, ids, tables
from pipelines.schema import DataError, Dataset


@dataclass
class Raw:
    """What was read, before inner ids: frames of strings, features as stored."""

    name: str
    path: Path  # of the interactions, for messages
    interactions: pl.DataFrame
    items: pl.DataFrame | None = None  # column item_id, rows by inner id
    users: pl.DataFrame | None = None  # column user_id, rows by inner id
    features: dict[str, np.ndarray] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)


def features_in_order(raw: Raw, order: np.ndarray) -> dict[str, np.ndarray]:
    """The features, given in the rows of the item table, by inner id."""
    for key, values in raw.features.items():
        content.check_rows(values, len(order), f"{raw.name}, features '{key}'")
    return {key: values[order] for key, values in raw.features.items()}


def dataset(raw: Raw) -> Dataset:
    """Inner ids for the frames that were read."""
    rows, path = raw.interactions, raw.path
    if raw.features and raw.items is None and not ids.are_integers(rows["item_id"]):
        raise DataError(
            f"{path}: features {sorted(raw.features)} follow the rows of an item table, and there "
            "is none. Add items.csv with the column item_id in the order of the features."
        )
    item_order = ids.in_order(rows["item_id"]) if raw.items is None else raw.items["item_id"]
    user_order = ids.in_order(rows["user_id"]) if raw.users is None else raw.users["user_id"]
    columns = content.text_columns(raw.items, "item_id")
    n_items = len(item_order)
    features = {
        key: content.with_padding_row(values, n_items, f"{raw.name}, features '{key}'")
        for key, values in raw.features.items()
    }
    times = "timestamp" in rows.columns
    raw.source["order"] = "time" if times else "file"
    return Dataset(
        name=raw.name,
        users=ids.inner(rows["user_id"], user_order, path, "the user table"),
        items=ids.inner(rows["item_id"], item_order, path, "the item table"),
        user_ids=ids.external(user_order),
        item_ids=ids.external(item_order),
        times=_numbers(rows, "timestamp", "seconds as a number", path),
        ratings=_numbers(rows, "rating", "a number", path, np.float32),
        labels=tables.labels(rows, path) if "split" in rows.columns else None,
        columns=columns,
        features=features,
        present=content.presence(columns, features, n_items),
        user_columns=content.text_columns(raw.users, "user_id"),
        source=raw.source,
    )


def _numbers(
    rows: pl.DataFrame, column: str, expected: str, path: Path, dtype: Any = None
) -> np.ndarray | None:
    if column not in rows.columns:
        return None
    values = tables.numbers(rows, column, expected, path)
    return values if dtype is None else values.astype(dtype)
