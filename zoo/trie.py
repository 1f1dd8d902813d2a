"""The codes that exist, as a trie in compressed rows: masks and next states for decoding.

A state is a distinct prefix of the sorted codes, numbered by length and then by order; the root is
0. Every state but the root is entered by exactly one edge, so in that order edge e leads to state
e + 1, and one array of tokens with one of row starts is the whole trie (cf. STATIC, arXiv
2602.22647). A level as dense as the first is a row like any other: what a table of it would save
is below what can be measured (benchmarks/decode.py, `unconstrained`). Each path of full length ends
at a leaf with at least one item. Arrays are arguments of jit: another set of allowed items
(`like=`) needs no new compilation.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
ROOT, DEAD = 0, -1
NO_TOKEN = np.iinfo(np.int32).max


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["starts", "tokens", "low", "high", "order", "above"],
    meta_fields=["sizes", "branching", "group"],
)
@dataclass(frozen=True)
class Trie:
    """Arrays of the trie, int32; s states, e = s - 1 edges, n items. Build with `build`."""

    starts: Array  # s+1: the edges of state i are starts[i]:starts[i+1]
    tokens: Array  # e: ascending within a state; padded with a token that nothing matches
    low: Array  # s: the items below state i are order[low[i]:high[i]]
    high: Array  # s
    order: Array  # n: rows of the codes, sorted by code and then by row
    above: Array  # n c: the states on the way to each row of the codes, -1 where it is not allowed
    sizes: tuple[int, ...]  # codes of each level
    branching: tuple[int, ...]  # most children of a state, by level
    group: int  # most items of a leaf


def build(
    codes: np.ndarray,
    sizes: tuple[int, ...] | None = None,
    allowed: np.ndarray | None = None,
    like: Trie | None = None,
    parts: int = 1,
) -> Trie:
    """The trie of codes int[n,c], or of its rows where allowed bool[n].

    sizes: codes of each level, the largest seen plus one unless given; like: a trie whose array
    shapes this one shall have; parts: every array gets a multiple of so many rows, to be spread
    over devices. Raises ValueError for codes outside their level, for no item at all, and where
    `like` is too small.
    """
    codes = np.asarray(codes)
    rows = np.arange(len(codes)) if allowed is None else np.flatnonzero(allowed)
    if not len(rows):
        raise ValueError("no item is allowed: a trie needs at least one row of codes.")
    sizes = like.sizes if like is not None else sizes
    sizes = tuple(int(v) for v in (codes.max(0) + 1 if sizes is None else sizes))
    _check(codes[rows], sizes)
    order = rows[np.lexsort(codes[rows].T[::-1])]
    starts, tokens, low, high, branching, way = _compress(codes[order])
    above = np.full(codes.shape, DEAD)
    above[order] = way
    group = int((high - low)[way[:, -1]].max())
    arrays = [starts, tokens, low, high, order, above]
    lengths = [-(-len(a) // parts) * parts for a in arrays]
    if like is not None:
        moulds = (like.starts, like.tokens, like.low, like.high, like.order, like.above)
        lengths = [len(a) for a in moulds]
    arrays = _padded(arrays, lengths)
    if like is not None:
        branching, group = _fitting(like, branching, group)
    return Trie(*(jnp.asarray(a, jnp.int32) for a in arrays), sizes, branching, group)


def children(trie: Trie, state: Array, token: Array) -> Array:
    """The state behind `token` int[...] from `state` int[...], -1 where no code goes on so.

    Bisection of a state's sorted tokens; as many halvings as the widest state needs.
    """
    low, end = (jnp.take(trie.starts, jnp.maximum(state, 0) + i, mode="clip") for i in (0, 1))
    high = end
    for _ in range(max(trie.branching).bit_length()):
        middle = (low + high) // 2
        right = (jnp.take(trie.tokens, middle, mode="clip") < token) & (low < high)
        low, high = jnp.where(right, middle + 1, low), jnp.where(right, high, middle)
    hit = (state >= 0) & (low < end) & (jnp.take(trie.tokens, low, mode="clip") == token)
    return jnp.where(hit, low + 1, DEAD)


def candidates(trie: Trie, state: Array, level: int) -> tuple[Array, Array, Array]:
    """What may follow `state` int[...], a state of that level: tokens, next states and which of
    them exist, each [..., branching[level]]; 0 and -1 where not."""
    safe = jnp.maximum(state, 0)
    first, end = (jnp.take(trie.starts, safe + i, mode="clip")[..., None] for i in (0, 1))
    edge = first + jnp.arange(trie.branching[level]).reshape((1,) * state.ndim + (-1,))
    exists = (edge < end) & (state >= 0)[..., None]
    tokens = jnp.where(exists, jnp.take(trie.tokens, edge, mode="clip"), 0)
    return tokens, jnp.where(exists, edge + 1, DEAD), exists


def mask(trie: Trie, state: Array, level: int) -> Array:
    """bool [..., v] of `state` int[...]: the tokens of that level that lead on to an item."""
    size = trie.sizes[level]
    tokens, _, exists = candidates(trie, state.reshape(-1), level)
    columns = jnp.where(exists, tokens, size)  # out of range: dropped
    out = jnp.zeros((tokens.shape[0], size), bool)
    out = out.at[jnp.arange(tokens.shape[0])[:, None], columns].set(True, mode="drop")
    return out.reshape(*state.shape, size)


def items(trie: Trie, state: Array, most: int = 1) -> Array:
    """int32 [..., most]: rows of the codes below `state` int[...], smallest first, -1 behind."""
    safe = jnp.maximum(state, 0)
    place = trie.low[safe][..., None] + jnp.arange(most).reshape((1,) * state.ndim + (-1,))
    exists = (place < trie.high[safe][..., None]) & (state >= 0)[..., None]
    return jnp.where(exists, jnp.take(trie.order, place, mode="clip"), -1)


def _compress(codes: np.ndarray) -> tuple:
    """Row starts, tokens, item ranges and ways of sorted codes [n,c], level after level."""
    n, levels = codes.shape
    parents, tokens, low, high, branching = [], [], [np.zeros(1, int)], [np.full(1, n)], []
    way = np.zeros((n, levels), int)
    begins = np.zeros(n, bool)  # where a new prefix of the present length begins
    begins[0] = True
    first, above = 1, np.zeros(n, int)  # the next free state; each row's state one level up
    for level in range(levels):
        begins = begins | np.r_[True, codes[1:, level] != codes[:-1, level]]
        at = np.flatnonzero(begins)
        parents.append(above[at])
        tokens.append(codes[at, level])
        low.append(at)
        high.append(np.r_[at[1:], n])
        branching.append(int(np.bincount(above[at]).max()))
        above = way[:, level] = first + np.cumsum(begins) - 1
        first += len(at)
    counts = np.bincount(np.concatenate(parents), minlength=first)
    starts = np.r_[0, np.cumsum(counts)]
    joined = (np.concatenate(part) for part in (tokens, low, high))
    return starts, *joined, tuple(branching), way


def _padded(arrays: list[np.ndarray], lengths: list[int]) -> list[np.ndarray]:
    """Starts, tokens, low, high, order, above at these lengths; padding states have no edge, no
    item."""
    out = []
    fills = (arrays[0][-1], NO_TOKEN, 0, 0, 0, DEAD)
    for array, fill, length in zip(arrays, fills, lengths, strict=True):
        spare = length - len(array)
        if spare < 0:
            raise ValueError(
                f"`like` has room for {length} entries where these codes need {len(array)}: "
                "build without `like`, which compiles anew, or take a larger trie as the mould."
            )
        out.append(np.concatenate([array, np.full((spare, *array.shape[1:]), fill)]))
    return out


def _fitting(like: Trie, branching: tuple[int, ...], group: int) -> tuple[tuple[int, ...], int]:
    over = len(branching) != len(like.branching) or np.greater(branching, like.branching).any()
    if over or group > like.group:
        raise ValueError(
            f"these codes branch by {branching} and {group} items share one at most, `like` by "
            f"{like.branching} and {like.group}: build without `like`, which compiles anew."
        )
    return like.branching, like.group


def _check(codes: np.ndarray, sizes: tuple[int, ...]) -> None:
    if codes.shape[1] != len(sizes):
        raise ValueError(f"codes have {codes.shape[1]} levels; sizes names {len(sizes)}: {sizes}.")
    bad = np.argwhere((codes < 0) | (codes >= np.asarray(sizes)[None]))
    if len(bad):
        row, level = bad[0]
        raise ValueError(
            f"{len(bad)} codes lie outside their level; the first, row {row} level {level}, is "
            f"{codes[row, level]} of {sizes[level]} codes: raise sizes, or repair the codes."
        )
