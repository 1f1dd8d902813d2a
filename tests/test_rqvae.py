"""RQ-VAE: published values, ids and gradients; start, reset, balance and usage by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo import letter
from zoo.rqvae import RQVAE, collapsed, fit_rqvae, reset_dead, rqvae_loss, start_by_kmeans, usage
from zoo.sinkhorn import balanced

HIGHEST = jax.default_matmul_precision("highest")


def botta(gradient: str):
    """The published tokeniser's weights under our names."""
    z = np.load(FIXTURES / "rqvae_tiny.npz")

    def mlp(side):
        return {f"layer_{i}": {"kernel": z[f"w_{side}_mlp_{2 * i}_weight"].T} for i in range(3)}

    books = np.stack([z[f"w_layers_{i}_embedding_weight"] for i in range(3)])
    module = RQVAE(20, (16, 10), 6, 3, 7, gradient, bias=False)
    return z, module, {"encoder": mlp("encoder"), "decoder": mlp("decoder"), "codebooks": books}


@HIGHEST
@pytest.mark.parametrize("name, train", [("eval", False), ("ste", True), ("rot", True)])
def test_published_tokeniser(name, train):
    z, module, params = botta({"rot": "rotation"}.get(name, "ste"))

    def objective(params):
        out = module.apply({"params": params}, jnp.asarray(z["x"]), train)
        loss, parts = rqvae_loss(out, z["x"], float(z["cfg_commitment"]))
        return loss, (out, parts)

    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (out, parts)), grads = run(jax.tree.map(jnp.asarray, params))
    np.testing.assert_array_equal(out["codes"], z[f"out_{name}_ids"])
    for ours, theirs in (("residuals", "residuals"), ("passed", "embeddings")):
        np.testing.assert_allclose(
            np.moveaxis(out[ours], 1, 2), z[f"out_{name}_{theirs}"], atol=1e-5
        )
    np.testing.assert_allclose(out["x_hat"], z[f"out_{name}_x_hat_raw"], atol=1e-5)
    np.testing.assert_allclose(loss, z[f"out_{name}_loss"], atol=1e-5)
    np.testing.assert_allclose(parts["reconstruction"], z[f"out_{name}_rec"], atol=1e-5)
    if train:
        ours = {
            "encoder_first": grads["encoder"]["layer_0"]["kernel"].T,
            "codebook0": grads["codebooks"][0],
            "decoder_last": grads["decoder"]["layer_2"]["kernel"].T,
        }
        for part, grad in ours.items():
            np.testing.assert_allclose(grad, z[f"out_{name}_grad_{part}"], atol=1e-4)


def mmgrec(z, prefix: str, arrays) -> dict:
    """MMGRec's parameters, or with prefix `out_grad` their gradients, under our names."""

    def dense(side, i):
        name = f"{prefix}_{side}_{2 * i}"
        return {"kernel": arrays[f"{name}_weight"].T, "bias": arrays[f"{name}_bias"]}

    mlps = {s: {f"layer_{i}": dense(s, i) for i in (0, 1)} for s in ("encoder", "decoder")}
    books = np.stack([arrays[f"{prefix}_vq_embedding_{i}_weight"] for i in (1, 2, 3)])
    return {**mlps, "codebooks": books}


@HIGHEST
def test_mmgrec_quantiser():
    z = np.load(FIXTURES / "mmgrec_rqvae_tiny.npz")
    module = RQVAE(12, (10,), 4, 3, 9, "residual", "sigmoid")

    def objective(params):
        out = module.apply({"params": params}, jnp.asarray(z["x"]), True)
        loss, parts = rqvae_loss(out, z["x"], mean=True)
        return loss, (out, parts)

    params = jax.tree.map(jnp.asarray, mmgrec(z, "p", z))
    (loss, (out, parts)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    np.testing.assert_array_equal(out["codes"], z["out_ids"])
    np.testing.assert_allclose(out["x_hat"], z["out_x_hat"], atol=1e-5)
    expected = {"reconstruction": "rec", "codebook": "embedding_loss"}
    for ours, theirs in (expected | {"commitment": "commitment_loss"}).items():
        np.testing.assert_allclose(parts[ours], z[f"out_{theirs}"], atol=1e-5)
    np.testing.assert_allclose(loss, z["out_loss"], atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, mmgrec(z, "out_grad", z)
    )


def test_usage_of_known_codes():
    codes = jnp.asarray([[0, 3], [1, 3], [2, 3], [3, 3]])
    seen = usage(codes, 4)
    np.testing.assert_array_equal(seen["used"], [4, 1])
    np.testing.assert_allclose(seen["perplexity"], [4, 1], rtol=1e-6)
    np.testing.assert_array_equal(seen["largest"], [1, 4])
    np.testing.assert_array_equal(collapsed(jnp.tile(codes, (8, 1)), 32), [False, True])


def test_letter_by_hand():
    """Two rows, three codes of one level: L_cf and L_div as written out."""
    q, h = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 1.0], [0.5, -1.0]])
    want = -np.mean([1.0 - np.logaddexp(1.0, 0.5), -2.0 - np.logaddexp(2.0, -2.0)])
    assert float(letter.collaborative(q, h)) == pytest.approx(want, abs=1e-6)
    book = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    codes, group = jnp.array([[0], [2]]), jnp.array([[0, 1, 0]])
    # <e_0,e_2> = 1 beside <e_0,e_1> = 0; <e_2,e_0> = 1 beside <e_2,e_1> = 1
    want = -np.mean([1.0 - np.logaddexp(0.0, 1.0), 1.0 - np.logaddexp(1.0, 1.0)])
    got = letter.diversity(book, codes, group, jax.random.key(0))
    assert float(got) == pytest.approx(want, abs=1e-6)
    alone = letter.diversity(book, codes, jnp.array([[0, 1, 2]]), jax.random.key(0))
    assert float(alone) == 0.0, "no other code in its group"


def test_groups_share_a_level_alike():
    books = jax.random.normal(jax.random.key(0), (2, 60, 4))
    groups = letter.grouped(books, 6, jax.random.key(1))
    assert groups.shape == (2, 60)
    for level in np.asarray(groups):
        assert np.bincount(level, minlength=6).min() >= 5


def test_a_teacher_makes_ids_follow_it():
    """What parts the teacher's two classes is hardly any of the vectors; with it the ids tell."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 6)).astype(np.float32)
    kind = rng.integers(0, 2, 256)
    teacher = (4.0 * (kind * 2 - 1))[:, None] * np.array([1.0, 0.0, 0.0], np.float32)[None]
    x[:, 0] = 0.05 * x[:, 0] + 0.2 * (2 * kind - 1)
    module, many = RQVAE(6, (16,), 3, 2, 8), {"epochs": 200, "batch": 64, "seed": 0}
    shares = {}
    for alpha in (0.0, 10.0):
        given = letter.Letter(jnp.asarray(teacher, jnp.float32), alpha)
        params, history = fit_rqvae(module, x, letter=given, **many)
        assert {"collaborative", "diversity"} <= history[-1].keys()
        codes = np.asarray(module.apply({"params": params}, x)["codes"])[:, 0]
        table = np.zeros((8, 2))
        np.add.at(table, (codes, kind), 1)
        shares[alpha] = table.max(1).sum() / 256
    assert shares[10.0] > shares[0.0] + 0.1


def test_a_balanced_assignment_has_equal_shares_and_stays_finite():
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    distances = jnp.asarray(((x[:, None] - x[None, :4]) ** 2).sum(2))
    log_q = jax.jit(balanced, static_argnums=2)(distances, 0.05, 300)
    np.testing.assert_allclose(jnp.exp(log_q).sum(1), np.full(64, 1 / 64), rtol=1e-4)
    np.testing.assert_allclose(jnp.exp(log_q).sum(0), np.full(4, 1 / 4), rtol=1e-2)
    sharp = jax.jit(balanced)(distances)
    assert np.isfinite(np.asarray(sharp)).all()
    before, after = (
        np.bincount(c, minlength=4).max() for c in (distances.argmin(1), sharp.argmax(1))
    )
    assert after < before


X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


def test_training_starts_from_k_means_revives_dead_codes_and_learns():
    module = RQVAE(6, (8,), 3, 2, 8, balance=0.05)
    params, history = fit_rqvae(module, X, epochs=12, batch=32, rate=1e-2, reset_every=4)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[0]["used"].min() >= 7  # k-means leaves hardly a code unused
    away = {**params, "codebooks": params["codebooks"].at[:, :6].set(100.0)}
    count = jax.jit(lambda p: usage(module.apply({"params": p}, X)["codes"], 8)["used"])
    assert count(away).max() <= 2
    revived = reset_dead(module, away, X, jax.random.key(0))
    assert count(revived).min() >= 6
    np.testing.assert_array_equal(revived["codebooks"][:, 6:], away["codebooks"][:, 6:])
    again = start_by_kmeans(module, away, X, jax.random.key(1))
    assert count(again).min() >= 7


def test_a_balance_evens_the_last_level_and_in_training_alone():
    """Rows far off the origin, where the codes of a start lie, crowd into a few of them."""
    apply = jax.jit(RQVAE.apply, static_argnums=(0, 3))
    plain, even = (RQVAE(6, (8,), 3, 2, 8, balance=balance) for balance in (0.0, 0.003))
    params, crowd = jax.jit(plain.init)(jax.random.key(0), X), X + 1.0
    trained, shared = (np.asarray(apply(m, params, crowd, True)["codes"]) for m in (plain, even))
    assert np.bincount(trained[:, 1]).max() > 48
    counts = np.bincount(shared[:, 1], minlength=8)
    assert counts.min() >= 5 and counts.max() <= 11
    np.testing.assert_array_equal(shared[:, 0], trained[:, 0])
    np.testing.assert_array_equal(apply(even, params, crowd, False)["codes"], trained)


def test_dead_codes_come_back_during_training_unless_they_are_left(monkeypatch):
    """Six of eight codes of every level start far from all rows."""

    def far(module, params, x, key):
        params = start_by_kmeans(module, params, x, key)
        return {**params, "codebooks": params["codebooks"].at[:, :6].set(100.0)}

    monkeypatch.setattr("zoo.rqvae.start_by_kmeans", far)
    module, used = RQVAE(6, (8,), 3, 2, 8), {}
    for every, until in ((2, 1.0), (0, 1.0), (2, 0.4)):
        _, history = fit_rqvae(module, X, 0, 5, 64, reset_every=every, reset_until=until)
        used[every, until] = np.array([row["used"] for row in history])
    assert used[0, 1.0].max() <= 2 and used[2, 0.4].max() <= 2
    assert used[2, 1.0][:2].max() <= 2 and used[2, 1.0][2:].min() >= 6


def test_the_loss_that_is_trained_has_letter_s_terms_by_their_weights():
    given = letter.Letter(jnp.asarray(X[:, :3]), alpha=3.0, beta=0.5, groups=2)
    _, (told,) = fit_rqvae(RQVAE(6, (8,), 3, 2, 8), X, 0, 1, 64, letter=given)
    assert told["diversity"] > 0.1 and told["collaborative"] > 0.1
    plain = told["reconstruction"] + told["codebook"] + 0.25 * told["commitment"]
    more = 3.0 * told["collaborative"] + 0.5 * told["diversity"]
    assert told["loss"] == pytest.approx(plain + more, rel=1e-5)


def test_errors_teach():
    with pytest.raises(ValueError, match="choose size <= 64"):
        fit_rqvae(RQVAE(6), X)
    with pytest.raises(ValueError, match="64 of 64 item vectors hold NaN"):
        fit_rqvae(RQVAE(6, size=8), X * np.nan)
    with pytest.raises(FloatingPointError, match="the loss of epoch 0 is (inf|nan): lower rate"):
        fit_rqvae(RQVAE(6, (8,), 3, 2, 8, balance=0.05), X * 1e30, epochs=1, batch=32)
    with pytest.raises(ValueError, match="expected ste, rotation, residual"):
        RQVAE(6, gradient="gumbel").init(jax.random.key(0), X)
