"""Propagation over edges: sparse products, layers of them, sampling of edges.

A `Graph` is a sparse matrix A [n,m] twice: its rows compressed, for A x, and its columns
compressed, for the transpose, which is what the gradient needs. The rows of each are cut into
`parts` of equal count, one a device, with edges padded (weight 0) to equal length, so that every
array shards over its first axis. Arrays, never constants: pass them to jit as arguments. edges.py
makes them.

On CPU a product is XLA's compressed-row kernel, elsewhere a sum over sorted segments
(benchmarks/graph.py measures both).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
    lengths: Array  # int32 [parts]: edges of each part, without padding
    edges: Array  # int32 [e]: the edge's place in the other direction's arrays, -1 for padding


class Graph(NamedTuple):
    """A sparse matrix and its transpose."""

    forward: Side
    backward: Side


def transpose(graph: Graph) -> Graph:
    """The matrix with rows and columns exchanged; nothing is copied."""
    return Graph(graph.backward, graph.forward)


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
