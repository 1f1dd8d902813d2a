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

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.manifest import MANIFEST, check_files, write_manifest
from checkpoints.parts import (
    Arrays,
    BundleError,
    read_arrays,
    read_codes,
    read_dict,
    read_items,
    read_text,
    write_arrays,
    write_codes,
    write_dict,
    write_items,
)


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

    A bundle already there is replaced once the new one is complete: two renames, and a kill
    between them leaves both beside `folder`, under hidden names. Raises BundleError where
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
            write_dict(fresh / name, value)
        write_arrays(fresh / "model.safetensors", params)
        write_arrays(fresh / "catalogue.safetensors", features)
        write_items(fresh / "items.parquet", item_ids, columns)
        (fresh / "README.md").write_text(card, encoding="utf-8")
        if codes is not None:
            write_codes(fresh / "codes.npz", codes)
        write_manifest(fresh)
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
    listed = check_files(folder)
    params = read_arrays(folder / "model.safetensors")
    if shardings is not None:
        import jax  # numpy alone suffices for reading

        params = jax.device_put(params, shardings)
    item_ids, item_columns = read_items(folder / "items.parquet")
    return Bundle(
        folder=folder,
        config=read_dict(folder / "config.json"),
        params=params,
        item_ids=item_ids,
        item_columns=item_columns,
        catalogue=read_arrays(folder / "catalogue.safetensors"),
        features=read_dict(folder / "features.json"),
        split=read_dict(folder / "split.json"),
        evaluation=read_dict(folder / "eval.json"),
        card=read_text(folder / "README.md"),
        codes=read_codes(folder / "codes.npz") if "codes.npz" in listed else None,
    )


def _replaceable(folder: Path) -> bool:
    return folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))


def _swap(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(fresh, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old-", dir=folder.parent))
    os.rename(folder, aside / folder.name)
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(aside / folder.name, folder)
        raise
    shutil.rmtree(aside)
