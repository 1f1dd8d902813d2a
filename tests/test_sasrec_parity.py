"""SASRec's loss is the authors' code's, its gradients those of a float64 twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from test_layers import sasrec_params
from test_sequential_parity import slope

from zoo.layers import Stack, Trunk
from zoo.losses import bce

HEADS, EPSILON = 2, 1e-8
by_kind = pytest.mark.parametrize("name,kind", [("prenorm", "pre"), ("postnorm", "post")])


def published(name: str) -> dict:
    with np.load(FIXTURES / f"sasrec_{name}_tiny.npz", allow_pickle=False) as found:
        return {k: found[k] for k in found.files}


def start(z: dict) -> dict:
    """The published weights and the item table, under our names."""
    return {"trunk": sasrec_params(z), "items": z["w_item_emb_weight"]}


def ours(z: dict, kind: str):
    """params -> the loss of the fixture's positives and negatives."""
    seq, stack = z["seq"], Stack(2, kind, HEADS, epsilon=EPSILON, final_norm=True)
    trunk, real = Trunk(len(z["w_pos_emb_weight"]), stack=stack), jnp.asarray(z["pos"] > 0)
    # The reference attends to its padding, which stands at position 0.
    positions = np.where(seq > 0, np.arange(1, seq.shape[1] + 1)[None], 0)
    batch = {"segments": np.ones_like(seq), "positions": positions}

    def loss(params):
        h = trunk.apply({"params": params["trunk"]}, params["items"][seq], batch)
        positive, negative = (jnp.sum(h * params["items"][z[k]], -1) for k in ("pos", "neg"))
        flat = positive.reshape(-1), negative.reshape(-1, 1), real.reshape(-1)
        return bce(*flat[:2], flat[2].astype(jnp.float32))

    return loss


def twin(z: dict, kind: str):
    """The same from the equations, in float64 numpy."""

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return x * p["scale"] + p["bias"]

    def dense(x, p):
        return x @ p["kernel"] + p["bias"]

    def attend(x, p):
        b, n, d = x.shape
        q, k, v = (dense(x, p[m]).reshape(b, n, HEADS, -1) for m in ("query", "key", "value"))
        logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(d // HEADS)
        w = np.exp(np.where(np.tri(n, dtype=bool), logits, -np.inf))
        y = np.einsum("bhij,bjhd->bihd", w / w.sum(-1, keepdims=True), v).reshape(b, n, d)
        return dense(y, p["out"])

    def feed(x, p):
        return dense(np.maximum(dense(x, p["in"]), 0), p["out"])

    def loss(params):
        p, seq, real = params["trunk"], z["seq"], z["pos"] > 0
        places = np.where(seq > 0, np.arange(1, seq.shape[1] + 1)[None], 0)
        x = 4.0 * params["items"][seq] + p["positions"]["table"][places]
        for block in (p["stack"]["block_0"], p["stack"]["block_1"]):
            for sub, part in ((attend, "attention"), (feed, "ffn")):
                scales = block[f"{part}_norm"]
                if kind == "pre":
                    x = x + sub(norm(x, scales), block[part])
                else:
                    x = norm(x + sub(x, block[part]), scales)
        h = norm(x, p["stack"]["norm"])
        positive, negative = (np.sum(h * params["items"][z[k]], -1)[real] for k in ("pos", "neg"))
        return np.mean(np.logaddexp(0, -positive)) + np.mean(np.logaddexp(0, negative))

    return loss


@by_kind
def test_the_loss_is_the_published_one(name, kind):
    z = published(name)
    got = ours(z, kind)(jax.tree.map(jnp.asarray, start(z)))
    np.testing.assert_allclose(got, z["out_bce"], atol=1e-5)
    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), start(z))
    np.testing.assert_allclose(twin(z, kind)(exact), z["out_bce"], atol=1e-6)


def uneven(params: dict, times: float = 30.0) -> dict:
    """With queries and keys so large that attention is not flat, and its gradients are seen."""

    def leaf(path, x):
        name = jax.tree_util.keystr(path)
        return x * times if "query" in name or "key'" in name else x

    return jax.tree_util.tree_map_with_path(leaf, params)


@by_kind
def test_gradients_are_those_of_the_twin_leaf_by_leaf(name, kind):
    z = published(name)
    exact = uneven(jax.tree.map(lambda p: np.asarray(p, np.float64), start(z)))
    grads = jax.jit(jax.grad(ours(z, kind)))(jax.tree.map(jnp.asarray, exact))
    flat, tree = jax.tree_util.tree_flatten_with_path(exact)
    rng = np.random.default_rng(0)
    for at, ((path, leaf), grad) in enumerate(zip(flat, jax.tree.leaves(grads), strict=True)):
        where, way = jax.tree_util.keystr(path), rng.normal(size=leaf.shape)
        if where in ("['items']", "['trunk']['positions']['table']"):
            grad = np.array(grad)
            grad[0] = way[0] = 0  # a row of zeros, not learned, at which the norm bends sharply
        told = [np.zeros_like(x) for _, x in flat]
        told[at] = way
        expected = slope(twin(z, kind), exact, jax.tree.unflatten(tree, told))
        size = np.linalg.norm(grad)
        if "['key']['bias']" in where:  # adds the same to all scores of a row: no gradient
            assert abs(expected) < 1e-7 and size < 1e-5, where
            continue
        assert size > 1e-5, f"{where}: too small to tell"
        np.testing.assert_allclose(np.vdot(grad, way), expected, atol=2e-3 * size, err_msg=where)
