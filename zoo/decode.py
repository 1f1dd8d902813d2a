"""Beam search held to the codes that exist: items and log-probabilities, under one jit.
(`generate_freely` is held to nothing, for comparison.)

Levels are few and fixed, so the search is unrolled. `step(past, tokens, level)` is all it knows of
a model: tokens int[b,w] chosen at the level before (None at level 0, where w is 1) to the
log-probabilities [b,w,v] of that level's codes and the new past, whose leaves [b,w,...] follow
their beams. What all beams share, such as keys and values of the history, the step keeps to itself.

A prefix is dead when no item below it is left: `allowed` bool[n] and `exclude` int[b,h] are
arguments, and what they take away never holds a place in the beam, so that the result is that of a
trie without those items. A beam as wide as the catalogue is an exact ranking.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo.trie import ROOT, Trie, candidates, children, items

Array = jax.Array
Step = Callable[[Any, Array | None, int], tuple[Array, Any]]
LOST = -1e9  # not -inf: sums stay finite


class Beams(NamedTuple):
    """w prefixes of each row, best first; dead ones have state -1 and score -1e9."""

    states: Array  # int32 b w
    scores: Array  # float32 b w: sums of log-probabilities
    tokens: Array  # int32 b w c


def generate(
    step: Step,
    trie: Trie,
    k: int,
    batch: int,
    beam: int = 20,
    allowed: Array | None = None,
    exclude: Array | None = None,
    renormalise: bool = False,
) -> tuple[Array, Array]:
    """The k most likely items [b,k] and their log-probabilities, best first, as far as a beam of
    max(beam, k) prefixes finds them; 0 and -inf behind the last one found.

    allowed bool[n]: who competes; exclude int[b,h]: items that a row must not get, 0 = none.
    Items that share their codes have equal scores and come in the order of their ids.
    renormalise: probabilities among the codes that exist behind a prefix, not among all. What
    `allowed` and `exclude` take away exists: a filter changes who is listed, not the scores.
    """
    left = remaining(trie, allowed)
    banned = None if exclude is None else _banned(trie, exclude, allowed)
    found = search(step, trie, max(beam, k), batch, left, banned, renormalise)
    return _listed(trie, found, k, allowed, exclude)


def generate_freely(
    step: Step,
    trie: Trie,
    k: int,
    batch: int,
    beam: int = 10,
    allowed: Array | None = None,
    exclude: Array | None = None,
) -> tuple[Array, Array]:
    """`generate` without the trie, as much published code decodes: the `beam` most likely words,
    whether an item has them or not. Words of no item, and items that are not allowed, cost their
    place; so does a k beyond the beam."""
    found = search_freely(step, len(trie.sizes), beam, batch)
    states = paths(trie, found.tokens)[:, :, -1]
    return _listed(trie, found._replace(states=states), k, allowed, exclude)


def search_freely(step: Step, levels: int, beam: int, batch: int) -> Beams:
    """The `beam` best words of `levels` codes, all of them alive: states are 0."""
    scores, past = jnp.zeros((batch, 1)), None
    tokens = jnp.zeros((batch, 1, 0), jnp.int32)
    for level in range(levels):
        log_p, past = step(past, tokens[:, :, -1] if level else None, level)
        b, w, v = log_p.shape
        totals = (scores[:, :, None] + log_p.astype(jnp.float32)).reshape(b, w * v)
        scores, at = lax.top_k(totals, min(beam, w * v))
        follow = lambda x, at=at // v: _follow(x, at)  # noqa: E731
        past = jax.tree.map(follow, past)
        tokens = jnp.concatenate([follow(tokens), (at % v)[:, :, None]], axis=-1)
    return Beams(jnp.zeros_like(at), scores, tokens)


def remaining(trie: Trie, allowed: Array | None = None) -> Array:
    """int32[s]: allowed items below each state; all items where `allowed` bool[n] is None."""
    if allowed is None:
        return trie.high - trie.low
    count = jnp.cumsum(jnp.take(allowed, trie.order, mode="clip").astype(jnp.int32))
    count = jnp.concatenate([jnp.zeros(1, jnp.int32), count])
    return count[trie.high] - count[trie.low]


def search(
    step: Step,
    trie: Trie,
    beam: int,
    batch: int,
    left: Array,
    banned: Array | None = None,  # b h c: states above excluded items, -2 = none
    renormalise: bool = False,
) -> Beams:
    """The `beam` best prefixes, level after level down to the leaves."""
    states = jnp.full((batch, 1), ROOT, jnp.int32)
    scores, past = jnp.zeros((batch, 1)), None
    tokens = jnp.zeros((batch, 1, 0), jnp.int32)
    for level in range(len(trie.sizes)):
        last = tokens[:, :, -1] if level else None
        log_p, past = step(past, last, level)
        grown = _grow(trie, states, scores, log_p, level, left, renormalise)
        gone = None if banned is None else banned[:, :, level]
        parents, chosen, states, scores = _best(grown, beam, left, gone)
        follow = lambda x, at=parents: _follow(x, at)  # noqa: E731
        past = jax.tree.map(follow, past)
        tokens = jnp.concatenate([follow(tokens), chosen[:, :, None]], axis=-1)
    return Beams(states, scores, tokens)


def _grow(trie, states, scores, log_p, level, left, renormalise) -> tuple:
    """Tokens, next states and scores [b,w,k] of everything that may follow."""
    tokens, nexts, exists = candidates(trie, states, level)
    gain = jnp.take_along_axis(log_p.astype(jnp.float32), tokens, axis=-1)
    if renormalise:
        gain -= jax.nn.logsumexp(jnp.where(exists, gain, LOST), axis=-1, keepdims=True)
    exists &= jnp.take(left, jnp.maximum(nexts, 0)) > 0
    return tokens, nexts, jnp.where(exists, scores[:, :, None] + gain, LOST)


def _best(grown: tuple, beam: int, left: Array, banned: Array | None) -> tuple:
    """Parents, tokens, states and scores [b,w] of the best; no more than h can be emptied by
    exclusion, so of the best w + h enough survive."""
    tokens, nexts, totals = grown
    b, w, width = totals.shape
    flat = lambda x: x.reshape(b, w * width)  # noqa: E731
    spare = 0 if banned is None else banned.shape[1]
    scores, at = lax.top_k(flat(totals), min(beam + spare, w * width))
    states = jnp.where(scores <= LOST / 2, -1, jnp.take_along_axis(flat(nexts), at, axis=1))
    if banned is not None:
        below = jnp.sum(states[:, :, None] == banned[:, None, :], axis=-1)
        empty = (jnp.take(left, jnp.maximum(states, 0)) <= below) | (states < 0)
        states, scores = jnp.where(empty, -1, states), jnp.where(empty, LOST, scores)
        scores, kept = lax.top_k(scores, min(beam, scores.shape[1]))
        states, at = (jnp.take_along_axis(x, kept, axis=1) for x in (states, at))
    return at // width, jnp.take_along_axis(flat(tokens), at, axis=1), states, scores


def _follow(x: Array, parents: Array) -> Array:
    """Leaves [b,w,...] of the new beams."""
    index = parents.reshape(*parents.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


def paths(trie: Trie, codes: Array) -> Array:
    """int32[...,c]: the state that each prefix of codes [...,c] leads to, -1 where it leaves."""
    state, out = jnp.full(codes.shape[:-1], ROOT, jnp.int32), []
    for level in range(codes.shape[-1]):
        state = children(trie, state, codes[..., level])
        out.append(state)
    return jnp.stack(out, axis=-1)


def _banned(trie: Trie, exclude: Array, allowed: Array | None) -> Array:
    """[b,h,c]: states above the excluded items, each item once; -2 for those that do not count,
    which no state is: -1 is that of a dead prefix."""
    order = jnp.arange(exclude.shape[1])
    again = (exclude[:, :, None] == exclude[:, None, :]) & (order[None, :] < order[:, None])[None]
    counted = (exclude > 0) & ~jnp.any(again, axis=-1)
    if allowed is not None:
        counted &= jnp.take(allowed, exclude, mode="clip")
    states = jnp.take(trie.above, exclude, axis=0, mode="clip")
    return jnp.where(counted[:, :, None], states, -2)


def _listed(trie: Trie, found: Beams, k: int, allowed, exclude) -> tuple[Array, Array]:
    """Leaves to items; whoever shares a leaf shares its score."""
    ids = items(trie, found.states, trie.group)  # b w g
    keep = ids >= 0
    if allowed is not None:
        keep &= jnp.take(allowed, jnp.maximum(ids, 0))
    ids = jnp.where(keep, ids, 0).reshape(len(ids), -1)
    if exclude is not None:
        ids = jnp.where(jnp.any(ids[:, :, None] == exclude[:, None, :], axis=-1), 0, ids)
    scores = jnp.repeat(found.scores, trie.group, axis=1)
    scores = jnp.where(ids > 0, scores, -jnp.inf)
    short = max(0, k - ids.shape[1])
    ids = jnp.pad(ids, ((0, 0), (0, short)))
    scores = jnp.pad(scores, ((0, 0), (0, short)), constant_values=-jnp.inf)
    scores, at = lax.top_k(scores, k)
    return jnp.take_along_axis(ids, at, axis=1), scores
