"""Item vectors to semantic ids and back: residual k-means, product quantisation with rotation.

Every quantiser here is one array of codebooks [c,v,d] whose chosen rows add up to the vector:

    r_1 = x;   code_l = argmin_k |r_l - e_l[k]|^2;   r_{l+1} = r_l - e_l[code_l]

Product quantisation (Jégou et al., 2011) is the case in which the rows of level l are zero outside
the l-th group of columns, and OPQ (Ge et al., 2013) that case turned by a rotation, so one `assign`
and one `reconstruct` serve them all.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.kmeans import check_vectors, kmeans, lloyd, nearest, squared_distances

Array = jax.Array


class Quantiser(NamedTuple):
    """What turns vectors into codes. Frozen once fitted, so new items leave the old ones alone."""

    shift: Array  # float32 d: mean of the items it was fitted on
    scale: Array  # float32 d: their standard deviation, 1 for constant columns
    codebooks: Array  # float32 c v d


@jax.jit
def assign(x: Array, codebooks: Array) -> Array:
    """int32 [n,c]: the nearest code of every level for float32 x [n,d]; ties to the smaller."""

    def level(rest: Array, codebook: Array) -> tuple[Array, Array]:
        codes = nearest(rest, codebook)
        return rest - codebook[codes], codes

    return lax.scan(level, x, codebooks)[1].T


@jax.jit
def reconstruct(codes: Array, codebooks: Array) -> Array:
    """float32 [n,d]: the sum of the chosen rows, of codes int32 [n,c] and codebooks [c,v,d]."""
    return jax.vmap(lambda codebook, chosen: codebook[chosen], (0, 1), 1)(codebooks, codes).sum(1)


@jax.jit
def last_distances(x: Array, codes: Array, codebooks: Array) -> Array:
    """float32 [n,v]: squared distances of what the earlier levels left to the last level's rows.

    What the resolvers `relocate` and `sinkhorn` choose by (semantic_ids.py).
    """
    return squared_distances(x - reconstruct(codes[:, :-1], codebooks[:-1]), codebooks[-1])


def encode(quantiser: Quantiser, x: np.ndarray) -> Array:
    """int32 [n,c] of float32 vectors [n,d], standardised as the quantiser was fitted."""
    return assign(standard(quantiser, x), quantiser.codebooks)


def decode(quantiser: Quantiser, codes: np.ndarray) -> Array:
    """float32 [n,d]: the vectors that codes int32 [n,c] stand for, in the scale of the input."""
    x = reconstruct(jnp.asarray(codes), quantiser.codebooks)
    return x * quantiser.scale[None] + quantiser.shift[None]


def standard(quantiser: Quantiser, x: np.ndarray) -> Array:
    """float32 [n,d]: the quantiser's own view of vectors x. Raises ValueError for NaN."""
    check_vectors(x)
    return (jnp.asarray(x, jnp.float32) - quantiser.shift[None]) / quantiser.scale[None]


def fit_residual(
    x: np.ndarray,
    levels: int = 3,
    size: int = 256,
    seed: int = 0,
    steps: int = 25,
    start: str = "plusplus",
    batch: int | None = None,
    standardise: bool = True,
    mesh: Mesh | None = None,
) -> Quantiser:
    """Residual k-means on x [n,d]: each level clusters what the ones before it left over.

    start: `plusplus` or `sample`; batch: rows a step of mini-batch k-means, None for all of them.
    The same for any order of the rows, and up to rounding for any mesh: its devices share the rows.
    Raises ValueError for NaN and for fewer rows than codes.
    """
    rest, shift, scale = _prepared(x, size, standardise, mesh)
    codebooks = []
    for key in _keys(seed, levels):
        codebooks.append(kmeans(rest, key, size, steps, start, batch, mesh, len(x)))
        rest = rest - codebooks[-1][nearest(rest, codebooks[-1], mesh)]
    return Quantiser(shift, scale, jnp.stack(codebooks))


def fit_product(
    x: np.ndarray,
    groups: int = 4,
    size: int = 256,
    seed: int = 0,
    steps: int = 25,
    start: str = "plusplus",
    rotations: int = 0,
    standardise: bool = True,
) -> Quantiser:
    """Product quantisation of x [n,d] in `groups` parts of d/groups columns, each with its own
    k-means; with `rotations` > 0 OPQ, which turns the columns that many times in between.

    Raises ValueError where the columns do not divide, for NaN and for fewer rows than codes.
    """
    x, shift, scale = _prepared(x, size, standardise)
    if x.shape[1] % groups:
        raise ValueError(
            f"{x.shape[1]} columns do not divide into {groups} groups: choose a divisor of "
            f"{x.shape[1]}, or project the vectors to a multiple of {groups} columns first."
        )
    turn = jnp.eye(x.shape[1])
    parts = [
        kmeans(part, key, size, steps, start)
        for part, key in zip(_parts(x, groups), _keys(seed, groups), strict=True)
    ]
    for _ in range(rotations):
        turn = _better_rotation(x, _unrotated(parts), turn)
        turned = _parts(_matmul(x, turn), groups)
        parts = [lloyd(rows, codes, 1) for rows, codes in zip(turned, parts, strict=True)]
    codebooks = jnp.einsum("cvd,ed->cve", _unrotated(parts), turn, precision=lax.Precision.HIGHEST)
    return Quantiser(shift, scale, codebooks)


def _better_rotation(x: Array, codebooks: Array, turn: Array) -> Array:
    """The orthogonal map that brings x nearest to its present codes (Procrustes, by SVD)."""
    aim = reconstruct(assign(_matmul(x, turn), codebooks), codebooks)
    left, _, right = jnp.linalg.svd(_matmul(x.T, aim), full_matrices=False)
    return _matmul(left, right)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _parts(x: Array, groups: int) -> list[Array]:
    return jnp.split(x, groups, axis=1)


def _unrotated(parts: list[Array]) -> Array:
    """[c,v,d]: every group's rows at its own columns, zero elsewhere."""
    width, groups = parts[0].shape[1], len(parts)
    return jnp.stack(
        [
            jnp.pad(part, ((0, 0), (g * width, (groups - 1 - g) * width)))
            for g, part in enumerate(parts)
        ]
    )


def _keys(seed: int, n: int) -> Iterator[Array]:
    return (jax.random.fold_in(jax.random.key(seed), i) for i in range(n))


def _in_order(x: np.ndarray) -> np.ndarray:
    """int [n]: the rows of x [n,d] sorted by the last column, where that ties by the one before."""
    order = np.argsort(x[:, -1], kind="stable")
    same = np.diff(x[order, -1]) == 0
    tied = np.r_[False, same] | np.r_[same, False]
    rows = order[tied]
    order[tied] = rows[np.lexsort(x[rows].T)]
    return order


def _prepared(
    x: np.ndarray, size: int, standardise: bool, mesh: Mesh | None = None
) -> tuple[Array, Array, Array]:
    """Rows in an order of their own, so that sampling does not depend on the caller's."""
    check_vectors(x, size)
    x = np.asarray(x, np.float32)
    x = x[_in_order(x)]
    shift = x.mean(0, dtype=np.float64) if standardise else np.zeros(x.shape[1])
    scale = x.std(0, dtype=np.float64) if standardise else np.ones(x.shape[1])
    scale = np.where(scale > 1e-6, scale, 1.0)
    shift, scale = jnp.asarray(shift, jnp.float32), jnp.asarray(scale, jnp.float32)
    return (_placed(x, mesh) - shift[None]) / scale[None], shift, scale


def _placed(x: np.ndarray, mesh: Mesh | None) -> Array:
    """x on its devices, with zero rows behind it where they do not divide."""
    if mesh is None:
        return jnp.asarray(x)
    x = np.pad(x, ((0, -len(x) % mesh.size), (0, 0)))
    return jax.device_put(x, NamedSharding(mesh, P(mesh.axis_names)))
