"""Two recommenders as one: the formulas, and that masks and doors still hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.loader import requests
from pipelines.schema import Ragged
from pipelines.transforms import pack
from zoo.models import MODELS, build
from zoo.models.fusion import fuse
from zoo.scorer import scorer


def fixed(table: np.ndarray):
    """A recommender whose scores are a row of a table, chosen by the first item."""
    table = jnp.asarray(table, jnp.float32)

    def match(params, index, query, items):
        if items.ndim == 1:
            return query[:, items]
        return jnp.take_along_axis(query, items, axis=1)

    return scorer(
        lambda key, catalogue, batch: {},
        lambda params, catalogue, batch, key: (jnp.zeros(()), {}),
        lambda params, catalogue: {"valid": catalogue["valid"]},
        lambda params, index, batch: table[batch["items"][:, 0]],
        match,
    )


CATALOGUE = {"valid": np.array([False, True, True, True, True, False])}
BATCH = {"items": np.array([[1], [2]], np.int32), "exclude": np.array([[1], [2]], np.int32)}
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(6, 6)), np.abs(RNG.normal(size=(6, 6)))


def fused(**fields):
    recommender = fuse(fixed(A), fixed(B), **fields)
    params = recommender.init(jax.random.key(0), CATALOGUE, BATCH)
    return recommender, params, recommender.index(params, CATALOGUE)


def test_mixture_is_the_formula():
    recommender, params, index = fused(weight=2.0)
    items = np.array([[3, 4], [1, 3]], np.int32)
    got = recommender.score(params, index, BATCH, items)
    for row, (history, wanted) in enumerate(zip((1, 2), items, strict=True)):
        left = [i for i in (1, 2, 3, 4) if i != history]
        p, q = np.exp(A[history][left]), B[history][left]
        told = dict(zip(left, p / p.sum() + 2 * q / q.sum(), strict=True))
        np.testing.assert_allclose(got[row], [told[i] for i in wanted], rtol=1e-5)


def test_product_is_the_formula():
    recommender, params, index = fused(weight=0.5, how="product", epsilon=1e-2)
    got = recommender.score(params, index, BATCH, np.array([[3], [4]], np.int32))
    want = [A[1, 3] + 0.5 * np.log(B[1, 3] + 1e-2), A[2, 4] + 0.5 * np.log(B[2, 4] + 1e-2)]
    np.testing.assert_allclose(got[:, 0], want, rtol=1e-5)


@pytest.mark.parametrize("how", ["mixture", "product"])
def test_history_and_padding_stay_out(how):
    recommender, params, index = fused(how=how)
    items, _ = jax.jit(recommender.recommend, static_argnums=3)(params, index, BATCH, 3)
    assert sorted(np.asarray(items)[0].tolist()) == [2, 3, 4]
    assert sorted(np.asarray(items)[1].tolist()) == [1, 3, 4]


def test_unknown_way():
    with pytest.raises(ValueError, match="mixture, product"):
        fuse(fixed(A), fixed(B), how="sum")


def test_a_model_that_searches_takes_no_prior():
    with pytest.raises(ValueError, match="scores only what it finds"):
        fuse(build("tiger"), fixed(A))


@pytest.mark.parametrize("name", ["hstu", "bsarec", "bert4rec", "unisrec", "mp4sr"])
def test_every_sequential_model_takes_a_prior(name):
    rows = np.arange(16)
    valid = (rows > 0) & (rows <= 8)
    catalogue = {
        "valid": valid,
        "popularity": np.where(valid, 9.0 - rows, 0).astype(np.float32),
        "features": {"text": RNG.normal(size=(16, 4)).astype(np.float32)},
        "present": {"text": valid},
    }
    asked = requests(Ragged.of([[1, 2, 3], [4, 5]]), np.arange(1, 3, dtype=np.int32), 4, 4)
    model = build(name, width=8, max_len=4, layers=1)
    batch = pack(Ragged.of([[], [1, 2, 3], [4, 5, 6]]), 4, scheme=MODELS[name].targets)
    both, light = (fuse(model, build("popularity"), weight=w) for w in (1e3, 0.0))
    params = both.init(jax.random.key(0), catalogue, batch)
    found, _ = both.recommend(params, both.index(params, catalogue), asked, 3)
    np.testing.assert_array_equal(found, [[4, 5, 6], [1, 2, 3]])  # so heavy a prior decides
    found, _ = light.recommend(params, light.index(params, catalogue), asked, 3)
    alone, _ = model.recommend(params["a"], model.index(params["a"], catalogue), asked, 3)
    np.testing.assert_array_equal(found, alone)


def test_a_graph_model_and_a_counted_one_fuse():
    users = np.repeat(np.arange(1, 9, dtype=np.int32), 3)
    items = (users - 1 + np.tile([0, 1, 2], 8)) % 8 + 1
    rows = np.arange(16)
    catalogue = {
        "valid": (rows > 0) & (rows <= 8),
        "popularity": np.bincount(items, minlength=16).astype(np.float32),
        "users": np.bincount(users, minlength=16).astype(np.float32),
        "train": {"users": users, "items": items.astype(np.int32)},
    }
    recommender = fuse(build("lightgcn", width=8), build("cf-graph"))
    ready = recommender.prepare(catalogue, 1)
    params = recommender.init(jax.random.key(0), ready, {})
    batch = requests(Ragged.of([[1, 2, 3]]), np.ones(1, np.int32), 4, 4)
    found, _ = recommender.recommend(params, recommender.index(params, ready), batch, 5)
    assert sorted(np.asarray(found)[0].tolist()) == [4, 5, 6, 7, 8]
