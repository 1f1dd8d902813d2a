"""Codes for items that came later, by what made those there are, which stay as they are.

A model that was trained on the codes before spells the new items untrained: graft it, --steps 0.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from pipelines.codes import Codes, read_index, write_index
from zoo.coding import MOST, catalogue_of
from zoo.data import Data, prepare
from zoo.embedded import space_differences
from zoo.kmeans import check_vectors
from zoo.names import unknown
from zoo.quantised import Quantised, again
from zoo.semantic_ids import append

SAME = 0.9  # of the items that have codes: vectors that still give them
GROWS = {"sinkhorn": "relocate"}  # the old items' shares are dealt; a new one takes what is free


class Made(NamedTuple):
    """What OUT.npz of `tokenize` holds."""

    about: dict[str, Any]  # method, resolver, vectors: whose, and of which space
    room: np.ndarray  # int32 c, how many codes a level can have
    arrays: dict[str, np.ndarray]


def space_of(data: Data, modality: str) -> dict[str, Any]:
    """What the features of a modality mean: what the zoo computes, or an encoder, or a file."""
    source = data.dataset.source
    told: dict[str, Any] = {"modality": modality}
    if modality in source.get("computed", ()):
        told["computed"] = data.options.text if modality == "text" else "statistics"
    return told | {"made_by": source.get("embedded", {}).get(modality, {})}


def append_codes(data: Data, out: str | Path, old: str | Path) -> dict[str, Any]:
    """Writes OUT: the codes of the index OLD, and after them those of every other item of `data`
    that has a vector, quantised by OLD.npz. Nothing is fitted, no old item's codes change.

    Returns what was done. Raises ValueError where OLD.npz is missing or tells too little, where
    the vectors are of another space, and pipelines.schema.DataError for an index of another
    catalogue.
    """
    made = _read(Path(f"{old}.npz"))
    data = prepare(data, "content")
    dataset, whose = data.dataset, made.about["vectors"]
    modality = whose["modality"]
    if modality not in dataset.features:
        raise unknown(f"{dataset.name} has no features called", modality, dataset.features)
    _check_space(whose, space_of(data, modality), old)
    before = read_index(old, dataset.item_ids, MOST, partial=True, collisions=True)
    kept = np.flatnonzero(before.present)
    new = np.flatnonzero(dataset.present[modality] & ~before.present)
    if not len(new):
        raise ValueError(f"{old} has codes of every item of {dataset.name} that has a vector.")
    _check_items(made, dataset.features[modality][kept], before.codes[kept], old)
    found = _quantised(made, dataset.features[modality][new], old)
    how = GROWS.get(made.about["resolver"], made.about["resolver"])
    table = np.zeros((dataset.n_items + 1, before.codes.shape[1]), np.int32)
    if how == "none":  # collisions stay: items of equal codes
        grown = np.concatenate([before.codes[kept], found.codes])
    else:
        room = int(made.room[-1])
        grown = append(before.codes[kept], found.codes, how, found.apart, reserved=room)
    table[[*kept, *new]] = grown
    present = np.isin(np.arange(len(table)), [*kept, *new])
    write_index(out, Codes(table, present, before.letters), dataset.item_ids)
    about = made.about | catalogue_of(dataset)
    np.savez(f"{out}.npz", about=json.dumps(about), room=made.room, **made.arrays)
    told = {"data": dataset.name, "modality": modality, "method": made.about["method"]}
    told |= {"resolver": made.about["resolver"], "kept": len(kept), "new": len(new)}
    return told | {"without_codes": dataset.n_items - len(kept) - len(new), "out": str(out)}


def _read(path: Path) -> Made:
    """The arrays of an npz (without pickle) and what made them."""
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: zoo tokenize writes it beside the codes, and it alone can make "
            "more of them."
        )
    try:
        with open(path, "rb") as file:
            arrays = dict(np.load(file, allow_pickle=False))
        about = json.loads(str(arrays.pop("about")))
        room = arrays.pop("room")
        known = {"method", "resolver", "vectors"} <= set(about)
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path}: expected what zoo tokenize writes, found {error!r}.") from error
    if not known or "modality" not in about["vectors"]:
        raise ValueError(
            f"{path} was made of a run's item vectors, and no other run has theirs: make codes of "
            "features (--modality) to be able to add items."
        )
    return Made(about, room, arrays)


def _check_space(theirs: dict[str, Any], mine: dict[str, Any], old: str | Path) -> None:
    if theirs.get("computed", "").startswith("lsa"):
        raise ValueError(
            f"{old} was made of LSA, whose space is that of one catalogue: tokenize with --text "
            "hashed, or with vectors of zoo embed (--features), to be able to add items."
        )
    lines = space_differences(theirs["made_by"], mine["made_by"])
    if theirs.get("computed") != mine.get("computed"):
        there, here = (x.get("computed", "given") for x in (theirs, mine))
        lines = [*lines, f"features: {there} there, {here} here"]
    if lines:
        listed = "\n  ".join(lines)
        raise ValueError(f"{old} was made of vectors of another space:\n  {listed}")


def _check_items(made: Made, x: np.ndarray, codes: np.ndarray, old: str | Path) -> None:
    """Raise ValueError unless x [n,d] are the vectors that codes [n,c] were made of, but for a few
    that changed: items of another catalogue may have the same names."""
    again, kept = _quantised(made, x, old).codes, codes
    if made.about["resolver"] not in ("digit", "popularity", "none"):
        again, kept = again[:, :-1], codes[:, :-1]  # the last level was resolved
    same = (again == kept[:, : again.shape[1]]).all(1) if again.shape[1] else np.ones(len(x), bool)
    if same.mean() < SAME:
        raise ValueError(
            f"{old} names {len(x)} of these items, and the vectors of {(~same).sum()} of them give "
            "other codes: it belongs to another catalogue, or their content has changed. Make the "
            "codes anew."
        )


def _quantised(made: Made, x: np.ndarray, old: str | Path) -> Quantised:
    """New vectors x [m,d] by what made the old codes. ValueError: of another width."""
    check_vectors(x)
    wide = len(made.arrays["shift"])
    if x.shape[1] != wide:
        raise ValueError(f"{old} was made of vectors {wide} wide; here they are {x.shape[1]}.")
    hidden = made.about["hidden"] if made.about["method"] == "rqvae" else None
    return again(made.arrays, hidden, x)
