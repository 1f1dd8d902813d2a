"""Digests: sha256 of files, folders and parameter trees; says which file is damaged."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

SEAL = "digests.json"


class DigestError(ValueError):
    """A folder that cannot vouch for itself: its seal is missing, unreadable or altered."""


def file_sha256(path: Path) -> str:
    """Hex sha256 of the file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> dict[str, Any]:
    """{"bytes": size, "sha256": hex}: what a manifest says of one file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def file_fault(path: Path, name: str, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, or None. The size is compared first: it says more."""
    if not path.is_file():
        return f"{name}: expected a file of {expected['bytes']} bytes, found none"
    size = path.stat().st_size
    if size != expected["bytes"]:
        return f"{name}: expected {expected['bytes']} bytes, found {size}"
    found = file_sha256(path)
    if found != expected["sha256"]:
        return f"{name}: expected sha256 {expected['sha256']}, found {found}"
    return None


def params_sha256(params: Mapping[str, Any]) -> str:
    """Hex sha256 of a nested dict of arrays (jax or numpy), independent of insertion order.

    Fed, in the sorted order of the paths: the path ("a/b/c"), the dtype's name, the shape, and
    the little-endian bytes in row-major order, each preceded by its length in eight bytes, so
    that no two trees feed the same stream. Equal digests mean equal names, types and bits.
    """
    digest = hashlib.sha256()
    leaves = {tree_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path in sorted(leaves):
        array = np.asarray(leaves[path], order="C")
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        shape = ",".join(map(str, array.shape))
        for part in (path.encode(), array.dtype.name.encode(), shape.encode(), array.tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def tree_path(path: tuple) -> str:
    """A key path of jax.tree_util as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write digests.json: the digest of every file below `folder`, and `facts`, and its own."""
    files = {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / SEAL
    }
    body = {**facts, "files": files}
    write_json(folder / SEAL, {**body, "sha256": _json_sha256(body)})


def read_seal(folder: Path) -> dict[str, Any]:
    """What `seal` wrote. Raises DigestError when it is missing, unreadable or altered."""
    path = folder / SEAL
    if not path.is_file():
        raise DigestError(f"{SEAL}: expected at the end of every save, found none (unfinished)")
    try:
        body = json.loads(path.read_bytes())
        claimed = body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DigestError(f"{SEAL}: expected JSON with its sha256, found {error!r}") from error
    found = _json_sha256(body)
    if claimed != found:
        raise DigestError(f"{SEAL}: expected sha256 {claimed}, found {found}")
    return body


def faults(folder: Path) -> list[str]:
    """Every fault of a sealed folder, one line a file; empty when it is as it was saved."""
    try:
        files = read_seal(folder)["files"]
    except DigestError as error:
        return [str(error)]
    found = (file_fault(folder / name, name, expected) for name, expected in files.items())
    return [fault for fault in found if fault]


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never a part of either."""
    text = json.dumps(value, indent=2) + "\n"
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _json_sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
