"""The manifest of a bundle: which files it has, their sizes and hashes, and that they stay inside.

Nothing is believed before it is checked: the manifest's size, its format and version, every name
(no way out of the folder, as written or through a link), every size and every sha256.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from checkpoints.digest import file_digest, file_fault, write_json
from checkpoints.parts import AGAIN, BundleError, read_dict

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
MAX_BYTES = 1 << 20  # of the manifest itself
MAX_FILES = 256
MAX_NAME = 200


def write_manifest(folder: Path) -> None:
    """Name every file of `folder`, with its size and sha256."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, "files": files})


def check_files(folder: Path) -> dict[str, dict]:
    """The manifest's entries by name, once every file is as they say; else BundleError."""
    files = _manifest_files(folder)
    missing = [name for name in REQUIRED if name not in files]
    if missing:
        raise BundleError(f"{folder / MANIFEST} does not list {missing}; {AGAIN}")
    found = []
    for name, expected in files.items():
        _check_path(folder, name)
        found.append(file_fault(folder / name, name, expected))
    if damage := [fault for fault in found if fault]:
        raise BundleError(f"bundle {folder} is damaged: {'; '.join(damage)}. {AGAIN}")
    return files


def _manifest_files(folder: Path) -> dict[str, dict]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder}: expected {MANIFEST}, found none; it is not a bundle.")
    _check_path(folder, MANIFEST)
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(
            f"{path}: expected at most {MAX_BYTES} bytes, found {path.stat().st_size}."
        )
    manifest = read_dict(path)
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
    odd = re.search(r"[\\:\x00-\x1f\ud800-\udfff]", name) or len(name) > MAX_NAME
    if odd or written.is_absolute() or ".." in written.parts or not written.parts:
        raise BundleError(
            f"{folder / MANIFEST} names {name[:MAX_NAME]!r}: expected a file inside the bundle. "
            "Do not use it."
        )
    root = folder.resolve()
    try:
        real = (folder / name).resolve()
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{folder / name} is a link without end: {error}. {AGAIN}") from error
    # The Hugging Face cache keeps snapshots/<revision>/<file> as links into ../../blobs.
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(real.is_relative_to(place) for place in roots):
        raise BundleError(
            f"{folder / name} is a link to {real}: expected a file inside the bundle. "
            "Do not use it."
        )
