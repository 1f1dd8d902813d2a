"""Item text to word sets: title, category paths, genres, overview, or machine-written keywords."""

import html
import json
import re
from collections.abc import Iterator

import numpy as np

from pipelines.schema import DataError, Dataset, Ragged

WORD = re.compile(r"[a-z0-9]+")
PROSE = ("title", "overview", "text")
KEYWORDS = ("idgenrec_text_id", "gram_text_id")


def words(dataset: Dataset) -> Ragged | None:
    """Row i: the distinct word ids (int32, from 0, ascending) of item i; row 0 is empty.

    Words are `[a-z0-9]+` of HTML-unescaped lower-cased text. Read are the columns title, overview
    and text; `categories` (JSON paths), one token a node; `genres` (split at |), one token each.
    Without any of the first three: idgenrec_text_id and gram_text_id, as they are, split at | and
    blanks only, because case and a mark of a word's beginning belong to a token.
    None where a data set has no such column, or nothing in it. Raises DataError on categories
    that are no JSON list of paths.
    """
    rows, ids = [], {}
    for item in range(dataset.n_items + 1):
        found = set(_item_words(dataset, item)) if item else set()
        rows.append(sorted(ids.setdefault(word, len(ids)) for word in sorted(found)))
    return Ragged.of(rows) if ids else None


def of_text(text: str) -> list[str]:
    """Words of one text, in order, with repeats."""
    return WORD.findall(html.unescape(text).lower())


def _item_words(dataset: Dataset, item: int) -> Iterator[str]:
    columns = dataset.columns
    prose = [name for name in PROSE if name in columns]
    keywords = [name for name in KEYWORDS if name in columns and not prose]
    for name in prose:
        yield from of_text(columns[name][item])
    for name in keywords:
        yield from columns[name][item].replace("|", " ").split()
    if "categories" in columns:
        yield from _category_tokens(columns["categories"][item], dataset.name, item)
    if "genres" in columns:
        yield from (f"g_{genre}" for genre in columns["genres"][item].split("|") if genre)


def category_of(dataset: Dataset) -> np.ndarray | None:
    """One category an item, str [n+1], '' where it has none: the first two nodes of its first path,
    or its first genre. None where no item has any."""
    found = [""] * (dataset.n_items + 1)
    for item in range(1, dataset.n_items + 1):
        if "categories" in dataset.columns:
            paths = _paths(dataset.columns["categories"][item], dataset.name, item)
            found[item] = "/".join(paths[0][:2]) if paths else ""
        elif "genres" in dataset.columns:
            found[item] = dataset.columns["genres"][item].split("|")[0]
    return np.array(found) if any(found) else None


def _category_tokens(cell: str, name: str, item: int) -> Iterator[str]:
    """`c_nail_polish` for the node Nail Polish, wherever it stands in the tree."""
    nodes = (node for path in _paths(cell, name, item) for node in path)
    yield from ("c_" + "_".join(of_text(node)) for node in nodes)


def _paths(cell: str, name: str, item: int) -> list[list[str]]:
    if not cell:
        return []
    try:
        return [[node + "" for node in path] for path in json.loads(cell)]
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(
            f"{name}, item {item}, column 'categories': expected a JSON list of paths such as "
            f'[["Beauty", "Makeup"]], found {cell[:60]!r}.'
        ) from error


def vocabulary_size(rows: Ragged) -> int:
    """Number of different words."""
    return int(np.max(rows.values, initial=-1)) + 1
