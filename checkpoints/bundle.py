"""The unit of release: config, weights, item ids, features, codes, scores, card; hashes checked.

    manifest.json           format, version, and size and sha256 of every other file
    config.json             recommender and its fields
    model.safetensors       parameters by path, "a/b/c"
    catalogue.safetensors   per-item arrays that the model needs, by path
    items.parquet           item_id, and columns such as title
    codes.npz               semantic ids (optional)
    features.json           encoder, revision, preprocessing, pooling, hash
    split.json  eval.json   the split that was trained on, the scores reached
    README.md               model card

Loading runs nothing from the bundle, unpickles nothing, and needs no network.
"""

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from checkpoints.digest import file_digest, file_fault, write_json

FORMAT = "mmrec-zoo bundle"
VERSION = 1
MANIFEST = "manifest.json"
REQUIRED = (
    "config.json",
    "model.safetensors",
    "catalogue.safetensors",
    "items.parquet",
    "features.json",
    "split.json",
    "eval.json",
    "README.md",
)
FILES = (MANIFEST, *REQUIRED, "codes.npz")
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 256

Arrays = dict[str, Any]  # nested dict of numpy arrays


class BundleError(ValueError):
    """A bundle that cannot be trusted or written. Names the file, what was expected and found."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """What a bundle holds, arrays as numpy (parameters in the caller's shardings if given)."""

    folder: Path
    config: dict[str, Any]
    params: Arrays
    item_ids: np.ndarray  # object (str) [rows], the caller's own order
    item_columns: dict[str, np.ndarray]  # [rows] each: title, ...
    catalogue: Arrays
    features: dict[str, Any]
    split: dict[str, Any]
    evaluation: dict[str, Any]
    card: str
    codes: dict[str, np.ndarray] | None = None


def save_bundle(
    folder: str | Path,
    *,
    config: dict[str, Any],
    params: Mapping[str, Any],
    item_ids: Sequence[str],
    features: Mapping[str, Any],
    feature_manifest: dict[str, Any],
    split: dict[str, Any],
    evaluation: dict[str, Any],
    card: str,
    titles: Sequence[str | None] | None = None,
    item_columns: Mapping[str, Sequence] | None = None,
    codes: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a bundle beside `folder`, then rename it into place; returns the folder.

    Args:
      config: recommender and its fields, JSON-able; not interpreted here.
      params: nested dict of arrays (jax or numpy); names may not hold "/".
      item_ids: str [rows], external ids in the rows' order.
      features: nested dict of the catalogue's arrays. Empty dicts are not kept.
      feature_manifest, split, evaluation: JSON-able dicts.
      card: the model card, Markdown.
      titles, item_columns: [rows] each; `titles` is the column "title".
      codes: arrays of numbers by name.

    A bundle already there is replaced once the new one is complete. Raises BundleError where
    something cannot be stored, or `folder` holds something else than a bundle.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not _replaceable(folder):
        raise BundleError(f"{folder} exists and is not a bundle; name another folder.")
    columns = dict(item_columns or {}) | ({} if titles is None else {"title": titles})
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, value in (
            ("config.json", config),
            ("features.json", feature_manifest),
            ("split.json", split),
            ("eval.json", evaluation),
        ):
            _write_dict(fresh / name, value)
        _write_arrays(fresh / "model.safetensors", params)
        _write_arrays(fresh / "catalogue.safetensors", features)
        _items_frame(item_ids, columns).write_parquet(fresh / "items.parquet")
        (fresh / "README.md").write_text(card, encoding="utf-8")
        if codes is not None:
            _write_codes(fresh / "codes.npz", codes)
        files = {path.name: file_digest(path) for path in sorted(fresh.iterdir())}
        write_json(fresh / MANIFEST, {"format": FORMAT, "version": VERSION, "files": files})
        fresh.chmod(0o755)
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # gone already when the rename succeeded
    return folder


def load_bundle(folder: str | Path, shardings: Any = None) -> Bundle:
    """Check every hash, then read. Files that the manifest does not name are left alone.

    Args:
      folder: a bundle.
      shardings: None for numpy parameters; else a sharding, or a tree of them shaped like
        the parameters, in which jax places these.

    Raises BundleError naming the file, what was expected, what was found, and what to do.
    """
    folder = Path(folder)
    listed = _check_files(folder)
    params = _read_arrays(folder / "model.safetensors")
    if shardings is not None:
        import jax  # numpy alone suffices for reading

        params = jax.device_put(params, shardings)
    item_ids, item_columns = _read_items(folder / "items.parquet")
    return Bundle(
        folder=folder,
        config=_read_dict(folder / "config.json"),
        params=params,
        item_ids=item_ids,
        item_columns=item_columns,
        catalogue=_read_arrays(folder / "catalogue.safetensors"),
        features=_read_dict(folder / "features.json"),
        split=_read_dict(folder / "split.json"),
        evaluation=_read_dict(folder / "eval.json"),
        card=(folder / "README.md").read_text(encoding="utf-8"),
        codes=_read_codes(folder / "codes.npz") if "codes.npz" in listed else None,
    )


def _check_files(folder: Path) -> dict[str, dict]:
    files = _manifest_files(folder)
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        raise BundleError(f"{folder / MANIFEST} does not list {missing}; {_AGAIN}")
    found = []
    for name, expected in files.items():
        _check_path(folder, name)
        found.append(file_fault(folder / name, name, expected))
    if damage := [fault for fault in found if fault]:
        raise BundleError(f"bundle {folder} is damaged: {'; '.join(damage)}. {_AGAIN}")
    return files


_AGAIN = "Fetch or export the bundle again."


def _manifest_files(folder: Path) -> dict[str, dict]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder}: expected {MANIFEST}, found none; it is not a bundle.")
    _check_path(folder, MANIFEST)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path}: expected at most {MAX_MANIFEST_BYTES} bytes, found {path.stat().st_size}."
        )
    manifest = _read_dict(path)
    if manifest.get("format") != FORMAT:
        raise BundleError(f"{path}: expected format {FORMAT!r}, found {manifest.get('format')!r}.")
    version = manifest.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise BundleError(
            f"{path}: expected version 1 to {VERSION}, found {version!r}. "
            "A newer bundle needs a newer mmrec-zoo: upgrade it."
        )
    return _checked_entries(path, manifest.get("files"))


def _checked_entries(path: Path, files: Any) -> dict[str, dict]:
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        size = len(files) if isinstance(files, dict) else repr(files)[:80]
        raise BundleError(f"{path}: expected `files` of at most {MAX_FILES} names, found {size}.")
    for name, entry in files.items():
        size, digest = (
            (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        )
        if type(size) is not int or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise BundleError(
                f"{path}: expected {{bytes, sha256}} for {name!r}, found {repr(entry)[:200]}."
            )
    return files


def _check_path(folder: Path, name: str) -> None:
    """A name stays in the folder, as written and with its links followed."""
    written = PurePosixPath(name)
    odd = written.is_absolute() or ".." in written.parts or re.search(r"[\\:\x00]", name)
    if odd or not written.parts:
        raise BundleError(
            f"{folder / MANIFEST} names {name!r}: expected a file inside the bundle. Do not use it."
        )
    real, root = (folder / name).resolve(), folder.resolve()
    # The Hugging Face cache keeps snapshots/<revision>/<file> as links into ../../blobs.
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(real.is_relative_to(place) for place in roots):
        raise BundleError(
            f"{folder / name} is a link to {real}: expected a file inside the bundle. Do not use it."
        )


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))


def _swap(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    os.rename(folder, old / folder.name)
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(old / folder.name, folder)
        raise
    finally:
        shutil.rmtree(old)


def _write_dict(path: Path, value: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise BundleError(f"{path.name}: expected a dict, found {type(value).__name__}.")
    try:
        write_json(path, value)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path.name}: expected a JSON-able dict: {error}.") from error


def _read_dict(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected JSON, found {error!r}. {_AGAIN}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: expected a JSON object, found {type(value).__name__}. {_AGAIN}")
    return value


def _write_arrays(path: Path, tree: Mapping[str, Any]) -> None:
    try:
        save_file(_flat(path.name, tree), path)
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


def _read_arrays(path: Path) -> Arrays:
    try:
        flat = load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(f"{path}: expected safetensors, found {error!r}. {_AGAIN}") from error
    tree: Arrays = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise BundleError(f"{path}: {name!r} goes through an array. {_AGAIN}")
        if leaf in node:
            raise BundleError(f"{path}: {name!r} is both an array and a group. {_AGAIN}")
        node[leaf] = array
    return tree


def _items_frame(item_ids: Sequence[str], columns: Mapping[str, Sequence]) -> pl.DataFrame:
    if "item_id" in columns:
        raise BundleError("items.parquet: a column 'item_id' is given beside item_ids.")
    for name, column in columns.items():
        if len(column) != len(item_ids):
            raise BundleError(
                f"items.parquet: expected {len(item_ids)} rows, column {name!r} has {len(column)}."
            )
    ids = pl.Series("item_id", [str(item) for item in item_ids], dtype=pl.String)
    return pl.DataFrame([ids, *(_series(name, column) for name, column in columns.items())])


def _series(name: str, column: Sequence) -> pl.Series:
    array = np.asarray(column, dtype=getattr(column, "dtype", object))
    try:
        return pl.Series(name, array.tolist() if array.dtype.kind in "OU" else array)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise BundleError(f"items.parquet: column {name!r}: one type a column: {error}") from error


def _read_items(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise BundleError(f"{path}: expected parquet, found {error}. {_AGAIN}") from error
    if frame.schema.get("item_id") != pl.String:
        raise BundleError(f"{path}: expected a column item_id of str, found {dict(frame.schema)}.")
    columns = {series.name: _column(series) for series in frame}
    return columns.pop("item_id"), columns


def _column(series: pl.Series) -> np.ndarray:
    if series.dtype.is_numeric() and not series.null_count():
        return series.to_numpy()
    array = np.empty(len(series), object)
    array[:] = series.to_list()
    return array


def _write_codes(path: Path, codes: Mapping[str, np.ndarray]) -> None:
    np.savez(path, **{name: _storable(path.name, name, value) for name, value in codes.items()})


def _read_codes(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive.items())
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: expected arrays of numbers: {error}. {_AGAIN}") from error
