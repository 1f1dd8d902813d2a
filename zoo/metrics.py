"""Metrics, pure and in float64: of ranks with ties by expectation, of lists, of click scores.

Ranks come as two counts for every positive: g candidates scored above it and e others with the
same score. Under a random order within ties its place, from 0, is uniform on g, ..., g + e, so
anything that is a sum over positives has an exact expectation and needs no tie-breaking:

    E[hit@k] = (min(g+e+1, k) - min(g, k)) / (e+1)
    E[gain@k] = (D(min(g+e+1, k)) - D(min(g, k))) / (e+1),   D(x) = sum of 1/log2(r+2), r < x
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RANKING = ("recall", "precision", "hit", "ndcg", "map", "mrr")  # name@k, from ranks
LISTS = ("coverage", "gini", "novelty", "aplt")  # name@k, from top-k lists
CLICKS = ("auc", "gauc", "logloss")  # from labels and scores
METRICS = RANKING + LISTS + CLICKS
TIES = ("expected", "sampled", "optimistic", "pessimistic")


def expected_hit(g: np.ndarray, e: np.ndarray, k: int) -> np.ndarray:
    """E[place < k], of the shape of g and e."""
    return _expected(g, e, k, np.ones(k))


def expected_discount(g: np.ndarray, e: np.ndarray, k: int) -> np.ndarray:
    """E[1/log2(place+2) if place < k], of the shape of g and e."""
    return _expected(g, e, k, 1 / np.log2(np.arange(k) + 2.0))


def expected_reciprocal(g: np.ndarray, e: np.ndarray, k: int) -> np.ndarray:
    """E[1/(place+1) if place < k], of the shape of g and e."""
    return _expected(g, e, k, 1 / np.arange(1.0, k + 1))


def _expected(g: np.ndarray, e: np.ndarray, k: int, worth: np.ndarray) -> np.ndarray:
    """Mean of worth[place] over the places g..g+e; worth is 0 from k on."""
    g, e = np.asarray(g, np.int64), np.asarray(e, np.int64)
    sums = np.concatenate([[0.0], np.cumsum(worth)])
    return (sums[np.minimum(g + e + 1, k)] - sums[np.minimum(g, k)]) / (e + 1)


def ideal_discount(k: int, positives: np.ndarray) -> np.ndarray:
    """D(min(k, positives)): the gain of a perfect list."""
    sums = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2.0))])
    return sums[np.minimum(positives, k)]


def ranking_metrics(
    greater: np.ndarray,  # int n p
    equal: np.ndarray,  # int n p
    mask: np.ndarray | None = None,  # bool n p: which places hold a positive
    ks: Sequence[int] = (5, 10, 20),
    ties: str = "expected",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """RANKING metrics of every event at every k: name@k -> float64 [n].

    ties `expected`: recall, precision and ndcg are sums over positives, hence exact. With one
    positive hit, map and mrr are too; with several they depend on more than the marginals, and
    ties are broken once at random by `seed`. `sampled` breaks all ties so; `optimistic` puts
    positives first and `pessimistic` last within a tie, for diagnosis. Raises ValueError for an
    event without a positive.
    """
    if ties not in TIES:
        raise ValueError(f"ties is '{ties}'; expected one of {', '.join(TIES)}.")
    greater, equal = np.asarray(greater, np.int64), np.asarray(equal, np.int64)
    mask = np.ones(greater.shape, bool) if mask is None else np.asarray(mask, bool)
    count = _count_positives(mask)
    places = break_ties(greater, equal, mask, "sampled" if ties == "expected" else ties, seed)
    if ties != "expected":
        greater, equal = places, np.zeros_like(places)
    found = {}
    for k in ks:
        hits = np.sum(mask * expected_hit(greater, equal, k), axis=1)
        gains = np.sum(mask * expected_discount(greater, equal, k), axis=1)
        single = np.sum(mask * expected_reciprocal(greater, equal, k), axis=1)
        first = (count == 1) & (ties == "expected")
        found[f"recall@{k}"] = hits / count
        found[f"precision@{k}"] = hits / k
        found[f"hit@{k}"] = np.where(first, hits, _hit(places, mask, k))
        found[f"ndcg@{k}"] = gains / ideal_discount(k, count)
        found[f"map@{k}"] = np.where(first, single, _average_precision(places, mask, k))
        found[f"mrr@{k}"] = np.where(first, single, _reciprocal_rank(places, mask, k))
    return found


def _count_positives(mask: np.ndarray) -> np.ndarray:
    count = mask.sum(axis=1)
    if np.any(count == 0):
        raise ValueError(
            f"event {np.flatnonzero(count == 0)[0]} has no positive ({np.sum(count == 0)} of "
            f"{len(count)} have none): no ranking metric is defined for it. Leave it out."
        )
    return count


def break_ties(
    greater: np.ndarray, equal: np.ndarray, mask: np.ndarray, how: str = "sampled", seed: int = 0
) -> np.ndarray:
    """A place for every positive, int64 [n,p]: `sampled` by the seed, `optimistic`, `pessimistic`.

    Positives of one event with the same g stand in the same tie and get different places.
    """
    places, draw = np.array(greater, np.int64), np.random.default_rng(seed)
    alone = mask & (mask.sum(axis=1) == 1)[:, None]  # one positive an event: no group to look for
    last = np.where(alone, equal, 0)
    places += {"sampled": draw.integers(0, last + 1), "optimistic": 0, "pessimistic": last}[how]
    tied = mask & ~alone & (np.asarray(equal) > 0)
    for row in np.flatnonzero(tied.any(axis=1)):
        for g in np.unique(greater[row][tied[row]]):
            group = np.flatnonzero(tied[row] & (greater[row] == g))
            e, m = int(equal[row, group[0]]), len(group)
            if how == "sampled":
                within = draw.choice(e + 1, m, replace=False)
            else:
                within = np.arange(m) if how == "optimistic" else e - np.arange(m)
            places[row, group] += within
    return places


def _hit(places: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    return np.any(mask & (places < k), axis=1).astype(np.float64)


def _reciprocal_rank(places: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    first = np.min(np.where(mask, places, k), axis=1)
    return np.where(first < k, 1.0 / (1.0 + first), 0.0)


def _average_precision(places: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    """Sum of precision at each hit, over min(k, positives): MMRec's MAP@k."""
    ordered = np.sort(np.where(mask, places, np.iinfo(np.int64).max // 2), axis=1)
    precision = np.arange(1.0, mask.shape[1] + 1)[None, :] / (ordered + 1.0)
    return np.sum(precision * (ordered < k), axis=1) / np.minimum(k, mask.sum(axis=1))


class Summary(NamedTuple):
    """A mean over events and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def summary(
    per_event: np.ndarray,  # n
    weight: np.ndarray | None = None,  # n
    draws: int = 1000,
    seed: int = 0,
) -> Summary:
    """Weighted mean and percentile bootstrap over events (Efron 1979).

    Events of equal value and weight are exchangeable, so a resample is one multinomial draw over
    the distinct pairs: the same distribution, and fast where metrics take few values.
    """
    per_event = np.asarray(per_event, np.float64)
    weight = np.ones_like(per_event) if weight is None else np.asarray(weight, np.float64)
    if weight.sum() <= 0:
        raise ValueError(f"{len(weight)} events with a total weight of {weight.sum()}: no mean.")
    kept = np.stack([per_event, weight], axis=1)[weight > 0]
    pairs, count = np.unique(kept, axis=0, return_counts=True)
    value, w = pairs.T
    drawn = np.random.default_rng(seed).multinomial(len(kept), count / len(kept), size=draws)
    means = drawn @ (value * w) / (drawn @ w)
    low, high = np.quantile(means, [0.025, 0.975])
    return Summary(float(np.average(per_event, weights=weight)), float(low), float(high))


def list_metrics(
    items: np.ndarray,  # int n K, best first, 0 = none
    popularity: np.ndarray,  # rows: train counts by item id
    n_users: int,  # of training
    valid: np.ndarray | None = None,  # bool rows; None: all but row 0
    ks: Sequence[int] = (5, 10, 20),
) -> dict[str, float]:
    """LISTS metrics of top-K lists: name@k -> float; N is the number of valid items.

    coverage: share of N in any list. gini: of the N recommendation counts, 0 is even. novelty:
    mean of -log2(train count / n_users) in bits, an unseen item as if seen once. aplt: mean share
    of a list outside the 20 % most popular of N (ties: smaller id first).
    """
    items, popularity = np.asarray(items), np.asarray(popularity, np.float64)
    valid = np.arange(len(popularity)) > 0 if valid is None else np.asarray(valid, bool)
    ids = np.flatnonzero(valid)
    head = ids[np.argsort(-popularity[ids], kind="stable")][: len(ids) // 5]
    tail = valid & ~np.isin(np.arange(len(valid)), head)
    bits = -np.log2(np.maximum(popularity, 1.0) / n_users)
    found = {}
    for k in ks:
        top = items[:, :k]
        shown = top > 0
        times = np.bincount(top[shown], minlength=len(valid))[ids]
        found[f"coverage@{k}"] = float(np.mean(times > 0))
        found[f"gini@{k}"] = gini(times)
        found[f"novelty@{k}"] = float(np.mean(bits[top[shown]]))
        rows = shown.any(axis=1)
        shares = np.sum(tail[top] & shown, axis=1)[rows] / shown.sum(axis=1)[rows]
        found[f"aplt@{k}"] = float(np.mean(shares))
    return found


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts [n]: 0 all equal, (n-1)/n all on one."""
    x = np.sort(np.asarray(counts, np.float64))
    n = len(x)
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * x) / (n * np.sum(x)))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """P(positive scored above negative) + half of P(equal); labels bool [n], scores [n].

    Raises ValueError unless both labels occur.
    """
    labels = np.asarray(labels, bool)
    p, n = labels.sum(), (~labels).sum()
    if not p or not n:
        raise ValueError(f"AUC needs both labels; found {p} positive and {n} negative.")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(size) - (size - 1) / 2)[group]
    return float((rank[labels].sum() - p * (p + 1) / 2) / (p * n))


def gauc(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    """AUC within each user who has both labels, averaged by impressions (Zhu et al. 2017)."""
    order = np.argsort(users, kind="stable")
    starts = np.flatnonzero(np.diff(np.asarray(users)[order])) + 1
    total = weight = 0.0
    for rows in np.split(order, starts):
        own = np.asarray(labels, bool)[rows]
        if own.any() and not own.all():
            total += len(rows) * auc(own, np.asarray(scores)[rows])
            weight += len(rows)
    if not weight:
        raise ValueError("GAUC: no user has both labels; there is nothing to order within a user.")
    return total / weight


def logloss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross entropy; logits clipped to ±30."""
    x, y = np.clip(np.asarray(logits, np.float64), -30, 30), np.asarray(labels, np.float64)
    return float(np.mean(np.logaddexp(0, x) - y * x))
