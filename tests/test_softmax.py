"""Full softmax: equal to the dense loss for every chunk and mesh, in memory that stays small."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.softmax import CHUNK_ELEMENTS, MASKED, chunk_size, full_softmax, sharded_softmax

B, N, D = 16, 512, 8
REAL = 500  # rows 0 and 500.. are padding
RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(B, D)).astype(np.float32)
TABLE = RNG.normal(size=(N, D)).astype(np.float32)
BIAS = RNG.normal(size=N).astype(np.float32)
TARGETS = RNG.integers(1, REAL, B).astype(np.int32)
TARGETS[3] = TARGETS[4]
WEIGHTS = np.ones(B, np.float32)
WEIGHTS[[2, 5]], WEIGHTS[7], TARGETS[[2, 5]] = 0, 2.5, 0
VALID = (np.arange(N) > 0) & (np.arange(N) < REAL)
ALL = tuple(range(4))


def dense(queries, weights, table, bias, temperature=1.0, valid=VALID):
    """The whole [b,n] array of logits, for autodiff."""
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    queries, table = queries.astype(wide), table.astype(wide)
    logits = queries @ table.T / temperature + bias[None, :]
    logits = jnp.where(valid[None, :], logits, MASKED)
    own = jnp.take_along_axis(logits, TARGETS[:, None], axis=1)[:, 0]
    losses = jax.nn.logsumexp(logits, axis=1) - own
    weights = jnp.where(WEIGHTS > 0, weights, 0)  # what has none is left out, and its gradient is 0
    return jnp.sum(losses * weights) / jnp.sum(weights)


def fused(chunk=None, **kw):
    def loss(queries, weights, table, bias, temperature=1.0):
        return full_softmax(queries, TARGETS, weights, table, VALID, bias, chunk, temperature, **kw)

    return loss


def close(found, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def expected():
    return jax.jit(jax.value_and_grad(dense, ALL))(QUERIES, WEIGHTS, TABLE, BIAS)


def test_value_matches_numpy_in_float64():
    logits = QUERIES.astype(np.float64) @ TABLE.T.astype(np.float64) + BIAS
    losses = [
        np.log(np.sum(np.exp(row[VALID]))) - row[t] for row, t in zip(logits, TARGETS, strict=True)
    ]
    value = np.sum(losses * WEIGHTS) / np.sum(WEIGHTS)
    loss = jax.jit(fused())(QUERIES, WEIGHTS, TABLE, BIAS)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, value, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 5, 8, 16, 40, None])
def test_every_chunk_equals_dense(chunk, expected):
    found = jax.jit(jax.value_and_grad(fused(chunk), ALL))(QUERIES, WEIGHTS, TABLE, BIAS)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    close(found[1], expected[1])


def test_eager_equals_jit_and_the_cotangent_scales():
    def tripled(*x):
        return 3 * fused(5)(*x)

    arrays = [jnp.asarray(x) for x in (QUERIES, WEIGHTS, TABLE, BIAS)]
    eager = jax.value_and_grad(fused(5), ALL)(*arrays)
    value, gradients = jax.jit(jax.value_and_grad(tripled, ALL))(*arrays)
    close(eager, (value / 3, [g / 3 for g in gradients]), 1e-6)


def test_float64_gradients_equal_dense_to_rounding(float64):
    arrays = [jnp.asarray(x, jnp.float64) for x in (QUERIES, WEIGHTS, TABLE, BIAS, 0.3)]
    five = tuple(range(5))
    found = jax.jit(jax.value_and_grad(fused(5), five))(*arrays)
    exact = jax.jit(jax.value_and_grad(dense, five))(*arrays)
    close(found, exact, 1e-12)


def test_without_bias_or_mask(expected):
    def plain(queries, table):
        return full_softmax(queries, TARGETS, WEIGHTS, table, chunk=5)

    def reference(queries, table):
        every, zero = np.ones(N, bool), jnp.zeros(N)
        return dense(queries, WEIGHTS, table, zero, valid=every)

    found = jax.jit(jax.value_and_grad(plain, (0, 1)))(QUERIES, TABLE)
    close(found, jax.jit(jax.value_and_grad(reference, (0, 1)))(QUERIES, TABLE))


def test_no_weight_is_no_loss_and_padding_rows_get_no_gradient():
    gradient = jax.jit(jax.value_and_grad(fused(5), (0, 2)))
    loss, both = gradient(QUERIES, np.zeros(B, np.float32), TABLE, BIAS)
    assert loss == 0 and all(np.all(np.array(x) == 0) for x in both)
    _, (dq, dtable) = gradient(QUERIES, WEIGHTS, TABLE, BIAS)
    assert np.all(np.array(dq)[[2, 5]] == 0) and np.all(np.array(dtable)[~VALID] == 0)
    assert np.all(np.any(np.array(dtable)[VALID] != 0, axis=1))


@pytest.mark.parametrize("real", [0, 1, 5, 6, 15, 16])
def test_chunks_of_no_weight_are_not_computed(real):
    """A NaN behind weight 0 never enters; what has weight may stand anywhere."""
    weights = np.zeros(B, np.float32)
    weights[np.random.default_rng(real).permutation(B)[:real]] = 1

    def loss(queries, table):
        return full_softmax(queries, TARGETS, weights, table, VALID, chunk=5)

    queries = np.where(weights[:, None] > 0, QUERIES, np.nan if real in (0, 5, 15) else 0)
    value, (dq, dtable) = jax.jit(jax.value_and_grad(loss, (0, 1)))(queries, TABLE)
    logits = np.where(VALID[None], QUERIES @ TABLE.T, MASKED)
    lse = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    every = (lse - np.take_along_axis(logits, TARGETS[:, None], 1)[:, 0])[weights > 0]
    np.testing.assert_allclose(value, every.mean() if real else 0, rtol=1e-5)
    assert np.isfinite(dq).all() and np.isfinite(dtable).all()


def test_nothing_valid_is_finite():
    nothing = np.zeros(N, bool)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda q: full_softmax(q, TARGETS, WEIGHTS, TABLE, nothing))
    )(QUERIES)
    assert np.isfinite(loss) and np.all(np.isfinite(gradient))


def test_loss_vanishes_where_the_target_stands_far_above():
    eye = np.eye(8, dtype=np.float32)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda q: full_softmax(q, np.arange(8), np.ones(8), eye))
    )(200 * eye)
    assert loss == 0 and np.all(np.array(gradient) == 0)


def test_bfloat16_inputs_give_float32_loss_and_close_gradients(expected):
    half = [jnp.asarray(x, jnp.bfloat16) for x in (QUERIES, WEIGHTS, TABLE, BIAS)]
    half[1] = jnp.asarray(WEIGHTS)
    loss, gradients = jax.jit(jax.value_and_grad(fused(5), ALL))(*half)
    assert loss.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [x.dtype for x in half]
    wide = [x.astype(jnp.float32) for x in half]
    exact, exact_gradients = jax.jit(jax.value_and_grad(dense, ALL))(*wide)
    np.testing.assert_allclose(loss, exact, rtol=1e-5)  # logits are float32
    for x, y in zip(gradients, exact_gradients, strict=True):
        x, y = np.array(x, np.float32), np.array(y)
        assert np.linalg.norm(x - y) < 0.01 * np.linalg.norm(y)


def test_memory_holds_a_chunk_and_the_forward_pass_one_product():
    b, n, d, chunk = 2048, 4096, 16, 64
    shapes = [(b, d), (b,), (b,), (n, d)]
    types = [jnp.float32, jnp.int32, jnp.float32, jnp.float32]
    arguments = [jax.ShapeDtypeStruct(s, t) for s, t in zip(shapes, types, strict=True)]

    def loss(q, t, w, e):
        return full_softmax(q, t, w, e, chunk=chunk)

    both = jax.jit(jax.value_and_grad(loss, (0, 3))).lower(*arguments).compile()
    assert both.memory_analysis().temp_size_in_bytes < 4 * (3 * chunk * n + 4 * n * d + 4 * b * d)
    assert 4 * b * n > 8 * both.memory_analysis().temp_size_in_bytes
    assert str(jax.make_jaxpr(loss)(*arguments)).count("dot_general") == 1
    assert str(jax.make_jaxpr(jax.grad(loss))(*arguments)).count("dot_general") == 3


def test_default_chunk_bounds_the_logits():
    assert chunk_size(6400, 12_160) * 12_160 <= CHUNK_ELEMENTS
    assert chunk_size(6400, 12_160) * -(-6400 // chunk_size(6400, 12_160)) < 6400 + 16
    assert chunk_size(10, 100) == 10 and chunk_size(10, 10**9) == 1 and chunk_size(0, 5) == 1


def make_mesh(shape):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def compiled_on(mesh, function):
    """`function` of (queries, weights, table, bias), compiled with and given sharded arguments."""
    rows = ("data", "model")
    specs = [P("data", None), P("data"), P(rows, None), P(rows)]
    shards = [NamedSharding(mesh, s) for s in specs]
    arrays = [
        jax.device_put(x, s) for x, s in zip((QUERIES, WEIGHTS, TABLE, BIAS), shards, strict=True)
    ]
    step = jax.jit(jax.value_and_grad(function, ALL), out_shardings=(None, tuple(shards)))
    return step.lower(*arrays).compile(), arrays


def collective_sizes(text):
    """Elements of every array that a collective of this HLO produces."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", text)
    shapes = [s for types in found for s in re.findall(r"\w+\[([\d,]*)\]", types)]
    return [int(np.prod([int(x) for x in s.split(",") if x])) for s in shapes]


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4)])
def test_sharded_equals_one_device_without_moving_the_table(shape, expected):
    mesh = make_mesh(shape)

    def loss(queries, weights, table, bias):
        return sharded_softmax(queries, TARGETS, weights, table, VALID, mesh, bias, chunk=5)

    step, arrays = compiled_on(mesh, loss)
    found = step(*arrays)
    close(found, expected)
    assert {s.data.shape for s in found[1][2].addressable_shards} == {(N // 8, D)}
    sizes = collective_sizes(step.as_text())
    assert sizes and max(sizes) <= B * D < N * D // 8


def test_sharded_on_one_device_forward_only_and_plain(expected):
    mesh = jax.make_mesh(
        (1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    loss = jax.jit(
        lambda q, e: sharded_softmax(q, TARGETS, WEIGHTS, e, VALID, mesh, temperature=0.5)
    )(QUERIES, TABLE)
    np.testing.assert_allclose(loss, dense(QUERIES, WEIGHTS, TABLE, jnp.zeros(N), 0.5), rtol=1e-6)


def test_errors_name_what_does_not_fit():
    with pytest.raises(ValueError, match=r"weights has shape \(15,\), expected \(16,\)"):
        full_softmax(QUERIES, TARGETS, WEIGHTS[1:], TABLE)
    with pytest.raises(ValueError, match=r"queries has shape"):
        full_softmax(QUERIES[None], TARGETS, WEIGHTS, TABLE)
    mesh = make_mesh((4, 2))
    with pytest.raises(ValueError, match="pad it to 512 rows"):
        sharded_softmax(QUERIES, TARGETS, WEIGHTS, TABLE[:505], None, mesh)
    with pytest.raises(ValueError, match="14 queries do not divide"):
        sharded_softmax(QUERIES[:14], TARGETS[:14], WEIGHTS[:14], TABLE, None, mesh)
    other = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="mesh has axes"):
        sharded_softmax(QUERIES, TARGETS, WEIGHTS, TABLE, None, other)
