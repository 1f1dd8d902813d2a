"""How users of the synthetic world choose: the law, its sampler and its exact posterior.

The next item j of a user of type z whose last item is i and who has had the items H is drawn with

    p(j | z, i, H) = taste[z,j] drift[i,j] / sum over allowed j' of taste[z,j'] drift[i,j'],

allowed being the items outside H that are warm. At the last two places of a sequence the choice
falls with probability `launch` on a cold item instead, by the same law among the cold ones. The
choice between warm and cold says nothing about the type, so the posterior over types needs not
know which places were the last.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines.schema import Ragged

BLOCK = 1024  # users worked on at once


class Law(NamedTuple):
    """Weights of the choice by item (n items, row and column 0 for the padding id), U types."""

    prior: np.ndarray  # float64 [U], share of each type
    taste: np.ndarray  # float64 [U,n+1], exp(taste + fame); column 0 is 0
    drift: np.ndarray  # float64 [n+1,n+1], exp(drift) from last item to next; row 0 is 1
    cold: np.ndarray  # bool [n+1], launched late
    launch: float  # share of cold items at the last two places


def law(
    factors: dict[str, np.ndarray],
    weights: dict[str, float],
    cold: np.ndarray,
    launch: float,
    strengths: tuple[float, float, float, int],
    rng: np.random.Generator,
) -> Law:
    """Draw the tables; `strengths` are (taste, drift, fame, number of types)."""
    taste, drift, fame, types = strengths
    n = len(cold)
    log_taste, log_drift = np.zeros((types, n)), np.zeros((n, n))
    for factor, value in factors.items():
        table = rng.normal(0, 1, (types, value.max() + 1))
        cycle = rng.permutation(value.max() + 1)  # cycle[k] is followed by cycle[k+1]
        following = np.empty_like(cycle)
        following[cycle] = np.roll(cycle, -1)
        weight = weights.get(factor, 0.0)
        log_taste += taste * weight * table[:, value]
        log_drift += drift * weight * (value[None, :] == following[value][:, None])
    log_taste += np.where(cold, 0, fame * rng.normal(0, 1, n))
    log_taste[:, 0], log_drift[0] = -np.inf, 0
    prior = np.arange(types, 0, -1) / (types * (types + 1) / 2)
    return Law(prior, np.exp(log_taste), np.exp(log_drift), cold, launch)


def sample(law: Law, types: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> Ragged:
    """One sequence a user, of the given hidden types and lengths; nobody has an item twice."""
    blocks = [slice(i, i + BLOCK) for i in range(0, len(types), BLOCK)]
    rows = [row for b in blocks for row in _sample(law, types[b], lengths[b], rng)]
    return Ragged.of(rows)


def _sample(law: Law, types: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> list:
    users, longest = np.arange(len(types)), lengths.max()
    sequences = np.zeros((len(types), longest), np.int32)
    seen = np.zeros((len(types), len(law.cold)), bool)
    last = np.zeros(len(types), np.int32)
    for place in range(longest):
        late = (place >= lengths - 2) & (rng.random(len(users)) < law.launch)
        allowed = ~seen & (law.cold == late[:, None])
        sums = np.cumsum(law.taste[types] * law.drift[last] * allowed, axis=1)
        drawn = rng.random(len(users)) * sums[:, -1]
        last = (sums <= drawn[:, None]).sum(1, dtype=np.int32)
        sequences[:, place], seen[users, last] = last, True
    return [row[:length] for row, length in zip(sequences, lengths, strict=True)]


def predictive(law: Law, histories: Ragged) -> np.ndarray:
    """float32 [b,n+1]: probability of each next item given the history, its items excluded.

    Bayes' rule over the types, exactly: p(z | H) ~ prior[z] prod over t of p(h_t | z, h_<t).
    """
    scores = [_predictive(law, block)[0] for block in _blocks(histories)]
    return np.concatenate(scores or [np.zeros((0, len(law.cold)), np.float32)])


def posterior(law: Law, histories: Ragged) -> np.ndarray:
    """float64 [b,U]: probability of each type given the history."""
    return np.concatenate([_predictive(law, block)[1] for block in _blocks(histories)])


def _blocks(histories: Ragged) -> Iterator[np.ndarray]:
    for start in range(0, len(histories), BLOCK):
        block = histories.take(np.arange(start, min(start + BLOCK, len(histories))))
        yield block.padded(max(1, int(block.lengths.max())))


def _predictive(law: Law, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores [b,n+1] and posterior [b,U] of padded histories [b,l]."""
    users, last = np.arange(len(items)), np.zeros(len(items), np.int32)
    seen = np.zeros((len(items), len(law.cold)), bool)
    log_type = np.tile(np.log(law.prior), (len(items), 1))
    for item in items.T:
        weight = law.drift[last] * (~seen & (law.cold == law.cold[item][:, None]))
        here = item[:, None] > 0
        total = weight @ law.taste.T
        log_type += np.log(np.divide(law.taste[:, item].T, total, np.ones_like(total), where=here))
        seen[users, item] = True
        last = np.where(item > 0, item, last)
    type_ = np.exp(log_type - log_type.max(1, keepdims=True))
    type_ /= type_.sum(1, keepdims=True)
    scores = np.zeros(seen.shape)
    for pool, share in ((~law.cold, 1 - law.launch), (law.cold, law.launch)):
        weight = law.drift[last] * (~seen & pool)
        total = weight @ law.taste.T
        mixed = np.divide(type_, total, out=np.zeros_like(total), where=total > 0)
        scores += share * weight * (mixed @ law.taste)
    return scores.astype(np.float32), type_
