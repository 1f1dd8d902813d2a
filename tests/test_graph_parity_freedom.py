"""VBPR, BM3 and FREEDOM give the reference's losses, scores and gradients on tiny inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.graph import renormalised
from zoo.models import bm3 as bm3_file
from zoo.models import freedom as freedom_file
from zoo.models import vbpr as vbpr_file
from zoo.models.bm3 import BM3, bm3
from zoo.models.collaborative import Pairs, with_graph
from zoo.models.freedom import FREEDOM, freedom
from zoo.models.vbpr import VBPR, vbpr

ATOL = 1e-5
ORDER = ("text", "image")  # as the reference concatenates and sums them


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


def below(x: np.ndarray) -> np.ndarray:
    """A row of zeros for the padding id in front of the reference's rows."""
    return np.pad(x, ((1, 0), *[(0, 0)] * (x.ndim - 1)))


def catalogue_of(f: dict, n_users: int) -> dict:
    """The fixture's items and interactions, each id one up."""
    users, items = np.nonzero(f.get("R", np.zeros((n_users, len(f["V"])))))
    valid = np.arange(len(f["V"]) + 1) > 0
    return with_graph(
        {
            "valid": valid,
            "popularity": np.bincount(items + 1, minlength=len(valid)).astype(np.float32),
            "users": np.bincount(users + 1, minlength=n_users + 1).astype(np.float32),
            "features": {"image": below(f["V"]), "text": below(f["T"])},
            "present": {"image": valid, "text": valid},
            "train": {"users": users + 1, "items": items + 1},
        }
    )


def pairs_of(f: dict) -> Pairs:
    negatives = f["neg"] + 1 if "neg" in f else jnp.zeros(len(f["pos"]), jnp.int32)
    return Pairs(f["users"] + 1, f["pos"] + 1, negatives, jnp.ones(len(f["pos"])))


def linear(f: dict, name: str) -> dict:
    return {"kernel": f[f"p_{name}_weight"].T, "bias": f[f"p_{name}_bias"]}


def free(f: dict, users: str, items: str) -> dict:
    return {"users": {"table": below(f[users])}, "items": {"table": below(f[items])}}


def contents(f: dict) -> dict:
    return {
        f"content_{m}": {"items": {"table": below(f[x])}, "map": linear(f, f"{m}_trs")}
        for m, x in (("text", "T"), ("image", "V"))
    }


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, atol=ATOL)


def scores(index: dict, users: np.ndarray) -> np.ndarray:
    return np.asarray(index["users"])[users + 1] @ np.asarray(index["table"])[1:].T


def test_vbpr():
    f = read("vbpr_tiny")
    catalogue, pairs, reg = catalogue_of(f, 8), pairs_of(f), float(f["cfg_reg"])
    params = {
        "free": free(f, "p_u_embedding", "p_i_embedding"),
        "content": linear(f, "item_linear"),
    }

    def loss(params):
        out = VBPR(6, ORDER).apply({"params": params}, catalogue)
        return vbpr_file.loss(out, pairs, catalogue, ORDER, reg)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    close(value, f["out_loss"])
    close(grads["free"]["users"]["table"][1:], f["out_grad_user"])
    close(grads["free"]["items"]["table"][1:], f["out_grad_item"])
    close(grads["content"]["kernel"].T, f["out_grad_linear"])
    close(scores(vbpr(6, reg, ORDER).index(params, catalogue), f["users"]), f["out_scores"])


def bm3_world() -> tuple[dict, dict, dict]:
    f = read("bm3_tiny")
    params = {
        "free": free(f, "p_user_embedding_weight", "p_item_id_embedding_weight"),
        "predictor": linear(f, "predictor"),
        **contents(f),
    }
    return f, catalogue_of(f, 8), params


def bm3_out(f, catalogue, params):
    module = BM3(6, int(f["cfg_layers"]), ORDER)
    return module.apply({"params": params}, catalogue)


def kept(f: dict) -> dict[str, np.ndarray]:
    """The fixture's dropout masks, on the rows of the batch."""
    rows = {"users": ("u", "users"), "items": ("i", "pos")}
    rows |= {"content_text": ("t", "pos"), "content_image": ("v", "pos")}
    return {k: f[f"keep_mask_{m}"][f[ids]] > 0 for k, (m, ids) in rows.items()}


@pytest.mark.parametrize("dropped", [True, False])
def test_bm3(dropped):
    f, catalogue, params = bm3_world()
    keep, dropout = kept(f), float(f["cfg_dropout"])
    if not dropped:
        keep, dropout = {k: np.ones_like(x) for k, x in keep.items()}, 0.0
    settings = (dropout, float(f["cfg_cl"]), float(f["cfg_reg"]), "official")

    def loss(params):
        out = bm3_out(f, catalogue, params)
        return bm3_file.loss(out, pairs_of(f), catalogue, keep, *settings)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    close(value, f["out_loss"] if dropped else f["out_loss_no_dropout"])
    if dropped:
        close(grads["free"]["users"]["table"][1:], f["out_grad_user"])
        close(grads["free"]["items"]["table"][1:], f["out_grad_item"])
        close(grads["predictor"]["kernel"].T, f["out_grad_predictor"])
        close(grads["content_text"]["map"]["kernel"].T, f["out_grad_text_trs"])


def test_bm3_parts_and_scores():
    f, catalogue, params = bm3_world()
    out, dropout = bm3_out(f, catalogue, params), float(f["cfg_dropout"])
    ids, modal = bm3_file.agreements(out, pairs_of(f), kept(f), dropout)
    close(ids["ui"], f["out_part_ui"])
    close(ids["iu"], f["out_part_iu"])
    close(modal["text_item"], f["out_part_t"])
    close(modal["text_own"], f["out_part_tt"])
    close(modal["image_item"], f["out_part_v"])
    close(modal["image_own"], f["out_part_vv"])
    close(bm3_file.table_norms(out, pairs_of(f), catalogue), f["out_part_reg"])
    close(out["h_users"][1:], f["out_user"])
    close(out["h_items"][1:], f["out_item"])
    index = bm3(6, int(f["cfg_layers"]), modalities=ORDER).index(params, catalogue)
    close(scores(index, f["users"]), f["out_scores"])


def freedom_world() -> tuple[dict, dict, dict]:
    f = read("freedom_tiny")
    weight = float(f["cfg_image_weight"])
    recommender = freedom(
        6, knn=int(f["cfg_knn"]), dropout=float(f["cfg_dropout"]), modalities=("image", "text")
    )
    assert freedom_file.modality_weights(("image", "text")) == (weight, 1 - weight)
    params = {
        "free": free(f, "p_user_embedding_weight", "p_item_id_embedding_weight"),
        **contents(f),
    }
    return f, recommender.prepare(catalogue_of(f, 8), 1), params


def with_given_edges(f: dict, catalogue: dict) -> dict:
    """The catalogue pruned to the fixture's edges."""
    side = catalogue["graph"].forward
    given = set(zip(*(f["kept_edges"] + 1), strict=True))
    edges = zip(side.rows, side.columns, strict=True)
    keep = jnp.asarray([edge in given for edge in edges])
    assert int(keep.sum()) == len(given) == int(catalogue["kept_edges"][0])
    return catalogue | {"pruned": renormalised(catalogue["graph"], keep, 9, 11)}


def test_freedom_graphs_and_scores():
    f, catalogue, params = freedom_world()
    side = catalogue["item_graph"].forward
    dense = np.zeros((11, 11), np.float32)
    dense[side.rows, side.columns] = side.weights
    close(dense[1:, 1:], f["out_item_graph"])
    assert not dense[0].any() and not dense[:, 0].any()
    sampling = catalogue["graph"].forward.weights
    close(sampling, f["edge_sampling_weights"])
    module = FREEDOM(6, int(f["cfg_ui_layers"]), int(f["cfg_mm_layers"]), ORDER)
    full = module.apply({"params": params}, catalogue)
    close(full["users"][1:], f["out_user_full"])
    close(full["items"][1:], f["out_item_full"])
    pruned = module.apply({"params": params}, with_given_edges(f, catalogue), True)
    close(pruned["users"][1:], f["out_user_pruned"])
    close(pruned["items"][1:], f["out_item_pruned"])
    index = freedom(6).index(params, with_given_edges(f, catalogue))
    close(scores(index, f["users"]), f["out_scores_full"])


def test_freedom_loss_and_gradients():
    f, catalogue, params = freedom_world()
    catalogue = with_given_edges(f, catalogue)
    module = FREEDOM(6, int(f["cfg_ui_layers"]), int(f["cfg_mm_layers"]), ORDER)

    def loss(params):
        out = module.apply({"params": params}, catalogue, True)
        return freedom_file.loss(out, pairs_of(f), float(f["cfg_reg"])), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    close(value, f["out_loss"])
    close(freedom_file.loss(out, pairs_of(f), 0.0), f["out_bpr"])
    modal = freedom_file.modal_losses(out, pairs_of(f))
    close(modal["text"], f["out_bpr_text"])
    close(modal["image"], f["out_bpr_image"])
    close(grads["free"]["users"]["table"][1:], f["out_grad_user"])
    close(grads["free"]["items"]["table"][1:], f["out_grad_item"])
