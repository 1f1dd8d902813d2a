"""Tables as text: csv, tsv, parquet, RecBole/MMRec .inter, MovieLens ::, S3-Rec sequences."""

import difflib
import json
import logging
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.readers import ids
from pipelines.schema import DataError

logger = logging.getLogger("pipelines")

# Our name of a column -> the names it has in the wild.
NAMES = {
    "user_id": ("user_id", "userID", "userId", "user"),
    "item_id": ("item_id", "itemID", "itemId", "movie_id", "movieId", "item"),
    "timestamp": ("timestamp", "time"),
    "rating": ("rating",),
    "split": ("split", "x_label"),
}
LABELS = {"0": 0, "train": 0, "1": 1, "valid": 1, "validation": 1, "val": 1, "2": 2, "test": 2}
SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t", ".user": "\t"}
DAT_COLUMNS = {
    "ratings": ["user_id", "item_id", "rating", "timestamp"],
    "movies": ["item_id", "title", "genres"],
    "users": ["user_id", "gender", "age", "occupation", "zip_code"],
}


def read_table(path: Path) -> pl.DataFrame:
    """One file as a frame of strings (times of parquet stay times). DataError if unreadable."""
    try:
        frame = _read(path)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path}: the file is empty; expected a header and rows.") from error
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: could not be read as {path.suffix[1:]}: {error}") from error
    return frame.rename({name: name.split(":")[0].strip() for name in frame.columns})


def _read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path).with_columns(pl.all().map_batches(_text))
    if path.suffix == ".dat":
        return _read_dat(path)
    if path.suffix not in SEPARATORS:
        raise DataError(f"{path}: unknown ending; expected .parquet, .dat or {list(SEPARATORS)}.")
    return pl.read_csv(path, separator=SEPARATORS[path.suffix], infer_schema=False)


def _text(series: pl.Series) -> pl.Series:
    """Any column as strings, nested ones as JSON; dates and times are left for `numbers`."""
    if series.dtype in (pl.Date, pl.Datetime):
        return series
    if series.dtype.is_nested():
        return pl.Series(series.name, [json.dumps(v) for v in series.to_list()], pl.String)
    return series.cast(pl.String)


def _read_dat(path: Path) -> pl.DataFrame:
    """MovieLens 1M and 10M: '::' between fields, no header, titles in Latin-1."""
    if path.stem not in DAT_COLUMNS:
        raise DataError(f"{path}: expected one of {[f'{name}.dat' for name in DAT_COLUMNS]}.")
    text = path.read_bytes()
    try:
        text = text.decode("utf-8")
    except UnicodeDecodeError:
        text = text.decode("latin-1")
    return pl.read_csv(
        text.replace("::", "\x1f").encode(),
        separator="\x1f",
        has_header=False,
        new_columns=DAT_COLUMNS[path.stem],
        quote_char=None,
        infer_schema=False,
    )


def read_sequences(path: Path) -> pl.DataFrame:
    """S3-Rec and P5: one user a line, 'user item item ...', oldest first."""
    rows = [line.split() for line in path.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows, 1):
        if len(row) == 1:
            raise DataError(f"{path}, row {number}: expected 'user item item ...', found {row[0]}.")
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(f"{path}: the file is empty; expected lines 'user item item ...'.")
    users = np.repeat(np.array([row[0] for row in rows], object), [len(r) - 1 for r in rows])
    items = list(chain.from_iterable(row[1:] for row in rows))
    return pl.DataFrame({"user_id": pl.Series(users, dtype=pl.String), "item_id": items})


def interactions(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Columns user_id, item_id and, where there, timestamp, rating, split; others are left out."""
    for ours in NAMES:
        needed = ours in ("user_id", "item_id")
        frame = named(frame, ours, path, needed)
    if not frame.height:
        raise DataError(f"{path}: no interactions; expected rows below the header.")
    extra = [name for name in frame.columns if name not in NAMES]
    if extra and "timestamp" not in frame.columns:
        told = "%s: no column timestamp: the file's order is taken for time; not used: %s"
        logger.warning(told, path, ", ".join(extra))
    elif extra:
        logger.info("%s: columns %s are not used", path, extra)
    for column in ("user_id", "item_id"):
        missing = ids.missing(frame[column])
        if missing.any():
            refuse(frame, column, int(missing.arg_max()), "an id", path)
    return frame.select([name for name in NAMES if name in frame.columns])


def named(frame: pl.DataFrame, ours: str, path: Path, needed: bool = True) -> pl.DataFrame:
    """A column under our name, whatever the file calls it; DataError if a needed one is missing."""
    theirs = next((name for name in NAMES[ours] if name in frame.columns), None)
    if theirs is None and needed:
        near = difflib.get_close_matches(ours, frame.columns, 3, 0.4)
        raise DataError(
            f"{path}: no column '{ours}' (or {', '.join(NAMES[ours][1:])}); found "
            f"{frame.columns}, nearest {near}. {_remedy(frame.columns)}"
        )
    return frame if theirs is None else frame.rename({theirs: ours})


def _remedy(columns: list[str]) -> str:
    if len(columns) == 1 and (mark := next((x for x in ";|\t," if x in columns[0]), "")):
        return f"Its cells seem to be parted by {mark!r}; expected commas in .csv, tabs in .tsv."
    return "Rename the column of the file."


def numbers(frame: pl.DataFrame, column: str, expected: str, path: Path) -> np.ndarray:
    """A column as int64 where every value is whole, else float64; DataError names a bad row."""
    series = frame[column]
    if series.dtype in (pl.Date, pl.Datetime):
        series = series.dt.timestamp("us") / 1e6
    values = series if series.dtype.is_numeric() else series.cast(pl.Int64, strict=False)
    if values.null_count():
        values = series.cast(pl.Float64, strict=False)
    bad = (values.is_null() | ~values.is_finite()).to_numpy()
    if bad.any():
        refuse(frame, column, int(bad.argmax()), expected, path)
    return values.cast(pl.Int64 if values.dtype.is_integer() else pl.Float64).to_numpy()


def labels(frame: pl.DataFrame, path: Path) -> np.ndarray:
    """The split column as int8: 0 train, 1 validation, 2 test."""
    names = pl.Series(list(LABELS)), pl.Series(list(LABELS.values()), dtype=pl.Int8)
    text = frame["split"].cast(pl.String).str.to_lowercase()
    values = text.replace_strict(*names, default=None, return_dtype=pl.Int8)
    if values.null_count():
        expected = f"one of {', '.join(LABELS)}"
        refuse(frame, "split", int(values.is_null().arg_max()), expected, path)
    return values.to_numpy()


def refuse(frame: pl.DataFrame, column: str, row: int, expected: str, path: Path) -> None:
    """Raise the DataError of one cell. Rows are counted from 1 below the header."""
    raise DataError(
        f"{path}, row {row + 1}, column '{column}': expected {expected}, "
        f"found {frame[column][row]!r}. Correct the row or leave it out."
    )
