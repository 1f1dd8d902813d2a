"""The relation-aware layer: published values, a float64 twin, and what a set must not know."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.places import segment_mask
from zoo.relation import RelationBlock, SetEncoder

HIGHEST = jax.default_matmul_precision("highest")
Z = dict(np.load(FIXTURES / "mmgrec_encoder_layer_tiny.npz"))
LETTERS = {"query": "Q", "key": "K", "value": "V"}


def published() -> dict:
    """The layer's weights under our names."""

    def kernel(name: str) -> dict:
        return {"kernel": jnp.asarray(Z[f"{name}_weight"].T)}

    attention: dict = {"out": kernel("fc")}
    for name, letter in LETTERS.items():
        gate = f"sca_{letter.lower()}"
        attention[name] = kernel(f"W_{letter}")
        gates = {"gate_in": kernel(f"{gate}_0"), "gate_out": kernel(f"{gate}_2")}
        attention[f"{name}_bend"] = {**gates, "map": kernel(f"U_{letter}")}
    ffn = {"in": kernel("pos_ffn_fc_0"), "out": kernel("pos_ffn_fc_2")}
    return {"attention": attention, "ffn": ffn}


@partial(jax.jit, static_argnums=0)
def run(module, params, x, user, mask):
    return module.apply({"params": params}, x, user, mask)


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def twin(params: dict, x: np.ndarray, user: np.ndarray, seen: np.ndarray, bent: bool = True):
    """The layer by its equations in float64, head after head; not `bent`: without any P."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x, user, a = x.astype(np.float64), user.astype(np.float64), p["attention"]
    made = {}
    for name in LETTERS:
        bend = a[f"{name}_bend"]
        gate = np.maximum(user @ bend["gate_in"]["kernel"], 0) @ bend["gate_out"]["kernel"]
        made[name] = (x @ a[name]["kernel"], bent * gate * (x @ bend["map"]["kernel"]))
    (q, pq), (k, pk), (v, pv) = (made[name] for name in LETTERS)
    out = []
    for h in range(4):
        at = slice(64 * h, 64 * (h + 1))
        s = (q[..., at] @ np.swapaxes(k[..., at], 1, 2) + pq @ np.swapaxes(pk, 1, 2)) / 8
        weights = np.where(seen, np.exp(s - s.max(-1, keepdims=True)), 0)
        out.append(weights / weights.sum(-1, keepdims=True) @ (v[..., at] + pv))
    y = norm(x + np.concatenate(out, -1) @ a["out"]["kernel"])
    hidden = np.maximum(y @ p["ffn"]["in"]["kernel"], 0)
    return norm(y + hidden @ p["ffn"]["out"]["kernel"])


@HIGHEST
def test_published_layer_and_float64_twin():
    seen = ~Z["mask"]  # there True hides
    y = run(RelationBlock(), published(), Z["x"], Z["u"], seen[:, None])
    np.testing.assert_allclose(y, Z["y"], atol=1e-5)
    np.testing.assert_allclose(y, twin(published(), Z["x"], Z["u"], seen), atol=1e-5)


@HIGHEST
def test_without_gates_it_is_plain_attention():
    params, seen = published(), ~Z["mask"]
    plain = twin(params, Z["x"], Z["u"], seen, bent=False)
    bent = run(RelationBlock(), params, Z["x"], Z["u"], seen[:, None])
    assert np.abs(bent - plain).max() > 0.1, "the gates matter here"
    for name in LETTERS:
        gate = params["attention"][f"{name}_bend"]["gate_out"]
        gate["kernel"] = jnp.zeros_like(gate["kernel"])
    y = run(RelationBlock(), params, Z["x"], Z["u"], seen[:, None])
    np.testing.assert_allclose(y, plain, atol=1e-5)


B, L, F, U = 3, 7, 24, 10
MODULE = SetEncoder(width=32, head_width=16)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, L, F)).astype(np.float32)
USER = RNG.normal(size=(B, 1, U)).astype(np.float32)
LENGTHS = np.array([7, 4, 1])
SEGMENTS = (np.arange(L)[None] < LENGTHS[:, None]).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> dict:
    mask = segment_mask(jnp.asarray(SEGMENTS), causal=False)
    return jax.jit(MODULE.init)(jax.random.key(0), X, USER, mask)["params"]


def encoded(params, x, user, segments, module=MODULE):
    mask = segment_mask(jnp.asarray(segments), causal=False)
    return np.asarray(run(module, params, x, user, mask))


@HIGHEST
def test_permuting_the_set_permutes_the_output(params):
    order = np.random.default_rng(1).permutation(L)
    user = np.repeat(USER[:1], L, axis=1)
    whole = encoded(params, X[:1], user, SEGMENTS[:1])
    turned = encoded(params, X[:1, order], user, SEGMENTS[:1])
    assert np.abs(turned - whole).max() > 0.1
    np.testing.assert_allclose(turned, whole[:, order], atol=1e-5)


@HIGHEST
def test_padding_and_packing_change_nothing(params):
    whole = encoded(params, X, USER, SEGMENTS)
    noisy = np.where(SEGMENTS[:, :, None] > 0, X, 50.0).astype(np.float32)
    there = SEGMENTS > 0
    np.testing.assert_allclose(
        encoded(params, noisy, USER, SEGMENTS)[there], whole[there], atol=1e-5
    )
    # The sets of rows 1 and 2 in one row, each with its own user.
    row = np.concatenate([X[1, :4], X[2, :1], np.zeros((2, F), np.float32)])[None]
    users = np.concatenate([np.repeat(USER[1], 4, 0), np.repeat(USER[2], 3, 0)])[None]
    packed = encoded(params, row, users, np.array([[1, 1, 1, 1, 2, 0, 0]]))
    np.testing.assert_allclose(packed[0, :4], whole[1, :4], atol=1e-5)
    np.testing.assert_allclose(packed[0, 4], whole[2, 0], atol=1e-5)


def test_the_user_matters_every_parameter_learns_and_half_precision_runs(params):
    whole = encoded(params, X, USER, SEGMENTS)
    assert np.abs(encoded(params, X, 3 * USER[::-1], SEGMENTS) - whole).max() > 1e-2
    mask = segment_mask(jnp.asarray(SEGMENTS), causal=False)
    aim = jnp.asarray(RNG.normal(size=whole.shape).astype(np.float32))

    @jax.jit
    def gradient(params, key):
        def loss(params):
            rngs = {"dropout": key}
            return jnp.sum(aim * MODULE.apply({"params": params}, X, USER, mask, True, rngs=rngs))

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(gradient(params, jax.random.key(0))):
        assert np.isfinite(g).all() and np.abs(g).max() > 0, path
    half = encoded(params, X, USER, SEGMENTS, MODULE.clone(dtype=jnp.bfloat16))
    assert half.dtype == np.float32
    assert np.abs(half - whole).mean() < 0.03


def test_vectors_of_the_encoder_s_width_are_not_mapped():
    shapes = jax.eval_shape(
        SetEncoder().init, jax.random.key(0), jnp.zeros((1, 3, 64)), jnp.zeros((1, 1, 64)),
        jnp.ones((1, 1, 3, 3), bool),
    )  # fmt: skip
    assert sorted(shapes["params"]) == ["block_0", "block_1"]
