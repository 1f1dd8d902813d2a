"""Item content named by a folder: feature matrices, image and audio paths, item columns."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl

from pipelines.readers import ids
from pipelines.schema import DataError

FEATURES = re.compile(r"^(\w+?)_feat(?:_\d+)?\.npy$")
PATHS = ("image", "audio", "video")  # columns whose cells name files


def feature_files(folder: Path) -> dict[str, Path]:
    """{modality: file} for <modality>_feat.npy and <modality>_feat_<width>.npy."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npy")):
        match = FEATURES.match(path.name)
        if match and match[1] in found:
            raise DataError(
                f"{folder}: expected one feature file for '{match[1]}', found "
                f"{found[match[1]].name} and {path.name}. Keep one of them in the folder."
            )
        if match:
            found[match[1]] = path
    return found


def read_features(path: Path) -> np.ndarray:
    """[rows, f] as stored; DataError unless a finite float matrix. Pickles are refused."""
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: expected a plain .npy float matrix: {error}") from error
    return check_features(values, str(path))


def check_features(values: np.ndarray, where: str) -> np.ndarray:
    """float32 [rows, f]; DataError names the first bad row."""
    if values.ndim != 2 or values.dtype.kind != "f":
        raise DataError(
            f"{where}: expected a float matrix [items, width], found {values.dtype} of shape "
            f"{values.shape}."
        )
    values = values.astype(np.float32)
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise DataError(
            f"{where}: expected finite features, found NaN or inf in {bad.sum()} rows, first row "
            f"{bad.argmax()} (from 0). Fill them, or leave the item without the modality."
        )
    return values


def check_rows(values: np.ndarray, n_items: int, where: str) -> None:
    """DataError unless there is one row an item."""
    if len(values) != n_items:
        raise DataError(
            f"{where}: expected {n_items} rows, one an item in the order of the items, found "
            f"{len(values)}. Make the features again for exactly these items."
        )


def with_padding_row(values: np.ndarray, n_items: int, where: str) -> np.ndarray:
    """float32 [n_items+1, f]: row r of `values` is the item with inner id r + 1."""
    check_rows(values, n_items, where)
    return np.concatenate([np.zeros((1, values.shape[1]), np.float32), values])


def text_columns(table: pl.DataFrame | None, without: str) -> dict[str, np.ndarray]:
    """{column: object [n+1]} of strings, '' at the padding id 0 and where the cell is empty."""
    if table is None:
        return {}
    filled = table.select(pl.exclude(without).cast(pl.String).fill_null(""))
    return {c.name: np.array(["", *c.to_list()], object) for c in filled.get_columns()}


def file_paths(table: pl.DataFrame, folder: Path, path: Path) -> pl.DataFrame:
    """Relative paths of content columns made absolute; they must exist and stay inside."""
    root = folder.resolve()
    for column in [name for name in PATHS if name in table.columns]:
        cells = table[column].fill_null("").to_list()
        full = [_inside(root, cell, row, column, path) for row, cell in enumerate(cells, 1)]
        table = table.with_columns(pl.Series(column, full, pl.String))
    return table


def _inside(root: Path, cell: str, row: int, column: str, path: Path) -> str:
    if not cell:
        return ""
    where = f"{path}, row {row}, column '{column}'"
    full = (root / cell).resolve()
    if Path(cell).is_absolute() or not full.is_relative_to(root):
        raise DataError(
            f"{where}: expected a path inside the folder, found {cell!r}, which leaves it. "
            "Write it relative to the folder."
        )
    if not full.is_file():
        raise DataError(
            f"{where}: there is no file {cell!r}. Leave the cell empty for an item without it."
        )
    return str(full)


def with_posters(table: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """Column image = posters/<item_id>.jpg where the file exists, '' elsewhere."""
    posters = folder.resolve() / "posters"
    if not posters.is_dir() or "image" in table.columns:
        return table
    there = {path.stem: str(path) for path in posters.glob("*.jpg")}
    image = [there.get(item, "") for item in table["item_id"].to_list()]
    return table.with_columns(pl.Series("image", image, pl.String))


def with_attributes(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Column attributes = the JSON list of S3-Rec's item2attributes.json, '' where absent."""
    lists = json.loads(path.read_text("utf-8"))
    cells = [json.dumps(lists[i]) if i in lists else "" for i in table["item_id"].to_list()]
    return table.with_columns(pl.Series("attributes", cells, pl.String))


def with_sibling_text(table: pl.DataFrame, sibling: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Text ids of amazon-sports joined by s3rec_id; every id must be there."""
    names = [name for name in ("idgenrec_text_id", "gram_text_id") if name in sibling.columns]
    rows = ids.inner(table["s3rec_id"], sibling["item_id"], path, "amazon-sports/items.tsv") - 1
    return table.with_columns(sibling[name].gather(rows).alias(name) for name in names)


def presence(
    columns: dict[str, np.ndarray], features: dict[str, np.ndarray], n_items: int
) -> dict[str, np.ndarray]:
    """{modality: bool [n_items+1]}; text is there where a title or a text is."""
    present = {}
    for modality, parts in {"text": ("title", "text"), **{p: (p,) for p in PATHS}}.items():
        known = [columns[part].astype(bool) for part in parts if part in columns]
        if known:
            present[modality] = np.logical_or.reduce(known)
    for modality in features:
        present[modality] = np.arange(n_items + 1) > 0
    return present
