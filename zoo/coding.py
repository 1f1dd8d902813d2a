"""Which semantic ids a run uses: published ones of the data, a file's, or the content's own.

letter_sid        a column of the items
codes.json        a JSON index, as `zoo tokenize` and the field write it
rkmeans           residual k-means of all content the data set has; of one with rkmeans:text
random            the control: codes that mean nothing
"""

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipelines import content
from pipelines.codes import Codes, check_vectors, from_array, read_column, read_index
from pipelines.schema import DataError, Dataset
from zoo import quantize
from zoo.embedded import ids_of
from zoo.encoders.inputs import json_sha256
from zoo.semantic_ids import with_digit

LEVELS, SIZE = 3, 256  # and a digit
MOST = 1 << 16  # codes a level, of files
GROUPS, ROTATIONS = 16, 10  # of OPQ
MADE = ("rkmeans", "opq", "random")


def sizes(codes: Codes, given: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [c]: room of each level: the next power of two, so that new items find their codes; of
    a digit, which a new item makes larger, that of twice as many."""
    if given is not None:
        return np.asarray(given, np.int32)
    own = codes.codes[codes.present]
    most = own.max(axis=0) + 1
    most[-1] *= 1 + counts_up(own)
    return (2 ** np.ceil(np.log2(np.maximum(most, 2)))).astype(np.int32)


def counts_up(codes: np.ndarray) -> bool:
    """Whether the last level of unique codes [n,c] is a digit: within each group of the others it
    counts 0, 1, 2, ..."""
    rows = codes[np.lexsort(codes.T[::-1])]
    begins = np.r_[True, np.any(rows[1:, :-1] != rows[:-1, :-1], axis=1)]
    first = np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))
    return bool(np.all(rows[:, -1] == np.arange(len(rows)) - first))


def coded(dataset: Dataset, wanted: str = "rkmeans", text: str = "lsa", seed: int = 0) -> dict:
    """{vocabulary: (Codes, sizes int32[c])} of the names in `wanted`, parted by commas.

    Raises DataError for a name that is none of those above, and for what `pipelines.codes` does.
    """
    found = [_one(dataset, name.strip(), text, seed) for name in wanted.split(",")]
    if len(dict(found)) < len(found):
        raise DataError(f"codes '{wanted}': two vocabularies of one name; rename one of the files.")
    return dict(found)


def told(name: str, codes: Codes, targets: np.ndarray) -> str:
    """What a run's log says of its codes; targets: the items that the test asks for."""
    shared, own = np.zeros(len(codes.codes), bool), codes.codes[codes.present]
    _, group, size = np.unique(own, axis=0, return_inverse=True, return_counts=True)
    shared[codes.present] = size[group.reshape(-1)] > 1
    return (
        f"codes {name}: {len(codes.present) - 1 - codes.present[1:].sum()} items have none and are "
        f"never listed; {shared.sum()} share theirs, {shared[targets].mean():.2%} of test targets"
    )


def _one(dataset: Dataset, name: str, text: str, seed: int) -> tuple[str, tuple]:
    if name.split(":")[0] in MADE:
        return name.replace(":", "_"), _made(dataset, name, text, seed)
    if name in dataset.columns:
        column = ["", *dataset.columns[name][1:]]
        found = read_column(column, dataset.item_ids, name, MOST, True, True)
    elif name.endswith(".json") and Path(name).is_file():
        found = read_index(name, dataset.item_ids, MOST, partial=True, collisions=True)
        _check_most(name, found, dataset)
        return Path(name).stem, (found, _room(name, found, dataset))
    else:
        raise DataError(
            f"codes '{name}': {dataset.name} has no such column and there is no such .json file. "
            f"Its columns are {sorted(dataset.columns)}; {', '.join(MADE)} are made on the spot."
        )
    return name, (found, sizes(found))


def _check_most(name: str, codes: Codes, dataset: Dataset) -> None:
    """Raise DataError for an index that leaves most items out: they could never be listed."""
    if 2 * (have := int(codes.present.sum())) < dataset.n_items:
        raise DataError(
            f"{name} has codes of {have} of the {dataset.n_items} items of {dataset.name}, and the "
            "others could never be listed: expected most of them. Make codes of these (zoo "
            "tokenize --data ... --out ..., or --append such that the old ones stay)."
        )


def catalogue_of(dataset: Dataset) -> dict[str, str]:
    """Digests of whose items codes are, in whatever order: `catalogue` of their ids and, where they
    have any, `titles` of ids and titles."""
    ids, titles = ids_of(dataset), dataset.columns.get("title")
    told = {"catalogue": json_sha256(sorted(ids))}
    if titles is not None:
        named = zip(ids, map(str, titles[1:]), strict=True)
        told["titles"] = json_sha256(sorted(map(list, named)))
    return told


def _room(name: str, codes: Codes, dataset: Dataset) -> np.ndarray:
    """int32 [c]: the sizes of an index's levels; those that `zoo tokenize` wrote beside it, so that
    an index to which items were added fits the model of the one before. What is beside it also says
    whose items the codes are: numbered items of one shop have the names of another's."""
    made, need = Path(f"{name}.npz"), codes.codes.max(axis=0) + 1
    if not made.is_file():
        return sizes(codes)
    try:
        with open(made, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            room = np.asarray(arrays["room"]) if "room" in arrays else sizes(codes)
            about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{made}: expected what zoo tokenize writes, found {error!r}.") from error
    own = catalogue_of(dataset)
    if about.get("catalogue", own["catalogue"]) != own["catalogue"]:
        raise DataError(
            f"{name} was made for another catalogue than the {dataset.n_items} items of "
            f"{dataset.name}, if only by another filter: zoo tokenize makes codes of these, with "
            "--append such that the old ones stay."
        )
    if "titles" in own and about.get("titles", own["titles"]) != own["titles"]:
        raise DataError(
            f"{name} was made for items of the same ids as those of {dataset.name} and other "
            "titles: another catalogue, or one whose content has changed. Make its codes anew "
            "(zoo tokenize)."
        )
    if room.shape != need.shape or (room < need).any():
        raise DataError(
            f"{made} has room for {room.tolist()} codes by level, and those of {name} need "
            f"{need.tolist()}: it belongs to other codes. Delete it, or make the codes anew."
        )
    return room.astype(np.int32)


def _made(dataset: Dataset, name: str, text: str, seed: int) -> tuple[Codes, np.ndarray]:
    """Levels of 256 codes and, but for opq, a digit with room for twice those there are."""
    kind, _, modality = name.partition(":")
    if kind == "random":
        rows = np.arange(1, dataset.n_items + 1)
        found = np.random.default_rng(seed).integers(0, SIZE, (len(rows), LEVELS))
    else:
        x, present = _vectors(dataset, modality, text)
        check_vectors(x, present, dataset.item_ids, SIZE)
        rows = np.flatnonzero(present)
        found = _quantised(kind, x[rows], seed)
    room = [SIZE] * found.shape[1]
    if kind != "opq":
        found = with_digit(found)
        room.append(2 * (int(found[:, -1].max()) + 1))
    table = np.zeros((dataset.n_items, found.shape[1]), np.int32)
    table[rows - 1] = found
    made = from_array(table)
    made.present[:] = np.isin(np.arange(dataset.n_items + 1), rows)
    return made, np.array(room, np.int32)


def _quantised(kind: str, x: np.ndarray, seed: int) -> np.ndarray:
    if kind == "opq":
        x = np.pad(x, ((0, 0), (0, -x.shape[1] % GROUPS)))
        fitted = quantize.fit_product(x, GROUPS, SIZE, seed, rotations=ROTATIONS)
    else:
        fitted = quantize.fit_residual(x, LEVELS, SIZE, seed)
    return np.asarray(quantize.encode(fitted, x))


def _vectors(dataset: Dataset, modality: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Content [n+1,f], modalities side by side, each of unit spread; which items have any."""
    dataset, _ = content.with_features(dataset, text=text)
    names = sorted(dataset.features) if not modality else [modality]
    if not names or not set(names) <= set(dataset.features):
        raise DataError(
            f"rkmeans{':' if modality else ''}{modality}: {dataset.name} has features of "
            f"{sorted(dataset.features) or 'nothing'}; codes need content."
        )
    parts = [dataset.features[m] * dataset.present[m][:, None] for m in names]
    parts = [x / max(float(np.sqrt((x**2).sum(1).mean())), 1e-12) for x in parts]
    present = np.any([dataset.present[m] for m in names], axis=0)
    return np.concatenate(parts, axis=1).astype(np.float32), present


def arrays(found: dict, rows: int) -> dict:
    """{codes: {v: int32 [rows,c], -1 where an item has none}, sizes: {v: int32 [c]}}."""
    table = {}
    for name, (codes, _) in found.items():
        own = np.where(codes.present[:, None], codes.codes, -1)
        table[name] = np.pad(own, ((0, rows - len(own)), (0, 0)), constant_values=-1)
    return {"codes": table, "sizes": {name: room for name, (_, room) in found.items()}}
