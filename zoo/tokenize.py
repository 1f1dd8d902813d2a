"""The content of a catalogue as semantic ids, written in the field's own format."""

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.codes import Codes, check_unique, write_index
from zoo import api, quantize
from zoo.code_quality import quality
from zoo.names import unknown
from zoo.semantic_ids import resolve

METHODS = ("rkmeans", "pq", "opq")
ROTATIONS = 10  # of OPQ
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenize(
    data: api.Data,
    out: str | Path,
    modality: str = "text",
    method: str = "rkmeans",
    levels: int = 3,
    size: int = 256,
    resolver: str = "digit",
    seed: int = 0,
) -> dict[str, Any]:
    """Codes of every item that has the modality, to OUT (a JSON index) and OUT.npz (codebooks).

    method: residual k-means, product quantisation, or that with learned rotations. resolver: what
    makes colliding codes unique (semantic_ids.resolve). Returns the quality report, of the codes
    before collisions are resolved. Raises ValueError for an unknown name, DataError for features
    that are not finite or too few.
    """
    if method not in METHODS:
        raise unknown("unknown method", method, METHODS)
    dataset = api.prepare(data, "content").dataset
    if modality not in dataset.features:
        raise unknown(f"{dataset.name} has no features called", modality, dataset.features)
    rows = np.flatnonzero(dataset.present[modality])
    x = dataset.features[modality][rows]
    fitted = _fit(x, method, levels, size, seed)
    found = np.asarray(quantize.encode(fitted, x))
    counts = np.bincount(data.split.train.values, minlength=dataset.n_items + 1)[rows]
    apart = quantize.last_distances(quantize.standard(fitted, x), found, fitted.codebooks)
    settled = resolve(found, resolver, np.asarray(apart), counts)
    if resolver != "none":
        check_unique(settled, dataset.item_ids[rows])
    write_index(out, _placed(settled, rows, dataset.n_items), dataset.item_ids)
    np.savez(f"{out}.npz", **fitted._asdict())
    decoded = np.asarray(quantize.decode(fitted, found))
    report = quality(found, weights=counts, x=x, decoded=decoded, seed=seed)
    told = {"items": len(rows), "without_codes": dataset.n_items - len(rows), "out": str(out)}
    return {"data": dataset.name, "modality": modality, "method": method, **told, **report}


def _fit(x: np.ndarray, method: str, levels: int, size: int, seed: int) -> quantize.Quantiser:
    if method == "rkmeans":
        return quantize.fit_residual(x, levels, size, seed)
    return quantize.fit_product(x, levels, size, seed, rotations=ROTATIONS * (method == "opq"))


def _placed(codes: np.ndarray, rows: np.ndarray, n_items: int) -> Codes:
    """Codes of `rows` in a table of all items; the others have none."""
    table = np.zeros((n_items + 1, codes.shape[1]), np.int32)
    table[rows] = codes
    return Codes(table, np.isin(np.arange(n_items + 1), rows), tuple(LETTERS[: codes.shape[1]]))
