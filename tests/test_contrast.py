"""Contrast in the batch: published numbers, the spec's vectors, slopes, rows that are filling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.contrast import cmcl, cmcl_each, nip, seq_item, seq_seq

A = jnp.array([[1.0, 0.0], [0.6, 0.8]])
B = jnp.array([[0.8, 0.6], [0.28, 0.96]])
EPS = (1e-5, -1e-5)
IDS = jnp.array([3, 5, 3, 9, 10, 5, 7])


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def views(count: int, d: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [unit(rng.normal(size=(len(IDS), d))) for _ in range(count)]


def published() -> dict:
    with np.load(FIXTURES / "mp4sr_losses_tiny.npz") as found:
        return {k: found[k] for k in found.files}


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_official_values_are_those_of_the_published_code(float64):
    f = published()
    items = unit(f["pos_item"])
    got = nip(f["a"], items, f["pos_id"], f["tau"], official=True)
    np.testing.assert_allclose(got, f["nip"], rtol=1e-12)
    got = cmcl(f["a"], f["b"], f["pos_id"], f["tau"], official=True)
    np.testing.assert_allclose(got, f["cmcl"], rtol=1e-10)


def test_official_float32_loses_no_more_than_the_subtraction_costs():
    f = published()
    a, b = f["a"].astype(np.float32), f["b"].astype(np.float32)
    got = cmcl(a, b, f["pos_id"], float(f["tau"]), official=True)
    np.testing.assert_allclose(got, f["cmcl"], atol=3e-3)
    sound = cmcl(a, b, f["pos_id"], float(f["tau"]))
    np.testing.assert_allclose(sound, 8.151707327933448, rtol=1e-6)  # own float64 sums


def test_by_hand():
    """Two sequences, temperature 0.5; each mean over the sequences."""
    ids = jnp.array([1, 2])
    first, second = cmcl_each(A, B, ids, 0.5)
    np.testing.assert_allclose(first.mean(), 0.822458, atol=1e-6)
    np.testing.assert_allclose(second.mean(), 0.944717, atol=1e-6)
    np.testing.assert_allclose(cmcl(A, B, ids, 0.5), 0.883587, atol=1e-6)
    np.testing.assert_allclose(nip(A, B, ids, 0.5), 0.510048, atol=1e-6)


def test_the_cross_term_runs_over_the_rows_of_the_first_stream():
    """Written out as a sum over pairs; swapping the streams is another loss."""
    a, b = views(2)
    t, total = 0.3, 0.0
    for i in range(len(IDS)):
        others = [j for j in range(len(IDS)) if j == i or IDS[j] != IDS[i]]
        cross = sum(np.exp(a[i] @ b[j] / t) for j in others)
        for x in (a, b):
            intra = sum(np.exp(x[i] @ x[j] / t) for j in others if j != i)
            total += -np.log(np.exp(a[i] @ b[i] / t) / (cross + intra)) / (2 * len(IDS))
    np.testing.assert_allclose(cmcl(a, b, IDS, t), total, rtol=1e-6)
    assert abs(cmcl(b, a, IDS, t) - total) > 1e-3


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("loss", [nip, cmcl], ids=lambda f: f.__name__)
def test_filling_is_neither_row_nor_column(loss, official):
    a, b = views(2)
    rng = np.random.default_rng(1)
    filling = unit(rng.normal(size=(3, 4)))
    more = [np.concatenate([x, filling]) for x in (a, b)]
    ids = jnp.concatenate([IDS, jnp.array([0, 0, 3])])
    weights = jnp.array([1.0] * len(IDS) + [0.0] * 3)
    plain = loss(a, b, IDS, 0.2, official=official)
    filled = loss(*more, ids, 0.2, weights, official=official)
    np.testing.assert_allclose(filled, plain, rtol=2e-5 if official else 1e-6)
    nothing = loss(*more, ids, 0.2, 0 * weights, official=official)
    assert nothing == 0


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("loss", [nip, cmcl], ids=lambda f: f.__name__)
def test_filling_may_be_zeros(loss, official):
    """A state of zeros has exp(0) on the intra-modal diagonal, not exp(1/t)."""
    a, b = (x.astype(np.float32) for x in views(2))
    more = [jnp.asarray(np.pad(x, ((0, 3), (0, 0)))) for x in (a, b)]
    ids = jnp.concatenate([IDS, jnp.array([0, 0, 3])])
    weights = jnp.array([1.0] * len(IDS) + [0.0] * 3)
    value = lambda x, y: loss(x, y, ids, 0.07, weights, official)  # noqa: E731
    filled, slopes = jax.value_and_grad(value, argnums=(0, 1))(*more)
    plain = loss(a, b, IDS, 0.07, official=official)
    np.testing.assert_allclose(filled, plain, rtol=2e-5 if official else 1e-6)
    for slope in slopes:
        assert np.isfinite(slope).all() and not slope[len(IDS) :].any()


@pytest.mark.parametrize("official", [False, True])
def test_equal_next_items_are_no_negatives(official):
    """Sequences 0 and 2 went on to the same item, 1 to another: only 1 is a negative of 0."""
    a, z = (jnp.asarray(x) for x in views(2))
    slope = jax.grad(partial(nip, item_ids=IDS, temperature=0.2, official=official))
    before = slope(a, z)[0]
    np.testing.assert_array_equal(slope(a, z.at[2].set(z[4]))[0], before)
    assert np.abs(slope(a, z.at[1].set(z[4]))[0] - before).max() > 1e-3


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("loss", [nip, cmcl], ids=lambda f: f.__name__)
def test_slopes_are_those_of_finite_differences(loss, official, float64):
    points = [jnp.asarray(x) for x in views(2)]
    along = [jnp.asarray(x) for x in views(4)[2:]]
    weights = jnp.array([1.0, 1, 1, 0, 1, 1, 1])
    value = lambda a, b: loss(a, b, IDS, 0.3, weights, official)  # noqa: E731
    quick = {"xla_backend_optimization_level": 0}
    slopes = jax.jit(jax.grad(value, argnums=(0, 1)), compiler_options=quick)(*points)
    predicted = sum(jnp.sum(g * v) for g, v in zip(slopes, along, strict=True))
    up, down = (value(*[p + e * v for p, v in zip(points, along, strict=True)]) for e in EPS)
    np.testing.assert_allclose(predicted, (up - down) / (EPS[0] - EPS[1]), rtol=1e-6)


def test_unisrec_contrasts_are_softmaxes_over_the_batch():
    h, z, other = (jnp.asarray(x) for x in views(3))
    same = (IDS[:, None] == IDS[None, :]) & ~np.eye(len(IDS), dtype=bool)
    for loss, columns in ((seq_item, z), (seq_seq, other)):
        scores = np.exp(np.asarray(h @ columns.T) / 0.07)
        scores[same] = 0
        expected = -np.mean(np.log(np.diag(scores) / scores.sum(1)))
        np.testing.assert_allclose(loss(h, columns, IDS), expected, rtol=1e-5)


def test_bfloat16_vectors_give_float32_losses():
    a, b = (jnp.asarray(x, jnp.bfloat16) for x in views(2))
    assert nip(a, b, IDS).dtype == cmcl(a, b, IDS).dtype == jnp.float32
