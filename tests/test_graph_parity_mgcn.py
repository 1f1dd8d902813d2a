"""SMORE against the reference's numbers, MGCN against dense equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.graph import product
from zoo.models import mgcn as file
from zoo.models.collaborative import Pairs, batch_squares, ranking_loss
from zoo.models.mgcn import MGCN, mgcn

ATOL = 1e-5
NAMES = ("image", "text")


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as stored:
        return {k: stored[k] for k in stored.files}


def below(x: np.ndarray) -> np.ndarray:
    """A row of zeros for the padding id in front of the reference's rows."""
    return np.pad(x, ((1, 0), *[(0, 0)] * (x.ndim - 1)))


def catalogue_of(seen: np.ndarray, features: dict, present: dict | None = None) -> dict:
    """Items and interactions [u,n] of the reference, each id one up."""
    users, items = np.nonzero(seen)
    valid = np.arange(seen.shape[1] + 1) > 0
    present = present or {}
    return {
        "valid": valid,
        "popularity": np.bincount(items + 1, minlength=len(valid)).astype(np.float32),
        "users": np.bincount(users + 1, minlength=len(seen) + 1).astype(np.float32),
        "features": {m: below(x) for m, x in features.items()},
        "present": {m: below(present.get(m, valid[1:])) for m in features},
        "train": {"users": users + 1, "items": items + 1},
    }


def linear(f: dict, name: str) -> dict:
    bias = {"bias": f[f"p_{name}_bias"]} if f"p_{name}_bias" in f else {}
    return {"kernel": f[f"p_{name}_weight"].T, **bias}


def smore_params(f: dict) -> dict:
    tables = {"users": f["p_user_embedding_weight"], "items": f["p_item_id_embedding_weight"]}
    params = {"free": {k: {"table": below(x)} for k, x in tables.items()}}
    filters = [f[f"p_{m}_complex_weight"] for m in (*NAMES, "fusion")]
    params["spectral"] = {"filters": np.concatenate(filters)}
    tags = {"content_image": "v", "content_text": "t", "fused": "f"}
    for (tag, short), m in zip(tags.items(), (*NAMES, "fusion"), strict=True):
        params[f"{tag}_view"] = linear(f, f"gate_{short}_0")
        params[f"{tag}_gate"] = linear(f, f"gate_{m}_prefer_0")
        if m in NAMES:
            params[f"{tag}_query"] = linear(f, f"query_{short}_0")
            params[f"{tag}_preference"] = linear(f, f"query_{short}_2")
            rows = {"table": below(f["V" if short == "v" else "T"])}
            params[tag] = {"items": rows, "map": linear(f, f"{m}_trs")}
    return params


def smore_world() -> tuple:
    f = read("smore_tiny")
    fields = {
        "layers": int(f["cfg_ui_layers"]),
        "item_layers": int(f["cfg_item_layers"]),
        "fusion": "spectral",
    }
    ks = (int(f["cfg_image_knn"]), int(f["cfg_text_knn"]))
    recommender = mgcn(6, neighbours=ks, modalities=NAMES, **fields)
    catalogue = recommender.prepare(catalogue_of(f["R"], {"image": f["V"], "text": f["T"]}), 1)
    pairs = Pairs(f["users"] + 1, f["pos"] + 1, f["neg"] + 1, jnp.ones(len(f["pos"])))
    return f, recommender, MGCN(NAMES, 6, **fields), catalogue, pairs


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=ATOL)


def dense(graph, n: int) -> np.ndarray:
    return np.asarray(product(graph, jnp.eye(n)))


def test_smore_graphs():
    f, _, _, catalogue, _ = smore_world()
    for m, graph in (*catalogue["item_graphs"].items(), ("fusion", catalogue["fused_graph"])):
        close(dense(graph, 11)[1:, 1:], f[f"out_{m}_graph"])


def test_smore_vectors_loss_and_gradients():
    f, recommender, module, catalogue, pairs = smore_world()
    params = smore_params(f)

    def loss(params):
        out = module.apply({"params": params}, catalogue)
        return file.loss(out, pairs, float(f["cfg_reg"]), float(f["cfg_cl"]), 0.2), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for name, theirs in (("side", "side"), ("behaviour", "content")):
        close(np.concatenate([rows[1:] for rows in out[name]]), f[f"out_{theirs}"])
    close(out["users"][1:], f["out_user"])
    close(out["items"][1:], f["out_item"])
    close(ranking_loss(out["users"], out["items"], pairs), f["out_bpr"])
    close(batch_squares(out["users"], out["items"], pairs), f["out_reg"])
    close(file.side_contrast(out, pairs, 0.2), f["out_ssl"])
    close(value, f["out_loss"])
    close(grads["free"]["users"]["table"][1:], f["out_grad_user"])
    close(grads["free"]["items"]["table"][1:], f["out_grad_item"])
    close(grads["spectral"]["filters"][-1], f["out_grad_fusion_complex"][0])
    index = jax.jit(recommender.index)(params, catalogue)
    scores = index["users"][f["users"] + 1] @ index["table"][1:].T
    close(scores, f["out_scores"])


# The equations once more, dense and in float64, over three modalities with holes.

SIZES = {"audio": 3, "image": 4, "text": 2}
KS = (2, 3, 4)
REG, CONTRAST, TAU = 0.05, 0.3, 0.2
FIELDS = {"width": 5, "layers": 2, "neighbours": KS, "contrast": CONTRAST, "reg": REG}


def three() -> tuple[dict, Pairs]:
    """6 users, 8 items, then shifted by one: the last item is cold and one has no modality; one
    user has no item with audio; the last pair is padding."""
    rng = np.random.default_rng(3)
    seen = rng.random((6, 8)) < 0.5
    seen[:, 7], seen[0] = False, [1, 0, 1, 0, 0, 1, 0, 0]
    features = {m: rng.normal(size=(8, f)).astype(np.float32) for m, f in SIZES.items()}
    present = {m: np.ones(8, bool) for m in SIZES}
    present["audio"][[0, 2, 5]] = present["image"][[1, 2]] = present["text"][[2, 3]] = False
    ids = [rng.integers(1, n, 5) for n in (7, 9, 9)]
    return catalogue_of(seen, features, present), Pairs(*ids, np.float32([1, 1, 1, 1, 0]))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def affine(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p.get("bias", 0)


def twin_bipartite(catalogue: dict) -> np.ndarray:
    r = np.zeros((len(catalogue["users"]), len(catalogue["valid"])))
    r[catalogue["train"]["users"], catalogue["train"]["items"]] = 1
    return r


def twin_unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def twin_neighbours(x: np.ndarray, present: np.ndarray, k: int) -> np.ndarray:
    cosine = twin_unit(x) @ twin_unit(x).T
    kept = np.zeros_like(cosine)
    for i in np.flatnonzero(present):
        for j in sorted(np.flatnonzero(present), key=lambda j, i=i: -cosine[i, j])[:k]:
            kept[i, j] = cosine[i, j]
    root = np.sqrt(kept.sum(1) + 1e-7)
    return kept / root[:, None] / root[None]


def twin_tokens(params: dict, catalogue: dict, fusion: str) -> list[tuple]:
    """(tag, p [n,d], S [n,n], which items have it), one a view."""
    views = []
    for m, k in zip(sorted(SIZES), KS, strict=True):
        there, own = catalogue["present"][m], params[f"content_{m}"]
        graph = twin_neighbours(catalogue["features"][m].astype(float), there, k)
        views.append((f"content_{m}", affine(own["map"], own["items"]["table"]), graph, there))
    if fusion == "attention":
        return views
    waves = params["spectral"]["filters"] @ np.array([1, 1j])
    fused, spectra = np.ones((len(there), waves.shape[1]), complex), []
    for _, x, _, there in views:
        spectra.append(np.fft.rfft(x, norm="ortho"))
        fused[there] *= spectra[-1][there]
    graph = np.max([view[2] for view in views], axis=0)
    views.append(("fused", None, graph, np.any([view[3] for view in views], axis=0)))
    filtered = np.fft.irfft(np.stack([*spectra, fused]) * waves[:, None], n=5, norm="ortho")
    return [(tag, x, s, there) for x, (tag, _, s, there) in zip(filtered, views, strict=True)]


def twin(params: dict, catalogue: dict, fusion: str) -> tuple[np.ndarray, np.ndarray]:
    """(side, behaviour), [u+n,d] each."""
    users, items = (params["free"][k]["table"] for k in ("users", "items"))
    r = twin_bipartite(catalogue)
    ratio = r / np.sqrt((r.sum(1) + 1e-7)[:, None] * (r.sum(0) + 1e-7)[None])
    square = np.zeros((len(r) + len(items),) * 2)
    square[: len(r), len(r) :], square[len(r) :, : len(r)] = ratio, ratio.T
    free = np.concatenate([users, items])
    behaviour = (free + square @ free + square @ square @ free) / 3
    views = twin_tokens(params, catalogue, fusion)
    z, exists = [], []
    for tag, x, s, there in views:
        view = s @ (items * sigmoid(affine(params[f"{tag}_view"], x)) * there[:, None])
        z.append(np.concatenate([ratio @ view, view]))
        exists.append(np.concatenate([r @ there > 0, there]))
    gates = [sigmoid(affine(params[f"{view[0]}_gate"], behaviour)) for view in views]
    if fusion == "attention":
        common = twin_common(params["common"], z, exists)
        own = [g * (x - common) * e[:, None] for g, x, e in zip(gates, z, exists, strict=True)]
        return (sum(own) + common) / (len(views) + 1), behaviour
    shares = []
    for tag, *_ in views[:-1]:
        hidden = np.tanh(affine(params[f"{tag}_query"], z[-1]))
        shares.append(softmax(affine(params[f"{tag}_preference"], hidden)))
    parts = [g * a * x for g, a, x in zip(gates, [*shares, 1.0], z, strict=True)]
    return sum(parts) / len(views), behaviour


def twin_common(params: dict, z: list, exists: list) -> np.ndarray:
    scores = [affine(params["score"], np.tanh(affine(params["hidden"], x)))[:, 0] for x in z]
    weights = np.exp(scores) * np.asarray(exists)
    weights = weights / np.maximum(weights.sum(0), 1e-300)
    return sum(w[:, None] * x for w, x in zip(weights, z, strict=True))


def twin_loss(params: dict, catalogue: dict, pairs: Pairs, fusion: str) -> float:
    side, behaviour = twin(params, catalogue, fusion)
    n_users, real = len(catalogue["users"]), np.asarray(pairs.weights) > 0
    u, p, q = pairs.users[real], pairs.positives[real] + n_users, pairs.negatives[real] + n_users
    out = side + behaviour
    margin = np.sum(out[u] * (out[p] - out[q]), axis=1)
    loss = np.mean(np.log1p(np.exp(-margin)))
    loss += REG * sum(np.sum(out[rows] ** 2) for rows in (u, p, q)) / 2 / len(u)
    for rows in (u, p):
        a, b = (twin_unit(x[rows]) for x in (side, behaviour))
        loss -= CONTRAST * np.mean(np.log(np.diag(softmax(a @ b.T / TAU))))
    return float(loss)


def differences(f, params: dict, step: float = 1e-6) -> dict:
    """Central differences of f, entry by entry, in the shape of params."""
    params = jax.tree.map(lambda x: np.array(x, np.float64), params)

    def one(x: np.ndarray) -> np.ndarray:
        found = np.zeros_like(x)
        for at in np.ndindex(x.shape):
            here = x[at]
            x[at] = here + step
            above = f(params)
            x[at] = here - step
            found[at] = (above - f(params)) / (2 * step)
            x[at] = here
        return found

    return jax.tree.map(one, params)


def lively(params: dict) -> dict:
    """Parameters in general position: rows of ids of sd .5, biases that are not zero."""
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), params)


@pytest.mark.parametrize("fusion", ["attention", "spectral"])
def test_the_equations_in_float64(fusion):
    source, pairs = three()
    recommender = mgcn(fusion=fusion, tau=TAU, **FIELDS)
    catalogue = recommender.prepare(source, 1)
    params = lively(jax.eval_shape(recommender.init, jax.random.key(0), catalogue, {}))
    module = MGCN(None, 5, 2, fusion=fusion)

    def loss(params):
        out = module.apply({"params": params}, catalogue)
        return file.loss(out, pairs, REG, CONTRAST, TAU), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    side, behaviour = twin(wide, source, fusion)
    close(np.concatenate(out["side"]), side)
    close(np.concatenate(out["behaviour"]), behaviour)
    close(np.concatenate([out["users"], out["items"]]), side + behaviour)
    close(value, twin_loss(wide, source, pairs, fusion))
    wanted = differences(lambda p: twin_loss(p, source, pairs, fusion), params)
    jax.tree.map(close, grads, wanted)
    learned = [np.abs(g).max() > 1e-4 for g in jax.tree.leaves(wanted)]
    assert all(learned), "the comparison sees every parameter"
