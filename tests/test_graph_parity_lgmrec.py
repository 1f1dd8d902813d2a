"""LGMRec against the authors' numbers, a dense float64 twin of the equations, and its own rules."""

from functools import cache, partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo import hypergraph
from zoo.hypergraph import Hyper, contrast, draw_noise, gather_messages, vectors
from zoo.models.collaborative import Pairs, ranking_loss
from zoo.models.lgmrec import (
    PRESETS,
    LGMRec,
    anywhere,
    hypergraph_contrast,
    lgmrec,
    norms,
    settled,
    squares,
)

NAMES = ("image", "text")
ATOL = 1e-5


@cache
def fixture() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "lgmrec_tiny.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file}


def shifted(x: np.ndarray) -> np.ndarray:
    """With the padding row 0 in front."""
    return np.concatenate([np.zeros_like(x[:1]), x])


def catalogue_of(r: np.ndarray, features: dict, present: dict | None = None) -> dict:
    """The catalogue, before `prepare`, of a train matrix r [u,n] without padding rows."""
    users, items = np.nonzero(r)
    known = np.arange(r.shape[1] + 1) > 0
    return {
        "valid": known,
        "popularity": np.append(0, r.sum(0)).astype(np.float32),
        "users": np.append(0, r.sum(1)).astype(np.float32),
        "features": {m: shifted(x) for m, x in features.items()},
        "present": {m: known for m in features} | (present or {}),
        "train": {"users": (users + 1).astype(np.int32), "items": (items + 1).astype(np.int32)},
    }


@cache
def tiny() -> tuple[dict, dict, tuple, Pairs]:
    """(prepared catalogue, params, noise of users and items, batch) of the fixture."""
    f = fixture()
    catalogue = catalogue_of(f["R"], {"image": f["V"], "text": f["T"]})
    catalogue = jax.tree.map(jnp.asarray, lgmrec().prepare(catalogue))
    tables = {"users": f["p_user_embedding_weight"], "items": f["p_item_id_embedding_weight"]}
    params = {
        "free": {side: {"table": jnp.asarray(shifted(x))} for side, x in tables.items()},
        "project_image": f["p_item_image_trs"],
        "project_text": f["p_item_text_trs"],
        "hyperedges_image": f["p_v_hyper"],
        "hyperedges_text": f["p_t_hyper"],
    }
    noise = [np.stack([shifted(f[f"gumbel_{s}{m}"]) for m in "vt"], axis=1) for s in "ui"]
    ids = [(f[name] + 1).astype(np.int32) for name in ("users", "pos", "neg")]
    return catalogue, params, tuple(noise), Pairs(*ids, np.ones(3, np.float32))


def module(**fields) -> LGMRec:
    return LGMRec(NAMES, **{"width": 8, "hyper_layers": 2, "hyperedges": 3, **fields})


def loss_of(params, noise, **fields) -> tuple[jax.Array, dict]:
    """The loss of the fixture's settings, and what it is made of."""
    out, pairs = module(**fields).apply({"params": params}, tiny()[0], False, noise), tiny()[3]
    parts = {
        "bpr": ranking_loss(out["users"], out["items"], pairs),
        "contrast": hypergraph_contrast(out, pairs, 0.2),
        "norms": norms(params, out, pairs),
    }
    return parts["bpr"] + 1e-4 * parts["contrast"] + 1e-6 * parts["norms"], {**out, **parts}


@cache
def differentiated():
    """((loss, parts), gradients) of the fixture."""
    return jax.jit(jax.value_and_grad(loss_of, has_aux=True))(*tiny()[1:3])


def by_modality(hyper: Hyper, k: int) -> np.ndarray:
    return np.asarray(vectors(Hyper(hyper.assignment[:, k], hyper.hubs[k])))


# The equations of the module, dense, in float64 and without padding rows.


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def twin(params: dict, noise: tuple, source: str = "items", repeat: bool = False) -> dict:
    """Vectors and loss parts; `params` in our layout, noise [n+1,m,a] with the padding row."""
    f = fixture()
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    g_u, g_i = (np.asarray(x, np.float64)[1:] for x in noise)
    r, n_u = f["R"].astype(np.float64), len(f["R"])
    adjacent = np.block([[np.zeros((n_u, n_u)), r], [r.T, np.zeros((r.shape[1],) * 2)]])
    d = adjacent.sum(1) + 1e-7
    smooth = adjacent / np.sqrt(d[:, None] * d[None])
    e0 = np.concatenate([p["free"][side]["table"][1:] for side in ("users", "items")])
    ids = (e0 + smooth @ e0 + smooth @ smooth @ e0) / 3
    final, shares = ids.copy(), ([], [])
    for k, (name, x) in enumerate(zip(NAMES, (f["V"], f["T"]), strict=True)):
        rows = x.astype(np.float64) @ p[f"project_{name}"]
        start = np.concatenate([r @ rows / (r.sum(1, keepdims=True) + 1e-7), rows])
        final += unit(smooth @ smooth @ start)
        logits = x.astype(np.float64) @ p[f"hyperedges_{name}"]
        for side, h, g in ((0, r @ logits, g_u), (1, logits, g_i)):
            soft = np.exp((h + g[:, k] - (h + g[:, k]).max(1, keepdims=True)) / 0.2)
            shares[side].append((soft / soft.sum(1, keepdims=True), h))
    if repeat:
        second = shares[0][1]
        shares = ([second, (second[1], None)], shares[1])
    views = []
    for (h_u, _), (h_i, _) in zip(*shares, strict=True):
        e, u = ids[n_u:], ids[:n_u]
        for _ in range(2):
            hubs = h_i.T @ e
            u, e = h_u @ (hubs if source == "items" else h_u.T @ u), h_i @ hubs
        views.append((u, e))
    whole = np.concatenate([sum(v[0] for v in views), sum(v[1] for v in views)])
    final += 0.3 * unit(whole)
    users, items = final[:n_u], final[n_u:]
    u, q, n = (f[name] for name in ("users", "pos", "neg"))
    margin = (users[u] * (items[q] - items[n])).sum(1)
    compared = 0.0
    for side, at in ((0, u), (1, q)):
        cosine = unit(views[0][side][at]) @ unit(views[1][side]).T / 0.2
        own = cosine[np.arange(len(at)), at]
        compared += (np.log(np.exp(cosine).sum(1)) - own).sum()
    blocks = sum(np.linalg.norm(x) for x in (users[u], items[q], items[n])) / len(u)
    parts = {"bpr": np.log1p(np.exp(-margin)).mean(), "contrast": compared, "norms": blocks}
    loss = parts["bpr"] + 1e-4 * compared + 1e-6 * blocks
    return {"users": users, "items": items, "views": views, "loss": loss, **parts}


def test_the_authors_vectors_and_losses():
    f, ((loss, out), _) = fixture(), differentiated()
    np.testing.assert_allclose(out["users"][1:], f["user_out"], atol=ATOL)
    np.testing.assert_allclose(out["items"][1:], f["item_out"], atol=ATOL)
    for hyper, side in zip(out["hyper"], "ui", strict=True):
        for k, m in enumerate("vt"):
            np.testing.assert_allclose(by_modality(hyper, k)[1:], f[f"{side}{m}"], atol=ATOL)
    np.testing.assert_allclose(out["bpr"], f["bpr"], atol=ATOL)
    np.testing.assert_allclose(loss, f["loss"], atol=ATOL)


@pytest.mark.parametrize("source", ["items", "users"])
def test_the_dense_twin(source):
    _, params, noise, _ = tiny()
    expected = twin(params, noise, source)
    if source == "items":
        (loss, out), _ = differentiated()
        np.testing.assert_allclose(expected["loss"], fixture()["loss"], atol=1e-6)
    else:
        loss, out = jax.jit(partial(loss_of, source=source))(params, noise)
    for name in ("users", "items"):
        np.testing.assert_allclose(out[name][1:], expected[name], atol=ATOL)
    for name in ("bpr", "contrast", "norms"):
        np.testing.assert_allclose(out[name], expected[name], rtol=ATOL)
    np.testing.assert_allclose(loss, expected["loss"], atol=1e-6)


def test_gradients_are_those_of_the_twin():
    """Slopes of the float64 twin along random directions, one parameter at a time."""
    _, params, noise, _ = tiny()
    _, grads = differentiated()
    rng, step = np.random.default_rng(0), 1e-6
    leaves, tree = jax.tree.flatten(jax.tree.map(np.float64, params))
    for k, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        way = rng.normal(size=leaf.shape)

        def moved(by, k=k, way=way):
            there = [x + by * way if j == k else x for j, x in enumerate(leaves)]
            return twin(jax.tree.unflatten(tree, there), noise)["loss"]

        slope = (moved(step) - moved(-step)) / (2 * step)
        np.testing.assert_allclose(np.sum(np.asarray(grad) * way), slope, atol=ATOL)
        assert abs(slope) > 10 * ATOL, "a direction that tells something"


def test_rows_of_the_assignment_sum_to_one():
    (_, out), _ = differentiated()
    for shares in out["assignment"]:
        np.testing.assert_allclose(shares[1:].sum(-1), 1, atol=1e-6)
        np.testing.assert_array_equal(shares[0], 0)  # padding is in no hyperedge


def test_the_order_of_the_hyperedges_means_nothing():
    _, params, noise, _ = tiny()
    turned = {k: x[:, [2, 0, 1]] if "hyperedges" in k else x for k, x in params.items()}
    loss, _ = jax.jit(loss_of)(turned, tuple(g[..., [2, 0, 1]] for g in noise))
    np.testing.assert_allclose(loss, differentiated()[0][0], atol=1e-6)


def test_bug_compat_repeats_the_early_version():
    _, params, noise, _ = tiny()
    loss, out = jax.jit(partial(loss_of, bug_compat=True))(params, noise)
    expected = twin(params, noise, repeat=True)
    np.testing.assert_allclose(out["users"][1:], expected["users"], atol=ATOL)
    np.testing.assert_allclose(loss, expected["loss"], atol=ATOL)
    assert np.abs(out["users"] - differentiated()[0][1]["users"]).max() > 0.01
    with pytest.raises(ValueError, match="two modalities"):
        jax.eval_shape(LGMRec(("text",), bug_compat=True).init, jax.random.key(0), tiny()[0])


def test_evaluation_is_silent_unless_told():
    catalogue, params, _, _ = tiny()
    made = lambda p, law: module(eval_noise=law).apply({"params": p}, catalogue)["users"]  # noqa: E731
    silent, noisy = (jax.jit(partial(made, law=law)) for law in ("none", "gumbel"))
    np.testing.assert_array_equal(silent(params), silent(params))
    np.testing.assert_array_equal(noisy(params), noisy(params))
    assert np.abs(noisy(params) - silent(params)).max() > 1e-3
    moved = params | {"hyperedges_text": params["hyperedges_text"] + 1e-6}
    assert np.abs(noisy(moved) - noisy(params)).max() > 1e-3


@pytest.mark.parametrize("names", [("text",), ("audio", "image", "text")])
def test_any_number_of_modalities(names):
    """One has nobody to be compared with; three make three pairs, earlier against later."""
    f = fixture()
    features = {"audio": f["V"][:, :3], "image": f["V"], "text": f["T"]}
    catalogue = catalogue_of(f["R"], {m: features[m] for m in names})
    catalogue = lgmrec().prepare(catalogue)
    model, pairs = LGMRec(None, 8, hyperedges=3, noise="none"), tiny()[3]

    def compared(key):
        out, _ = model.init_with_output(key, catalogue)
        return out, hypergraph_contrast(out, pairs, 0.2)

    out, got = jax.jit(compared)(jax.random.key(0))
    expected = 0.0
    for hyper, at in zip(out["hyper"], (pairs.users, pairs.positives), strict=True):
        rows = [unit(by_modality(hyper, k)) for k in range(len(names))]
        for i, j in combinations(range(len(names)), 2):
            cosine = rows[i][at] @ rows[j][1:].T / 0.2
            expected += np.sum(np.log(np.exp(cosine).sum(1)) - cosine[range(3), at - 1])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (expected == 0) == (len(names) == 1)


def test_none_and_unknown_modalities_are_refused():
    f = fixture()
    catalogue = catalogue_of(f["R"], {"image": f["V"]})
    with pytest.raises(ValueError, match="lightgcn"):
        lgmrec(modalities=()).prepare(catalogue)
    with pytest.raises(ValueError, match="smell"):
        lgmrec(modalities=("smell",)).prepare(catalogue)


def test_a_missing_modality_is_in_no_hyperedge_and_no_denominator():
    f = fixture()
    present = {"text": (np.arange(10) > 0) & (np.arange(10) != 3)}
    features = {"image": f["V"], "text": f["T"]}
    catalogue = lgmrec().prepare(catalogue_of(f["R"], features, present))
    params, (noise, pairs) = tiny()[1], tiny()[2:]
    features["text"] = features["text"].copy()
    features["text"][2] = 9.0
    noisy = lgmrec().prepare(catalogue_of(f["R"], features, present))
    batch = pairs._replace(positives=np.array([3, 2, 5], np.int32))

    @jax.jit
    def compared(catalogue):
        out = module().apply({"params": params}, catalogue, False, noise)
        items = {key: (out[key][1],) * 2 for key in ("hyper", "present")}  # on both sides
        swapped = batch._replace(users=batch.positives)
        return out, hypergraph_contrast(items, swapped, 0.2) / 2

    (out, got), (other, _) = compared(catalogue), compared(noisy)
    np.testing.assert_array_equal(out["users"], other["users"])
    np.testing.assert_array_equal(out["assignment"][1][3, 1], 0)
    reached = f["R"][:, np.arange(9) != 2].sum(1)
    np.testing.assert_array_equal(catalogue["reached"]["text"][1:], reached)
    view = [by_modality(out["hyper"][1], k) for k in (0, 1)]
    others = np.array([i for i in range(1, 10) if i != 3])
    cosine = unit(view[0][[2, 5]]) @ unit(view[1][others]).T / 0.2
    expected = np.sum(np.log(np.exp(cosine).sum(1)) - cosine[[0, 1], [1, 3]])
    np.testing.assert_allclose(got, expected, rtol=1e-5)  # 3 has no text: no anchor, no column


def test_presets_and_fields_over_them():
    assert settled("official")["noise"] == "gumbel"
    assert settled("paper", noise="none", source=None) == PRESETS["paper"] | {"noise": "none"}
    with pytest.raises(ValueError, match="unknown preset 'papr'.*paper"):
        lgmrec(preset="papr")
    with pytest.raises(ValueError, match="unknown noise"):
        lgmrec(noise="gumble")
    with pytest.raises(ValueError, match="at least 1"):
        gather_messages(jnp.ones((4, 2)), jnp.ones((4, 3)), 0)


def test_the_paper_preset_penalises_parameters_and_draws_from_all_items():
    catalogue, params, _, pairs = tiny()
    expected = sum(np.square(x).sum() for x in jax.tree.leaves(params))
    np.testing.assert_allclose(jax.jit(squares)(params, {}, pairs), expected, rtol=1e-5)
    unseen = catalogue | {"popularity": catalogue["popularity"].at[6].set(0)}
    users = jnp.full(400, 1, jnp.int32)
    pairs = Pairs(users, users, users, jnp.ones(400))
    drawn = jax.jit(anywhere)(pairs, unseen, jax.random.key(0))
    others = set(range(1, 10)) - {int(i) + 1 for i in np.flatnonzero(fixture()["R"][0])}
    assert set(np.asarray(drawn.negatives).tolist()) == others


@pytest.mark.parametrize("law", ["gumbel", "logistic"])
def test_noise_has_its_law(law):
    """P(g <= 0): exp(-1) for Gumbel's law, a half for the logistic one; four sigma."""
    got = float(np.mean(draw_noise(law, jax.random.key(0), (20_000,)) <= 0))
    p = {"gumbel": np.exp(-1), "logistic": 0.5}[law]
    assert abs(got - p) < 4 * np.sqrt(p * (1 - p) / 20_000)


def random_hyper(rng, n: int, a: int, d: int) -> Hyper:
    return Hyper(rng.dirichlet(np.ones(a), n).astype(np.float32), rng.normal(size=(a, d)))


@pytest.mark.parametrize("a", [3, 12])
def test_contrast_equals_its_definition(a, monkeypatch):
    """Values and gradients, with repeated nodes, weights, invalid rows, and a last short chunk;
    through the factors (a < d) and through the vectors."""
    monkeypatch.setattr(hypergraph, "EXPONENTIALS", 4 * 30)
    rng = np.random.default_rng(a)
    x, y = (random_hyper(rng, 30, a, 8) for _ in range(2))
    nodes = np.array([3, 3, 7, 29, 11, 3], np.int32)
    weights = np.array([1, 1, 0.5, 1, 0, 2], np.float32)
    valid = np.arange(30) % 5 > 0
    valid[nodes] = True

    def plain(x, y):
        u, v = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (vectors(x), vectors(y)))
        cosine = u[nodes] @ v.T / 0.2
        top = jax.nn.logsumexp(jnp.where(valid[None, :], cosine, -jnp.inf), axis=1)
        return jnp.sum(weights * (top - cosine[jnp.arange(6), nodes]))

    ours = partial(contrast, nodes=nodes, weights=weights, valid=valid, temperature=0.2)
    got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, y) for f in (ours, plain))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, atol=ATOL), got[1], expected[1])


def test_dust_and_nothing_have_finite_gradients():
    """Dropout may leave a row nothing, or shares of 1e-20 alone."""
    shares = np.float32([[0, 0], [1e-20, 0], [1e-12, 1e-13], [0.5, 0.5]])
    x = Hyper(jnp.asarray(shares), jnp.asarray(np.eye(2, 5, dtype=np.float32)))
    f = partial(contrast, nodes=jnp.arange(4), weights=jnp.ones(4), temperature=0.2)
    both = jax.jit(jax.value_and_grad(lambda x: f(x, x, valid=jnp.ones(4, bool))))
    loss, grads = both(x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((loss, grads)))
    with pytest.raises(ValueError, match="temperature"):
        contrast(x, x, jnp.arange(4), jnp.ones(4), jnp.ones(4, bool), 0.01)


def test_training_draws_noise_and_drops():
    catalogue, params, _, _ = tiny()
    apply = lambda key, **fields: module(**fields).apply(  # noqa: E731
        {"params": params}, catalogue, True, rngs={"dropout": key}
    )
    keys = jax.random.split(jax.random.key(0))
    a, b = map(jax.jit(apply), keys)
    assert np.abs(a["assignment"][0] - b["assignment"][0]).max() > 0.1
    kept = np.concatenate([np.asarray(h.assignment)[1:].ravel() for h in a["hyper"]])
    whole = np.concatenate([np.asarray(x)[1:].ravel() for x in a["assignment"]])
    assert ((kept == 0) | np.isclose(kept, 2 * whole)).all()
    assert 0.2 < np.mean(kept == 0) < 0.8
    silent = jax.jit(partial(apply, noise="none", keep=1.0))
    np.testing.assert_allclose(silent(keys[0])["users"], silent(keys[1])["users"])


def test_memory_does_not_hold_every_row_against_every_row():
    """2,048 anchors and 20,000 nodes: 164 MB of logits; chunks of 1.2M exponentials instead."""
    n, p, shape = 20_000, 2_048, jax.ShapeDtypeStruct
    x = Hyper(shape((n, 4), jnp.float32), shape((4, 64), jnp.float32))
    f = lambda x, y, nodes, w, v: contrast(x, y, nodes, w, v, 0.2)  # noqa: E731
    args = shape((p,), jnp.int32), shape((p,), jnp.float32), shape((n,), bool)
    compiled = jax.jit(jax.grad(f, (0, 1))).lower(x, x, *args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 40e6
