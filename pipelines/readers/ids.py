"""External ids to inner ids from 1: numeric order, table order or first appearance."""

from pathlib import Path

import numpy as np
import polars as pl

from pipelines.schema import DataError

# Canonical only: '07' and '7' are two ids, so a column that holds '07' is text.
INTEGER = r"^(?:0|[1-9][0-9]{0,17})$"


def missing(ids: pl.Series) -> pl.Series:
    """bool [rows]: no id in the cell, or the empty string."""
    return ids.is_null() | (ids == "").fill_null(True)


def are_integers(ids: pl.Series) -> bool:
    """Whether every id is a whole number from 0, written the plain way."""
    return bool(ids.str.contains(INTEGER).all())


def in_order(ids: pl.Series) -> pl.Series:
    """The distinct ids: numerically sorted if all are integers, else by first appearance."""
    distinct = ids.unique(maintain_order=True)
    if not are_integers(distinct):
        return distinct
    return distinct.gather(distinct.cast(pl.Int64).arg_sort())


def table_rows(table: pl.DataFrame, column: str, path: Path) -> np.ndarray:
    """int64 [rows]: the order of a table's rows by inner id; DataError on empty or double ids."""
    ids = table[column]
    if missing(ids).any():
        row = int(missing(ids).arg_max()) + 1
        raise DataError(f"{path}, row {row}, column '{column}': expected an id, found none.")
    double = ids.is_duplicated()
    if double.any():
        rows = (double.arg_true() + 1).to_list()
        raise DataError(
            f"{path}: expected each {column} once, found {ids.filter(double)[0]!r} and others "
            f"more than once, rows {rows[:6]}. Keep one row an id."
        )
    if are_integers(ids):
        return ids.cast(pl.Int64).arg_sort().to_numpy().astype(np.int64)
    return np.arange(len(ids))


def inner(ids: pl.Series, order: pl.Series, path: Path, table: str) -> np.ndarray:
    """int32 [rows]: place of each id in `order`, from 1; DataError names the unknown ones."""
    places = pl.Series(range(1, len(order) + 1), dtype=pl.Int32)
    found = ids.replace_strict(order, places, default=None, return_dtype=pl.Int32)
    if found.null_count():
        unknown = ids.filter(found.is_null())
        row = int(found.is_null().arg_max()) + 1
        raise DataError(
            f"{path}: expected every {ids.name} in {table}, found {found.null_count()} rows with "
            f"others, first {unknown.unique(maintain_order=True)[:5].to_list()} at row {row}. "
            f"Add them to {table} or drop the rows."
        )
    return found.to_numpy()


def rows_to_ids(
    rows: pl.DataFrame, column: str, table_ids: pl.Series, path: Path, table: Path
) -> pl.DataFrame:
    """Row numbers from 0 in `column` replaced by the ids at these rows of the table."""
    if not are_integers(rows[column]):
        raise DataError(f"{path}: expected row numbers of {table.name} as {column}, found text.")
    numbers = rows[column].cast(pl.Int64)
    if numbers.max() >= len(table_ids):
        row = int((numbers >= len(table_ids)).arg_max()) + 1
        raise DataError(
            f"{path}, row {row}: expected a row number below {len(table_ids)}, the rows of "
            f"{table.name}, found {numbers[row - 1]}. Complete the table."
        )
    return rows.with_columns(table_ids.gather(numbers).alias(column))


def external(order: pl.Series) -> np.ndarray:
    """object [n+1]: the ids as strings, '' at the padding id 0."""
    return np.array(["", *order.to_list()], object)
