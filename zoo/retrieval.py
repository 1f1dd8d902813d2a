"""Exact top-k and exact ranks over the whole catalogue: chunked, sharded, masked, ties settled.

A `match` function scores a block of items for all queries: items int32[c] -> float32[b,c]. Blocks
are ranges of ids, so memory is O(b (chunk + k)) whatever the catalogue; a catalogue of one block
is scored once. Order is by higher score, then by smaller id, on any chunk and any mesh. Item 0 is
padding and never a candidate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Array = jax.Array
Match = Callable[[Array], Array]  # items int32[c] -> scores [b,c]

BLOCK_ELEMENTS = 4_000_000  # scores held at once: 16 MB, which the allocator keeps between uses
LANES = 128  # blocks are whole lanes, so that no item meets a kernel's remainder path
ROWS = ("data", "model")  # mesh axes that share the rows of a table


class Ranks(NamedTuple):
    """Where the positives stand among the candidates of their row."""

    greater: Array  # int32 [b,p]: candidates scored above the positive
    equal: Array  # int32 [b,p]: other candidates with the same score
    scores: Array  # float32 [b,p]: the positive's own; not finite: no candidate, counts void


def dot_match(table: Array, query: Array, items: Array) -> Array:
    """Inner products of query [b,d] with rows of table [n,d]: items [c] or [b,c] -> float32 [b,c].

    Full float32 also where a device would round the factors; bfloat16 is accumulated in float32.
    An id of [b,c] outside the table scores NaN.
    """
    dtype = jnp.result_type(query, table)
    exact = dict(precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    if items.ndim == 1:
        rows = jnp.take(table, items, axis=0, mode="clip").astype(dtype)
        return jnp.einsum("bd,cd->bc", query.astype(dtype), rows, **exact)
    rows = jnp.take(table, items, axis=0, mode="fill").astype(dtype)
    return jnp.einsum("bd,bcd->bc", query.astype(dtype), rows, **exact)


def scan_top_k(
    match: Match,
    n: int,
    k: int,
    valid: Array,  # bool n
    exclude: Array | None,  # int b h, 0 = none
    b: int,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """The k best allowed items of each row: (items int32 [b,k], scores float32 [b,k]).

    Places that no candidate fills hold item 0 at -inf, as does a score of -inf. A NaN comes out
    first, for the host to see (`refuse_nan`). `chunk` is how many items are scored at once; None:
    about 4M scores.
    """
    _check(n, valid, k)
    return _best(match, n, k, _without_padding(valid), exclude, b, chunk)


def _best(match, n, k, valid, exclude, b, chunk) -> tuple[Array, Array]:
    """`scan_top_k` where item 0 may be a candidate: a shard's first row is a real item."""
    blocks = _blocks(n, b, chunk)

    def step(best, items):
        scores = _tidy(_masked(match, items, n, valid, exclude))
        found, at = lax.top_k(scores, min(k, len(items)))
        return _merge(best, (items[0] + at, found), k), None

    best = (jnp.zeros((b, k), jnp.int32), jnp.full((b, k), -jnp.inf))
    if len(blocks) == 1:
        best = step(best, blocks[0])[0]
    else:
        best = lax.scan(step, best, blocks)[0]
    items, scores = best
    return jnp.where(scores == -jnp.inf, 0, items), scores


def _merge(best: tuple, found: tuple, k: int) -> tuple[Array, Array]:
    """Both sorted; `best` has the smaller ids, and top_k keeps the first of equals."""
    items, scores = (jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True))
    scores, at = lax.top_k(scores, k)
    return jnp.take_along_axis(items, at, axis=1), scores


def _tidy(scores: Array) -> Array:
    """One zero and one NaN: top_k orders by bits, where -0 < +0 and a negative NaN comes last."""
    scores = jnp.where(scores == 0, 0.0, scores)
    return jnp.where(jnp.isnan(scores), jnp.nan, scores)


def count_ranks(
    match: Match,
    n: int,
    positives: Array,  # int b p, 0 = none
    valid: Array,  # bool n
    exclude: Array | None,  # int b h, 0 = none
    chunk: int | None = None,
) -> Ranks:
    """How many allowed candidates score above, and equal to, each positive; no sort.

    A positive's own score is read out of the block that it stands in, so that mathematical ties
    meet bit by bit. One block is scored once; several are scored twice, by the same code: first
    for the positives' scores, then to count. A NaN candidate counts as above everything.
    """
    _check(n, valid)
    valid = _without_padding(valid)
    blocks = _blocks(n, len(positives), chunk)
    if len(blocks) == 1:
        scores = _masked(match, blocks[0], n, valid, exclude)
        return _count_once(scores, positives, jnp.any(valid))
    ranks = _count_twice(match, n, blocks, positives, valid, exclude)
    return ranks._replace(equal=ranks.equal - ranks.greater - 1)


def _count_once(scores: Array, positives: Array, some: Array) -> Ranks:
    """Ranks from all scores [b,n].

    The branch is a wall: XLA may fuse a match that is no matmul into each use of its scores, and
    round it there anew; an operand of a branch exists once.
    """

    def count(scores):
        own = jnp.take_along_axis(scores, positives, axis=1)
        above, level = _count(scores, own)
        return Ranks(above, level - above - 1, own)

    return lax.cond(some, count, lambda scores: _nothing(positives), scores)


def _nothing(positives: Array) -> Ranks:
    zero = jnp.zeros(positives.shape, jnp.int32)
    return Ranks(zero, zero, jnp.full(positives.shape, -jnp.inf))


def _count_twice(match, n, blocks, positives, valid, exclude) -> Ranks:
    def step(ranks, x):
        counting, items = x
        scores = _masked(match, items, n, valid, exclude)
        return lax.cond(counting, _tally, partial(_read_own, items, positives), ranks, scores), None

    passes = jnp.arange(2 * len(blocks)) >= len(blocks)
    twice = (passes, jnp.concatenate([blocks, blocks]))
    return lax.scan(step, _nothing(positives), twice)[0]


def _read_own(items: Array, positives: Array, ranks: Ranks, scores: Array) -> Ranks:
    at = positives - items[0]
    here = (at >= 0) & (at < len(items))
    own = jnp.take_along_axis(scores, jnp.where(here, at, 0), axis=1)
    return ranks._replace(scores=jnp.where(here, own, ranks.scores))


def _tally(ranks: Ranks, scores: Array) -> Ranks:
    above, level = _count(scores, ranks.scores)
    return ranks._replace(greater=ranks.greater + above, equal=ranks.equal + level)


def _count(scores: Array, own: Array) -> tuple[Array, Array]:
    """scores [b,c], own [b,p] -> how many are above, and how many not below: int32 [b,p] twice.

    One reduction of two operands: two reductions measured 20 times slower on CPU.
    """
    scores, own = scores[:, None, :], own[:, :, None]
    above = (~(scores <= own)).astype(jnp.int32)
    level = (~(scores < own)).astype(jnp.int32)
    zero = jnp.int32(0)
    return lax.reduce((above, level), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), (2,))


def _blocks(n: int, b: int, chunk: int | None) -> Array:
    """int32 [blocks, c] of consecutive ids from 0; the last block may run past n."""
    most = max(1, BLOCK_ELEMENTS // max(b, 1)) if chunk is None else chunk
    equal = -(-n // -(-n // most))  # as few blocks as `most` allows, of about equal size
    c = -(-equal // LANES) * LANES
    return jnp.arange(-(-n // c) * c, dtype=jnp.int32).reshape(-1, c)


def row_tiles(b: int, n: int) -> int:
    """Into how many equal tiles to cut b rows so that one scores all n items in one block.

    A tile of fewer than 64 rows would read the item matrix more often than two passes do: then 1.
    """
    fits = [t for t in range(1, b // 64 + 1) if b % t == 0 and b // t * n <= BLOCK_ELEMENTS]
    return fits[0] if fits else 1


def _masked(match: Match, items: Array, n: int, valid: Array, exclude: Array | None) -> Array:
    """Scores [b,c] of a block, -inf where an item is no candidate."""
    scores = match(jnp.minimum(items, n - 1)).astype(jnp.float32)
    allowed = ((items < n) & jnp.take(valid, items, mode="clip"))[None, :]
    if exclude is not None:
        # Measured on CPU, 512 x 12k, h 50: scattering into a bool mask adds 2 ms, -inf into the
        # scores 33 ms, a list of k + h to drop from 11 ms.
        at = exclude - items[0]
        at = jnp.where(at < 0, len(items), at)
        rows = jnp.arange(len(exclude))[:, None]
        banned = jnp.zeros(scores.shape, bool).at[rows, at].set(True, mode="drop")
        allowed = allowed & ~banned
    return jnp.where(allowed, scores, -jnp.inf)


def _without_padding(valid: Array) -> Array:
    return jnp.asarray(valid) & (jnp.arange(len(valid)) > 0)


@partial(jax.jit, static_argnames=("k", "chunk"))
def _table_top_k(queries, table, k, valid, exclude, bias, chunk):
    match = partial(_vector_match, table, bias, queries)
    return scan_top_k(match, len(table), k, valid, exclude, len(queries), chunk)


def _vector_match(table, bias, queries, items) -> Array:
    scores = dot_match(table, queries, items)
    return scores if bias is None else scores + jnp.take(bias, items, mode="clip")[None, :]


def top_k(
    queries: Array,  # b d
    table: Array,  # n d
    k: int,
    valid: Array,  # bool n
    exclude: Array | None = None,  # int b h, 0 = none
    chunk: int | None = None,
    bias: Array | None = None,  # n
) -> tuple[Array, Array]:
    """Maximum inner product search, exact: `scan_top_k` for vectors.

    Raises ValueError for wrong shapes and, outside jit, FloatingPointError for a NaN score.
    """
    items, scores = _table_top_k(queries, table, k, valid, exclude, bias, chunk)
    refuse_nan(scores)
    return items, scores


def refuse_nan(scores: Any) -> None:
    """Raise FloatingPointError, naming the row, when a score [b,k] is NaN. Traced: no check."""
    if isinstance(scores, jax.core.Tracer):
        return
    rows = np.flatnonzero(np.isnan(np.asarray(scores)).any(axis=1))
    if len(rows):
        raise FloatingPointError(
            f"the scores of row {rows[0]} hold NaN ({len(rows)} of {len(scores)} rows do). "
            "A NaN has no rank: look for it in the query, the item vectors or the bias."
        )


def sharded_top_k(
    queries: Array,  # b d
    table: Array,  # n d, rows over ("data", "model")
    k: int,
    valid: Array,  # bool n, over ("data", "model")
    exclude: Array | None,  # int b h, 0 = none
    mesh: Mesh,
    chunk: int | None = None,
) -> tuple[Array, Array]:
    """`top_k` on a mesh with axes ("data", "model"): the same items in the same order.

    Queries and `exclude` are small and go to every device; each scores its own rows, and k
    candidates a device are gathered, never scores. The result is on every device. Rows that do
    not divide over the devices are padded here, which moves the table: make it with `table_rows`.
    """
    _check(len(table), valid, k)
    pad = -len(table) % mesh.size
    table = jnp.pad(table, ((0, pad), (0, 0)))
    valid = jnp.pad(_without_padding(valid), (0, pad))
    if exclude is None:
        exclude = jnp.zeros((len(queries), 1), jnp.int32)
    return _two_stage(queries, table, valid, exclude, k=k, mesh=mesh, chunk=chunk)


@partial(jax.jit, static_argnames=("k", "mesh", "chunk"))
def _two_stage(queries, table, valid, exclude, k, mesh, chunk):
    def on_device(queries, table, valid, exclude):
        start = lax.axis_index(ROWS) * len(table)
        match = partial(dot_match, table, queries)
        few = min(k, len(table))
        local = _best(match, len(table), few, valid, exclude - start, len(queries), chunk)
        items, scores = (lax.all_gather(x, ROWS, axis=1, tiled=True) for x in local)
        shard = jnp.repeat(jnp.arange(mesh.size) * len(table), few)
        scores, at = lax.top_k(_widen(scores, k), k)
        items = jnp.take_along_axis(items + shard[None, :], at, axis=1, mode="clip")
        return jnp.where(scores == -jnp.inf, 0, items), scores

    specs = (P(), P(ROWS, None), P(ROWS), P())
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)(
        queries, table, valid, exclude
    )


def _widen(scores: Array, k: int) -> Array:
    """At least k columns, the new ones -inf."""
    return jnp.pad(scores, ((0, 0), (0, max(0, k - scores.shape[1]))), constant_values=-jnp.inf)


def _check(n: int, valid: Array, k: int = 1) -> None:
    if len(valid) != n:
        raise ValueError(
            f"valid has {len(valid)} entries for {n} items: give one bool a row of the table, "
            "padding rows included."
        )
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1.")
