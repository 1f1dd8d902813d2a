"""Content as a trainable encoder reads it: pixels, word ids, waves and films, a row an item; what
is missing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.content import TEXT_COLUMNS, Problem, clean_text, decode_images, decode_sounds
from pipelines.features import BLOCK
from pipelines.films import decode_films
from pipelines.schema import DataError, Dataset
from pipelines.waves import RATE
from pipelines.words import KEYWORDS, of_text

LEAST = 2  # items that a word must occur in to have an id of its own
UNKNOWN = 1  # the id of all other words; 0 is padding
LOUDEST = 32767  # of an int16 sample
Raw = tuple[Any, np.ndarray, list[Problem]]


def raw_content(
    dataset: Dataset,
    modalities: Sequence[str],
    size: tuple[int, int] = (64, 64),
    tokens: int = 24,
    samples: int = RATE,
    shots: int = 4,
) -> dict[str, Raw]:
    """{modality: (arrays of n+1 rows, present bool[n+1], problems)}; row 0 is empty.

    image: uint8 [n+1,h,w,3] of the files that the column `image` names, resized to `size`; text:
    {ids int32, mask bool} [n+1,tokens], words of title, genres and the like in their order; audio:
    int16 [n+1,samples] at 16 kHz, the beginning of the files that the column `audio` names; video:
    uint8 [n+1,shots,h,w,3] of those that `video` names, at even distances.
    Raises DataError for another modality, and for one that the items lack.
    """
    how = {"image": size, "text": tokens, "audio": samples, "video": (shots, size)}
    made = {}
    for modality in modalities:
        if modality not in MAKERS:
            raise DataError(f"raw content of '{modality}': expected {' or '.join(MAKERS)}.")
        made[modality] = MAKERS[modality](dataset, how[modality])
    return made


def unreadable(dataset: Dataset) -> list[str]:
    """Findings in plain words about the files that items name: every one is opened and decoded."""
    small, findings = {"image": (8, 8), "audio": RATE, "video": (1, (8, 8))}, []
    for modality in sorted(small.keys() & dataset.columns.keys()):
        cells, problems = _files(dataset, modality), []
        for start in range(0, len(cells), BLOCK):
            part = {modality: np.array(["", *cells[start : start + BLOCK]], object)}
            made = MAKERS[modality](replace(dataset, columns=part), small[modality])
            problems += made[2]
        if problems:
            first = f"{problems[0].where} ({problems[0].why})"
            named = sum(bool(cell) for cell in cells)
            findings.append(
                f"{len(problems)} of {named} files of '{modality}' cannot be read and count as "
                f"missing, first {first}"
            )
    return findings


def _pictures(dataset: Dataset, size: tuple[int, int]) -> Raw:
    return decode_images(_files(dataset, "image"), size)


def _sounds(dataset: Dataset, samples: int) -> Raw:
    waves, there, problems = decode_sounds(_files(dataset, "audio"), RATE, samples / RATE)
    return np.round(np.clip(waves, -1, 1) * LOUDEST).astype(np.int16), there, problems


def _films(dataset: Dataset, how: tuple[int, tuple[int, int]]) -> Raw:
    return decode_films(_files(dataset, "video"), *how)


def _files(dataset: Dataset, column: str) -> list:
    if column not in dataset.columns:
        raise DataError(
            f"{dataset.name} has no column '{column}' that names files; its items have "
            f"{sorted(dataset.columns)}."
        )
    return ["", *dataset.columns[column][1:]]


def _words(dataset: Dataset, tokens: int) -> Raw:
    names = [name for name in TEXT_COLUMNS if name in dataset.columns]
    names = names or [name for name in KEYWORDS if name in dataset.columns]
    if not names:
        raise DataError(
            f"{dataset.name} has none of the columns {', '.join(TEXT_COLUMNS)}; its items have "
            f"{sorted(dataset.columns)}."
        )
    texts = [[], *(_text(dataset, names, i)[:tokens] for i in range(1, dataset.n_items + 1))]
    counts = Counter(word for text in texts for word in set(text))
    kept = sorted(word for word, count in counts.items() if count >= LEAST)
    number = {word: i for i, word in enumerate(kept, UNKNOWN + 1)}
    ids = np.zeros((len(texts), tokens), np.int32)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = [number.get(word, UNKNOWN) for word in text]
    return {"ids": ids, "mask": ids > 0}, ids[:, 0] > 0, []


def _text(dataset: Dataset, names: list[str], item: int) -> list[str]:
    return of_text(" ".join(clean_text(dataset.columns[name][item]) for name in names))


MAKERS = {"image": _pictures, "text": _words, "audio": _sounds, "video": _films}
