"""Semantic ids in the field's files: JSON indexes and columns of tokens, read, checked, written."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np

from pipelines.schema import DataError

TOKEN = re.compile(r"<([A-Za-z]+)_(\d+)>")


def letters_of(levels: int) -> tuple[str, ...]:
    """The letters of so many levels: a, b, ..., z, aa, ab, ..."""
    tens = ["", *ascii_lowercase]
    names = (tens[i // 26] + ascii_lowercase[i % 26] for i in range(levels))
    return tuple(names)


@dataclass(frozen=True)
class Codes:
    """Codes by inner item id. Row 0 and items without codes are zeros and not present."""

    codes: np.ndarray  # int32 [n_items+1, c]
    present: np.ndarray  # bool [n_items+1]
    letters: tuple[str, ...]  # of each level: a, b, c; of plain numbers, too

    def tokens(self, row: int) -> list[str]:
        """["<a_12>", "<b_3>"] of one item; [] where it has none."""
        pairs = zip(self.letters, self.codes[row].tolist(), strict=True)
        return [f"<{letter}_{code}>" for letter, code in pairs] if self.present[row] else []


def read_index(
    path: str | Path,
    item_ids: np.ndarray,
    size: int = 256,
    key: Callable[[str], str] = str,
    partial: bool = False,
    collisions: bool = False,
) -> Codes:
    """The codes of a JSON index {item: ["<a_12>", "<b_3>"]}, as LC-Rec and LETTER publish them.

    item_ids: object [n_items+1], as Dataset has them; key: from the file's ids to those, such as
    `lambda i: str(int(i) + 1)` for a file that counts from 0. Items without codes are an error
    unless `partial`, equal codes unless `collisions`, codes of `size` or more always.
    """
    name = Path(path).name
    try:
        pairs = json.loads(Path(path).read_text(), object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: not JSON ({error}); expected {{item: [tokens]}}.") from error
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise DataError(f'{name}: expected one object {{"item": ["<a_12>", "<b_3>"], ...}}.')
    found: dict[str, str] = {}
    for item, tokens in pairs:
        if key(item) in found:
            raise DataError(f"{name}: item '{key(item)}' stands there twice; keep one of them.")
        found[key(item)] = " ".join(tokens)
    row_of = {item: row for row, item in enumerate(item_ids[1:].tolist(), 1)}
    strangers = [item for item in found if item not in row_of]
    if strangers:
        raise DataError(
            f"{name}: {len(strangers)} of its {len(found)} items are not in this catalogue of "
            f"{len(row_of)}, the first '{strangers[0]}' (the catalogue starts "
            f"'{item_ids[1]}'): it belongs to another catalogue, or its ids need key=."
        )
    texts = ["", *(found.get(item, "") for item in item_ids[1:].tolist())]
    return _codes(texts, item_ids, name, size, partial, collisions)


def _is_pair(pair: object) -> bool:
    named = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
    return named and isinstance(pair[1], list) and all(isinstance(t, str) for t in pair[1])


def read_column(
    values: Sequence[str],
    item_ids: np.ndarray,
    name: str = "codes",
    size: int = 256,
    partial: bool = False,
    collisions: bool = False,
) -> Codes:
    """The codes of a column [n_items+1] of "<a_170> <b_224>" or of "170 224", row 0 empty.

    Dataset.columns holds such columns; raises DataError as `read_index` does.
    """
    if len(values) != len(item_ids):
        raise DataError(
            f"{name}: {len(values)} rows of codes for {len(item_ids)} items (row 0 is padding): "
            "it belongs to another catalogue."
        )
    return _codes([text or "" for text in values], item_ids, name, size, partial, collisions)


def _codes(
    texts: list[str], item_ids: np.ndarray, name: str, size: int, partial: bool, collisions: bool
) -> Codes:
    present = np.array([bool(text.strip()) for text in texts])
    present[0] = False
    without = np.flatnonzero(~present[1:]) + 1
    if len(without) == len(texts) - 1:
        raise DataError(f"{name}: no item has codes; expected '<a_12> <b_3>' or '12 3'.")
    if len(without) and not partial:
        raise DataError(
            f"{name}: {len(without)} of {len(texts) - 1} items have no codes, the first "
            f"'{item_ids[without[0]]}': pass partial=True to leave them out of generation, or make "
            "codes for them."
        )
    rows = np.flatnonzero(present)
    letters, first = _parse(texts[rows[0]], f"{name}, item '{item_ids[rows[0]]}'", None)
    codes = np.zeros((len(texts), len(first)), np.int32)
    for row in rows:
        where = f"{name}, item '{item_ids[row]}'"
        codes[row] = _sized(_parse(texts[row], where, letters)[1], size, where)
    if not collisions:
        check_unique(codes[rows], item_ids[rows], name)
    return Codes(codes, present, letters)


def _parse(
    text: str, where: str, letters: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Letters and numbers of one item's tokens; the letters must be those of the other items."""
    words = re.findall(r"<[^>]*>|[^\s<]+", text)
    plain = all(word.isdecimal() for word in words)
    matches = [TOKEN.fullmatch(word) for word in words]
    unknown = [word for word, match in zip(words, matches, strict=True) if not match]
    if unknown and not plain:
        raise DataError(f"{where}: '{unknown[0]}' is no token; expected <a_12> or a plain number.")
    if plain:
        found, numbers = letters_of(len(words)), [int(word) for word in words]
    else:
        found, numbers = tuple(m[1] for m in matches), [int(m[2]) for m in matches]
    if letters is not None and found != letters:
        raise DataError(
            f"{where}: tokens '{text}' are of the levels {'-'.join(found)}; the first item's are "
            f"{'-'.join(letters)}. Every item has one token of each level, in one order."
        )
    return found, numbers


def _sized(numbers: list[int], size: int, where: str) -> list[int]:
    if max(numbers) >= size:
        raise DataError(
            f"{where}: code {max(numbers)} does not exist in levels of {size}, which count from 0: "
            "raise size."
        )
    return numbers


def check_unique(codes: np.ndarray, item_ids: np.ndarray, name: str = "codes") -> None:
    """Raise DataError, naming two items, unless the rows of codes int[n,c] differ."""
    group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)[1:]
    crowded = counts[group.reshape(-1)] > 1
    if crowded.any():
        first = np.flatnonzero(crowded)[0]
        other = np.flatnonzero((codes == codes[first]).all(1))[1]
        raise DataError(
            f"{name}: {int(crowded.sum())} of {len(codes)} items share their codes, such as "
            f"'{item_ids[first]}' and '{item_ids[other]}' with {codes[first].tolist()}: resolve "
            "them by an extra digit, or pass collisions=True."
        )


def check_vectors(x: np.ndarray, present: np.ndarray, item_ids: np.ndarray, size: int) -> None:
    """Raise DataError unless the present rows of x [n_items+1,d] are finite and at least `size`."""
    bad = np.flatnonzero(present & ~np.isfinite(x).all(1))
    if len(bad):
        raise DataError(
            f"the features of {len(bad)} items hold NaN or infinity, the first '{item_ids[bad[0]]}'"
            f" (row {bad[0]}): repair them, or mark the item as not present."
        )
    if present.sum() < size:
        raise DataError(
            f"{int(present.sum())} items with features cannot fill {size} codes a level: choose "
            f"at most {int(present.sum())} (zoo tokenize --size), or a larger catalogue."
        )


def write_index(path: str | Path, codes: Codes, item_ids: np.ndarray) -> None:
    """A JSON index of the present items, as `read_index` reads it."""
    rows = np.flatnonzero(codes.present)
    index = {str(item_ids[row]): codes.tokens(row) for row in rows}
    Path(path).write_text(json.dumps(index, ensure_ascii=False, indent=0))


def to_column(codes: Codes) -> np.ndarray:
    """object [n_items+1]: "<a_170> <b_224>", "" where an item has no codes."""
    return np.array([" ".join(codes.tokens(row)) for row in range(len(codes.codes))], object)


def from_array(codes: np.ndarray) -> Codes:
    """Codes of int[n_items,c], one row an item, as a quantiser gives them; row 0 put before."""
    codes = np.asarray(codes, np.int32)
    rows = np.concatenate([np.zeros((1, codes.shape[1]), np.int32), codes])
    return Codes(rows, np.arange(len(rows)) > 0, letters_of(codes.shape[1]))
