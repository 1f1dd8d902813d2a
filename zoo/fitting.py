"""Fit a recommender to a data set: which batches, which parameters, on which devices."""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from pipelines.loader import candidates, event_batches, pair_loader, sequence_loader
from pipelines.schema import Split
from pipelines.transforms import ladder
from zoo import mesh as meshes
from zoo.adapt import plan_of
from zoo.encoders.small import Encoding, encoders
from zoo.end_to_end import end_to_end
from zoo.evaluation import evaluate
from zoo.graft import Names, merged_trees
from zoo.models import Entry, build, entry, trainable
from zoo.models import fields as fields_of
from zoo.optim import optimizer, with_rates
from zoo.plan import Plan, train_only
from zoo.recipes import adapted_by, told
from zoo.recommender import Recommender, undrawn
from zoo.run import Fitted, run_through, within_flops
from zoo.settings import KS, Settings, check_metric, identity, settings_for
from zoo.stepper import Stepper

log = logging.getLogger("zoo")


class Run:
    """The pieces of one training run, made once."""

    def __init__(
        self,
        model: str,
        fields: dict,
        split: Split,
        catalogue: dict,
        settings: Settings,
        mesh: Mesh,
        start: Any = None,
        adapt: str | None = None,
        encoding: Encoding | None = None,
        names: Names = (),
    ):
        s = self.settings = settings
        self.mesh, self.split, self.max_len = mesh, split, _longest(model, fields)
        plain, published = _built(model, fields, catalogue, encoding)
        self.recommender = adapted_by(plain, adapt)
        start = merged_trees(published, start) if published else start
        check_metric(s.select)
        meshes.check_batch_fits(s.batch, mesh)
        self._load(entry(model), encoding.refresh if encoding else 0)
        chain = (s.rate, self.steps, s.warmup, s.schedule, s.weight_decay, s.clip, s.b2)
        self.optimizer = with_rates(optimizer(*chain, accumulate=s.accumulate, l2=s.l2), s.rates)
        if stage := _stage(model, fields, start):
            self.optimizer = train_only(self.optimizer, stage)
        if adapt:  # what a stage freezes stays frozen
            self.optimizer = train_only(self.optimizer, plan_of(self.recommender))
        catalogue = self.recommender.prepare(catalogue, mesh.size)
        pieces = (self.recommender, self.optimizer, self.loader, catalogue, mesh)
        self.stepper = Stepper(*pieces, s.seed, start, names)
        self.catalogue = self.stepper.catalogue
        if adapt:
            log.warning("%s: %s", adapt, told(self.stepper.shapes.params, self.recommender))

    def _load(self, known: Entry, refresh: int) -> None:
        """The loader, and how many steps: in all, between evaluations, and a dispatch.

        refresh: of a model that encodes all items once a dispatch, how many steps that shall be.
        """
        s, graph = self.settings, known.family == "graph"
        options = {"process": jax.process_index(), "processes": jax.process_count()}
        room = self.max_len + (known.targets == "cloze")  # the guess stands behind the history
        options |= {} if graph else {"length": room, "scheme": known.targets}
        plain = s.dispatch == 1 and self.recommender.draw is undrawn  # a step, without the scan
        self.widths = ladder(room) if plain and not graph else ()
        options |= {"widths": self.widths} if self.widths else {}
        make = partial(pair_loader if graph else sequence_loader, self.split, s.batch, **options)
        per_epoch = make(seed=s.seed).per_epoch
        self.steps = s.epochs * per_epoch if s.steps is None else s.steps
        self.every = s.evaluate_every or max(1, min(per_epoch, -(-self.steps // 5)))
        if refresh:
            self.steps, self.every = (-(-x // refresh) * refresh for x in (self.steps, self.every))
        stack = math.gcd(self.steps, self.every, refresh or s.dispatch or per_epoch)
        self.loader = make(seed=s.seed, stack=None if plain else stack)

    def validate(self, params: Any) -> dict[str, float]:
        """Full-ranking metrics on the validation events."""
        batches = event_batches(self.split.valid, self.max_len, self.settings.evaluate_batch)
        allowed = candidates(self.split, len(self.catalogue["valid"]))
        return evaluate(
            self.recommender, params, self.catalogue, batches, KS, strata=None, candidates=allowed
        ).metrics


def _built(
    model: str, fields: dict, catalogue: dict, encoding: Encoding | None
) -> tuple[Recommender, dict]:
    """The model, behind the encoders of the content that it is to encode itself; and what of
    their parameters was published."""
    plain = build(model, **fields)
    if encoding is None:
        return plain, {}
    made = encoders(encoding, catalogue["raw"])
    start = {m: one.params for m, one in made.items() if one.params is not None}
    how = {"refresh": encoding.refresh > 0, "centre": encoding.centre}
    how |= {"remove_drift": encoding.remove_drift}
    whole = end_to_end(plain, made, encoding.bound, **how)
    return whole, {"encoders": start} if start else {}


def _longest(model: str, chosen: dict) -> int:
    """Events of a history that the model reads; of models that read none, of the loader's rows."""
    default = fields_of(model).get("max_len", (int, 50))[1]
    return int(chosen.get("max_len", default))


def _stage(model: str, fields: dict, start: Any) -> Plan:
    """Which parameters the model's stage trains (plan.py); () where it trains all of them."""
    trained = trainable(model, fields)
    if trained is None or trained == (".*",):
        return ()
    if start is None:
        raise ValueError(
            f"{model} with stage='{fields['stage']}' trains only {', '.join(trained)}: the rest "
            "has to come from pretraining. Name a pretrained run (graft), or take the stage that "
            "trains everything."
        )
    return ("|".join(trained), "train"), (".*", "frozen")


def fit(
    model: str,
    split: Split,
    catalogue: dict[str, Any],
    out: str | Path | None = None,
    settings: Settings | None = None,
    mesh: Mesh | None = None,
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, metrics: None,
    start: Any = None,
    adapt: str | None = None,
    about: dict[str, Any] | None = None,
    encoding: Encoding | None = None,
    names: Names = (),
    **fields: Any,
) -> Fitted:
    """Train `model` with `fields`; go on where it stopped when `out` holds the same run.

    settings None: those of the model's family (`settings_for`). start: parameters of another
    run; those of the same name, or of the one that `names` says, and shape take the place of fresh
    ones (graft.py). adapt: how `start` is adapted (recipes.py): what that freezes neither moves nor
    has optimizer state.
    about: what else makes this run the one that it is, such as where its features come from.
    encoding: which modalities of catalogue["raw"] the model encodes itself.
    `report(step, steps, metrics)` hears of every step and every evaluation.
    Raises ValueError when `out` holds a run of other settings.
    """
    mesh, settings = mesh or meshes.make_mesh(1), settings or settings_for(model)
    if adapt and start is None and (encoding is None or encoding.kind in ("small", "side")):
        raise ValueError(f"adapt='{adapt}' adapts a pretrained run, and none was named (graft).")
    with jax.set_mesh(mesh):
        make = partial(Run, model, fields, split, catalogue)
        run = within_flops(make, settings, mesh, start, adapt, encoding, names)
        mine = identity(model, fields, split, settings, start, adapt, names)
        mine |= {"widths": run.widths} if len(run.widths) > 1 else {}  # another order of batches
        return run_through(run, out, mine | (about or {}), report)
