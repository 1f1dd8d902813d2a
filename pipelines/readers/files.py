"""Which files of a folder are the interactions, the items and the users, and in what format."""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.schema import DataError

logger = logging.getLogger("pipelines")

# In this order: the first pattern that matches is the folder's own interactions table.
FORMATS = (
    ("sequences", ("sequences.txt",)),
    ("tables", ("interactions.csv", "interactions.tsv", "interactions.parquet")),
    ("movielens", ("ratings.csv", "ratings.tsv", "ratings.dat")),
    ("inter", ("*.inter",)),
)
ENDINGS = (".csv", ".tsv", ".parquet", ".dat")


@dataclass(frozen=True)
class Files:
    """The chosen interactions file, its format and the tables that stand beside it."""

    folder: Path
    format: str
    interactions: Path
    items: Path | None
    users: Path | None
    parts: tuple[str, ...]  # names of all interactions files of the folder, the default first

    @property
    def part(self) -> str:
        return self.interactions.stem


def find(path: Path, part: str | None) -> Files:
    """The files behind a folder, or behind a path straight to one interactions file."""
    path = path.expanduser().resolve()
    if path.is_file() and part not in (None, path.stem, path.name):
        raise DataError(f"{path}: this is part '{path.stem}', not '{part}'; leave part out.")
    if path.is_file():
        return _files(path.parent, path, _interactions(path.parent))
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file; expected one with interactions.")
    known = _interactions(path)
    if not known:
        looked = "; ".join(f"{name}: {', '.join(files)}" for name, files in FORMATS)
        raise DataError(
            f"{path}: no interactions found. Looked for {looked}. The folder holds "
            f"{sorted(p.name for p in path.iterdir())[:12]}. The simplest form is "
            "interactions.csv with user_id,item_id[,timestamp] and items.csv with item_id,title."
        )
    return _files(path, _choose(known, part, path), known)


def _interactions(folder: Path) -> list[Path]:
    found = []
    for _, patterns in FORMATS:
        for pattern in patterns:
            found += sorted(folder.glob(pattern))
    return found


def _choose(known: list[Path], part: str | None, folder: Path) -> Path:
    if part is None:
        if len(known) > 1:
            others = [path.stem for path in known[1:]]
            logger.info("%s: taking part '%s'; others are %s", folder, known[0].stem, others)
        return known[0]
    for path in known:
        if part in (path.stem, path.name):
            return path
    raise DataError(f"{folder}: no part '{part}'; it has {[p.stem for p in known]}.")


def _files(folder: Path, chosen: Path, known: list[Path]) -> Files:
    items, users = ["items", "movies"], ["users"]
    if chosen.suffix == ".inter":
        # A folder with several data sets names each table after its interactions.
        items, users = [f"{chosen.stem}_items", *items], [f"{chosen.stem}_users", *users]
    return Files(
        folder=folder,
        format=_format(chosen),
        interactions=chosen,
        items=_beside(chosen, items, ".item"),
        users=_beside(chosen, users, ".user"),
        parts=tuple(path.stem for path in known) or (chosen.stem,),
    )


def _format(path: Path) -> str:
    for name, patterns in FORMATS:
        if any(path.match(pattern) for pattern in patterns):
            return name
    if path.suffix in ENDINGS:
        return "tables"
    raise DataError(
        f"{path}: unknown kind of interactions file; expected an ending among "
        f"{[*ENDINGS, '.inter']} or the name sequences.txt."
    )


def _beside(chosen: Path, names: list[str], recbole: str) -> Path | None:
    beside = [chosen.with_suffix(recbole)] if chosen.suffix == ".inter" else []
    beside += [chosen.with_name(name + ending) for name in names for ending in ENDINGS]
    return next((path for path in beside if path.is_file()), None)


def digests(files: list[Path], folder: Path) -> dict[str, str]:
    """{name: sha256} of the files read, names relative to the folder."""
    return {_name(path, folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _name(path: Path, folder: Path) -> str:
    inside = path.is_relative_to(folder)
    return path.relative_to(folder).as_posix() if inside else f"../{path.parent.name}/{path.name}"


def licence(folder: Path) -> str:
    """The licence line of SOURCE.md, else the first line of LICENSE, else ''."""
    if (folder / "SOURCE.md").is_file():
        text = (folder / "SOURCE.md").read_text("utf-8")
        found = re.search(r"^licen[cs]e:\s*(.+)$", text, re.IGNORECASE | re.MULTILINE)
        if found:
            return found[1].strip()
    for name in ("LICENSE", "LICENCE", "LICENSE.txt", "LICENSE.md"):
        if (folder / name).is_file():
            lines = (folder / name).read_text("utf-8").split("\n")
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
