"""The files inside a bundle: JSON, arrays, items, codes; written plainly, read without pickle."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from checkpoints.digest import write_json

AGAIN = "Fetch or export the bundle again."

Arrays = dict[str, Any]  # nested dict of numpy arrays


class BundleError(ValueError):
    """A bundle that cannot be trusted or written. Names the file, what was expected and found."""


def read_text(path: Path) -> str:
    """UTF-8 text. Raises BundleError naming the file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: expected UTF-8 text: {error}. {AGAIN}") from error


def write_dict(path: Path, value: dict[str, Any]) -> None:
    """A dict as JSON. Raises BundleError where it is not JSON-able."""
    if not isinstance(value, dict):
        raise BundleError(f"{path.name}: expected a dict, found {type(value).__name__}.")
    try:
        write_json(path, value)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path.name}: expected a JSON-able dict: {error}.") from error


def read_dict(path: Path) -> dict[str, Any]:
    """A dict from JSON. Raises BundleError naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected JSON, found {error!r}. {AGAIN}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(value).__name__}. {AGAIN}")
    return value


def write_arrays(path: Path, tree: Mapping[str, Any]) -> None:
    """A nested dict of arrays as safetensors, by path "a/b/c"; empty dicts are not kept."""
    try:
        save_file(_flat(path.name, tree), path)
        path.chmod(0o644)  # safetensors writes for the owner alone; a bundle is to be handed on
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path.name}: an array cannot be stored: {error!r}.") from error


def _flat(where: str, tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for name, value in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise BundleError(
                f"{where}: name {prefix}{name!r}: expected a non-empty str without '/'."
            )
        if isinstance(value, Mapping):
            flat |= _flat(where, value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = _storable(where, prefix + name, value)
    return flat


def _storable(where: str, name: str, value: Any) -> np.ndarray:
    # safetensors writes the buffer as it lies: strided views would be stored scrambled.
    array = np.asarray(value, order="C")
    if array.dtype.hasobject or array.dtype.kind in "USMmV" and array.dtype.name != "bfloat16":
        raise BundleError(f"{where}: {name} is {array.dtype}: expected an array of numbers.")
    return array


def read_arrays(path: Path) -> Arrays:
    """The nested dict of numpy arrays that `write_arrays` took, in the order of the paths."""
    try:
        flat = load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: expected safetensors, found {error!r}. {AGAIN}") from error
    tree: Arrays = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise BundleError(f"{path}: {name!r} goes through an array. {AGAIN}")
        if leaf in node:
            raise BundleError(f"{path}: {name!r} is both an array and a group. {AGAIN}")
        node[leaf] = array
    return tree


def write_items(path: Path, item_ids: Sequence[str], columns: Mapping[str, Sequence]) -> None:
    """A table of item_id (str) and the columns, one row an item."""
    if "item_id" in columns:
        raise BundleError(f"{path.name}: a column 'item_id' is given beside item_ids.")
    for name, column in columns.items():
        if len(column) != len(item_ids):
            raise BundleError(
                f"{path.name}: expected {len(item_ids)} rows, column {name!r} has {len(column)}."
            )
    for row, item in enumerate(item_ids):
        if not isinstance(item, str):
            raise BundleError(f"{path.name}: item_ids[{row}] is {item!r}: expected a str.")
    ids = pl.Series("item_id", [str(item) for item in item_ids], dtype=pl.String)
    frame = pl.DataFrame([ids, *(_series(name, column) for name, column in columns.items())])
    frame.write_parquet(path)


def _series(name: str, column: Sequence) -> pl.Series:
    array = np.asarray(column, dtype=getattr(column, "dtype", object))
    try:
        return pl.Series(name, array.tolist() if array.dtype.kind in "OU" else array)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise BundleError(f"items.parquet: column {name!r}: one type a column: {error}") from error


def read_items(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(item_ids object[rows] of str, columns by name): numbers and bools as such, else object."""
    try:
        # From bytes: polars would read a pattern into a path that holds * or [.
        frame = pl.read_parquet(io.BytesIO(path.read_bytes()))
    except pl.exceptions.PolarsError as error:
        raise BundleError(f"{path}: expected parquet, found {error}. {AGAIN}") from error
    if frame.schema.get("item_id") != pl.String:
        raise BundleError(f"{path}: expected a column item_id of str, found {dict(frame.schema)}.")
    columns = {series.name: _column(series) for series in frame}
    return columns.pop("item_id"), columns


def _column(series: pl.Series) -> np.ndarray:
    plain = series.dtype.is_numeric() or series.dtype == pl.Boolean
    if plain and not series.null_count():
        return series.to_numpy()
    array = np.empty(len(series), object)
    array[:] = series.to_list()
    return array


def write_codes(path: Path, codes: Mapping[str, np.ndarray]) -> None:
    """Arrays of numbers by name, as npz."""
    np.savez(path, **{name: _storable(path.name, name, value) for name, value in codes.items()})


def read_codes(path: Path) -> dict[str, np.ndarray]:
    """What `write_codes` wrote; an array that needs pickle is refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive.items())
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: expected arrays of numbers: {error}. {AGAIN}") from error
