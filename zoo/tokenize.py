"""The items of a catalogue as semantic ids, written in the field's own format.

Vectors are the features of a modality, or, of a trained run, the item vectors that it serves with:
with `rqvae`, the Rec-IDs of MMGRec (Liu et al. 2024, arXiv 2404.16555) if the run is a graphsage.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pipelines.codes import (
    Codes,
    check_unique,
    check_vectors,
    from_array,
    letters_of,
    write_index,
)
from pipelines.schema import DataError, Dataset
from pipelines.words import category_of
from zoo import quantize
from zoo.append_codes import space_of
from zoo.code_quality import quality
from zoo.coding import catalogue_of, sizes
from zoo.data import Data, prepare
from zoo.letter import Letter
from zoo.names import at_least, between, unknown
from zoo.quantised import Quantised, by_codebooks, by_rqvae
from zoo.rqvae import RQVAE, fit_rqvae
from zoo.semantic_ids import resolve
from zoo.serve import Pretrained, from_pretrained

METHODS = ("rkmeans", "pq", "opq", "rqvae")
ROTATIONS = 10  # of OPQ
BATCH = 1024  # of RQ-VAE
STEPS = {"rqvae": 3000, "rkmeans": 25, "pq": 25, "opq": 25}
WATCHED = 5  # evaluations in a row that say that a level has collapsed
log = logging.getLogger("zoo")


def tokenize(
    data: Data,
    out: str | Path,
    modality: str | None = None,
    method: str = "rkmeans",
    levels: int = 3,
    size: int = 256,
    resolver: str | None = None,
    seed: int = 0,
    run: Pretrained | str | Path | None = None,
    batch: int | None = None,
    steps: int | None = None,
    hidden: tuple[int, ...] = (512, 256, 128),
    width: int = 32,
    balance: float = 0.0,
    teacher: Pretrained | str | Path | None = None,
    alpha: float = Letter().alpha,
    beta: float | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Codes of every item that has a vector, to OUT (a JSON index) and OUT.npz (what made them,
    for items that come later: append_codes.py).

    modality: whose features are the vectors, None: those that the data's options name, else text;
    run: a run or bundle whose item vectors to take instead. method: residual k-means, product
    quantisation, that with learned rotations, or an RQ-VAE. batch: rows a step of residual k-means,
    None for all of them. steps: of k-means a level (with `batch` so many batches), None: 25; of the
    RQ-VAE, rounded up to whole epochs, None: 3000. hidden, width, balance (Sinkhorn's epsilon of
    the last level, 0: off) and teacher are of the RQ-VAE. teacher: a run whose item vectors its ids
    shall follow, of that width (letter.py); alpha and beta: the weights of following it and of
    codes that spread, beta None: 1e-4 with a teacher, 0 without. resolver: what makes colliding
    codes unique (semantic_ids.resolve), None: `popularity` of a run's vectors, else `digit`. mesh:
    over which residual k-means spreads the vectors. Returns the quality report, of the codes before
    collisions are resolved. Raises ValueError for an unknown name, for an option of another method,
    for vectors that are not finite or too few, for a run of other items or of another split, and
    for one without item vectors.
    """
    if method not in METHODS:
        raise unknown("unknown method", method, METHODS)
    if method != "rqvae" and (teacher is not None or balance or beta):
        raise ValueError(
            f"a teacher, beta and a balance are of the RQ-VAE; the method is '{method}'."
        )
    between(0, math.inf, alpha=alpha, balance=balance, beta=beta or 0.0)
    if method != "rkmeans" and batch is not None:
        raise ValueError(f"a batch is of residual k-means; the method is '{method}'.")
    steps = STEPS[method] if steps is None else steps
    at_least(1, steps=steps, levels=levels, size=size, width=width)
    if Path(out).suffix != ".json":
        raise ValueError(f"{out} is to be a JSON index; expected a name that ends in .json.")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    if run is None:
        data, rows, x, told = _content(data, modality)
    else:
        rows, x, told = _served(data, run, modality)
    check_vectors(x, np.ones(len(x), bool), data.dataset.item_ids[rows], size)
    dataset, resolver = data.dataset, resolver or ("digit" if run is None else "popularity")
    if method == "rqvae":
        module = RQVAE(x.shape[1], hidden, width, levels, size, balance=balance)
        made = _by_rqvae(x, module, steps, seed, _letter(data, teacher, rows, alpha, beta))
    else:
        made = _by_codebooks(x, method, levels, size, seed, steps, batch, mesh)
    counts = np.bincount(data.split.train.values, minlength=dataset.n_items + 1)[rows]
    settled = resolve(made.codes, resolver, made.apart, counts)
    if resolver != "none":
        check_unique(settled, dataset.item_ids[rows])
    write_index(out, _placed(settled, rows, dataset.n_items), dataset.item_ids)
    about = {"method": method, "resolver": resolver, "hidden": hidden, "vectors": told}
    about |= catalogue_of(dataset)
    if run is None:
        about["vectors"] = space_of(data, told["modality"])
    room = sizes(from_array(settled))
    room[:levels] = np.maximum(room[:levels], size)
    np.savez(f"{out}.npz", about=json.dumps(about), room=room, **made.arrays)
    more = {"x": x, "decoded": made.decoded, "seed": seed}
    report = quality(made.codes, _labels(dataset, rows), counts, _asked(data, rows), **more)
    told |= {"method": method, "resolver": resolver, "items": len(rows)}
    told |= {"without_codes": dataset.n_items - len(rows), "out": str(out)}
    return {"data": dataset.name, **told, **report}


def _labels(dataset: Dataset, rows: np.ndarray) -> np.ndarray | None:
    """The categories of these items."""
    found = category_of(dataset)
    return None if found is None else found[rows]


def _asked(data: Data, rows: np.ndarray) -> np.ndarray | None:
    """Which of `rows` the test events ask for, once an event; None: for none of them."""
    place = np.full(data.dataset.n_items + 1, -1)
    place[rows] = np.arange(len(rows))
    asked = place[data.split.test.positives.values]
    return asked[asked >= 0] if (asked >= 0).any() else None


def _content(data: Data, modality: str | None) -> tuple[Data, np.ndarray, np.ndarray, dict]:
    """(data with features, the rows that have the modality, their features, what to report)."""
    data = prepare(data, "content")
    dataset = data.dataset
    modality = modality or _named(data)
    if not dataset.features:
        raise DataError(
            f"{dataset.name} has no content to make codes of: give its items titles or files, "
            "vectors (--features), or a run whose item vectors to take (--run)."
        )
    if modality not in dataset.features:
        raise unknown(f"{dataset.name} has no features called", modality, dataset.features)
    rows = np.flatnonzero(dataset.present[modality])
    return data, rows, dataset.features[modality][rows], {"modality": modality}


def _named(data: Data) -> str:
    """The modality of the vectors that the options name, if they are of one; else text."""
    found = sorted(data.dataset.source.get("embedded", {}))
    if len(found) > 1 and "text" not in found:
        raise ValueError(f"vectors of {' and '.join(found)}: say which (--modality).")
    return found[0] if len(found) == 1 else "text"


def _served(
    data: Data, run: Pretrained | str | Path, modality: str | None
) -> tuple[np.ndarray, np.ndarray, dict]:
    """(all rows of items, their vectors in the run's index, what to report)."""
    if modality is not None:
        raise ValueError(
            f"a run and the modality '{modality}' are two sources of vectors: name one. A run has "
            "read the modalities that it was trained on."
        )
    bundle = run if isinstance(run, Pretrained) else from_pretrained(run)
    rows = np.arange(1, data.dataset.n_items + 1)
    x = bundle.vectors(data.dataset, data.split)["items"][rows]
    return rows, x, {"run": bundle.config["model"]}


def _by_codebooks(
    x: np.ndarray,
    method: str,
    levels: int,
    size: int,
    seed: int,
    steps: int,
    batch: int | None,
    mesh: Mesh | None,
) -> Quantised:
    if method == "rkmeans":
        fitted = quantize.fit_residual(x, levels, size, seed, steps, batch=batch, mesh=mesh)
    else:
        rotations = ROTATIONS * (method == "opq")
        fitted = quantize.fit_product(x, levels, size, seed, steps, rotations=rotations)
    return by_codebooks(fitted, x)


def _letter(
    data: Data,
    teacher: Pretrained | str | Path | None,
    rows: np.ndarray,
    alpha: float,
    beta: float | None,
) -> Letter | None:
    """What follows the run's item vectors, which learned from the same split, and spreads codes."""
    if teacher is None:
        return Letter(beta=beta) if beta else None
    bundle = teacher if isinstance(teacher, Pretrained) else from_pretrained(teacher)
    vectors = bundle.vectors(data.dataset, data.split)["items"][rows]
    return Letter(jnp.asarray(vectors), alpha, Letter().beta if beta is None else beta)


def _by_rqvae(
    x: np.ndarray, module: RQVAE, steps: int, seed: int, letter: Letter | None = None
) -> Quantised:
    """The recipe that does not collapse: standardised columns, k-means start, dead codes reset."""
    shift, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-6, scale, 1.0)
    z = ((x - shift) / scale).astype(np.float32)
    epochs = -(-steps // max(len(x) // BATCH, 1))
    params, history = fit_rqvae(module, z, seed, epochs, BATCH, letter=letter)
    _alarm([row["perplexity"] for row in history[-WATCHED:]], module.size)
    return by_rqvae(module, params, shift, scale, x)


def _alarm(perplexities: list[np.ndarray], size: int) -> None:
    low = np.flatnonzero(np.all(np.asarray(perplexities) < 0.1 * size, axis=0))
    for level in low:
        log.warning(
            "RQ-VAE: level %d uses %.1f of %d codes evenly (perplexity): it has collapsed. Give it "
            "more steps, or fewer codes.",
            level + 1,
            perplexities[-1][level],
            size,
        )


def _placed(codes: np.ndarray, rows: np.ndarray, n_items: int) -> Codes:
    """Codes of `rows` in a table of all items; the others have none."""
    table = np.zeros((n_items + 1, codes.shape[1]), np.int32)
    table[rows] = codes
    return Codes(table, np.isin(np.arange(n_items + 1), rows), letters_of(codes.shape[1]))
