"""Fit a recommender to a data set: one run, one folder, resumable, chosen on validation."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints.store import Store, append_metrics, params_sha256
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
from zoo.settings import KS, Settings, check_metric, claim, identity, settings_for
from zoo.stepper import Stepper
from zoo.train import TrainState

log = logging.getLogger("zoo")


@dataclass(frozen=True)
class Fitted:
    """What came out: the parameters that validation chose, and how the run went."""

    recommender: Recommender
    params: Any  # chosen on validation
    catalogue: dict[str, Any]
    steps: int
    seconds: float  # of training steps, evaluation and saving left out
    examples_per_second: float  # next-item targets
    best: dict[str, float]  # validation metrics of `params`
    history: list[dict[str, float]]  # one row an evaluation
    params_sha256: str  # of the final parameters
    max_len: int  # events of a history that the model reads
    flops: float = 0.0  # of the steps' matrix products (flops.py)


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
        chain = (s.rate, self.steps, s.warmup, s.schedule, s.weight_decay, s.clip)
        self.optimizer = with_rates(optimizer(*chain, accumulate=s.accumulate), s.rates)
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


class Progress:
    """What a run has seen so far; saved with every checkpoint."""

    def __init__(self, select: str, patience: int, saved: dict | None = None):
        self.select, self.patience, self.told = select, patience, False
        saved = saved or {"history": [], "seconds": 0.0, "examples": 0.0}
        self.history: list[dict[str, float]] = saved["history"]
        self.seconds, self.examples = saved["seconds"], saved["examples"]

    def saved(self) -> dict[str, Any]:
        """JSON-able."""
        return {"history": self.history, "seconds": self.seconds, "examples": self.examples}

    def best(self) -> int:
        """Place in the history of the best evaluation; the first of equals."""
        return int(np.argmax([row[self.select] for row in self.history]))

    def improved(self) -> bool:
        """Whether the last evaluation is the best so far."""
        return self.best() == len(self.history) - 1

    def exhausted(self) -> bool:
        """Whether `patience` evaluations in a row were no better."""
        return bool(self.history) and len(self.history) - 1 - self.best() >= self.patience


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


def within_flops(make: Callable[..., Any], settings: Settings, *more: Any) -> Any:
    """The run of `make(settings, *more)`, and of as many steps as settings.flops allow, where said.

    Raises ValueError where steps are said, too.
    """
    if settings.flops is None:
        return make(settings, *more)
    if settings.steps is not None:
        raise ValueError(f"steps is {settings.steps} and flops {settings.flops:g}: give one.")
    a_step = make(settings, *more).stepper.flops  # not kept: it holds a catalogue
    if not a_step:
        raise ValueError("flops count dense matrix products, and a step here has none: give steps.")
    return make(replace(settings, steps=max(1, round(settings.flops / a_step))), *more)


def run_through(run: Any, out: str | Path | None, mine: dict[str, Any], report) -> Fitted:
    """Train, validate, save, to the end or until patience is; with `out`, on from where it was.

    run: settings, steps, every, stepper, loader, recommender, max_len, and validate(params), as
    Run has them. mine: what makes the run the one that it is.
    """
    s = run.settings
    run.stepper.compile()
    if out is None:
        return _loop(run, run.stepper.fresh(), Progress(s.select, s.patience), report)
    claim(Path(out), mine)
    with Store(out) as store:
        state, progress = _resume(run, store)
        return _loop(run, state, progress, report, store)


def _loop(run: Any, state, progress: Progress, report, store: Store | None = None) -> Fitted:
    chosen = None
    while int(state.step) < run.steps and not progress.exhausted():
        until = min(int(state.step) + run.every, run.steps)
        state = _stretch(run, state, until, progress, report)
        metrics = run.validate(state.params)
        progress.history.append({"step": until, **metrics})
        report(until, run.steps, metrics)
        if progress.improved():
            chosen = meshes.fetch(state.params)
        if store:
            if jax.process_index() == 0:
                append_metrics(store.folder, progress.history[-1])
            place = run.loader.place()
            store.save(until, state, place, progress.saved(), best=progress.improved())
    if store:
        store.wait()
    return _fitted(run, state, progress, _chosen(run, state, progress, chosen, store))


def _stretch(run: Any, state, until: int, progress: Progress, report) -> TrainState:
    """Train up to the next evaluation, timed."""

    def heard(step: int, metrics: dict[str, float]) -> None:
        if metrics.get("items_left", 0) > 0 and not progress.told:
            progress.told = True
            log.warning(
                "step %d: %d items of the batch are above the bound and keep older vectors; "
                "raise --encode.bound, or take smaller batches",
                step,
                metrics["items_left"],
            )
        progress.examples += metrics.get("targets", 0.0)
        report(step, run.steps, metrics)

    begun = time.monotonic()
    state = jax.block_until_ready(run.stepper.advance(state, until, heard))
    progress.seconds += time.monotonic() - begun
    return state


def _resume(run: Any, store: Store) -> tuple[TrainState, Progress]:
    s = run.settings
    if store.latest() is None:
        return run.stepper.fresh(), Progress(s.select, s.patience)
    state, place, saved, step = store.restore(run.stepper.abstract())
    run.loader.resume(place)
    log.info("resumed at step %d", step)
    return state, Progress(s.select, s.patience, saved)


def _chosen(run: Any, state, progress: Progress, chosen, store: Store | None):
    """The parameters of the best evaluation, from memory or from the store."""
    if chosen is not None:
        return chosen
    if store is None or not progress.history:
        return state.params
    step = progress.history[progress.best()]["step"]
    return store.restore(run.stepper.abstract(), step=step)[0].params


def _fitted(run: Any, state: TrainState, progress: Progress, chosen) -> Fitted:
    seconds = max(progress.seconds, 1e-9)
    return Fitted(
        run.recommender,
        chosen,
        run.stepper.catalogue,
        int(state.step),
        progress.seconds,
        progress.examples / seconds,
        progress.history[progress.best()] if progress.history else {},
        progress.history,
        params_sha256(meshes.fetch(state.params)),
        run.max_len,
        run.stepper.flops * int(state.step),
    )
