"""k-means, jitted: full or in mini-batches, k-means++ or sampled start, empty clusters refilled.

Distances in full float32 as |x|^2 - 2 x.e + |e|^2, rows in blocks; ties go to the smaller index.
Over a mesh every device keeps its rows, and the devices add up their sums; rows from the n-th on
only fill the devices up, and nothing looks at them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from zoo.blockwise import in_blocks

Array = jax.Array
STARTS = ("plusplus", "sample")
BLOCK_ELEMENTS = {"cpu": 524_288}  # distances held at once: what a core's cache holds
ELSEWHERE = 8_000_000


def check_vectors(x: np.ndarray, size: int = 1) -> None:
    """Raise ValueError unless item vectors x [n,d] are finite and at least `size` of them."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(x)).all(1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(x)} item vectors hold NaN or infinity, the first in row {bad[0]}: "
            "leave items without content out, or repair their features."
        )
    if len(x) < size:
        raise ValueError(
            f"{len(x)} items cannot fill a codebook of {size} codes: choose size <= {len(x)}, or "
            "fit on a larger catalogue and encode these items with it."
        )


def squared_distances(x: Array, codebook: Array) -> Array:
    """float32 [n,v] between the rows of x [n,d] and of codebook [v,d]; never below zero."""
    return jnp.maximum((x * x).sum(1)[:, None] + _relative(x, codebook).T, 0)


def _relative(x: Array, codebook: Array) -> Array:
    """[v,n]: squared distances less |x|^2, which no argmin needs."""
    cross = jnp.einsum("nd,vd->vn", x, codebook, precision=lax.Precision.HIGHEST)
    return (codebook * codebook).sum(1)[:, None] - 2 * cross


@partial(jax.jit, static_argnames="mesh")
def nearest(x: Array, codebook: Array, mesh: Mesh | None = None) -> Array:
    """int32 [n]: the row of codebook [v,d] nearest to each row of x [n,d]; with a mesh, whose
    devices divide n, each by the device that holds it."""
    if mesh is None:
        return _nearest(x, codebook)
    rows = P(mesh.axis_names)
    on_device = jax.shard_map(
        _nearest, mesh=mesh, in_specs=(rows, P()), out_specs=rows, check_vma=False
    )
    return on_device(x, codebook)


def _nearest(x: Array, codebook: Array) -> Array:
    names = jnp.arange(codebook.shape[0], dtype=jnp.int32)[:, None]

    def block(rows: Array) -> Array:
        # Two reductions over the leading axis, a row a lane: three times as fast on a CPU as
        # argmin, whose pairs XLA does not vectorise.
        far = _relative(rows, codebook)
        return jnp.where(far == far.min(0, keepdims=True), names, codebook.shape[0] - 1).min(0)

    held = BLOCK_ELEMENTS.get(jax.default_backend(), ELSEWHERE)
    return in_blocks(block, held // codebook.shape[0], x)


def kmeans(
    x: Array,
    key: Array,
    size: int,
    steps: int = 25,
    start: str = "plusplus",
    batch: int | None = None,
    mesh: Mesh | None = None,
    n: int | None = None,
) -> Array:
    """float32 [v,d]: `size` centres of the first n rows of x [n or more,d], deterministic by key.

    start: `plusplus` (Arthur and Vassilvitskii, 2007) or `sample`, distinct rows at random. With
    `batch` mini-batch k-means (Sculley, 2010), `steps` batches; else `steps` of Lloyd's. mesh:
    over whose devices the rows of x are spread; n: all rows unless given.
    Raises ValueError for an unknown start and where n or batch is below size.
    """
    if start not in STARTS:
        raise ValueError(f"start is '{start}'; expected one of {', '.join(STARTS)}.")
    n = x.shape[0] if n is None else n
    rows = n if batch is None else min(batch, n)
    if rows < size:
        raise ValueError(
            f"k-means looks at {rows} rows a step for {size} centres; it needs at least as many "
            "rows: lower size, or raise batch."
        )
    first, later = jax.random.split(key)
    codebook = (plusplus if start == "plusplus" else sample)(x, first, size, n)
    if batch is None:
        return lloyd(x, codebook, steps, mesh, n)
    return mini_batches(x, codebook, later, steps, rows, mesh, n)


@partial(jax.jit, static_argnames=("size", "n"))
def sample(x: Array, key: Array, size: int, n: int | None = None) -> Array:
    """[v,d]: `size` distinct rows at random."""
    n = x.shape[0] if n is None else n
    return x[jax.random.choice(key, n, (size,), replace=False)]


@partial(jax.jit, static_argnames=("size", "n"))
def plusplus(x: Array, key: Array, size: int, n: int | None = None) -> Array:
    """[v,d]: rows drawn one after another, by squared distance from those already drawn."""
    n = x.shape[0] if n is None else n

    def draw(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, distance = carry
        upto = jnp.cumsum(distance)
        place = jax.random.uniform(jax.random.fold_in(key, i)) * upto[-1]
        at = jnp.searchsorted(upto, place, side="right")  # never a row of distance 0
        row = x[jnp.minimum(at, n - 1)]
        distance = jnp.minimum(distance, ((x - row[None]) ** 2).sum(1))
        return chosen.at[i].set(row), distance

    real = (jnp.arange(x.shape[0]) < n).astype(x.dtype)
    return lax.fori_loop(0, size, draw, (jnp.zeros((size, x.shape[1]), x.dtype), real))[0]


@partial(jax.jit, static_argnames=("steps", "mesh", "n"))
def lloyd(
    x: Array, codebook: Array, steps: int, mesh: Mesh | None = None, n: int | None = None
) -> Array:
    """[v,d] after `steps` rounds: rows to their nearest centre, centres to the mean of theirs."""
    real = jnp.arange(x.shape[0]) < (x.shape[0] if n is None else n)

    def step(_: Array, codebook: Array) -> Array:
        codes = jnp.where(real, nearest(x, codebook, mesh), codebook.shape[0])
        sums, counts = _gather(x, codes, codebook.shape[0])
        means = sums / jnp.maximum(counts, 1)[:, None]
        return _refill(means, counts == 0, x, codebook, codes)

    return lax.fori_loop(0, steps, step, codebook)


@partial(jax.jit, static_argnames=("steps", "batch", "mesh", "n"))
def mini_batches(
    x: Array,
    codebook: Array,
    key: Array,
    steps: int,
    batch: int,
    mesh: Mesh | None = None,
    n: int | None = None,
) -> Array:
    """[v,d]: every centre is the running mean of all the rows that batches have given it."""
    n = x.shape[0] if n is None else n
    mesh = mesh if mesh is not None and batch % mesh.size == 0 else None

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codebook, seen = carry
        rows = x[order[(i * batch + jnp.arange(batch)) % n]]  # no row twice
        codes = nearest(rows, codebook, mesh)
        sums, counts = _gather(rows, codes, codebook.shape[0])
        seen = seen + counts
        moved = codebook + (sums - counts[:, None] * codebook) / jnp.maximum(seen, 1)[:, None]
        return _refill(moved, seen == 0, rows, codebook, codes), seen

    order = jax.random.permutation(key, n)
    start = codebook, jnp.zeros(codebook.shape[0], codebook.dtype)
    return lax.fori_loop(0, steps, step, start)[0]


def _gather(x: Array, codes: Array, size: int) -> tuple[Array, Array]:
    """Sums [v,d] and counts [v] of the rows of each centre; a code beyond them counts nowhere."""
    counts = jax.ops.segment_sum(jnp.ones(x.shape[0], x.dtype), codes, size)
    return jax.ops.segment_sum(x, codes, size), counts


def _refill(codebook: Array, empty: Array, x: Array, old: Array, codes: Array) -> Array:
    """Empty centres move to the rows that lie farthest from their own centre, one row each."""

    def refilled(codebook: Array) -> Array:
        apart = ((x - jnp.take(old, codes, axis=0, mode="clip")) ** 2).sum(1)
        apart = jnp.where(codes < codebook.shape[0], apart, -1)
        farthest = lax.top_k(apart, codebook.shape[0])[1]
        place = jnp.maximum(jnp.cumsum(empty) - 1, 0)
        return jnp.where(empty[:, None], x[farthest[place]], codebook)

    return lax.cond(empty.any(), refilled, lambda same: same, codebook)
