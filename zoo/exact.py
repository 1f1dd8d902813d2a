"""Exact full ranking on the host: sparse scores, ties by expectation, one positive or many."""

from typing import Any, NamedTuple

import numpy as np

from zoo.models import counting

TILE = 64  # rows of scores at a time: a few MB, which the allocator keeps between uses


class Rows(NamedTuple):
    """Row r is values[offsets[r]:offsets[r+1]]; any object with the two will do."""

    values: np.ndarray
    offsets: np.ndarray


class Events(NamedTuple):
    """Histories (oldest first) and what was held out: rows of item ids."""

    history: Any
    positives: Any

    def take(self, which: np.ndarray) -> "Events":
        """The named events, in that order."""
        return Events(_take(self.history, which), _take(self.positives, which))


def _take(rows: Any, which: np.ndarray) -> Rows:
    lengths = np.diff(rows.offsets)[which]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return Rows(rows.values[np.repeat(rows.offsets[:-1][which], lengths) + within], offsets)


class Scorer(NamedTuple):
    """s(u) = Σ_p mix_p Σ_k (k+1)^−decay M_p[h_{−1−k}] + prior, over the last `depth` items.

    `depth` None: set data, every item of the history once, at weight 1.
    """

    parts: list  # matrices [n,n], sparse or dense
    mix: tuple[float, ...]
    prior: np.ndarray  # float32 [n]
    depth: int | None = None
    decay: float = 0.0

    def weights(self, history: Any) -> Any:
        """H [b,n], sparse: what each item of the history counts."""
        args = history.values, history.offsets, len(self.prior)
        if self.depth is None:
            return counting.user_items(*args)
        return counting.history_weights(*args, self.depth, self.decay)


def measure(
    scorer: Scorer,
    events: Any,
    ks: tuple[int, ...],
    mask: bool = True,
    candidates: np.ndarray | None = None,
) -> dict[str, float]:
    """Full-ranking metrics over events; `mask` takes the history out of the ranking.

    candidates bool [n]: who may be ranked, everything but item 0 where None. Raises ValueError
    where a positive is masked or no candidate.
    """
    return measure_mixes(scorer, [scorer.mix], events, ks, mask, candidates)[0]


def measure_mixes(
    scorer: Scorer,
    mixes: list[tuple[float, ...]],
    events: Any,
    ks: tuple[int, ...],
    mask: bool = True,
    candidates: np.ndarray | None = None,
) -> list[dict[str, float]]:
    """`measure` for several `mixes` of the same parts; the products are formed once."""
    events = Events(events.history, events.positives)
    weights = scorer.weights(events.history)
    seen = counting.user_items(events.history.values, events.history.offsets, len(scorer.prior))
    counts = [[] for _ in mixes]
    for rows, products in counting.history_scores(scorer.parts, weights, TILE):
        hidden = seen[rows].nonzero() if mask else None
        wanted = _take(events.positives, np.arange(rows.start, rows.stop))
        for mix, found in zip(mixes, counts, strict=True):
            scores = _mixed(products, mix, scorer.prior, rows.stop - rows.start)
            _hide(scores, hidden, candidates)
            found.append(tie_counts(scores, wanted))
    lengths = np.diff(events.positives.offsets)
    event = np.repeat(np.arange(len(lengths)), lengths)
    return [expected_metrics(*np.concatenate(found, axis=1), event, ks) for found in counts]


def _mixed(products: list, mix: tuple[float, ...], prior: np.ndarray, rows: int) -> np.ndarray:
    """Scores float32 [rows,n]."""
    scores = np.tile(prior, (rows, 1))
    for product, weight in zip(products, mix, strict=True):
        if weight:
            scores += product if weight == 1 else product * np.float32(weight)
    return scores


def _hide(scores: np.ndarray, hidden: Any, candidates: np.ndarray | None) -> None:
    scores[:, 0] = -np.inf
    if candidates is not None:
        scores[:, ~candidates] = -np.inf
    if hidden is not None:
        scores[hidden] = -np.inf


def tie_counts(scores: np.ndarray, positives: Any) -> np.ndarray:
    """int64 [2,p]: for each positive the candidates above it and the others equal to it.

    scores float32 [b,n], −inf where masked; positives: b rows of columns.
    """
    lengths = np.diff(positives.offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    own = scores[rows, positives.values]
    if not np.all(np.isfinite(own)):
        at = int(np.flatnonzero(~np.isfinite(own))[0])
        raise ValueError(
            f"positive item {positives.values[at]} of event {rows[at]} has score {own[at]}: it is "
            "masked or not a candidate. A positive must stand in the candidate set and not in the "
            "masked history; check the split, or measure with mask=False."
        )
    found = np.empty((2, len(own)), np.int64)
    for at in range(0, len(own), TILE):
        some = scores if len(own) == len(scores) else scores[rows[at : at + TILE]]
        mine = own[at : at + TILE, None]
        found[0, at : at + TILE] = np.count_nonzero(some > mine, axis=1)
        found[1, at : at + TILE] = np.count_nonzero(some == mine, axis=1) - 1
    return found


def expected_metrics(
    above: np.ndarray, equal: np.ndarray, event: np.ndarray, ks: tuple[int, ...]
) -> dict[str, float]:
    """recall@k and ndcg@k, means over events: exact expectation over random order within ties.

    above, equal, event int [p]: for each positive the candidates scored above it, the other
    candidates that tie with it, and its event 0, 1, .... hit@k is added where every event has one
    positive: there it is recall; elsewhere it is no sum over positives.
    """
    positives = np.bincount(event)
    found = {}
    for k in ks:
        low, high = np.minimum(above, k), np.minimum(above + equal + 1, k)
        hit = (high - low) / (equal + 1)
        gain = (_discount(high) - _discount(low)) / (equal + 1)
        ideal = _discount(np.minimum(k, positives))
        found[f"recall@{k}"] = float(np.mean(np.bincount(event, hit) / positives))
        found[f"ndcg@{k}"] = float(np.mean(np.bincount(event, gain) / ideal))
        if positives.max() == 1:
            found[f"hit@{k}"] = found[f"recall@{k}"]
    return found


def _discount(k: np.ndarray) -> np.ndarray:
    """D(k) = Σ_{r<k} 1/log2(r+2)."""
    terms = 1.0 / np.log2(np.arange(int(np.max(k, initial=1))) + 2.0)
    return np.concatenate([[0.0], np.cumsum(terms)])[k]
