"""Propagation over edges: sparse products, interaction and item graphs, sampling of edges.

A `Graph` is a sparse matrix A [n,m] twice: its rows compressed, for A x, and its columns
compressed, for the transpose, which is what the gradient needs. The rows of each are cut into
`parts` of equal count, one a device, with edges padded (weight 0) to equal length, so that every
array shards over its first axis. Arrays, never constants: pass them to jit as arguments.

On CPU a product is XLA's compressed-row kernel, elsewhere a sum over sorted segments
(benchmarks/graph.py measures both).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import sparse
from jax.sharding import PartitionSpec as P

Array = jax.Array
EPSILON = 1e-7  # added to degrees: an isolated node divides by it and gets a row of zeros
ROWS = ("data", "model")  # mesh axes that share the rows of a graph


class Side(NamedTuple):
    """One direction of a graph: row i sums `weights * x[columns]` over its edges."""

    starts: Array  # int32 [n]: where each row's edges begin
    ends: Array  # int32 [n]
    rows: Array  # int32 [e], ascending
    columns: Array  # int32 [e], ascending within a row
    weights: Array  # float32 [e], 0 for padding
    edges: Array  # int32 [e]: the edge's place in the other direction's arrays


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

    Raises ValueError for an edge outside `shape`, a repeated edge, or rows that `parts` does not
    divide.
    """
    for name, x, n in (("row", rows, shape[0]), ("column", columns, shape[1])):
        if len(x) and not 0 <= int(x.min()) <= int(x.max()) < n:
            bad = int(np.flatnonzero((x < 0) | (x >= n))[0])
            raise ValueError(
                f"edge {bad} has {name} {x[bad]}; the graph is {shape[0]} x {shape[1]}. "
                "Re-index the interactions, or widen the tables."
            )
        if n % parts:
            raise ValueError(f"{n} {name}s do not divide into {parts} parts; pad the tables.")
    order = np.lexsort((columns, rows))
    rows, columns, weights = rows[order], columns[order], weights[order]
    twice = (rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1])
    if twice.any():
        i = int(np.flatnonzero(twice)[0])
        raise ValueError(
            f"the edge ({rows[i]}, {columns[i]}) occurs twice; merge repeated interactions first "
            "(pipelines.interactions.drop_duplicates)."
        )
    other = np.lexsort((rows, columns))
    here, there = _places(rows, shape[0], parts), _places(columns[other], shape[1], parts)
    forward = _side(rows, columns, weights, here, np.argsort(other), there, shape[0], parts)
    turned = (columns[other], rows[other], weights[other])
    return Graph(forward, _side(*turned, there, other, here, shape[1], parts))


def _places(rows: np.ndarray, n: int, parts: int) -> tuple[np.ndarray, int]:
    """Where each edge stands once its part is padded, and how long a part is."""
    counts = np.bincount(rows // (n // parts), minlength=parts)
    length = max(int(counts.max()), 1)
    begins = np.cumsum(counts) - counts
    part = np.repeat(np.arange(parts), counts)
    return part * length + np.arange(len(rows)) - begins[part], length


def _side(rows, columns, weights, here, mate, there, n: int, parts: int) -> Side:
    places, length = here
    size = parts * length
    last = np.repeat((np.arange(parts) + 1) * (n // parts) - 1, length)  # padding: the last row
    counts = np.bincount(rows, minlength=n).reshape(parts, -1)
    ends = np.cumsum(counts, axis=1) + np.arange(parts)[:, None] * length

    def put(values: np.ndarray, empty: np.ndarray, kind) -> np.ndarray:
        out = empty.astype(kind)
        out[places] = values
        return out

    return Side(
        (ends - counts).reshape(-1).astype(np.int32),
        ends.reshape(-1).astype(np.int32),
        put(rows, last, np.int32),
        put(columns, np.zeros(size), np.int32),
        put(weights, np.zeros(size), np.float32),
        put(there[0][mate], np.zeros(size), np.int32),
    )


def interaction_graph(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, parts: int = 1
) -> Graph:
    """R̂ = D_u^-1/2 R D_i^-1/2 [n_users,n_items] of int edges [e]; a repeated edge counts once."""
    pairs = np.unique(np.stack([users, items]).astype(np.int64), axis=1)
    users, items = pairs
    graph = from_edges(users, items, np.ones(len(users)), (n_users, n_items), parts)
    u = np.bincount(users, minlength=n_users) + EPSILON
    i = np.bincount(items, minlength=n_items) + EPSILON
    side = graph.forward
    weights = side.weights / np.sqrt(u[side.rows] * i[side.columns])
    return with_weights(graph, weights.astype(np.float32))


def with_weights(graph: Graph, weights: Array) -> Graph:
    """The same edges with other weights [e], given in the order of `graph.forward`."""
    back = graph.backward
    turned = weights[back.edges] * (back.weights != 0)
    return Graph(graph.forward._replace(weights=weights), back._replace(weights=turned))


def binary(graph: Graph) -> Graph:
    """Every edge with weight 1."""
    return Graph(*(side._replace(weights=_ones(side)) for side in graph))


def _ones(side: Side) -> Array:
    return (side.weights != 0).astype(side.weights.dtype)


def degrees(side: Side, n: int) -> Array:
    """float32 [n]: how many edges each row has."""
    return jax.ops.segment_sum(_ones(side), side.rows, n, indices_are_sorted=True)


def has_edge(side: Side, rows: Array, columns: Array) -> Array:
    """bool [p]: whether the edge (rows[p], columns[p]) is there; a search by halves in the row."""
    low, end = side.starts[rows], side.ends[rows]
    length = len(side.columns)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        below = side.columns[middle] < columns
        open_ = low < high
        return jnp.where(open_ & below, middle + 1, low), jnp.where(open_ & ~below, middle, high)

    at, _ = lax.fori_loop(0, length.bit_length(), halve, (low, end))
    return (at < end) & (side.columns[jnp.minimum(at, length - 1)] == columns)


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


def sample_edges(key: Array, weights: Array, keep: int) -> Array:
    """bool [e]: exactly `keep` edges, drawn without replacement in proportion to weights [e].

    Gumbel top-k (Efraimidis & Spirakis 2006); an edge of weight 0 is never drawn.
    """
    noisy = jnp.log(weights) + jax.random.gumbel(key, weights.shape)
    _, chosen = lax.top_k(noisy, keep)
    return jnp.zeros(weights.shape, bool).at[chosen].set(True) & (weights > 0)


def renormalised(graph: Graph, kept: Array, n_users: int, n_items: int) -> Graph:
    """The graph of the `kept` edges (bool [e], forward order), with their own degrees."""
    side = graph.forward
    ones = kept.astype(jnp.float32) * _ones(side)
    u = jax.ops.segment_sum(ones, side.rows, n_users, indices_are_sorted=True) + EPSILON
    i = jax.ops.segment_sum(ones, side.columns, n_items) + EPSILON
    return with_weights(graph, ones * lax.rsqrt(u[side.rows] * i[side.columns]))


def nearest(x: np.ndarray, k: int, present: np.ndarray, chunk: int = 1024):
    """(items int32 [n,k], cosines float32 [n,k]) of the k nearest rows of x [n,f], itself included.

    Rows where `present` is False have no neighbours and are nobody's: their entries, and those
    beyond the number of present rows, hold cosine -inf. Ties go to the smaller row.
    """
    n = len(x)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    rows = np.pad(unit, ((0, -n % chunk), (0, 0))).reshape(-1, chunk, x.shape[1])
    values, ids = _nearest(rows.astype(np.float32), unit.astype(np.float32), present, min(k, n))
    values, ids = (np.array(a).reshape(-1, min(k, n))[:n] for a in (values, ids))
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
