"""One run to its end: trained, validated, saved, stopped by patience; gone on with after a kill."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints.store import Store, append_metrics, params_sha256
from zoo import mesh as meshes
from zoo.recommender import Recommender
from zoo.settings import Settings, claim
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
    if out is not None:
        claim(Path(out), mine)  # before minutes of compiling: a folder of another run is refused
    run.stepper.compile()
    if out is None:
        return _loop(run, run.stepper.fresh(), Progress(s.select, s.patience), report)
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
