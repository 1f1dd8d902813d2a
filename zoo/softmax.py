"""Full softmax over every item in little memory: chunked, fused with its gradient, row-sharded.

The loss is the weighted mean over positions of lse_j f_j - f_target, f = q.e / temperature + bias.
Its gradient needs softmax - onehot for every position and item. Autodiff keeps that whole [b,n]
array; here a scan over chunks of positions forms it, multiplies it into the two gradients at once
and drops it, so memory is O(chunk n + n d). The backward pass multiplies by the cotangent.
Positions of weight 0 (room that a batch did not need) come last, in chunks that are not computed.
The idea is the linear cross entropy of Liger Kernel (arXiv 2410.10989), for b queries, n rows.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Array = jax.Array

MASKED = -1e9  # not -inf: a row with nothing left must stay finite
CHUNK_ELEMENTS = 2_000_000  # logits held at once (8 MB of float32), on CPU as fast as any
ROWS = ("data", "model")  # mesh axes that share the rows of a table


def full_softmax(
    queries: Array,  # b d
    targets: Array,  # b
    weights: Array,  # b
    table: Array,  # n d
    valid: Array | None = None,  # n
    bias: Array | None = None,  # n
    chunk: int | None = None,
    temperature: float | Array = 1.0,
) -> Array:
    """Mean cross entropy of `targets` (row numbers of `table`) among all rows, float32 scalar.

    Differentiable in queries, weights, table, bias and temperature. Logits and log-sum-exp are
    float32 also for bfloat16 inputs. Rows where `valid` is False get -1e9. Weights may be 0;
    if all are, the loss is 0; a position of weight 0 has no gradient, nor has its weight. Called
    without a gradient it computes the loss only.
    `chunk` is the number of positions at a time; None holds about 2M logits.
    """
    _check_shapes(queries, targets, weights, table, valid, bias)
    plan = _Plan(chunk or chunk_size(len(queries), len(table)), None)
    queries, weights = _tempered(queries, temperature), _wide(weights)
    return _softmax(plan, queries, targets, weights, table, valid, bias)


def sharded_softmax(
    queries: Array,  # b d, rows over "data"
    targets: Array,  # b, over "data"
    weights: Array,  # b, over "data"
    table: Array,  # n d, rows over ("data", "model")
    valid: Array | None,  # n, over ("data", "model")
    mesh: Mesh,
    bias: Array | None = None,  # n, over ("data", "model")
    chunk: int | None = None,
    temperature: float | Array = 1.0,
) -> Array:
    """`full_softmax` on a mesh with axes ("data", "model"): value and gradients are the same.

    Each device holds n / devices rows and scores all queries, which are gathered first because
    they are small. Maxima, sums and the target's logit cross devices, and the gradient of the
    queries; nothing of the table's size does. n must divide by the devices, b by "data".
    """
    _check_shapes(queries, targets, weights, table, valid, bias)
    _check_mesh(mesh, len(queries), len(table))
    plan = _Plan(chunk or chunk_size(len(queries), len(table) // mesh.size), mesh)
    queries, weights = _tempered(queries, temperature), _wide(weights)
    return _softmax(plan, queries, targets, weights, table, valid, bias)


def chunk_size(positions: int, rows: int) -> int:
    """The fewest equal chunks of positions that hold at most CHUNK_ELEMENTS logits each."""
    most = max(1, CHUNK_ELEMENTS // max(rows, 1))
    chunks = max(1, -(-positions // most))
    return max(1, -(-positions // chunks))


class _Plan(NamedTuple):
    """What jit must know."""

    chunk: int
    mesh: Mesh | None


class _Gradients(NamedTuple):
    queries: Array  # b d
    weights: Array  # b
    table: Array  # n d
    bias: Array | None  # n


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(plan: _Plan, *arrays: Array | None) -> Array:
    return _placed(plan, False, arrays)[0]


def _forward(plan: _Plan, *arrays: Array | None) -> tuple[Array, _Gradients]:
    return _placed(plan, True, arrays)


def _backward(plan: _Plan, gradients: _Gradients, cotangent: Array) -> tuple:
    scaled = jax.tree.map(lambda x: (cotangent * x).astype(x.dtype), gradients)
    return scaled.queries, None, scaled.weights, scaled.table, None, scaled.bias


_softmax.defvjp(_forward, _backward)


def _placed(plan: _Plan, wants: bool, arrays: tuple) -> tuple[Array, _Gradients | None]:
    """Run on this device, or on every device of the mesh."""
    if plan.mesh is None:
        return _loss(plan.chunk, (), wants, *arrays)
    _, _, _, _, valid, bias = arrays
    by_data, by_row = P("data"), P(ROWS)
    in_specs = (P("data", None), by_data, by_data, P(ROWS, None))
    in_specs += (None if valid is None else by_row, None if bias is None else by_row)
    gradients = _Gradients(P("data", None), by_data, P(ROWS, None), in_specs[5])
    out_specs = (P(), gradients if wants else None)
    run = partial(_gathered, plan.chunk, wants)
    return jax.shard_map(
        run, mesh=plan.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )(*arrays)


def _gathered(chunk: int, wants: bool, queries, targets, weights, *rows):
    """One device of the mesh: all queries against its own rows."""
    everyone = [lax.all_gather(x, "data", tiled=True) for x in (queries, targets, weights)]
    loss, gradients = _loss(chunk, ROWS, wants, *everyone, *rows)
    if not wants:
        return loss, None
    mine = lax.psum_scatter(gradients.queries, "data", scatter_dimension=0, tiled=True)
    start = lax.axis_index("data") * len(weights)
    return loss, gradients._replace(
        queries=lax.psum(mine, "model"),
        weights=lax.dynamic_slice_in_dim(gradients.weights, start, len(weights)),
    )


def _loss(chunk, axes, wants, queries, targets, weights, table, valid, bias):
    """Scan over chunks of positions; `axes` are the mesh axes that share the rows."""
    compute = jnp.result_type(queries, table)
    accumulate = jnp.promote_types(compute, jnp.float32)
    total = jnp.sum(weights)
    inverse = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
    order = jnp.argsort(weights == 0, stable=True)
    place_of = jnp.argsort(order)  # of each position, in that order
    xs = _chunks(chunk, [jnp.take(x, order, axis=0) for x in (queries, targets, weights)])

    def compute_chunk(grown, x):
        q, t, w = x
        exps, sums, nll, place = _scores(axes, q, t, table, valid, bias)
        if not wants:
            return grown, (nll, None)
        # exps - sums at the target is sums * (softmax - onehot): one pass, exact at softmax ~ 1
        exps = exps.at[jnp.arange(len(t)), place].add(-sums, mode="drop")
        scale = w * inverse / sums
        errors, scaled = exps.astype(compute), (q * scale[:, None]).astype(compute)
        rows, offsets = grown
        rows += jnp.einsum("bn,bd->nd", errors, scaled, preferred_element_type=accumulate)
        if bias is not None:
            offsets += jnp.einsum("bn,b->n", exps, scale)
        dq = jnp.einsum("bn,nd->bd", errors, table, preferred_element_type=accumulate)
        return (rows, offsets), (nll, dq * scale[:, None])

    def step(grown, x):
        def nothing(grown, x):
            _, shapes = jax.eval_shape(compute_chunk, grown, x)
            return grown, jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), shapes)

        return lax.cond(jnp.any(x[2] != 0), compute_chunk, nothing, grown, x)

    none = (
        jnp.zeros(table.shape, accumulate),
        None if bias is None else jnp.zeros(bias.shape, accumulate),
    )
    grown, (nll, dq) = lax.scan(step, none if wants else None, xs)
    nll = jnp.take(nll.reshape(-1), place_of)
    loss = jnp.sum(nll * weights) * inverse
    if not wants:
        return loss, None
    dq = jnp.take(dq.reshape(-1, queries.shape[1]), place_of, axis=0)
    rows, offsets = grown
    dw = jnp.where(weights != 0, (nll - loss) * inverse, 0).astype(weights.dtype)
    offsets = None if bias is None else offsets.astype(bias.dtype)
    return loss, _Gradients(dq.astype(queries.dtype), dw, rows.astype(table.dtype), offsets)


def _scores(axes, q, t, table, valid, bias):
    """exp(logits - max) [c,n], their sums [c], losses [c], where the target stands here [c]."""
    wide = jnp.promote_types(jnp.result_type(q, table), jnp.float32)
    logits = jnp.einsum("bd,nd->bn", q, table, preferred_element_type=wide)
    if bias is not None:
        logits += bias[None, :]
    if valid is not None:
        logits = jnp.where(valid[None, :], logits, MASKED)
    n = len(table)
    local = t - (lax.axis_index(axes) * n if axes else 0)
    here = (local >= 0) & (local < n)
    own = jnp.take_along_axis(logits, jnp.clip(local, 0, n - 1)[:, None], axis=1)[:, 0]
    hit = _reduce(lax.psum, jnp.where(here, own, 0), axes)
    top = _reduce(lax.pmax, jnp.max(logits, axis=1), axes)
    exps = jnp.exp(logits - top[:, None])
    sums = _reduce(lax.psum, jnp.sum(exps, axis=1), axes)
    return exps, sums, top + jnp.log(sums) - hit, jnp.where(here, local, n)


def _reduce(collective, x: Array, axes: tuple[str, ...]) -> Array:
    return collective(x, axes) if axes else x


def _chunks(chunk: int, arrays: list[Array]) -> tuple[Array, ...]:
    """[b,...] to [chunks, chunk, ...], filled up with zeros (of weight 0)."""
    lack = -len(arrays[0]) % chunk

    def cut(x):
        filled = jnp.pad(x, [(0, lack)] + [(0, 0)] * (x.ndim - 1)) if lack else x
        return filled.reshape(-1, chunk, *x.shape[1:])

    return tuple(cut(x) for x in arrays)


def _tempered(queries: Array, temperature: float | Array) -> Array:
    if isinstance(temperature, int | float) and temperature == 1:
        return queries
    return (_wide(queries) / temperature).astype(queries.dtype)


def _wide(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _check_shapes(queries, targets, weights, table, valid, bias) -> None:
    b, n = len(queries), len(table)
    expected = {
        "queries": (queries, (b, table.shape[-1])),
        "targets": (targets, (b,)),
        "weights": (weights, (b,)),
        "table": (table, (n, queries.shape[-1])),
        "valid": (valid, (n,)),
        "bias": (bias, (n,)),
    }
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {shape}: queries are [b,d] (flatten "
                "the positions), targets and weights [b], table [n,d], valid and bias [n]."
            )


def _check_mesh(mesh: Mesh, b: int, n: int) -> None:
    if set(mesh.axis_names) != set(ROWS):
        raise ValueError(f"mesh has axes {mesh.axis_names}, expected {ROWS}: see zoo/mesh.py.")
    if n % mesh.size:
        raise ValueError(
            f"table has {n} rows, which do not divide over {mesh.size} devices: pad it to "
            f"{n + -n % mesh.size} rows and mark the padding in `valid`."
        )
    if b % mesh.shape["data"]:
        raise ValueError(
            f"{b} queries do not divide over the data axis of {mesh.shape['data']} devices: "
            "choose a batch size that does; rows that only fill the batch get weight 0."
        )
