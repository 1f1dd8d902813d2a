"""Propagation over edges: sparse products, interaction and item graphs, sampling of edges.

A `Graph` is a sparse matrix A [n,m] twice: its rows compressed, for A x, and its columns
compressed, for the transpose, which is what the gradient needs. The rows of each are cut into
`parts` of equal count, one a device, with edges padded (weight 0) to equal length, so that every
array shards over its first axis. Arrays, never constants: pass them to jit as arguments.

On CPU a product is XLA's compressed-row kernel, elsewhere a sum over sorted segments
(benchmarks/graph.py measures both).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax
from jax.experimental import sparse
from jax.sharding import PartitionSpec as P

Array = jax.Array
EPSILON = 1e-7  # added to degrees: an isolated node divides by it and gets a row of zeros
COSINES = 2**26  # how many `nearest` holds at a time
ROWS = ("data", "model")  # mesh axes that share the rows of a graph


class Side(NamedTuple):
    """One direction of a graph: row i sums `weights * x[columns]` over its edges."""

    starts: Array  # int32 [n]: where each row's edges begin
    ends: Array  # int32 [n]
    rows: Array  # int32 [e], ascending
    columns: Array  # int32 [e], ascending within a row
    weights: Array  # float32 [e], 0 for padding
    lengths: Array  # int32 [parts]: edges of each part, without padding
    edges: Array  # int32 [e]: the edge's place in the other direction's arrays, -1 for padding


class Graph(NamedTuple):
    """A sparse matrix and its transpose."""

    forward: Side
    backward: Side


def transpose(graph: Graph) -> Graph:
    """The matrix with rows and columns exchanged; nothing is copied."""
    return Graph(graph.backward, graph.forward)


def from_edges(
    rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int], parts=1
) -> Graph:
    """Graph (numpy) of int edges [e], each pair at most once, and float weights [e].

    parts: the devices of the mesh that will multiply, or a multiple. Raises ValueError for an
    edge outside `shape`, a repeated edge, or rows that `parts` does not divide.
    """
    _check(rows, columns, shape, parts)
    numbers = np.arange(len(rows), dtype=np.int32)
    here = scipy.sparse.coo_array((numbers, (rows, columns)), shape=shape).tocsr()
    if here.nnz < len(rows):
        raise ValueError(_repeated(rows, columns))
    turned = scipy.sparse.csr_array((numbers, here.indices, here.indptr), shape=shape).tocsc()
    weights, other = np.asarray(weights)[here.data], turned.data
    mate = np.empty_like(numbers)
    mate[other] = numbers
    place, mirror = _padded(here.indptr, parts), _padded(turned.indptr, parts)
    return Graph(
        _side(here, weights, mirror.places[mate], place, parts),
        _side(turned, weights[other], place.places[other], mirror, parts),
    )


def _check(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int], parts: int) -> None:
    for name, x, n in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < n:
            bad = int(np.flatnonzero((x < 0) | (x >= n))[0])
            raise ValueError(
                f"edge {bad} has {name} {x[bad]}; the graph is {shape[0]} x {shape[1]}. "
                "Re-index the interactions, or widen the tables."
            )
        if n % parts:
            raise ValueError(f"{n} {name}s do not divide into {parts} parts; pad the tables.")


def _repeated(rows: np.ndarray, columns: np.ndarray) -> str:
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    i = int(np.flatnonzero((rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1]))[0])
    return (
        f"the edge ({rows[i]}, {columns[i]}) occurs twice; merge repeated interactions first "
        "(pipelines.interactions.drop_duplicates)."
    )


class _Padded(NamedTuple):
    """Where things stand once the edges of every part are padded to the longest part."""

    places: np.ndarray  # int64 [e], of the edges
    shifts: np.ndarray  # int64 [n], how far the edges of a row moved
    size: int


def _padded(offsets: np.ndarray, parts: int) -> _Padded:
    each = (len(offsets) - 1) // parts
    begins = offsets[::each].astype(np.int64)
    counts = np.diff(begins)
    length = max(int(counts.max()), 1)
    shifts = np.arange(parts) * length - begins[:-1]
    places = np.arange(begins[-1]) + np.repeat(shifts, counts)
    return _Padded(places, np.repeat(shifts, each), parts * length)


def _side(matrix, weights: np.ndarray, edges: np.ndarray, padded: _Padded, parts: int) -> Side:
    offsets, n = matrix.indptr, len(padded.shifts)
    last = np.repeat((np.arange(parts) + 1) * (n // parts) - 1, padded.size // parts)

    def put(values: np.ndarray, empty: np.ndarray | int, kind: type) -> np.ndarray:
        out = np.broadcast_to(empty, padded.size).astype(kind)
        out[padded.places] = values
        return out

    return Side(
        (offsets[:-1] + padded.shifts).astype(np.int32),
        (offsets[1:] + padded.shifts).astype(np.int32),
        put(np.repeat(np.arange(n), np.diff(offsets)), last, np.int32),  # padding: the last row
        put(matrix.indices, 0, np.int32),
        put(weights, 0, np.float32),
        np.diff(offsets[:: n // parts]).astype(np.int32),
        put(edges, -1, np.int32),
    )


def interaction_graph(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, parts: int = 1
) -> Graph:
    """R̂ = D_u^-1/2 R D_i^-1/2 [n_users,n_items] of int edges [e]; a repeated edge counts once.

    Raises ValueError as `from_edges` does.
    """
    shape = (n_users, n_items)
    _check(users, items, shape, parts)
    counts = scipy.sparse.coo_array((np.ones(len(users), np.int32), (users, items)), shape=shape)
    users, items = counts.tocsr().nonzero()  # repeated edges have become one
    u = np.bincount(users, minlength=n_users) + EPSILON
    i = np.bincount(items, minlength=n_items) + EPSILON
    return from_edges(users, items, 1 / np.sqrt(u[users] * i[items]), shape, parts)


def with_weights(graph: Graph, weights: Array) -> Graph:
    """The same edges with other weights [e], given in the order of `graph.forward`.

    Padding keeps weight 0, whatever is given for it.
    """
    there, back = graph.forward, graph.backward
    turned = weights[back.edges] * (back.edges >= 0)
    return Graph(
        there._replace(weights=weights * (there.edges >= 0)), back._replace(weights=turned)
    )


def binary(graph: Graph) -> Graph:
    """Every edge with weight 1."""
    return Graph(*(side._replace(weights=_ones(side)) for side in graph))


def _ones(side: Side) -> Array:
    return (side.weights != 0).astype(side.weights.dtype)


def degrees(side: Side, n: int) -> Array:
    """float32 [n]: how many edges each row has."""
    return jax.ops.segment_sum(_ones(side), side.rows, n, indices_are_sorted=True)


def has_edge(side: Side, rows: Array, columns: Array) -> Array:
    """bool [p]: whether the edge (rows[p], columns[p]) is there, whatever its weight."""
    low, end = side.starts[rows], side.ends[rows]
    at = first(low, end, lambda place: side.columns[place] >= columns)
    return (at < end) & (side.columns[jnp.minimum(at, len(side.columns) - 1)] == columns)


def first(low: Array, high: Array, holds: Callable[[Array], Array]) -> Array:
    """int32 [p]: the first place in [low, high) where `holds` is True, or high; by halves.

    low, high: int32 [p]; `holds` takes places [p] and stays True once it is.
    """

    def halve(bounds):
        low, high = bounds
        middle = (low + high) // 2
        yes, open_ = holds(middle), low < high
        return jnp.where(open_ & ~yes, middle + 1, low), jnp.where(open_ & yes, middle, high)

    return lax.while_loop(lambda bounds: jnp.any(bounds[0] < bounds[1]), halve, (low, high))[0]


@jax.custom_vjp
def product(graph: Graph, x: Array) -> Array:
    """A x for x [m,d] -> [n,d]. The weights get no gradient: graphs are data."""
    return _times(graph.forward, x)


def _product_forward(graph: Graph, x: Array):
    return product(graph, x), graph


def _product_backward(graph: Graph, g: Array):
    return None, _times(graph.backward, g)


product.defvjp(_product_forward, _product_backward)


def _times(side: Side, x: Array) -> Array:
    """Rows over the devices of the mesh in use; each reads all of x."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _local(side, x)
    if len(side.lengths) != mesh.size:  # its rows would meet the edges of others, silently
        raise ValueError(
            f"the graph has {len(side.lengths)} parts and the mesh {mesh.size} devices; make it "
            f"with parts={mesh.size}, as recommender.prepare(catalogue, mesh.size) does."
        )
    return jax.shard_map(
        _local, mesh=mesh, in_specs=(P(ROWS), P()), out_specs=P(ROWS), check_vma=False
    )(side, x)


def _local(side: Side, x: Array) -> Array:
    """The product of one part."""
    return lax.platform_dependent(side, x, cpu=_compressed, default=_segments)


def _compressed(side: Side, x: Array) -> Array:
    offsets = jnp.concatenate([side.starts, side.ends[-1:]]) - side.starts[0]
    shape = (len(side.starts), len(x))
    return sparse.BCSR((side.weights, side.columns, offsets), shape=shape) @ x


def _segments(side: Side, x: Array) -> Array:
    n = len(side.starts)
    rows = side.rows - side.rows[0] // n * n  # numbered within the part
    terms = jnp.take(x, side.columns, axis=0) * side.weights[:, None]
    return jax.ops.segment_sum(terms, rows, n, indices_are_sorted=True)


def propagate(graph: Graph, users: Array, items: Array, layers: int) -> list[tuple[Array, Array]]:
    """[(E_u^0, E_i^0), ...]: E^{l+1} = L̂ E^l, L̂ the symmetric matrix of the interaction graph."""
    rows = [(users, items)]
    for _ in range(layers):
        users, items = product(graph, items), product(transpose(graph), users)
        rows.append((users, items))
    return rows


def light_mean(graph: Graph, users: Array, items: Array, layers: int) -> tuple[Array, Array]:
    """Mean over the layers 0...L of `propagate` (LightGCN, arXiv 2002.02126, eq. 8)."""
    rows = propagate(graph, users, items, layers)
    return tuple(sum(side) / len(rows) for side in zip(*rows, strict=True))


def sample_edges(key: Array, weights: Array, keep: int | Array) -> Array:
    """bool [e]: exactly `keep` edges (may be traced), drawn without replacement in proportion to
    weights [e]; an edge of weight 0 is never drawn. Gumbel top-k (Efraimidis & Spirakis 2006).
    """
    noisy = jnp.log(weights) + jax.random.gumbel(key, weights.shape)
    first = jnp.arange(len(weights)) < keep
    return jnp.zeros(len(weights), bool).at[jnp.argsort(-noisy)].set(first) & (weights > 0)


def renormalised(graph: Graph, kept: Array, n_users: int, n_items: int) -> Graph:
    """The graph of the `kept` edges (bool [e], forward order), with their own degrees."""
    side = graph.forward
    ones = kept.astype(jnp.float32) * _ones(side)
    u = jax.ops.segment_sum(ones, side.rows, n_users, indices_are_sorted=True) + EPSILON
    i = jax.ops.segment_sum(ones, side.columns, n_items) + EPSILON
    return with_weights(graph, ones * lax.rsqrt(u[side.rows] * i[side.columns]))


def nearest(x: np.ndarray, k: int, present: np.ndarray, chunk: int | None = None):
    """(items int32 [n,k], cosines float32 [n,k]) of the k nearest rows of x [n,f], itself included.

    Rows where `present` is False have no neighbours and are nobody's: their entries, and those
    beyond the number of present rows, hold cosine -inf. Ties go to the smaller row. k is at most
    n. `chunk` rows are compared at a time with all others; None: as many as 256 MiB hold.
    """
    n, k = len(x), min(k, len(x))
    chunk = chunk or max(1, min(1024, n, COSINES // n))
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    unit = unit.astype(np.float32)
    rows = np.pad(unit, ((0, -n % chunk), (0, 0))).reshape(-1, chunk, x.shape[1])
    values, ids = _nearest(rows, unit, present, k)
    values, ids = (np.array(a).reshape(-1, k)[:n] for a in (values, ids))
    values[~np.asarray(present)] = -np.inf
    return ids, values


@partial(jax.jit, static_argnums=3)
def _nearest(rows: Array, unit: Array, present: Array, k: int):
    def one(block):
        cosine = jnp.einsum("cf,nf->cn", block, unit, precision="highest")
        return lax.top_k(jnp.where(present[None, :], cosine, -jnp.inf), k)

    return lax.map(one, rows)


def neighbour_graph(items: np.ndarray, cosines: np.ndarray, weighted: bool, parts=1) -> Graph:
    """D^-1/2 S D^-1/2 [n,n] of `nearest`; D the row sums of S on both sides, S 0/1 or cosines.

    Out-degrees on both sides, as FREEDOM and SMORE have it: the matrix is not symmetric.
    """
    n = len(items)
    there = np.isfinite(cosines)
    rows, columns = np.nonzero(there)[0], items[there]
    values = cosines[there].astype(np.float64) if weighted else np.ones(len(rows))
    sums = np.maximum(np.bincount(rows, values, minlength=n), 0) + EPSILON
    return from_edges(rows, columns, values / np.sqrt(sums[rows] * sums[columns]), (n, n), parts)
