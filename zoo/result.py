"""What an evaluation found: metrics over events, by stratum, and what they are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.metrics import Summary, ranking_metrics, summary


@dataclass(frozen=True)
class Asked:
    """What was asked, and where the positives came out; n events, p positives at most."""

    event: np.ndarray  # int n: its number in the split
    positives: np.ndarray  # int n p, 0 = none
    history: np.ndarray  # int n: items in the past
    count: np.ndarray  # float n p: the positive's train count
    greater: np.ndarray  # int n p
    equal: np.ndarray  # int n p

    @property
    def mask(self) -> np.ndarray:
        """bool n p: which places hold a positive."""
        return self.positives > 0


Strata = Mapping[str, np.ndarray]  # name -> bool [n] or, by positive, [n,p]


@dataclass(frozen=True)
class Result:
    """Means over events, and what they are made of."""

    metrics: dict[str, float]  # recall@10: mean over events
    per_event: dict[str, np.ndarray]  # float64 n, in the order of `asked.event`
    n_events: int
    strata: dict[str, dict[str, float]]  # name -> {events: how many, recall@10: ...}
    asked: Asked

    def interval(self, name: str, draws: int = 1000, seed: int = 0) -> Summary:
        """Mean and 95 % bootstrap interval of a metric."""
        if name not in self.per_event:
            raise ValueError(f"no metric '{name}' here; there are {', '.join(self.per_event)}.")
        return summary(self.per_event[name], draws=draws, seed=seed)


def target_count_and_length(asked: Asked) -> Strata:
    """The built-in strata: train count of the target, and length of the history."""
    c, h = asked.count, asked.history
    return {
        "target count 0": c == 0,
        "target count 1-5": (c >= 1) & (c <= 5),
        "target count 6-20": (c > 5) & (c <= 20),
        "target count >20": c > 20,
        "history <=5": h <= 5,
        "history 6-9": (h > 5) & (h <= 9),
        "history >=10": h > 9,
    }


def result(asked: Asked, ks: Sequence[int], strata: Callable | Strata | None) -> Result:
    """Metrics at every k of `ks`, over all events and by stratum."""
    per_event = ranking_metrics(asked.greater, asked.equal, asked.mask, ks)
    if callable(strata):
        strata = strata(asked)
    rows = {name: _stratum(asked, which, ks) for name, which in (strata or {}).items()}
    return Result(_means(per_event), per_event, len(asked.event), rows, asked)


def _means(per_event: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.mean(values)) for name, values in per_event.items()}


def _stratum(asked: Asked, which: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Metrics of the positives in a stratum, over the events that have one there."""
    which = np.asarray(which, bool)
    mask = asked.mask & (which[:, None] if which.ndim == 1 else which)
    rows = mask.any(axis=1)
    if not rows.any():
        return {"events": 0}
    found = ranking_metrics(asked.greater[rows], asked.equal[rows], mask[rows], ks)
    return {"events": int(rows.sum()), **_means(found)}
