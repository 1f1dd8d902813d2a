"""Experts: the published adaptor's numbers, its slopes, pooling that reads no padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.experts import Content, Experts, Pool, noisy_gates, wanted, whiten


def quickly(function):
    """Compiled quickly rather than to run quickly: these are tiny."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def published() -> tuple[dict, dict]:
    """(the fixture, its weights under our names)."""
    with np.load(FIXTURES / "unisrec_moe_adaptor_tiny.npz") as found:
        f = {k: found[k] for k in found.files}
    experts = range(f["w_w_gate"].shape[1])
    return f, {
        "kernel": np.stack([f[f"w_experts_{e}_lin_weight"].T for e in experts]),
        "bias": np.stack([f[f"w_experts_{e}_bias"] for e in experts]),
        "gate": f["w_w_gate"],
        "noise": f["w_w_noise"],
    }


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_unisrec_adaptor_matches_the_published_numbers():
    f, params = published()
    got = Experts(8, 4).apply({"params": params}, f["x"])
    np.testing.assert_allclose(got, f["out_y"], atol=1e-5)
    plain = noisy_gates(f["x"], f["w_w_gate"], f["w_w_noise"])
    np.testing.assert_allclose(plain, f["out_gates"], atol=1e-5)
    noisy = noisy_gates(f["x"], f["w_w_gate"], f["w_w_noise"], f["noise"])
    np.testing.assert_allclose(noisy, f["out_gates_noisy"], atol=1e-5)


def test_slopes_are_those_of_finite_differences(float64):
    f, params = published()
    p, x, noise = jax.tree.map(lambda v: jnp.asarray(v, float), (params, f["x"], f["noise"]))

    def value(p):
        gates = noisy_gates(x, p["gate"], p["noise"], noise)
        y = jnp.einsum("nk,nkd->nd", gates, whiten(x, p["kernel"], p["bias"]))
        return jnp.sum(jnp.sin(y))

    rng = np.random.default_rng(0)
    slopes = quickly(jax.grad(value))(p)
    for name in p:
        along = jnp.asarray(rng.normal(size=p[name].shape))
        up, down = (value({**p, name: p[name] + e * along}) for e in (1e-6, -1e-6))
        expected = (up - down) / 2e-6
        np.testing.assert_allclose(jnp.sum(slopes[name] * along), expected, rtol=1e-6)


def test_slopes_of_the_adaptor_are_those_of_the_equations():
    """The module, with the published weights, beside its equations in float64 numpy."""
    f, params = published()
    weight = np.random.default_rng(1).normal(size=f["out_y"].shape)
    loss = lambda p: jnp.sum(Experts(8, 4).apply({"params": p}, f["x"]) * weight)  # noqa: E731
    slopes = quickly(jax.grad(loss))(params)
    exact = jax.tree.map(lambda v: v.astype(np.float64), params)

    def twin(p):
        gates = np.exp(f["x"] @ p["gate"])
        gates = gates / gates.sum(-1, keepdims=True)
        y = np.einsum("knf,kfd->nkd", f["x"] - p["bias"][:, None], p["kernel"])
        return np.sum(np.einsum("nk,nkd->nd", gates, y) * weight)

    rng = np.random.default_rng(0)
    for name in ("kernel", "bias", "gate"):
        along = rng.normal(size=exact[name].shape)
        up, down = (twin({**exact, name: exact[name] + e * along}) for e in (1e-5, -1e-5))
        np.testing.assert_allclose(
            np.sum(slopes[name] * along), (up - down) / 2e-5, rtol=1e-4, atol=1e-4
        )
    np.testing.assert_array_equal(slopes["noise"], 0)  # it is drawn in training alone


def test_training_draws_noise_and_serving_does_not():
    f, params = published()
    model = Experts(8, 4, dropout=0.0)
    a, b = (
        model.apply({"params": params}, f["x"], True, rngs={"dropout": jax.random.key(s)})
        for s in (0, 1)
    )
    assert np.abs(a - b).max() > 1e-3
    still = model.apply({"params": params}, f["x"])
    silent = {
        **params,
        "gate": params["gate"] * 0,
        "kernel": params["kernel"][:1] + 0 * params["kernel"],
    }
    silent["bias"] = params["bias"][:1] + 0 * params["bias"]
    quiet = [
        model.apply({"params": silent}, f["x"], t, rngs={"dropout": jax.random.key(0)})
        for t in (True, False)
    ]
    np.testing.assert_allclose(*quiet, atol=1e-5)  # noise only chooses among experts
    assert np.abs(still - quiet[1]).max() > 1e-3


def test_norm_experts_start_as_the_mean_of_normalised_maps():
    x = np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32)
    model = Experts(5, 4, "norm")
    params = quickly(model.init)(jax.random.key(0), x)["params"]
    assert set(params) == {"kernel", "bias", "norm_scale", "norm_bias", "gate"}
    y = np.einsum("blf,kfd->blkd", x, params["kernel"])
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    got = model.apply({"params": params}, x)
    np.testing.assert_allclose(got, y.mean(2), atol=1e-5)
    again = model.apply({"params": params}, x, True, rngs={"dropout": jax.random.key(1)})
    assert np.abs(again - got).max() > 1e-3, "dropout is on while training"


def test_whitening_starts_at_the_size_of_an_id():
    x = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    model = Experts(32, 8)
    y = model.apply(quickly(model.init)(jax.random.key(0), x), x)
    np.testing.assert_allclose(np.std(y), 0.02, rtol=0.1)


def pooled(official: bool):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 6)).astype(np.float32)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    model = Pool(5, official)
    return model, model.init(jax.random.key(0), x, mask)["params"], x, mask


def test_pooling_is_a_softmax_of_two_linear_maps():
    model, params, x, mask = pooled(False)
    got = model.apply({"params": params}, x, mask)
    hidden = x @ params["in"]["kernel"] + params["in"]["bias"][None, None]
    logits = (hidden @ params["out"]["kernel"])[..., 0]
    weights = np.exp(logits) * mask
    weights = weights / np.maximum(weights.sum(1, keepdims=True), 1e-12)
    np.testing.assert_allclose(got, np.einsum("ns,nsf->nf", weights, x), atol=1e-5)
    np.testing.assert_allclose(got[2], x[2, 0], atol=1e-6)  # one row is itself
    np.testing.assert_array_equal(got[3], 0)
    noisy = np.where(mask[..., None], x, 1e3)
    np.testing.assert_array_equal(model.apply({"params": params}, noisy, mask), got)


@pytest.mark.parametrize("official", [False, True])
def test_only_official_pooling_stays_as_drawn_and_weighs_padding(official):
    model, params, x, mask = pooled(official)
    slopes = jax.grad(lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, x, mask))))(params)
    assert (np.abs(slopes["in"]["kernel"]).max() > 0) != official
    # Weights near 0 weigh rows alike; in the published code two rows of zeros are among the three.
    small = jax.tree.map(lambda v: v * 1e-3, params)
    share = 1 / 3 if official else 1
    np.testing.assert_allclose(
        model.apply({"params": small}, x, mask)[2], x[2, 0] * share, atol=1e-3
    )


def catalogue() -> dict:
    rng = np.random.default_rng(0)
    return {
        "valid": np.arange(8) > 0,
        "popularity": np.ones(8, np.float32),
        "features": {"text": rng.normal(size=(8, 3, 6)).astype(np.float32)},
        "present": {"text": np.arange(8) < 6},
        "rows": {"text": rng.random((8, 3)) < 0.7},
    }


def test_content_of_ids_is_that_of_the_table():
    model, c = Content("text", 4, 2), catalogue()
    params = quickly(model.init)(jax.random.key(0), c)
    ids = jnp.array([[1, 7], [0, 3]])
    apply = quickly(model.apply)
    table = apply(params, c)
    np.testing.assert_allclose(apply(params, c, ids), table[ids], atol=1e-6)
    np.testing.assert_array_equal(table[np.array([0, 6, 7])], 0)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="kind is 'plain'; expected one of whitening, norm"):
        Experts(4, 2, "plain").init(jax.random.key(0), jnp.ones((1, 3)))
    assert wanted(catalogue(), None) == ("text",)
    with pytest.raises(
        ValueError, match=r"reads content \['sound'\]; the catalogue has \['text'\]"
    ):
        wanted(catalogue(), ("sound",))
