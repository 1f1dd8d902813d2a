"""Item vectors written as they come: shards, a manifest that says what made them, kept by a kill.

    manifest.json               the facts, the rows done, sha256 of every file
    shard-<first>.npy           float32 [rows, d], while the work is under way
    <modality>_feat.npy         float32 [n_items, d], row r of item r + 1, zero where absent
    <modality>_present.npy      bool [n_items]
    ids.json                    the items' own ids, in that order

A folder holds vectors of one making: other facts are refused, with what differs.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.digest import file_digest, file_fault, write_json

MANIFEST, FORMAT = "manifest.json", "mmrec-zoo item vectors 1"
log = logging.getLogger("zoo")


class RowsError(ValueError):
    """A folder of item vectors that cannot be gone on with, or read. Says what differs."""


class Rows(NamedTuple):
    """What `read_rows` gives; row r of `vectors` is the item ids[r]."""

    vectors: np.ndarray  # float32 [n, d]
    present: np.ndarray  # bool [n]
    ids: list[str]
    facts: dict[str, Any]


class Shards:
    """A folder that is being filled: rows in the order of the work, whole shards at a time."""

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]):
        """Begin, or go on where shards of the same facts (JSON-able) end.

        Raises RowsError that lists every fact that differs from those in the folder.
        """
        self.folder, facts = Path(folder), json.loads(json.dumps(dict(facts)))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manifest = {"format": FORMAT, "facts": facts, "done": 0, "shards": [], "files": {}}
        if (self.folder / MANIFEST).is_file():
            self._go_on(facts)
        else:
            self._write()

    @property
    def done(self) -> int:
        """Rows that are kept."""
        return self.manifest["done"]

    @property
    def complete(self) -> bool:
        return bool(self.manifest["files"])

    def add(self, vectors: np.ndarray, absent: Sequence[int]) -> None:
        """The next rows, float32 [r, d]; absent: those among them, from 0, that have no content."""
        name = f"shard-{self.done:09d}.npy"
        _save(self.folder / name, np.asarray(vectors, np.float32))
        entry = {"name": name, "rows": len(vectors), "absent": [int(x) for x in absent]}
        self.manifest["shards"].append({**entry, **file_digest(self.folder / name)})
        self.manifest["done"] += len(vectors)
        self._write()

    def finish(self, name: str, places: np.ndarray, ids: Sequence[str], rows: int = 1) -> None:
        """Write the whole arrays; places: int [done], the row (from 0) of each row of the work.

        rows: of an item, which come to stand side by side. The shards go once the manifest names
        the whole files.
        """
        if len(places) != self.done:
            raise RowsError(f"{self.folder}: {self.done} rows are done, {len(places)} have places.")
        vectors, present = self._gathered(places, len(ids) * rows)
        vectors, present = vectors.reshape(len(ids), -1), present.reshape(-1, rows).any(1)
        arrays = {f"{name}_feat.npy": vectors, f"{name}_present.npy": present}
        for file, array in arrays.items():
            _save(self.folder / file, array)
        write_json(self.folder / "ids.json", list(ids))
        files = [*arrays, "ids.json"]
        self.manifest["files"] = {file: file_digest(self.folder / file) for file in files}
        self.manifest["shards"] = []
        self._write()
        for path in self.folder.glob("shard-*.npy"):
            path.unlink()

    def _gathered(self, places: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        present, start, vectors = np.zeros(n, bool), 0, np.zeros((n, 0), np.float32)
        for entry in self.manifest["shards"]:
            shard = np.load(self.folder / entry["name"], allow_pickle=False)
            if not vectors.shape[1]:
                vectors = np.zeros((n, shard.shape[1]), np.float32)
            there = ~np.isin(np.arange(len(shard)), entry["absent"])
            at = places[start : start + len(shard)][there]
            vectors[at], present[at] = shard[there], True
            start += len(shard)
        return vectors, present

    def _go_on(self, facts: dict[str, Any]) -> None:
        found = _manifest(self.folder)
        if lines := differences(found["facts"], facts):
            raise RowsError(
                f"{self.folder} holds vectors of another making ({len(lines)} differ):\n  "
                + "\n  ".join(lines)
                + "\nVectors of two makings are not mixed: name another folder, or remove this one."
            )
        kept: list[dict] = []
        for entry in found["shards"]:
            if fault := file_fault(self.folder / entry["name"], entry["name"], entry):
                log.warning("%s: made again from here: %s", self.folder, fault)
                break
            kept.append(entry)
        if not found["files"]:
            found |= {"shards": kept, "done": sum(entry["rows"] for entry in kept)}
        self.manifest = found

    def _write(self) -> None:
        write_json(self.folder / MANIFEST, self.manifest)


def read_rows(folder: str | Path) -> Rows:
    """The vectors of a finished folder. Raises RowsError: not one, unfinished, or damaged."""
    folder = Path(folder)
    manifest = _manifest(folder)
    if not manifest["files"]:
        raise RowsError(
            f"{folder}: {manifest['done']} of {manifest['facts'].get('rows')} rows are done. "
            "The same `zoo embed` command goes on from there."
        )
    faults = [file_fault(folder / name, name, known) for name, known in manifest["files"].items()]
    if any(faults):
        raise RowsError(f"{folder} is damaged: {'; '.join(filter(None, faults))}. Make it again.")
    name = manifest["facts"]["modality"]
    vectors, present = (
        np.load(folder / f"{name}_{part}.npy", allow_pickle=False) for part in ("feat", "present")
    )
    return Rows(vectors, present, json.loads((folder / "ids.json").read_bytes()), manifest["facts"])


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], at: str = "") -> list[str]:
    """A line for every fact, nested ones by path, that is not the same in both."""
    lines = []
    for name in sorted(theirs.keys() | mine.keys()):
        a, b = theirs.get(name), mine.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{at}{name}/")
        elif a != b:
            lines.append(f"{at}{name}: there {_short(a)}, here {_short(b)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        found = f"holds no {MANIFEST}" if Path(folder).is_dir() else "is no folder here"
        raise RowsError(f"{folder} {found}: expected a folder that `zoo embed` made.")
    try:
        found = json.loads(path.read_bytes())
        known = {"facts", "done", "shards", "files"} <= set(found) and found["format"] == FORMAT
    except (ValueError, TypeError, KeyError) as error:
        raise RowsError(f"{path}: expected JSON of `zoo embed`, found {error!r}.") from error
    if not known:
        raise RowsError(f"{path}: expected format {FORMAT!r}, found {found.get('format')!r}.")
    return found


def _save(path: Path, array: np.ndarray) -> None:
    """A whole .npy file or none."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
