"""Reasons a person can check: counted from training histories, read off words and vectors.

They say what in the data speaks for a recommendation, not how the model computed it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from zoo.models.counting import transitions

ENOUGH, STRIKING = 20, 1.2  # steps that a pair of words needs, and how far above chance


class Evidence(NamedTuple):
    """What reasons are taken from; n items, row 0 the padding item, v words."""

    titles: Sequence[str]
    words: Sequence[frozenset[str]]  # of each item; empty where nothing is known
    steps: sp.csr_array  # [n,n] how often the column item came right after the row item
    counts: np.ndarray  # int64 [n] how often training has the item
    vocabulary: dict[str, int]
    pairs: np.ndarray  # [v,v] steps from an item with the row word to one with the column word
    lift: np.ndarray  # [v,v] pairs against what the words' frequencies alone would give
    vectors: np.ndarray  # float32 [n,d], rows of length one


def evidence(
    values: np.ndarray,
    offsets: np.ndarray,
    words: Sequence[frozenset[str]],
    vectors: np.ndarray,
    titles: Sequence[str],
) -> Evidence:
    """From training histories (flat `values`, `offsets`), item words, vectors [n,d] and titles."""
    n = len(words)
    steps = transitions(values, offsets, n)
    vocabulary = {word: i for i, word in enumerate(sorted(frozenset().union(*words)))}
    has = np.zeros((n, len(vocabulary)))
    for item, found in enumerate(words):
        has[item, [vocabulary[word] for word in found]] = 1
    pairs = has.T @ (steps @ has)
    chance = pairs.sum(1)[:, None] * pairs.sum(0)[None] / max(pairs.sum(), 1)
    lift = pairs / np.maximum(chance, 1e-9)
    lengths = np.linalg.norm(vectors[:n], axis=1, keepdims=True)
    unit = (vectors[:n] / np.maximum(lengths, 1e-9)).astype(np.float32)
    counts = np.bincount(values, minlength=n)
    return Evidence(titles, words, steps, counts, vocabulary, pairs, lift, unit)


def reasons(known: Evidence, history: Sequence[int], item: int) -> list[str]:
    """What speaks for `item` after `history` (inner ids, oldest first), in plain sentences."""
    lines = [_step(known, history[-1], item), _follows(known, history[-1], item)]
    lines += [_shared(known, history, item), _nearest(known, history, item)]
    return [line for line in lines if line]


def _step(known: Evidence, last: int, item: int) -> str:
    """People who took exactly this step, or that nobody could have."""
    if not known.counts[item]:
        return "new: nobody had it in training, only its content speaks"
    taken, total = int(known.steps[last, item]), int(known.steps[[last]].sum())
    return f"{taken} of {total} people took it right after the last item" if taken else ""


def _follows(known: Evidence, last: int, item: int) -> str:
    """The pair of words, one of the last item and one of this, that stands out most."""
    best, told = STRIKING, ""
    for a in sorted(known.words[last]):
        for b in sorted(known.words[item]):
            at = known.vocabulary[a], known.vocabulary[b]
            if known.pairs[at] >= ENOUGH and known.lift[at] > best:
                best = known.lift[at]
                told = f"after '{a}' people take '{b}' {best:.1f} times as often as by chance"
    return told


def _shared(known: Evidence, history: Sequence[int], item: int) -> str:
    """The word that it shares with most items of the history."""
    counts = {w: sum(w in known.words[h] for h in history) for w in sorted(known.words[item])}
    word = max(counts, key=counts.get, default=None)
    if word is None or not counts[word]:
        return ""
    return f"'{word}', as {counts[word]} of the {len(history)} items before"


def _nearest(known: Evidence, history: Sequence[int], item: int) -> str:
    """The history item whose vector points most in the same direction."""
    cosine = known.vectors[list(history)] @ known.vectors[item]
    at = int(np.argmax(cosine))
    if cosine[at] <= 0:
        return ""
    return f"most like '{known.titles[history[at]]}' of the history (cosine {cosine[at]:.2f})"
