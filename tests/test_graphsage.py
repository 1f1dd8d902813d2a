"""GraphSAGE: its equations in dense numpy, what a vector may know, and names of items that are
only names."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.models import build
from zoo.models.graphsage import standardised

N_USERS, N_ITEMS, ROWS, WIDTH, HIDDEN = 14, 24, 32, 4, 6
IMAGE, TEXT = 5, 3
SAGE = {"width": WIDTH, "hidden": HIDDEN}


@cache
def world() -> dict:
    """A catalogue; the last item has no interaction, item 3 no content, item 5 no image."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, N_USERS), 3).astype(np.int32)
    items = np.concatenate([rng.permutation(N_ITEMS - 2)[:3] + 1 for _ in range(1, N_USERS)])
    valid = (np.arange(ROWS) > 0) & (np.arange(ROWS) <= N_ITEMS)
    here = np.arange(ROWS)
    return {
        "valid": valid,
        "popularity": np.bincount(items, minlength=ROWS).astype(np.float32),
        "features": {
            "text": rng.normal(size=(ROWS, TEXT)).astype(np.float32),
            "image": rng.normal(size=(ROWS, IMAGE)).astype(np.float32),
        },
        "present": {"image": valid & (here != 3) & (here != 5), "text": valid & (here != 3)},
        "users": np.bincount(users, minlength=ROWS).astype(np.float32),
        "train": {"users": users, "items": items.astype(np.int32)},
    }


@cache
def made():
    """(recommender, prepared catalogue, params)."""
    recommender = build("graphsage", **SAGE)
    catalogue = jax.tree.map(jnp.asarray, recommender.prepare(world(), 1))
    return recommender, catalogue, jax.jit(recommender.init)(jax.random.key(0), catalogue, {})


def links() -> np.ndarray:
    """bool [u,n]."""
    out = np.zeros((ROWS, ROWS), bool)
    out[world()["train"]["users"], world()["train"]["items"]] = True
    return out


def test_it_is_the_equations():
    recommender, catalogue, params = made()
    index = jax.jit(recommender.index)(params, catalogue)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = [np.zeros((ROWS, f)) for f in (IMAGE, TEXT)]
    for rows, m in zip(x, ("image", "text"), strict=True):
        here = world()["present"][m]
        raw = world()["features"][m][here].astype(np.float64)
        rows[here] = (raw - raw.mean(0)) / raw.std(0)
    users, items = p["users"]["table"], np.concatenate(x, axis=1) @ p["fuse"]
    to_items = links() / np.maximum(links().sum(1, keepdims=True), 1)
    to_users = links().T / np.maximum(links().T.sum(1, keepdims=True), 1)
    for i in (0, 1):
        own, near = (p[f"layer_{i}"][name]["kernel"] for name in ("own", "near"))
        users, items = (
            users @ own + to_items @ items @ near,
            items @ own + to_users @ users @ near,
        )
        if i == 0:
            users, items = (np.where(h > 0, h, 0.01 * h) for h in (users, items))
    np.testing.assert_allclose(index["users"], users, atol=1e-5)
    np.testing.assert_allclose(index["table"], items, atol=1e-5)


def test_a_vector_knows_what_its_two_hops_know():
    recommender, catalogue, params = made()

    @jax.jit
    def reach(image, item):
        features = {**catalogue["features"], "image": image}

        def vector(image):
            seen = {**catalogue, "features": {**features, "image": image}}
            return jnp.sum(recommender.index(params, seen)["table"][item])

        return jnp.abs(jax.grad(vector)(image)).sum(1) > 0

    together = links().T.astype(int) @ links()
    for item in (1, 8, N_ITEMS):
        expected = (together[item] > 0) & world()["present"]["image"]
        expected[item] = world()["present"]["image"][item]
        np.testing.assert_array_equal(reach(catalogue["features"]["image"], item), expected)


def test_a_mean_that_all_items_share_says_nothing():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
    x = jnp.concatenate([x, jnp.full((6, 1), 7.0)], axis=1)  # and a column without spread
    here = jnp.arange(6) < 4
    y = np.asarray(jax.jit(standardised)(x + jnp.asarray([[30.0, 0.0, 0.0]]), here))
    expected = np.asarray(x)[:4, :2]
    expected = (expected - expected.mean(0)) / expected.std(0)
    np.testing.assert_allclose(y[:4, :2], expected, atol=1e-4)
    assert not y[4:].any() and not y[:, 2].any()
    nobody = jax.jit(standardised)(x, here & False)
    assert not np.asarray(nobody).any()


def test_every_parameter_learns():
    recommender, catalogue, params = made()
    train = world()["train"]
    batch = {"users": train["users"][:, None], "targets": train["items"][:, None]}
    grad = jax.jit(jax.grad(recommender.loss, has_aux=True))
    grads, told = grad(params, catalogue, batch, jax.random.key(1))
    assert told["targets"] == len(train["users"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, path
    again = grad(params, catalogue, batch, jax.random.key(2))[0]
    assert np.abs(again["fuse"] - grads["fuse"]).max() > 0, "dropout and negatives draw anew"


def test_items_in_another_order_have_the_same_vectors():
    recommender, _, params = made()
    order = np.concatenate([[0], 1 + np.random.default_rng(3).permutation(N_ITEMS)])
    order = np.concatenate([order, np.arange(len(order), ROWS)])  # new row -> old row
    place = np.argsort(order)
    turned = jax.tree.map(lambda a: a[order], {k: world()[k] for k in ("features", "present")})
    train = {"users": world()["train"]["users"], "items": place[world()["train"]["items"]]}
    turned = {**world(), **turned, "popularity": world()["popularity"][order], "train": train}
    tables = [recommender.index(params, recommender.prepare(c, 1)) for c in (world(), turned)]
    np.testing.assert_allclose(tables[1]["table"], tables[0]["table"][order], atol=1e-6)
    np.testing.assert_allclose(tables[1]["users"], tables[0]["users"], atol=1e-6)


def test_any_modalities_in_any_order_and_none_is_refused():
    catalogue = {**world(), "features": {"taste": world()["features"]["text"]}}
    catalogue["present"] = {"taste": world()["present"]["text"]}
    recommender = build("graphsage", **SAGE, modalities=("taste",))
    shapes = jax.eval_shape(
        recommender.init, jax.random.key(0), recommender.prepare(catalogue, 1), {}
    )
    assert shapes["fuse"].shape == (TEXT, HIDDEN)
    bare = {**world(), "features": {}, "present": {}}
    with pytest.raises(ValueError, match="graphsage reads content, and here is none"):
        recommender = build("graphsage", **SAGE)
        recommender.init(jax.random.key(0), recommender.prepare(bare, 1), {})
