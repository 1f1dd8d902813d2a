"""VBPR, BM3 and FREEDOM: the reference's numbers on tiny inputs, and what else they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.graph import product, renormalised, sample_edges
from zoo.losses import normalise
from zoo.models import bm3 as bm3_file
from zoo.models import content
from zoo.models import freedom as freedom_file
from zoo.models import vbpr as vbpr_file
from zoo.models.bm3 import BM3, bm3
from zoo.models.collaborative import Pairs, with_graph
from zoo.models.freedom import FREEDOM, freedom
from zoo.models.vbpr import VBPR, vbpr
from zoo.optim import optimizer
from zoo.train import create, make_dispatch

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


def test_bm3():
    f, catalogue, params = bm3_world()
    settings = (float(f["cfg_cl"]), float(f["cfg_reg"]), "official")

    @jax.jit
    def value_and_grad(params, keep, dropout):
        def loss(params):
            out = bm3_out(f, catalogue, params)
            return bm3_file.loss(out, pairs_of(f), catalogue, keep, dropout, *settings)

        return jax.value_and_grad(loss)(params)

    everything = {k: np.ones_like(x) for k, x in kept(f).items()}
    close(value_and_grad(params, everything, 0.0)[0], f["out_loss_no_dropout"])
    value, grads = value_and_grad(params, kept(f), float(f["cfg_dropout"]))
    close(value, f["out_loss"])
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
    assert content.modality_weights(("image", "text")) == (weight, 1 - weight)
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


def random_world(n_users: int = 40, n_items: int = 60, rows: int = 128) -> dict:
    """A random bipartite catalogue; the last ten items are cold, some lack a modality."""
    rng = np.random.default_rng(0)
    seen = rng.random((n_users + 1, n_items - 9)) < 0.15
    seen[0], seen[:, 0] = False, False
    users, items = np.nonzero(seen)
    valid = (np.arange(rows) > 0) & (np.arange(rows) <= n_items)
    present = {m: valid & (rng.random(rows) < 0.9) for m in ("image", "text")}
    return {
        "valid": valid,
        "popularity": np.bincount(items, minlength=rows).astype(np.float32),
        "users": np.bincount(users, minlength=rows).astype(np.float32),
        "features": {m: rng.normal(size=(rows, 5)).astype(np.float32) for m in present},
        "present": present,
        "train": {"users": users, "items": items},
    }


def epoch_of(catalogue: dict, steps: int) -> dict[str, np.ndarray]:
    train = catalogue["train"]
    pairs = {"users": train["users"], "targets": train["items"]}
    return {k: np.stack([x.astype(np.int32)] * steps) for k, x in pairs.items()}


def test_bm3_does_not_collapse():
    """The spread ends near .17; with gradients through the targets it would fall to .007."""
    source, chain, width = random_world(), optimizer(1e-2), 16
    recommender = bm3(width)
    catalogue = recommender.prepare(source)
    state = jax.jit(lambda catalogue: create(recommender, chain, catalogue, {}))(catalogue)
    dispatch = jax.jit(make_dispatch(recommender, chain))
    state, metrics = dispatch(state, catalogue, epoch_of(source, 300))
    assert metrics["loss"][-1] < 0.7 * metrics["loss"][0]
    h = BM3(width).apply({"params": state.params}, catalogue)["h_users"]
    spread = np.std(normalise(h)[source["users"] > 0], axis=0).mean()
    assert spread > 0.5 / width**0.5


def test_bm3_penalties_and_unknown_ones():
    out = {"h_users": jnp.ones((128, 2)), "h_items": jnp.ones((128, 2))}
    pairs = Pairs(*(jnp.asarray([1, 2]),) * 3, jnp.asarray([1.0, 0.0]))
    whole = bm3_file.table_norms(out, pairs, random_world())
    close(whole, (np.sqrt(2 * 40) + np.sqrt(2 * 60)) / 60)
    close(bm3_file.REGS["paper"](out, pairs, {}), 2 + 2)
    with pytest.raises(ValueError, match="official"):
        bm3(reg_kind="offical")


def test_an_items_dropout_is_drawn_once_a_step():
    out = {"h_users": jnp.zeros((9, 400)), "contents": {"text": None}}
    pairs = Pairs(jnp.asarray([1, 2, 1]), jnp.asarray([3, 3, 4]), None, None)
    keep = bm3_file.draw_keeps(jax.random.key(0), out, pairs, 0.3)
    for name, same, other in (("users", 2, 1), ("items", 1, 2), ("content_text", 1, 2)):
        np.testing.assert_array_equal(keep[name][0], keep[name][same])
        assert (keep[name][0] != keep[name][other]).mean() > 0.3
        assert abs(keep[name].mean() - 0.7) < 4 * (0.21 / 800) ** 0.5


@pytest.mark.parametrize("parts", [1, 8])
def test_an_epoch_keeps_exactly_its_share_of_the_edges(parts):
    recommender = freedom(8, dropout=0.7)
    catalogue = recommender.prepare(random_world(), parts)
    edges = len(catalogue["graph"].forward.weights.nonzero()[0])
    assert edges == len(random_world()["train"]["users"])
    draw = jax.jit(recommender.draw)
    drawn = [draw({}, catalogue, jax.random.key(i))["pruned"] for i in range(2)]
    kept = [np.asarray(graph.forward.weights) > 0 for graph in drawn]
    assert [k.sum() for k in kept] == [int(edges * (1 - 0.7))] * 2
    assert (kept[0] != kept[1]).any(), "each epoch has its own"
    assert not (kept[0] & (catalogue["graph"].forward.weights == 0)).any()
    users = np.bincount(catalogue["graph"].forward.rows, kept[0], minlength=128)
    items = np.bincount(catalogue["graph"].forward.columns, kept[0], minlength=128)
    side = drawn[0].forward
    wanted = kept[0] / np.sqrt(np.maximum(users[side.rows] * items[side.columns], 1))
    close(side.weights, wanted)
    back = np.sort(np.asarray(drawn[0].backward.weights))[-kept[0].sum() :]
    close(back, np.sort(wanted)[-kept[0].sum() :])


def test_edges_are_drawn_by_their_weights():
    weights, draws = jnp.asarray([1.0, 2.0, 0.0, 3.0]), 4000
    keys = jax.random.split(jax.random.key(0), draws)
    kept = jax.vmap(lambda key: sample_edges(key, weights, 2))(keys)
    np.testing.assert_array_equal(kept.sum(1), 2)
    p = np.asarray(weights) / 6
    left_out = [
        sum(p[a] * p[b] / (1 - p[a]) for a, b in ((i, j), (j, i)))
        for i, j in ((1, 3), (0, 3), (0, 1))
    ]  # the pair that is kept instead
    wanted = 1 - np.asarray([left_out[0], left_out[1], 1.0, left_out[2]])
    sigma = np.sqrt(wanted * (1 - wanted) / draws)
    assert (np.abs(kept.mean(0) - wanted) <= 4 * sigma).all()


def test_cold_items_can_be_scored_by_their_neighbours_alone():
    source = random_world()
    plain, by_graph = freedom(8), freedom(8, cold="graph")
    catalogue = plain.prepare(source)
    params = plain.init(jax.random.key(0), catalogue, {})
    h = product(catalogue["item_graph"], params["free"]["items"]["table"])
    cold = source["popularity"] == 0
    tables = [np.asarray(r.index(params, catalogue)["table"]) for r in (plain, by_graph)]
    np.testing.assert_array_equal(tables[0][~cold], tables[1][~cold])
    close(tables[1][cold], h[cold])
    assert np.abs(tables[0][cold & source["valid"]] - h[cold & source["valid"]]).min(0).max() > 0
    with pytest.raises(ValueError, match="graph"):
        freedom(cold="graphs")


def test_modality_weights_hold_for_any_number():
    assert content.modality_weights(("text",)) == (1.0,)
    assert content.modality_weights(("image",)) == (1.0,)
    close(content.modality_weights(("audio", "image", "text")), (0.45, 0.1, 0.45))
    close(content.modality_weights(("audio", "text")), (0.5, 0.5))
    assert content.modality_weights(("a", "b"), (0.2, 0.8)) == (0.2, 0.8)
    with pytest.raises(ValueError, match="3 weights"):
        content.modality_weights(("a", "b"), (1.0, 2.0, 3.0))


def test_an_item_without_a_modality_has_no_neighbours_in_it():
    source = random_world()
    side = content.item_graph(source, ("image", "text"), (0.1, 0.9), 4).forward
    sums = np.bincount(side.rows, side.weights, minlength=128)
    image, text = (source["present"][m] for m in ("image", "text"))
    close(sums, 0.1 * image + 0.9 * text)


@pytest.mark.parametrize("make", [bm3, freedom])
def test_features_are_parameters_or_read(make):
    for learned, wanted in ((True, {"items", "map"}), (False, {"map"})):
        recommender = make(8, train_features=learned)
        catalogue = recommender.prepare(random_world())
        params = jax.eval_shape(recommender.init, jax.random.key(0), catalogue, {})
        assert set(params["content_text"]) == wanted


def test_learned_features_start_as_given_and_the_missing_stay():
    source, ids = random_world(), jnp.arange(1, 61)
    x, present = source["features"]["text"], source["present"]["text"]
    gradients = {}
    for learned in (True, False):
        module = content.ContentMap(8, learned)
        params = module.init(jax.random.key(0), x, present)

        def loss(params, x, module=module):
            rows, has = content.content_rows(module.apply(params, x, present), ids)
            return jnp.sum(jnp.square(rows) * has[:, None])

        gradients[learned] = jax.grad(loss, (0, 1))(params, x)
    table = gradients[True][0]["params"]["items"]["table"]
    close(table, gradients[False][1])
    assert not gradients[True][1].any(), "parameters stand in for the catalogue"
    assert (np.abs(table).max(1) > 0).tolist() == present.tolist()


@pytest.mark.parametrize("make", [vbpr, bm3, freedom])
def test_without_any_modality_the_error_says_what_to_do(make):
    source = random_world()
    for empty in ({**source, "features": {}, "present": {}}, source):
        recommender = make(8, modalities=None if empty is not source else ())
        with pytest.raises(ValueError, match="lightgcn"):
            recommender.init(jax.random.key(0), recommender.prepare(empty), {})
