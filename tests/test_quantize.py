"""Residual and product quantisation: parity, known clusters, determinism, chunks and devices."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import kmeans as km
from zoo import quantize
from zoo.mesh import make_mesh

X = np.random.default_rng(0).normal(size=(96, 8)).astype(np.float32)


def error(quantiser, x) -> float:
    """Mean squared distance from the vectors to what their codes stand for."""
    codes = quantize.encode(quantiser, x)
    return float(((np.asarray(quantize.decode(quantiser, codes)) - x) ** 2).sum(1).mean())


def blobs(n=20, spread=0.01):
    """Six tight clusters, and which one each row is of."""
    centres = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32) * 5
    label = np.arange(6 * n) % 6
    noise = np.random.default_rng(2).normal(size=(6 * n, 8)).astype(np.float32) * spread
    return centres[label] + noise, label


def test_codes_of_given_codebooks_are_the_published_ones():
    z = np.load(FIXTURES / "residual_quantisation_tiny.npz")
    codes = quantize.assign(jnp.asarray(z["x"]), jnp.asarray(z["codebooks"]))
    np.testing.assert_array_equal(codes, z["out_ids"])
    vectors = quantize.reconstruct(codes, jnp.asarray(z["codebooks"]))
    np.testing.assert_allclose(vectors, z["out_reconstruction"], atol=1e-5)
    np.testing.assert_allclose(z["x"] - vectors, z["out_final_residual"], atol=1e-5)


def test_last_distances_are_smallest_at_the_code_that_was_chosen():
    z = np.load(FIXTURES / "residual_quantisation_tiny.npz")
    x, codebooks = jnp.asarray(z["x"]), jnp.asarray(z["codebooks"])
    distances = quantize.last_distances(x, jnp.asarray(z["out_ids"]), codebooks)
    np.testing.assert_array_equal(distances.argmin(1), z["out_ids"][:, -1])
    rest = (z["out_final_residual"] ** 2).sum(1)
    np.testing.assert_allclose(distances.min(1), rest, atol=1e-5)


@pytest.mark.parametrize("batch", [None, 48])
def test_clusters_that_stand_apart_are_found(batch):
    x, label = blobs()
    codebook = km.kmeans(
        jnp.asarray(x), jax.random.key(0), 6, 8 if batch is None else 40, batch=batch
    )
    codes = np.asarray(km.nearest(jnp.asarray(x), codebook))
    assert (
        len(set(zip(codes.tolist(), label.tolist(), strict=True))) == len(set(codes.tolist())) == 6
    )


def test_a_sampled_start_is_of_distinct_rows():
    start = np.asarray(km.kmeans(jnp.asarray(X), jax.random.key(0), 96, 0, "sample"))
    np.testing.assert_array_equal(np.unique(start, axis=0), np.unique(X, axis=0))


def test_an_empty_cluster_moves_to_the_farthest_row():
    x = jnp.asarray([[0.0], [0.1], [10.0], [30.0]])
    start = jnp.asarray([[0.0], [-1000.0], [-2000.0]])
    codebook = np.sort(np.asarray(km.lloyd(x, start, 3)).ravel())
    np.testing.assert_allclose(codebook, [0.05, 10, 30], atol=1e-6)


def test_a_running_mean_is_the_mean_when_a_batch_is_everything():
    x, _ = blobs()
    start = jnp.asarray(x[:6])
    once = km.mini_batches(jnp.asarray(x), start, jax.random.key(0), 1, len(x))
    np.testing.assert_allclose(once, km.lloyd(jnp.asarray(x), start, 1), atol=1e-4)


def test_each_level_lowers_the_error_and_lloyd_lowers_it_further():
    three = [error(quantize.fit_residual(X, levels, 8, steps=10), X) for levels in (1, 2, 3)]
    assert three[0] > 1.2 * three[1] > 1.4 * three[2]
    assert three[2] < error(quantize.fit_residual(X, 3, 8, steps=0), X)


def test_the_same_seed_gives_the_same_codes_in_any_order_of_the_items():
    order = np.random.default_rng(3).permutation(len(X))
    one, two, other = (
        quantize.fit_residual(x, 2, 8, s) for x, s in ((X, 0), (X[order], 0), (X, 1))
    )
    np.testing.assert_array_equal(one.codebooks, two.codebooks)
    np.testing.assert_array_equal(quantize.encode(one, X)[order], quantize.encode(two, X[order]))
    assert not np.array_equal(one.codebooks, other.codebooks)


def test_rows_are_sorted_by_their_last_columns():
    x = np.random.default_rng(0).integers(0, 3, (500, 4)).astype(np.float32)
    x[:250, -1] += np.arange(250)
    np.testing.assert_array_equal(x[quantize._in_order(x)], x[np.lexsort(x.T)])


def test_standardised_columns_weigh_alike():
    x, label = blobs(spread=1.0)
    scaled = x * np.asarray([1e3] + [1e-2] * 7, np.float32)
    codes = [quantize.encode(quantize.fit_residual(v, 1, 6), v) for v in (x, scaled)]
    same = [c[:, None] == c[None] for c in (np.asarray(codes[0])[:, 0], np.asarray(codes[1])[:, 0])]
    assert (same[0] == same[1]).mean() > 0.99


def test_product_codes_are_k_means_of_every_group():
    quantiser = quantize.fit_product(X, groups=4, size=8, steps=10)
    x = np.asarray(quantize.standard(quantiser, X))
    codes = np.asarray(quantize.encode(quantiser, X))
    for g in range(4):
        columns = slice(2 * g, 2 * g + 2)
        book = np.asarray(quantiser.codebooks[g])
        assert not np.delete(book, np.r_[columns], axis=1).any()
        distance = ((x[:, None, columns] - book[None, :, columns]) ** 2).sum(2)
        np.testing.assert_array_equal(codes[:, g], distance.argmin(1))


def test_a_rotation_lowers_the_error_where_columns_go_together():
    mix = np.random.default_rng(5).normal(size=(2, 8)).astype(np.float32)
    x = X[:, :2] @ mix + 0.05 * X  # two directions spread over all groups
    plain, turned = (
        error(quantize.fit_product(x, 4, 8, rotations=r, standardise=False), x) for r in (0, 10)
    )
    assert turned < 0.8 * plain


def test_blocks_and_devices_change_no_code(monkeypatch):
    books = quantize.fit_residual(X, 2, 8, standardise=False).codebooks
    whole = quantize.assign(jnp.asarray(X), books)
    rows = NamedSharding(make_mesh(8), P("data"))
    np.testing.assert_array_equal(quantize.assign(jax.device_put(X, rows), books), whole)
    monkeypatch.setattr(km, "BLOCK_ELEMENTS", {"cpu": 100})
    jax.clear_caches()
    np.testing.assert_array_equal(quantize.assign(jnp.asarray(X), books), whole)


@pytest.mark.parametrize("batch", [None, 40])
@pytest.mark.parametrize("start", km.STARTS)
@pytest.mark.parametrize("n", [96, 93])  # of eight devices
def test_a_mesh_fits_what_one_device_fits(batch, start, n):
    settings = {"levels": 2, "size": 8, "steps": 10, "batch": batch, "start": start}
    one = quantize.fit_residual(X[:n], **settings)
    spread = quantize.fit_residual(X[:n], **settings, mesh=make_mesh(4, 2))
    np.testing.assert_allclose(spread.codebooks, one.codebooks, atol=1e-5)
    np.testing.assert_array_equal(quantize.encode(spread, X), quantize.encode(one, X))


def test_rows_that_fill_up_a_mesh_revive_no_centre():
    far = np.concatenate([np.zeros((40, 2)), np.ones((2, 2))]).astype(np.float32) + 5
    settings = {"levels": 1, "size": 3, "steps": 5, "standardise": False, "start": "sample"}
    made = [quantize.fit_residual(far, **settings, mesh=m) for m in (None, make_mesh(8))]
    np.testing.assert_allclose(made[1].codebooks, made[0].codebooks, atol=1e-6)
    assert np.abs(made[1].codebooks).min() > 4  # none at the zeros behind the rows


def test_the_rows_stay_on_their_devices(monkeypatch):
    monkeypatch.setattr(km, "BLOCK_ELEMENTS", {"cpu": 100})
    mesh = make_mesh(8)
    x = jax.device_put(np.repeat(X, 8, 0), NamedSharding(mesh, P(mesh.axis_names)))

    def largest_gathered(mesh) -> int:
        text = km.lloyd.lower(x, jnp.asarray(X[:8]), 3, mesh).compile().as_text()
        shapes = re.findall(r"f32\[([\d,]+)\]\S* all-gather\(", text)
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert largest_gathered(mesh) == len(x)  # a distance a row, where a centre has lost its own
    assert largest_gathered(None) > len(x)


def test_errors_teach():
    with pytest.raises(ValueError, match="96 items cannot fill a codebook of 256"):
        quantize.fit_residual(X)
    with pytest.raises(ValueError, match="choose a divisor of 8"):
        quantize.fit_product(X, groups=3, size=4)
    with pytest.raises(ValueError, match="1 of 96 item vectors hold NaN.* row 7"):
        quantize.fit_residual(np.where(np.arange(96)[:, None] == 7, np.nan, X), size=8)
    with pytest.raises(ValueError, match="plusplus, sample"):
        quantize.fit_residual(X, size=8, start="random")
    with pytest.raises(ValueError, match="raise batch"):
        quantize.fit_residual(X, size=8, batch=4)
