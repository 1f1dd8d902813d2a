"""A counting floor as the prior of any trained model; validation says how much of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.bundle import save_bundle
from pipelines.schema import Events
from pipelines.words import words
from zoo import api
from zoo.counted import best_floor, counted, longest
from zoo.models.fusion import fuse
from zoo.recommender import Recommender
from zoo.saving import card
from zoo.serve import Pretrained

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
    counts, table, chosen = counted(floor, data, chosen)
    both = {"a": params, "b": table}
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


def prior_of(bundle: Pretrained, data: api.Data, floor: str | None = None) -> WithPrior:
    """`with_prior` of a bundle; floor: a name, None for the usual one, or "best": on validation.

    Raises ValueError for data of another split: the floor would count what the model is tested on.
    """
    bundle.check_same_items(data.dataset)
    if data.split.hash != bundle.split["hash"]:
        raise ValueError(
            f"the bundle learned from the split {bundle.split['hash'][:12]}, this is "
            f"{data.split.hash[:12]}: its prior has to count the same one. Use the options of data "
            "and split that it was trained with."
        )
    floor = best_floor(data) if floor == "best" else floor
    known = {"catalogue": bundle.catalogue, "max_len": reading(bundle, data)}
    return with_prior((bundle.recommender, bundle.params), data, floor=floor, **known)


def reading(bundle: Pretrained, data: api.Data) -> int:
    """Events of a history that the bundle reads with a prior: a model without positions reads
    whatever the floor does."""
    return bundle.max_len if "max_len" in bundle.config["fields"] else longest(data)


def save_with_prior(
    folder: str | Path, bundle: Pretrained, data: api.Data, both: WithPrior
) -> Path:
    """The bundle again, with its prior inside; serves by itself."""
    told = {"floor": both.floor, "fields": both.chosen, "how": both.how, "weight": both.weight}
    config = bundle.config | {"prior": told, "max_len": reading(bundle, data)}
    known, model = (both.recommender, both.params), bundle.config["model"]
    kept = {"catalogue": bundle.catalogue, "max_len": config["max_len"]}
    scores = {"valid": api.evaluate(known, data, "valid", **kept).metrics}
    return save_bundle(
        folder,
        config=config,
        params=both.params,
        item_ids=bundle.bundle.item_ids,
        item_columns=bundle.bundle.item_columns,
        features=bundle.bundle.catalogue,
        feature_manifest=bundle.bundle.features,
        split=bundle.split,
        evaluation=scores,
        card=card(model, config, bundle.split, scores),
    )


def default_floor(data: api.Data) -> str:
    """The best counting floor that the data allow."""
    graph = "sr-graph" if data.split.ordered else "cf-graph"
    return graph if words(data.dataset) is None else f"{graph}+text"


def some(events: Events, n: int, seed: int = 1) -> Events:
    """n events, drawn as evaluation.md draws them for the floors' grid."""
    rows = np.random.default_rng(seed).permutation(len(events))[:n]
    return Events(events.users[rows], events.history.take(rows), events.positives.take(rows))
