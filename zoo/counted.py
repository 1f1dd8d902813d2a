"""Floors as models that serve: fields chosen on validation, counted on the train split."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from checkpoints.store import params_sha256
from pipelines import loader as loaders
from pipelines.words import words
from zoo import evaluation
from zoo.data import Data
from zoo.fitting import Fitted
from zoo.floor_table import floor_table
from zoo.models import MODELS, build, fields
from zoo.recommender import Recommender


def floors(data: Data, names: Sequence[str] | None = None, mask: bool = True) -> dict[str, Any]:
    """The floors on this data: exact counts, open parameters chosen on validation."""
    dataset = data.dataset
    return floor_table(
        data.split,
        dataset.n_items,
        words=words(dataset),
        features=dataset.features,
        present=dataset.present,
        floors=names,
        mask=mask,
    )


def counted(
    floor: str, data: Data, chosen: dict[str, Any] | None = None
) -> tuple[Recommender, Any, dict[str, Any]]:
    """(recommender, params, fields) of a floor of the register.

    chosen: its fields; without, they are chosen on validation. Raises ValueError where the data
    lack what it counts.
    """
    if not chosen:
        told = floors(data, [floor])
        if floor in told.get("missing", {}):
            raise ValueError(f"{floor} cannot be counted: {told['missing'][floor]}.")
        chosen = told[floor]["chosen"]
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()}
    own = {k: v for k, v in own.items() if k in fields(floor)}
    recommender = build(floor, **own)
    params = recommender.init(jax.random.key(0), data.counted(data.catalogue()), None)
    return recommender, jax.tree.map(jnp.asarray, params), own


def count(
    floor: str, data: Data, chosen: dict[str, Any] | None = None
) -> tuple[Fitted, dict[str, Any]]:
    """A floor as what `fit` returns, and its fields; `best` are the metrics of what serves, whose
    rows keep their largest entries only."""
    started = time.perf_counter()
    recommender, params, own = counted(floor, data, chosen)
    seconds = time.perf_counter() - started
    catalogue, length = data.catalogue(), longest(data)
    best = evaluation.evaluate(
        recommender,
        params,
        catalogue,
        loaders.event_batches(data.split.valid, length, 128),
        candidates=loaders.candidates(data.split, len(catalogue["valid"])),
    ).metrics
    sha = params_sha256(params)
    return Fitted(recommender, params, catalogue, 0, seconds, 0.0, best, [], sha, length), own


def longest(data: Data) -> int:
    """Items of the longest history that the data hold: a floor reads all of them."""
    kinds = (data.split.train, data.split.valid.history, data.split.test.history)
    return max(int(rows.lengths.max(initial=1)) for rows in kinds)


def best_floor(data: Data) -> str:
    """The floor of the register that is best on validation; counts all of them to know."""
    by = "ndcg@10" if data.split.ordered else "recall@20"
    told = {name: row["validation"][by] for name, row in floors(data).items() if name in MODELS}
    return max(told, key=told.get)
