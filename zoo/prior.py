"""A counting floor as the prior of any trained model; validation says how much of it."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pipelines.schema import Events
from pipelines.words import words
from zoo import api
from zoo.models.fusion import fuse
from zoo.recommender import Recommender

GRID = tuple((how, w) for how in ("mixture", "product") for w in (0.5, 1.0, 2.0, 4.0))


class WithPrior(NamedTuple):
    """A model and a floor as one recommender, and how they were joined."""

    recommender: Recommender
    params: Any  # {a: the model's, b: what the floor counted}
    floor: str
    chosen: dict[str, Any]  # the floor's parameters
    how: str
    weight: float
    grid: dict[str, float]  # validation ndcg@10 of every way and weight


def with_prior(
    model: tuple[Recommender, Any],
    data: api.Data,
    catalogue: dict[str, Any],
    floor: str | None = None,
    chosen: dict[str, Any] | None = None,
    grid: tuple[tuple[str, float], ...] = GRID,
    events: int = 4000,
    max_len: int = 50,
) -> WithPrior:
    """`fuse` of (recommender, params) with a floor counted on the train split of `data`.

    floor None: the graph of what follows what (of sets: of what goes together), spread over text
    neighbours where there is text. chosen: the floor's parameters; None: chosen on validation.
    The way and weight are the best of `grid` on `events` validation events. The weight is not
    learned in training: there the floor has counted the very transition that it would predict.
    """
    recommender, params = model
    floor = floor or default_floor(data)
    chosen = api.floors(data, [floor])[floor]["chosen"] if chosen is None else chosen
    counts = api.build(floor, **{k: _tuples(v) for k, v in chosen.items()})
    counted = counts.init(jax.random.key(0), data.counted(data.catalogue()), None)
    both = {"a": params, "b": jax.tree.map(jnp.asarray, counted)}
    few = replace(data, split=replace(data.split, valid=some(data.split.valid, events)))
    seen = {}
    for how, weight in grid:
        joined = (fuse(recommender, counts, weight, how), both)
        result = api.evaluate(joined, few, "valid", catalogue=catalogue, max_len=max_len)
        seen[how, weight] = result.metrics["ndcg@10"]
    how, weight = max(seen, key=seen.get)
    told = {f"{h} {w}": value for (h, w), value in seen.items()}
    joined = fuse(recommender, counts, weight, how)
    return WithPrior(joined, both, floor, chosen, how, weight, told)


def default_floor(data: api.Data) -> str:
    """The best counting floor that the data allow."""
    graph = "sr-graph" if data.split.ordered else "cf-graph"
    return graph if words(data.dataset) is None else f"{graph}+text"


def some(events: Events, n: int, seed: int = 1) -> Events:
    """n events, drawn as evaluation.md draws them for the floors' grid."""
    rows = np.random.default_rng(seed).permutation(len(events))[:n]
    return Events(events.users[rows], events.history.take(rows), events.positives.take(rows))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
