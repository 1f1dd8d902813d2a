"""Graphs made on the host: of edges, of interactions, of the nearest items by content."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax

from zoo.graph import EPSILON, Graph, Side

Array = jax.Array
COSINES = 2**26  # how many `nearest` holds at a time


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
