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
from zoo.data import Data, prepare
from zoo.floor_table import floor_table
from zoo.models import MODELS, build, fields
from zoo.recommender import Recommender
from zoo.run import Fitted

SERVED = tuple(name for name, known in MODELS.items() if known.family == "floor")
UNCHOSEN = ("keep", "ordered")  # fields that validation does not choose


def floors(data: Data, names: Sequence[str] | None = None, mask: bool = True) -> dict[str, Any]:
    """The floors on this data: exact counts, open parameters chosen on validation."""
    dataset = prepare(data, "id").dataset  # with the vectors that its options name
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
    floor: str,
    data: Data,
    given: dict[str, Any] | None = None,
    catalogue: dict[str, Any] | None = None,
) -> tuple[Recommender, Any, dict[str, Any]]:
    """(recommender, params, fields) of a floor.

    given: fields; the others are chosen on validation. catalogue: whose rows are counted, those of
    the data by default. Raises ValueError where the data lack what it counts.
    """
    own = {k: tuple(v) if isinstance(v, list) else v for k, v in (given or {}).items()}
    build(floor, **own)  # a field that it has not is told before anything is counted
    own = _chosen(floor, data, own) | own
    recommender = build(floor, **own)
    catalogue = data.catalogue() if catalogue is None else catalogue
    params = recommender.init(jax.random.key(0), data.counted(catalogue), None)
    return recommender, jax.tree.map(jnp.asarray, params), own


def _chosen(floor: str, data: Data, given: dict[str, Any]) -> dict[str, Any]:
    """The best fields on validation; none where all that can be chosen are given."""
    check_served(floor)
    kind = {"ordered": data.split.ordered} if "ordered" in fields(floor) else {}
    if given and not fields(floor).keys() - {*given, *UNCHOSEN}:
        return kind
    told = floors(data, [floor])
    if floor in told.get("missing", {}):
        raise ValueError(f"{floor} cannot be counted: {told['missing'][floor]}.")
    return kind | told[floor]["chosen"]


def check_served(floor: str) -> None:
    """Raise ValueError for a name that no recommender of the register counts."""
    if floor not in SERVED:
        raise ValueError(f"'{floor}' is no floor that serves; there are {', '.join(SERVED)}.")


def count(floor: str, data: Data, given: dict[str, Any] | None = None) -> tuple[Fitted, dict]:
    """A floor as what `fit` returns, and its fields; `best` are the metrics of what serves, whose
    rows keep their largest entries only."""
    started = time.perf_counter()
    recommender, params, own = counted(floor, data, given)
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


def choosing(data: Data) -> str:
    """The metric that chooses on this kind of data: of floors, and of how to mix one in."""
    return "ndcg@10" if data.split.ordered else "recall@20"


def best_floor(data: Data) -> tuple[str, dict[str, Any]]:
    """The floor that is best on validation of those that serve, and its fields; counts all of them
    to know."""
    told = {name: row for name, row in floors(data).items() if name in SERVED}
    name = max(told, key=lambda n: told[n]["validation"][choosing(data)])
    return name, told[name]["chosen"]
