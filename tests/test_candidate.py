"""Candidate-side fusion: its weights, its softmax, and a recommender that scores by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained_models import N_ITEMS, asked, jit, made, without, world

from zoo.models import build
from zoo.models.candidate import fused, fused_softmax

SCORES = jnp.array([[1.0, 3.0, -2.0], [0.5, 9.0, 9.0], [4.0, 4.0, 4.0]])
THERE = jnp.array([[True, True, False], [True, False, False], [False, False, False]])


def test_what_is_missing_weighs_nothing_and_phi_says_how_much_the_best_counts():
    np.testing.assert_allclose(fused(SCORES, THERE, 0.0), [2.0, 0.5, 0.0])
    np.testing.assert_allclose(fused(SCORES, THERE, 50.0), [3.0, 0.5, 0.0], rtol=1e-6)
    w = np.exp([0.5, 1.5]) / np.exp([0.5, 1.5]).sum()
    np.testing.assert_allclose(fused(SCORES, THERE, 0.5)[0], w[0] + 3 * w[1], rtol=1e-6)
    grad = jax.grad(lambda phi: jnp.sum(fused(SCORES, THERE, phi)))(0.0)
    np.testing.assert_allclose(grad, 1.0, rtol=1e-6)  # the variance of 1 and 3


def test_the_softmax_is_the_dense_one_with_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    q, z = jax.random.normal(keys[0], (7, 4)), jax.random.normal(keys[1], (30, 2, 4))
    there = jax.random.bernoulli(keys[2], 0.7, (30, 2)).at[:8, 0].set(True)
    seen, targets = jnp.arange(30) < 25, jnp.arange(7) + 1
    weights = jnp.array([1.0, 1, 0, 1, 1, 0, 1])

    def dense(q, z, phi):
        f = jnp.einsum("pd,nmd->pnm", q, z)
        w = jnp.where(there, jnp.exp(phi * f), 0)
        f = jnp.sum(w * f, -1) / jnp.maximum(jnp.sum(w, -1), 1e-30)
        log_p = jax.nn.log_softmax(jnp.where(seen, f, -jnp.inf))
        return -jnp.sum(log_p[jnp.arange(7), targets] * weights) / 5

    mine = lambda q, z, phi: fused_softmax(q, targets, weights, z, there, seen, phi)  # noqa: E731
    got, expected = (jax.value_and_grad(f, (0, 1, 2))(q, z, 0.3) for f in (mine, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_a_recommender_ranks_by_fused_scores_and_learns_phi(combine):
    recommender, params = made("unisrec", "transductive", combine=combine, candidate_fusion=True)
    catalogue, batch, _ = world()
    index, given = jit(recommender.index)(params, catalogue), asked()
    assert index["views"].shape[1] == (3 if combine == "sum" else 2)
    got, scores = jit(lambda *x: recommender.recommend(*x, 7))(params, index, given)
    every = np.broadcast_to(np.arange(1, N_ITEMS + 1, dtype=np.int32), (8, N_ITEMS))
    full = np.array(jit(recommender.score)(params, index, given, every))
    for row, (items, best) in enumerate(zip(np.asarray(got), np.asarray(scores), strict=True)):
        np.testing.assert_allclose(best, full[row, items - 1], rtol=1e-5)
        out = set(np.asarray(given["exclude"])[row].tolist()) if "exclude" in given else set()
        left = [full[row, i - 1] for i in range(1, N_ITEMS + 1) if i not in out]
        np.testing.assert_allclose(best, np.sort(left)[::-1][:7], rtol=1e-5)
    query = jit(recommender.encode)(params, index, given)
    z, there = np.asarray(index["views"])[5], np.asarray(index["there"])[5]
    phi = params["fusion"]["phi"]
    np.testing.assert_allclose(fused(query @ z.T, there[None], phi), full[:, 4], rtol=1e-5)
    grad = jit(jax.grad(lambda p: recommender.loss(p, catalogue, batch, jax.random.key(0))[0]))
    grad = grad(params)
    assert abs(grad["fusion"]["phi"]) > 1e-6 and all(
        np.all(np.isfinite(x)) for x in jax.tree.leaves(grad)
    )


def test_a_missing_modality_is_read_by_no_one():
    recommender, params = made("unisrec", "transductive", candidate_fusion=True)
    scores = []
    for noise in (0.0, 1e3):
        index = jit(recommender.index)(params, without("image", noise))
        every = np.broadcast_to(np.arange(1, N_ITEMS + 1, dtype=np.int32), (8, N_ITEMS))
        scores.append(jit(recommender.score)(params, index, asked(), every))
    np.testing.assert_array_equal(*scores)


def test_it_goes_with_content_and_pretraining_is_as_before():
    with pytest.raises(ValueError, match="item_input='codes' has one view"):
        build("unisrec", candidate_fusion=True, item_input="codes")
    pretrain = build("unisrec", stage="pretrain", candidate_fusion=True)
    shapes = jax.eval_shape(pretrain.init, jax.random.key(0), world()[0], world()[1])
    assert "fusion" not in shapes
