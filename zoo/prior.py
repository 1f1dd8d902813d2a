"""A counting floor as the prior of any trained model; validation says how much of it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pipelines.schema import Events
from pipelines.words import words
from zoo import api
from zoo.counted import SERVED, best_floor, check_served, choosing, counted, longest
from zoo.models import fields
from zoo.models.fusion import fuse
from zoo.recommender import Recommender
from zoo.saving import save_again
from zoo.serve import Pretrained

log = logging.getLogger("zoo")
GRID = tuple((how, w) for how in ("mixture", "product") for w in (0.5, 1.0, 2.0, 4.0, 8.0))


class WithPrior(NamedTuple):
    """A model and a floor as one recommender, and how they were joined."""

    recommender: Recommender
    params: Any  # {a: the model's, b: what the floor counted}
    floor: str
    chosen: dict[str, Any]  # the floor's fields
    how: str
    weight: float
    metric: str  # what chose
    alone: float  # the model without, on the same events
    floor_alone: float  # the floor without
    grid: dict[str, float]  # with every way and weight

    @property
    def told(self) -> dict[str, Any]:
        """As a bundle's config.json and `zoo evaluate` have it."""
        names = {"floor": "floor", "fields": "chosen", "how": "how", "weight": "weight"}
        return {told: getattr(self, name) for told, name in names.items()}


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
    neighbours where there is text. chosen: the floor's fields; None: chosen on validation.
    The way and weight are the best of `grid` on `events` validation events, which may all be worse
    than the model or the floor alone: a warning says so. The weight is not learned in training:
    there the floor has counted the very transition that it would predict.
    """
    recommender, params = model
    floor = floor or default_floor(data)
    counts, table, chosen = counted(floor, data, chosen, catalogue)
    both = {"a": params, "b": table}
    few = replace(data, split=replace(data.split, valid=some(data.split.valid, events)))
    metric, known = choosing(data), {"catalogue": catalogue, "max_len": max_len}
    value = lambda model: api.evaluate(model, few, "valid", **known).metrics[metric]  # noqa: E731
    ways = {how: fuse(recommender, counts, how=how) for how, _ in grid}
    seen = {(how, w): value((ways[how], both | {"weight": jnp.float32(w)})) for how, w in grid}
    how, weight = max(seen, key=seen.get)
    alone, floor_alone = value(model), value((counts, table))
    for what, without in (("prior", alone), ("model", floor_alone)):
        if without >= seen[how, weight]:
            told = "the %s does not help: validation %s %.4f together, %.4f without"
            log.warning(told, what, metric, seen[how, weight], without)
    told = {f"{h} {w}": found for (h, w), found in seen.items()}
    joined = fuse(recommender, counts, weight, how)
    return WithPrior(joined, both, floor, chosen, how, weight, metric, alone, floor_alone, told)


def prior_of(
    bundle: Pretrained, data: api.Data, floor: str | None = None, keep: int | None = None
) -> WithPrior:
    """`with_prior` of a bundle; floor: a name, None for the usual one, or "best": on validation.

    keep: how many neighbours of an item the floor keeps, None: as many as it usually does.
    Raises ValueError for a bundle that is a floor or has one, and for data of another split: the
    floor would count what the model is tested on.
    """
    bundle.check_same_items(data.dataset)
    if "prior" in bundle.config or bundle.config["model"] in SERVED:
        raise ValueError(
            "the bundle is a floor or has one as its prior: take the run of a trained model."
        )
    if data.split.hash != bundle.split["hash"]:
        raise ValueError(
            f"the bundle learned from the split {bundle.split['hash'][:12]}, this is "
            f"{data.split.hash[:12]}: its prior has to count the same one. Use the options of data "
            "and split that it was trained with."
        )
    if floor not in (None, "best"):
        check_served(floor)
    floor, chosen = best_floor(data) if floor == "best" else (floor or default_floor(data), {})
    if keep is not None:
        check_keep(floor, keep)
        chosen = chosen | {"keep": keep}
    known = {"catalogue": bundle.catalogue, "max_len": reading(bundle, data)}
    model = (bundle.recommender, bundle.params)
    return with_prior(model, data, floor=floor, chosen=chosen, **known)


def check_keep(floor: str, keep: int) -> None:
    """Raise ValueError for a floor that keeps no neighbours, and for fewer than one."""
    if keep < 1 or "keep" not in fields(floor):
        keeping = [name for name in SERVED if "keep" in fields(name)]
        raise ValueError(
            f"keep is {keep} for {floor}; expected >= 1, of a floor that keeps neighbours: "
            f"{', '.join(keeping)}."
        )


def reading(bundle: Pretrained, data: api.Data) -> int:
    """Events of a history that the bundle reads with a prior: a model without positions reads
    whatever the floor does."""
    return bundle.max_len if "max_len" in bundle.config["fields"] else longest(data)


def save_with_prior(
    folder: str | Path, bundle: Pretrained, data: api.Data, both: WithPrior
) -> Path:
    """The bundle again, with its prior inside; serves by itself."""
    config = bundle.config | {"prior": both.told, "max_len": reading(bundle, data)}
    known = (both.recommender, both.params)
    kept = {"catalogue": bundle.catalogue, "max_len": config["max_len"]}
    scores = {"valid": api.evaluate(known, data, "valid", **kept).metrics}
    return save_again(folder, bundle.bundle, config, both.params, scores)


def default_floor(data: api.Data) -> str:
    """What follows or goes with what, spread over text neighbours where there is text."""
    graph = "sr-graph" if data.split.ordered else "cf-graph"
    return graph if words(data.dataset) is None else f"{graph}+text"


def some(events: Events, n: int, seed: int = 1) -> Events:
    """n events, the same at every call."""
    rows = np.random.default_rng(seed).permutation(len(events))[:n]
    return Events(events.users[rows], events.history.take(rows), events.positives.take(rows))
