"""Five steps of Adam follow the reference on real data: LightGCN, VBPR, BM3 and FREEDOM."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.models import bm3, freedom, lightgcn, vbpr
from zoo.models.collaborative import Pairs, batch_norms, ranking_loss, with_graph
from zoo.optim import optimizer
from zoo.recommender import Recommender

MODALITIES = ("image", "audio")
TRAIN = 0  # x_label


class Case(NamedTuple):
    """A model as the reference was run, all randomness off."""

    recommender: Recommender
    module: object
    loss: object  # (out, pairs, catalogue) -> loss
    names: dict[str, str]  # our parameter -> the reference's
    turned: tuple[str, ...] = ()  # of these, the ones stored [out, in]


def lightgcn_case() -> Case:
    def loss(out, pairs, catalogue):
        penalty = batch_norms(out["ego_users"], out["ego_items"], pairs)
        return ranking_loss(out["users"], out["items"], pairs) + 1e-4 * penalty

    names = {"users": "embedding_dict.user_emb", "items": "embedding_dict.item_emb"}
    names = {f"free/{k}/table": v for k, v in names.items()}
    return Case(lightgcn.lightgcn(), lightgcn.LightGCN(), loss, names)


def vbpr_case() -> Case:
    order = MODALITIES[::-1]

    def loss(out, pairs, catalogue):
        return vbpr.loss(out, pairs, catalogue, order, 2.0)

    names = {"free/users/table": "u_embedding", "free/items/table": "i_embedding"}
    names |= {"content/kernel": "item_linear.weight", "content/bias": "item_linear.bias"}
    recommender, module = vbpr.vbpr(modalities=order), vbpr.VBPR(modalities=order)
    return Case(recommender, module, loss, names, ("content/kernel",))


IDS = {
    "free/users/table": "user_embedding.weight",
    "free/items/table": "item_id_embedding.weight",
}
MAPS = {"content_image/map": "image_trs", "content_audio/map": "text_trs"}


def linears(maps: dict[str, str]) -> dict[str, str]:
    weights = {f"{ours}/kernel": f"{theirs}.weight" for ours, theirs in maps.items()}
    return weights | {f"{ours}/bias": f"{theirs}.bias" for ours, theirs in maps.items()}


def bm3_case() -> Case:
    def loss(out, pairs, catalogue):
        shape = (len(pairs.users), 64)
        names = ("users", "items", "content_image", "content_audio")
        keep = {name: jnp.ones(shape, bool) for name in names}
        return bm3.loss(out, pairs, catalogue, keep, 0.0, 2.0, 0.1, "official")

    names = IDS | linears(MAPS | {"predictor": "predictor"})
    turned = tuple(name for name in names if name.endswith("kernel"))
    recommender = bm3.bm3(modalities=MODALITIES)
    return Case(recommender, bm3.BM3(modalities=MODALITIES), loss, names, turned)


def freedom_case() -> Case:
    def loss(out, pairs, catalogue):
        return freedom.loss(out, pairs, 1e-3)

    names = IDS | linears(MAPS)
    turned = tuple(name for name in names if name.endswith("kernel"))
    recommender = freedom.freedom(dropout=0.0, modalities=MODALITIES)
    return Case(recommender, freedom.FREEDOM(modalities=MODALITIES), loss, names, turned)


CASES = {"lightgcn": lightgcn_case, "vbpr": vbpr_case, "bm3": bm3_case, "freedom": freedom_case}


def read(real_data: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(real_data / "reference-trajectories" / f"{name}.npz") as file:
        return {k: file[k] for k in file.files}


def below(x: np.ndarray) -> np.ndarray:
    """A row of zeros for the padding id in front of the reference's rows."""
    return np.pad(x, ((1, 0), *[(0, 0)] * (x.ndim - 1)))


def catalogue_of(data: dict) -> dict:
    """The slice of real data, each id one up."""
    train = data["x_label"] == TRAIN
    users, items = data["user"][train] + 1, data["item"][train] + 1
    valid = np.arange(len(data["image"]) + 1) > 0
    features = {m: below(data[m].astype(np.float32)) for m in MODALITIES}
    return with_graph(
        {
            "valid": valid,
            "popularity": np.bincount(items, minlength=len(valid)).astype(np.float32),
            "users": np.bincount(users, minlength=int(data["user"].max()) + 2).astype(np.float32),
            "features": features,
            "present": {m: valid for m in MODALITIES},
            "train": {"users": users, "items": items},
        }
    )


def start(case: Case, catalogue: dict, stored: dict) -> dict:
    """Our parameters with the reference's initial values; learned features keep their own."""
    params = case.recommender.init(jax.random.key(0), catalogue, {})
    for ours, theirs in case.names.items():
        *path, leaf = ours.split("/")
        room = params
        for step in path:
            room = room[step]
        value = stored[f"init/{theirs}"]
        value = value.T if ours in case.turned else value
        value = below(value) if leaf == "table" else value
        assert value.shape == room[leaf].shape, ours
        room[leaf] = jnp.asarray(value)
    return params


def pairs_of(batch: np.ndarray) -> Pairs:
    users, positives, *negatives = batch + 1
    negatives = negatives[0] if negatives else np.zeros_like(users)
    return Pairs(users, positives, negatives, jnp.ones(len(users)))


@pytest.mark.parametrize("name", CASES)
def test_five_steps_follow_the_reference(name, real_data):
    case, stored = CASES[name](), read(real_data, name)
    catalogue = case.recommender.prepare(catalogue_of(read(real_data, "data")), 1)
    catalogue = jax.tree.map(jnp.asarray, catalogue)
    params, chain = start(case, catalogue, stored), optimizer(1e-3)

    @jax.jit
    def step(params, state, catalogue, pairs):
        def loss(params):
            return case.loss(
                case.module.apply({"params": params}, catalogue, True), pairs, catalogue
            )

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value, grads

    state, losses = chain.init(params), []
    for n in range(5):
        params, state, value, grads = step(params, state, catalogue, pairs_of(stored[f"batch{n}"]))
        losses.append(float(value))
        if n == 0:
            compare_gradients(case, grads, stored)
    np.testing.assert_allclose(losses, stored["loss"], rtol=1e-5, atol=0)
    index = case.recommender.index(params, catalogue)
    scores = np.asarray(index["users"])[1:17] @ np.asarray(index["table"])[1:].T
    np.testing.assert_allclose(scores, stored["scores_first16"], atol=1e-5, rtol=1e-5)


def compare_gradients(case: Case, grads: dict, stored: dict) -> None:
    """The first gradient of every stored parameter, against its own size.

    A bias of FREEDOM cancels in BPR: its gradient is 0 here and rounding noise of 1e-13 there.
    """
    for ours, theirs in case.names.items():
        got = grads
        for step in ours.split("/"):
            got = got[step]
        got = got[1:] if ours.endswith("table") else got
        got = got.T if ours in case.turned else got
        wanted = stored[f"grad0/{theirs}"]
        atol = 1e-5 * max(np.abs(wanted).max(), 1e-7)
        np.testing.assert_allclose(got, wanted, atol=atol, err_msg=ours)


def test_the_item_graph_is_the_references(real_data):
    stored = read(real_data, "freedom")
    catalogue = catalogue_of(read(real_data, "data"))
    weights = freedom.modality_weights(MODALITIES)
    side = freedom.item_graph(catalogue, MODALITIES, weights, 10).forward
    n = len(catalogue["valid"])
    ours, theirs = (np.zeros((n, n), np.float32) for _ in range(2))
    ours[side.rows, side.columns] = side.weights
    np.add.at(theirs, tuple(stored["mm_adj_idx"] + 1), stored["mm_adj_val"])
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
