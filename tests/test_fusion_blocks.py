"""Fusion of modality tokens: reference numbers of the Q-Former, missing tokens; EM3 around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_graph_parity_mgcn import below, catalogue_of, close, read

from zoo.fusion import AttentionMean, QFormer, SpectralFusion
from zoo.graph import renormalised
from zoo.models.collaborative import Pairs, ranking_loss
from zoo.models.content import modality_weights
from zoo.models.em3 import EM3, cic, em3

ATOL = 1e-5
BLOCKS = {
    "attention": AttentionMean(),
    "spectral": SpectralFusion(),
    "q_former": QFormer(queries=2, layers=2, heads=2),
}
by_block = pytest.mark.parametrize("name", BLOCKS)


def linear(f: dict, name: str) -> dict:
    return {"kernel": f[f"{name}_weight"].T, "bias": f[f"{name}_bias"]}


def former_params(f: dict, layers: int, prefix: str = "") -> dict:
    """A Q-Former's parameters from the reference's."""
    params = {"queries": f[f"{prefix}queries"][0]}
    for i in range(layers):
        layer = f"{prefix}layers_{i}_"
        self_ = {k: linear(f, f"{layer}self_{k}") for k in ("query", "key", "value")}
        params[f"layer_{i}_attention"] = {**self_, "out": linear(f, f"{layer}output_dense")}
        norm = f"{layer}output_LayerNorm"
        params[f"layer_{i}_norm"] = {"scale": f[f"{norm}_weight"], "bias": f[f"{norm}_bias"]}
    return params


def test_q_former_against_the_reference():
    f = read("fqformer_tiny")
    got = jax.jit(QFormer(2, 2, 4).apply)({"params": former_params(f, 2)}, f["x"])
    close(got.reshape(len(got), -1), f["y"])


def tokens(m: int = 3, d: int = 6) -> tuple[jax.Array, np.ndarray]:
    """8 rows of m tokens; every pattern of 3 missing ones occurs."""
    x = np.random.default_rng(0).normal(size=(8, m, d)).astype(np.float32)
    present = np.asarray([[i >> k & 1 for k in range(m)] for i in range(8)], bool)
    return jnp.asarray(x), present


def made(name: str, x, present):
    """The block's function of (x, present), jitted, with fresh parameters."""
    params = jax.jit(BLOCKS[name].init)(jax.random.key(0), x, present)
    return jax.jit(lambda x, present: BLOCKS[name].apply(params, x, present))


def vectors(name: str, out) -> np.ndarray:
    """What stands for the row: of the spectral block the fused vector."""
    return np.asarray(out[1] if name == "spectral" else out)


@by_block
def test_a_missing_token_is_not_read(name):
    x, present = tokens()
    block = made(name, x, present)
    here = vectors(name, block(x, present))
    noisy = block(jnp.where(present[..., None], x, 1e3), present)
    np.testing.assert_array_equal(here, vectors(name, noisy))
    changed = vectors(name, block(x.at[:, 1].add(1.0), present))
    moved = np.abs(changed - here).reshape(8, -1).max(1) > 1e-4
    np.testing.assert_array_equal(moved, present[:, 1])


@by_block
def test_a_missing_token_gets_no_gradient(name):
    x, present = tokens()
    block = made(name, x, present)

    def total(x):
        out = block(x, present)
        return jnp.sum(jnp.tanh(out[1] if name == "spectral" else out))

    g = np.abs(jax.jit(jax.grad(total))(x)).max(-1)
    np.testing.assert_array_equal(g > 0, present)  # False for NaN too


@pytest.mark.parametrize("name", ["attention", "q_former"])
def test_a_missing_token_might_as_well_not_be_in_the_row(name):
    x, present = tokens()
    params = jax.jit(BLOCKS[name].init)(jax.random.key(0), x, present)
    apply = jax.jit(BLOCKS[name].apply)
    three, two = (apply(params, x[3:4, :m], present[3:4, :m]) for m in (3, 2))
    close(three, two)


def test_attention_over_one_token_is_that_token_and_over_none_zero():
    x, present = tokens()
    got = made("attention", x, present)(x, present)
    for row, token in ((1, 0), (2, 1), (4, 2)):
        close(got[row], x[row, token])
    np.testing.assert_array_equal(got[0], 0)


@pytest.mark.parametrize("d", [5, 6])
def test_spectral_fusion_is_a_circular_convolution(d):
    x, present = tokens(d=d)
    params = jax.jit(BLOCKS["spectral"].init)(jax.random.key(0), x, present)["params"]
    out = jax.jit(BLOCKS["spectral"].apply)({"params": params}, x, present)
    filtered, fused = (np.asarray(vector) for vector in out)
    kernels = np.fft.irfft(params["filters"] @ np.array([1, 1j]), n=d)
    circular = lambda a, b: np.asarray(  # noqa: E731
        [sum(a[j] * b[(i - j) % d] for j in range(d)) for i in range(d)]
    )
    for row in range(8):
        there = [np.asarray(x[row, m]) for m in range(3) if present[row, m]]
        whole = kernels[-1] * bool(there)
        for token in there:
            whole = circular(whole, token)
        scale = d ** (-(len(there) - 1) / 2)  # one 1/sqrt d a transform, and all but one are back
        np.testing.assert_allclose(fused[row], whole * scale, atol=ATOL)
        for m in range(3):
            token = np.asarray(x[row, m]) * present[row, m]
            close(filtered[row, m], circular(kernels[m], token))


# EM3: the reference's numbers, and what its contrast promises.


def em3_world() -> tuple[dict, dict, dict, Pairs]:
    f = read("em3_public_tiny")
    recommender = em3(8, knn=int(f["cfg_knn"]), dropout=float(f["cfg_dropout"]))
    features = {"image": f["V"], "text": f["T"]}
    catalogue = recommender.prepare(catalogue_of(f["R"], features), 1)
    given = set(zip(*(f["kept_edges"] + 1), strict=True))
    side = catalogue["graph"].forward
    keep = np.asarray([edge in given for edge in zip(side.rows, side.columns, strict=True)])
    assert keep.sum() == len(given) == catalogue["kept_edges"][0]
    catalogue |= {"pruned": renormalised(catalogue["graph"], jnp.asarray(keep), 9, 11)}
    tables = {"users": f["p_user_embedding_weight"], "items": f["p_item_id_embedding_weight"]}
    params = {
        "free": {k: {"table": below(x)} for k, x in tables.items()},
        "content_image": {"map": linear(f, "p_v_linear")},
        "content_text": {"map": linear(f, "p_t_linear")},
        "fusion": former_params(f, int(f["cfg_layers"]), "p_fusion_"),
        "fused": linear(f, "p_mm_proj"),
        "contrast_content": linear(f, "p_cic_content_linear"),
        "contrast_id": linear(f, "p_cic_id_linear"),
    }
    pairs = Pairs(f["users"] + 1, f["pos"] + 1, f["neg"] + 1, jnp.ones(len(f["pos"])))
    return f, catalogue, params, pairs


def em3_out(f: dict, params: dict, catalogue: dict, train: bool = False) -> dict:
    sizes = {"queries": int(f["cfg_queries"]), "blocks": int(f["cfg_layers"])}
    module = EM3(width=8, hidden_dropout=0.0, **sizes)
    return jax.jit(module.apply, static_argnums=2)({"params": params}, catalogue, train)


def test_em3_vectors_and_scores_against_the_reference():
    f, catalogue, params, _ = em3_world()
    for train, graph in ((False, "full"), (True, "pruned")):
        out = em3_out(f, params, catalogue, train)
        close(out["fused"][1:], f["out_item_content_fq"])
        for side in ("user", "item"):
            id, content = np.split(np.asarray(out[f"{side}s"])[1:], 2, axis=1)
            close(id, f[f"out_{graph}_{side}_id"])
            close(content, f[f"out_{graph}_{side}_content"])
    index = jax.jit(em3(8, queries=int(f["cfg_queries"])).index)(params, catalogue)
    close(index["users"][f["users"] + 1] @ index["table"][1:].T, f["out_scores"])


def test_em3_losses_and_gradients_against_the_reference():
    f, catalogue, params, pairs = em3_world()
    negatives = below(f["cic_negatives"] + 1)

    def loss(params):
        out = em3_out(f, params, catalogue, True)
        parts = ranking_loss(out["users"], out["items"], pairs), cic(out, negatives, f["cfg_tau"])
        return parts[0] + f["cfg_cic_weight"] * parts[1], parts

    (value, parts), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(parts[0], f["out_bpr"])
    close(parts[1], f["out_cic"])
    close(value, f["out_loss"])
    close(grads["free"]["users"]["table"][1:], f["out_grad_user"])
    close(grads["free"]["items"]["table"][1:], f["out_grad_item"])
    close(grads["fusion"]["queries"], f["out_grad_queries"][0])


def test_the_contrast_leaves_out_items_without_content():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 6, 4)).astype(np.float32)
    negatives = rng.integers(0, 6, (6, 3))
    has = np.asarray([0, 1, 1, 1, 0, 1], bool)
    loss = lambda rows: cic({"has": has, "contrast": (rows[0], rows[1])}, negatives, 0.5)  # noqa: E731
    g = np.abs(jax.jit(jax.grad(loss))(jnp.asarray(rows))).max(-1)
    np.testing.assert_array_equal(g > 0, np.stack([has, has]))


def test_em3_prunes_exactly_its_share_each_epoch():
    f, catalogue, _, _ = em3_world()
    draw = jax.jit(em3(8, dropout=0.6).draw)
    kept = [draw({}, catalogue, jax.random.key(i))["pruned"].forward.weights > 0 for i in range(8)]
    assert {int(k.sum()) for k in kept} == {int(0.4 * f["R"].sum())}
    assert any((k != kept[0]).any() for k in kept), "each epoch has its own"


def test_an_item_without_content_has_a_zero_for_it():
    f, catalogue, params, _ = em3_world()
    present = {m: x & (np.arange(11) != 4) for m, x in catalogue["present"].items()}
    out = em3_out(f, params, {**catalogue, "present": present})
    assert not out["fused"][4].any() and out["fused"][5].any()
    assert not out["has"][4] and out["has"][5]


def test_weights_of_modalities():
    assert modality_weights(("image", "text")) == (0.1, 0.9)
    assert modality_weights(("image",)) == (1.0,)
    np.testing.assert_allclose(modality_weights(("audio", "image", "text")), (0.45, 0.1, 0.45))
    assert modality_weights(("audio", "text")) == (0.5, 0.5)
    assert modality_weights(("image", "text"), (0.3, 0.7)) == (0.3, 0.7)
    with pytest.raises(ValueError, match="weights"):
        modality_weights(("image", "text"), (1.0,))


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"width": 10}])
def test_em3_says_what_fits(wrong):
    with pytest.raises(ValueError, match="heads=4"):
        em3(**wrong)
