"""Where rows come from: S3-Rec text, .inter, MovieLens, csv/tsv/parquet, tfds, memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipelines.readers import assemble, content, files, ids, tables
from pipelines.schema import DataError, Dataset


def load(path: str | Path, part: str | None = None) -> Dataset:
    """The data set in a folder, or behind a path straight to one interactions file.

    The format follows from the files: `sequences.txt` (S3-Rec, P5), `interactions.{csv,tsv,
    parquet}`, `ratings.{csv,tsv,dat}` (MovieLens) or `*.inter` (RecBole, MMRec), with item and
    user tables, `<modality>_feat.npy` and `posters/` beside them. Where a folder holds several
    interactions files, `part` names one; `source["parts"]` lists them.

    Inner ids follow the item table (integer ids in numeric order); without a table integer ids
    are sorted, others come in order of appearance. MMRec's `itemID` counts item rows from 0,
    so that `itemID` k is inner id k + 1, also for items without interactions. Feature row r
    belongs to row r of the item table, for MMRec to `itemID` r.

    Raises DataError, naming file, row and column, for everything that does not fit.
    """
    found = files.find(Path(path), part)
    read = [file for file in (found.interactions, found.items, found.users) if file]
    source: dict[str, Any] = {
        "folder": found.folder.name,
        "format": found.format,
        "part": found.part,
        "parts": list(found.parts),
        "licence": files.licence(found.folder),
        "notes": [],
    }
    raw = _read(found, read, source)
    source["files"] = files.digests(read, found.folder)
    return assemble.dataset(raw)


def _read(found: files.Files, read: list[Path], source: dict[str, Any]) -> assemble.Raw:
    """The frames and features of the files; what else is opened is added to `read`."""
    path = found.interactions
    if found.format == "sequences":
        rows = tables.read_sequences(path)
    else:
        rows = tables.read_table(path)
    mmrec = "itemID" in rows.columns
    name = found.folder.name
    if found.part != found.parts[0] or len(found.parts) > 1 and found.format == "inter":
        name = f"{name}-{found.part}"
    raw = assemble.Raw(name, path, tables.interactions(rows, path), source=source)
    raw.features = _features(found, read)
    raw.items = _table(found.items, "item_id", raw, "itemID" if mmrec else None)
    raw.users = _table(found.users, "user_id", raw, "userID" if mmrec else None)
    if raw.items is not None:
        raw.items = _item_content(raw.items, found, read, source)
    elif mmrec:
        raw.items = _counted_items(raw)
    return raw


def _features(found: files.Files, read: list[Path]) -> dict[str, np.ndarray]:
    matrices = content.feature_files(found.folder)
    read += matrices.values()
    return {modality: content.read_features(path) for modality, path in matrices.items()}


def _table(
    path: Path | None, column: str, raw: assemble.Raw, counted: str | None
) -> pl.DataFrame | None:
    """An item or user table by inner id. Row numbers of MMRec become the ids of the table."""
    if path is None:
        return None
    frame = tables.read_table(path)
    by_row = counted is not None and counted not in frame.columns
    frame = tables.named(frame, column, path)
    order = ids.table_rows(frame, column, path)
    if column == "item_id" and counted is None:
        # Beside a table with ids of its own, features were made row by row from that table.
        raw.features = assemble.features_in_order(raw, order)
    if not by_row:
        return frame[order]
    raw.interactions = ids.rows_to_ids(raw.interactions, column, frame[column], raw.path, path)
    raw.source["notes"].append(f"{counted} of {raw.path.name} is the row of {path.name}, from 0")
    return frame


def _counted_items(raw: assemble.Raw) -> pl.DataFrame | None:
    """MMRec without an item table: items 0..n-1, n from the features or the largest id."""
    used = raw.interactions["item_id"]
    if not ids.are_integers(used):
        return None
    n_items = used.cast(pl.Int64).max() + 1
    if raw.features:
        n_items = max(n_items, max(len(values) for values in raw.features.values()))
    if n_items > 1000 * used.n_unique():
        raise DataError(
            f"{raw.path}: expected itemID to count items from 0, found {used.n_unique()} items and "
            f"ids up to {n_items - 1}. Add an item table with the column itemID that lists them."
        )
    return pl.DataFrame({"item_id": pl.int_range(n_items, eager=True).cast(pl.String)})


def _item_content(
    items: pl.DataFrame, found: files.Files, read: list[Path], source: dict[str, Any]
) -> pl.DataFrame:
    """The item table with file paths, posters, attributes and the text of a sibling folder."""
    items = content.file_paths(items, found.folder, found.items)
    items = content.with_posters(items, found.folder)
    attributes = found.folder / "item2attributes.json"
    if attributes.is_file():
        read.append(attributes)
        items = content.with_attributes(items, attributes)
    sibling = found.folder.parent / "amazon-sports" / "items.tsv"
    if "s3rec_id" in items.columns and sibling.is_file():
        read.append(sibling)
        source["notes"].append("item text joined from ../amazon-sports/items.tsv by s3rec_id")
        items = content.with_sibling_text(items, tables.read_table(sibling), found.items)
    return items


def from_arrays(
    users: Sequence,
    items: Sequence,
    times: Sequence | None = None,
    ratings: Sequence | None = None,
    labels: Sequence | None = None,
    item_columns: dict[str, Sequence] | None = None,
    features: dict[str, np.ndarray] | None = None,
    name: str = "memory",
) -> Dataset:
    """A data set from parallel columns [e] of interactions, ids of any kind.

    `item_columns` {column: [n]} has one row an item, `item_id` among its columns; without it the
    items are those that occur, in the order of `load`. `features` {modality: float [n, f]} follow
    the rows of `item_columns`, or that order. Labels are 0 train, 1 validation, 2 test.
    """
    columns = {"user_id": users, "item_id": items}
    optional = {"timestamp": times, "rating": ratings, "split": labels}
    columns |= {key: value for key, value in optional.items() if value is not None}
    lengths = {key: len(value) for key, value in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{name}: expected columns of equal length, found {lengths}.")
    path = Path(name)
    rows = tables.interactions(_frame(columns), path)
    source = {"folder": name, "format": "memory", "part": None, "files": {}, "licence": ""}
    raw = assemble.Raw(name, path, rows, source=source)
    for key, values in (features or {}).items():
        raw.features[key] = content.check_features(np.asarray(values), f"{name}, features '{key}'")
    if item_columns is not None:
        table = tables.named(_frame(item_columns), "item_id", path)
        order = ids.table_rows(table, "item_id", path)
        raw.items = table[order]
        raw.features = assemble.features_in_order(raw, order)
    return assemble.dataset(raw)


def _frame(columns: dict[str, Sequence]) -> pl.DataFrame:
    frame = pl.DataFrame({key: _series(value) for key, value in columns.items()})
    known = [name for name in ("user_id", "item_id") if name in frame.columns]
    return frame.with_columns(pl.col(name).cast(pl.String) for name in known)


def _series(values: Sequence) -> pl.Series:
    plain = isinstance(values, np.ndarray) and values.dtype != object
    return pl.Series(values if plain else list(values))


def from_tfds(
    data_source: Sequence,
    user: str = "user_id",
    item: str = "movie_id",
    time: str | None = "timestamp",
    rating: str | None = "user_rating",
    title: str | None = None,
) -> Dataset:
    """A data set from `tfds.data_source(...)` or any random-access sequence of dicts.

    The arguments name the keys of a record (None: not there); byte strings are UTF-8. With a
    `title` key the items have a column title: the first one seen for the item.
    """
    keys = {"users": user, "items": item, "times": time, "ratings": rating, "title": title}
    keys = {name: key for name, key in keys.items() if key is not None}
    columns: dict[str, list] = {name: [] for name in keys}
    for row in range(len(data_source)):
        record = data_source[row]
        for name, key in keys.items():
            if key not in record:
                raise DataError(
                    f"record {row}: no key '{key}' for the {name}; it has {sorted(record)}. "
                    "Name the key in the call of from_tfds."
                )
            columns[name].append(_plain(record[key]))
    titles = columns.pop("title", None)
    if titles is None:
        return from_arrays(**columns, name="tfds")
    table = dict(zip(reversed(columns["items"]), reversed(titles), strict=True))
    order = list(dict.fromkeys(columns["items"]))
    item_columns = {"item_id": order, "title": [table[i] for i in order]}
    return from_arrays(**columns, item_columns=item_columns, name="tfds")


def _plain(value: Any) -> Any:
    """Bytes as str, numpy scalars as Python numbers."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return value.decode("utf-8") if isinstance(value, bytes) else value
