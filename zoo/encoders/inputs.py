"""What of a catalogue a published encoder reads: texts as token ids, pictures, sound, films."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.digest import file_sha256
from pipelines import films, pixels, waves
from pipelines.content import TEXT_COLUMNS, Problem, clean_text
from pipelines.schema import DataError, Dataset
from pipelines.words import KEYWORDS
from zoo.encoders.load import Encoder, read_json
from zoo.names import unknown

Inputs = tuple[np.ndarray, ...]
COMPILING = 4096  # tokens that a small encoder reads while another width of texts is compiled
LONGEST = 512  # tokens, of an encoder without a table of positions
MARKED = ("genres", "categories", *KEYWORDS)  # lists in a cell
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


class Content(NamedTuple):
    """What of the catalogue an encoder reads."""

    rows: np.ndarray  # int [m], items with the modality, in the order of the work
    how: dict[str, Any]  # preprocessing
    sha256: str  # of the texts, or of the files' names and sizes
    take: Callable[[np.ndarray], tuple[Inputs, np.ndarray, list[Problem]]]  # of places in `rows`
    part: np.ndarray | int = 0  # int [m], which of an item's rows each one is


def content_of(
    dataset: Dataset,
    folder: Path,
    enc: Encoder,
    modality: str,
    max_length: int | None = None,
    seconds: float = 5.0,
    sentences: int = 0,
) -> Content:
    """The items that have the modality, and how they are read. ValueError: none, or no reader.

    sentences: above 0, each of an item's first sentences is a row of its own.
    """
    if modality == "text":
        return _texts(dataset, folder, enc.modules["text"], max_length, sentences)
    if sentences:
        raise ValueError(f"sentences are rows of text; '{modality}' has one row an item.")
    if modality not in ("image", "audio", "video"):
        raise unknown("no reader of the modality", modality, ("text", "image", "audio", "video"))
    if modality not in dataset.columns:
        raise DataError(
            f"{dataset.name} has no column '{modality}' that names files; its items have "
            f"{sorted(dataset.columns)}."
        )
    config, kind = _preprocessor(folder), enc.config["model_type"]
    if modality == "image":
        how = pixels.steps_of(config, kind)
        return _from_files(dataset, "image", how._asdict(), lambda x: pixels.decode_pixels(x, how))
    if modality == "video":
        steps, shots = pixels.steps_of(config, kind), enc.modules["video"].frames
        decode = lambda x: films.decode_clips(x, shots, steps)  # noqa: E731
        return _from_files(dataset, "video", steps._asdict() | {"shots": shots}, decode)
    hearing = waves.hearing_of(config, kind, seconds)
    decode = lambda x: waves.decode_heard(x, hearing)  # noqa: E731
    return _from_files(dataset, "audio", hearing._asdict(), decode)


def _from_files(dataset: Dataset, column: str, how: dict[str, Any], decode: Callable) -> Content:
    files = dataset.columns[column]
    rows = some_rows(np.flatnonzero([bool(file) for file in files]), dataset, column)
    named = [[Path(file).name, file_sha256(Path(file))] for file in files[rows]]

    def take(places: np.ndarray) -> tuple[Inputs, np.ndarray, list[Problem]]:
        x, there, problems = decode(list(files[rows[places]]))
        return (x,), there, [one._replace(row=int(rows[places[one.row]])) for one in problems]

    return Content(rows, how, json_sha256(named), take)


def _texts(
    dataset: Dataset, folder: Path, module: Any, max_length: int | None, sentences: int
) -> Content:
    """Texts as token ids, shortest first: a batch is as wide as its longest text asks for."""
    said = item_sentences(dataset, sentences) if sentences else [[x] for x in item_texts(dataset)]
    some = [(row, part, x) for row, own in enumerate(said) for part, x in enumerate(own) if x]
    rows = some_rows(np.array([row for row, _, _ in some], int), dataset, "text")
    part, texts = np.array([part for _, part, _ in some], int), [text for _, _, text in some]
    tokenizer = _tokenizer(folder)
    limit = _limit(tokenizer, module, folder, max_length)
    ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    _check_vocabulary(ids, module, folder)
    whole = getattr(module, "pooling", "") == "last"  # SigLIP reads its padding
    lengths = np.array([len(one) for one in ids])
    order, widths = np.argsort(lengths, kind="stable"), widths_of(lengths, COMPILING)
    pad = getattr(module, "pad_id", None)
    pad = tokenizer.pad_token_id or 0 if pad is None else pad

    def take(places: np.ndarray) -> tuple[Inputs, np.ndarray, list[Problem]]:
        chosen = [ids[order[place]] for place in places]
        width = limit if whole else widths[np.searchsorted(widths, max(map(len, chosen)))]
        table, mask = np.full((len(chosen), width), pad, np.int32), np.zeros((len(chosen), width))
        for row, one in enumerate(chosen):
            table[row, : len(one)], mask[row, : len(one)] = one, 1
        return (table, mask.astype(bool) | whole), np.ones(len(chosen), bool), []

    how = {"max_length": limit, "tokens": "padded" if whole else "masked"}
    how |= {"sentences": sentences} if sentences else {}
    return Content(rows[order], how, json_sha256(texts), take, part[order])


def item_texts(dataset: Dataset) -> list[str]:
    """One clean text an item, '' at row 0: its columns of TEXT_COLUMNS, else its keywords.

    Genres, category paths and keywords lose the marks that part them: an encoder reads words.
    """
    return [clean_text(" ".join(cells)) for cells in _cells(dataset)]


def item_sentences(dataset: Dataset, most: int) -> list[list[str]]:
    """The first sentences of every item, none of row 0: each column begins a new one."""
    split = lambda cell: re.split(r"(?<=[.!?])\s+", cell)  # noqa: E731
    return [[x for cell in cells for x in split(cell) if x][:most] for cells in _cells(dataset)]


def _cells(dataset: Dataset) -> list[list[str]]:
    """What each column says of each item, clean."""
    names = [name for name in TEXT_COLUMNS if name in dataset.columns]
    names = names or [name for name in KEYWORDS if name in dataset.columns]

    def said(name: str, row: int) -> str:
        cell = dataset.columns[name][row]
        return clean_text(re.sub(r'[\[\]"|▁]+', " ", cell) if name in MARKED else cell)

    rows = range(1, dataset.n_items + 1)
    return [[], *([said(name, row) for name in names] for row in rows)]


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(
            f"{folder} holds no tokenizer: expected one of {', '.join(TOKENIZERS)}. Fetch it from "
            "where the weights come from: other token ids mean other words."
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise RuntimeError(
            "text needs the package transformers for its tokenizers: pip install 'mmrec-zoo[text]'"
        ) from error
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _limit(tokenizer: Any, module: Any, folder: Path, max_length: int | None) -> int:
    """The longest text in tokens: as asked for, else what the encoder was trained on."""
    offset = 0 if getattr(module, "pad_id", None) is None else module.pad_id + 1
    most = min(getattr(module, "positions", LONGEST + offset) - offset, tokenizer.model_max_length)
    if max_length is not None and not 1 <= max_length <= most:
        raise ValueError(f"max_length is {max_length}; this encoder takes 1 to {most} tokens.")
    trained = (
        folder / "sentence_bert_config.json"
    )  # Sentence Transformers: often less than it takes
    known = read_json(trained).get("max_seq_length") if trained.is_file() else None
    return max_length or min(most, known or most)


def widths_of(lengths: np.ndarray, compiling: int) -> list[int]:
    """The widths, ascending, that texts of these lengths are padded to, each to the first that
    holds it: the fewest tokens in all, where a width more costs as much as `compiling` tokens."""
    upto = np.cumsum(np.bincount(lengths, minlength=2))  # texts no longer than
    longest = len(upto) - 1
    least, before = np.zeros(longest + 1), np.zeros(longest + 1, int)
    for width in range(1, longest + 1):
        tokens = least[:width] + width * np.r_[upto[width], upto[width] - upto[1:width]]
        before[width] = tokens.argmin()
        least[width] = tokens[before[width]] + compiling
    widths = [longest]
    while before[widths[0]]:
        widths.insert(0, int(before[widths[0]]))
    return widths


def _check_vocabulary(ids: list[list[int]], module: Any, folder: Path) -> None:
    largest = max(max(one, default=0) for one in ids)
    if largest >= module.vocabulary:
        raise ValueError(
            f"{folder}: its tokenizer gives the id {largest}, its encoder has {module.vocabulary} "
            "words: they are not of one model. Fetch both from one place."
        )


def _preprocessor(folder: Path) -> dict[str, Any]:
    """preprocessor_config.json, or the part of a processor_config.json that stands for it."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        whole = read_json(folder / "processor_config.json")
        for part in ("image_processor", "feature_extractor"):
            if part in whole:
                return whole[part]
    raise ValueError(
        f"{folder} holds no preprocessor_config.json: it says how pictures are resized and scaled, "
        "and how sound becomes a spectrogram. Fetch it from where the weights come from."
    )


def some_rows(rows: np.ndarray, dataset: Dataset, modality: str) -> np.ndarray:
    """Items without row 0. Raises DataError where there is none."""
    rows = rows[rows > 0]
    if not len(rows):
        raise DataError(f"no item of {dataset.name} has {modality}; there is nothing to embed.")
    return rows


def json_sha256(value: Any) -> str:
    """Hex sha256 of what JSON writes of a value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
