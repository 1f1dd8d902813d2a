"""How a run is trained, what makes two runs the same, and what a family is trained with."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.store import params_sha256, write_run
from pipelines.schema import Split
from zoo import models
from zoo.metrics import RANKING
from zoo.models import entry
from zoo.names import above_zero, at_least, between, unknown

KS = (5, 10, 20)
COUNTS = ("epochs", "batch", "accumulate", "evaluate_every", "evaluate_batch", "dispatch")


@dataclass(frozen=True)
class Settings:
    """How to train; a step is one batch of packed rows."""

    steps: int | None = None
    """Steps of the optimizer; None: epochs x batches an epoch."""
    flops: float | None = None
    """In place of steps: a budget of operations, of matrix products."""
    epochs: int = 40
    batch: int = 32
    """Packed rows a step; of narrower rows more, for as many columns."""
    rate: float = 2e-3
    """The highest learning rate."""
    warmup: int = 0
    """Steps in which the rate rises to it."""
    schedule: str = "constant"
    """The rate after that: constant, cosine, linear or inverse-sqrt."""
    weight_decay: float = 0.0
    """After Adam has scaled the gradient (AdamW)."""
    l2: float = 0.0
    """Times the parameter, added to its gradient before (PyTorch's Adam)."""
    b2: float = 0.999
    """Adam's, of squared gradients."""
    clip: float | None = None
    """The largest norm of the gradient."""
    accumulate: int = 1
    """Batches whose gradients are averaged before a step of the optimizer."""
    rates: tuple[tuple[str, float], ...] = ()
    """Pairs: a regex of parameter names, times the rate; first match wins."""
    seed: int = 0
    evaluate_every: int | None = None
    """Steps between evaluations; None: one epoch, but at least five times a run."""
    patience: int = 5
    """Evaluations without a better one before stopping."""
    select: str = "ndcg@10"
    """The validation metric that chooses the parameters."""
    evaluate_batch: int = 512
    """Events at a time in an evaluation."""
    dispatch: int | None = 1
    """Steps a dispatch, rows of one width if not 1; None: an epoch."""

    def __post_init__(self) -> None:
        given = {k: v for k, v in asdict(self).items() if v is not None}
        at_least(0, **{k: given[k] for k in ("steps", "warmup", "patience") if k in given})
        at_least(1, **{k: given[k] for k in COUNTS if k in given})
        above_zero(**{k: given[k] for k in ("flops", "rate", "clip") if k in given})
        between(0, math.inf, weight_decay=self.weight_decay, l2=self.l2)
        between(0, 1, b2=self.b2)


LATER = {"l2": 0.0, "b2": 0.999}  # settings that came later, and what the runs before them had

# What a family is trained with unless told otherwise. graph: the protocol of MMRec
# (mm-random-v1), whose early stop waits for more than 20 evaluations without a better one.
FAMILIES: dict[str, dict[str, Any]] = {
    "graph": {
        "epochs": 1000,
        "batch": 2048,
        "rate": 1e-3,
        "patience": 21,
        "select": "recall@20",
        "dispatch": None,
    }
}


def settings_for(model: str, **given: Any) -> Settings:
    """The settings of the model's family, with those given instead."""
    return Settings(**{**FAMILIES.get(entry(model).family, {}), **given})


def check_metric(name: str) -> None:
    """Raise ValueError, with the nearest names, unless validation measures `name`."""
    known = [f"{metric}@{k}" for metric in RANKING for k in KS]
    if name not in known:
        raise unknown("unknown metric to select by:", name, known)


def recorded(settings: Settings) -> dict[str, Any]:
    """Settings as run.json has them: those in LATER only where set, so that older runs go on."""
    return {k: v for k, v in asdict(settings).items() if k not in LATER or v != LATER[k]}


def identity(
    model: str,
    fields: dict,
    split: Split,
    settings: Settings,
    start: Any = None,
    adapt: str | None = None,
    names: Sequence = (),
) -> dict[str, Any]:
    """What makes two runs the same: all of these."""
    known = {
        "model": model,
        "fields": _named(model, fields),
        "split": split.hash,
        **recorded(settings),
    }
    known |= {"adapt": adapt} if adapt else {}
    known |= {"names": names} if names else {}
    known["graft"] = None if start is None else params_sha256(start)
    return known


def _named(model: str, given: dict) -> dict:
    """Fields as run.json has them: what older runs leave unsaid is said only where it differs."""
    older, known = models.older(model), models.fields(model)
    told = {k: given.get(k, known[k][1]) for k in older}
    rest = {k: v for k, v in given.items() if k not in older}
    return rest | {k: v for k, v in told.items() if v != older[k]}


def claim(out: Path, mine: dict[str, Any]) -> None:
    """Write RUN/run.json, or check that the run there is this one."""
    path, mine = out / "run.json", json.loads(json.dumps(mine))
    if path.exists():
        theirs = json.loads(path.read_text())
        if other := _differing(theirs, mine):
            told = (f"{k} is {_shown(a)} there, {_shown(b)} here" for k, (a, b) in other.items())
            raise ValueError(f"{out} holds another run: {'; '.join(told)}. Choose another --out.")
        return
    write_run(out, mine)


def _shown(value: Any) -> str:
    return "unset" if value is None else repr(value)


def _differing(theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (there, here)} of what differs, of dicts on both sides by their own keys."""
    found = {}
    for key in [*mine, *(k for k in theirs if k not in mine)]:
        a, b = theirs.get(key), mine.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= {f"{key}.{k}": pair for k, pair in _differing(a, b).items()}
        elif a != b:
            found[key] = (a, b)
    return found
