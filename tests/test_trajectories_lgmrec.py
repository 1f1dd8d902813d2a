"""LGMRec step by step beside the authors' code: five Adam steps on a slice of real data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.models.collaborative import Pairs, ranking_loss
from zoo.models.lgmrec import LGMRec, hypergraph_contrast, lgmrec, norms

MODALITIES = ("image", "audio")  # the authors' first and second
PARAMETERS = {  # theirs to ours
    "user_embedding.weight": ("free", "users", "table"),
    "item_id_embedding.weight": ("free", "items", "table"),
    "item_image_trs": ("project_image",),
    "item_text_trs": ("project_audio",),
    "v_hyper": ("hyperedges_image",),
    "t_hyper": ("hyperedges_audio",),
}


def shifted(x: np.ndarray) -> np.ndarray:
    """With the padding row 0 in front."""
    return np.concatenate([np.zeros_like(x[:1]), x])


def tree_of(stored, part: str) -> dict:
    """The stored `init` or `grad0` as our parameters."""
    tree: dict = {}
    for theirs, path in PARAMETERS.items():
        x, node = stored[f"{part}/{theirs}"], tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = shifted(x) if path[-1] == "table" else x
    return tree


def prepared(data) -> dict:
    """The catalogue of the slice, ids moved up by the padding row."""
    train = data["x_label"] == 0
    users, items = data["user"][train] + 1, data["item"][train] + 1
    known = np.arange(len(data["image"]) + 1) > 0
    catalogue = {
        "valid": known,
        "popularity": np.bincount(items, minlength=len(known)).astype(np.float32),
        "users": np.bincount(users, minlength=401).astype(np.float32),
        "features": {m: shifted(data[m].astype(np.float32)) for m in MODALITIES},
        "present": {m: known for m in MODALITIES},
        "train": {"users": users, "items": items},
    }
    catalogue = lgmrec(modalities=MODALITIES).prepare(catalogue)
    # One user of the slice has no train item. Theirs keeps that row in the contrast's
    # denominators; ours takes it for a user who is not there.
    everyone = {m: np.maximum(x, np.arange(401) > 0) for m, x in catalogue["reached"].items()}
    return jax.tree.map(jnp.asarray, catalogue | {"reached": everyone})


def close(got, expected) -> None:
    """To 1e-5, relative above 1. In float64 these scores, up to 3.7, differ from the stored ones
    by 6e-6 and from ours by 8e-6: both are as exact as five steps of float32 are."""
    np.testing.assert_array_less(np.abs(got - expected) / np.maximum(np.abs(expected), 1), 1e-5)


def alike(got, expected) -> None:
    """To 1e-5, and to 1e-4 of the largest: these gradients are about .01 themselves."""
    bound = min(1e-5, 1e-4 * float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound)


def test_five_steps_of_the_authors_code(real_data):
    place = real_data / "reference-trajectories"
    with np.load(place / "lgmrec.npz") as stored, np.load(place / "data.npz") as data:
        reference, catalogue = dict(stored), prepared(dict(data))
    module, chain = LGMRec(MODALITIES, noise="none", keep=1.0), optax.adam(1e-3)

    def loss(params, catalogue, batch):
        pairs = Pairs(*batch, jnp.ones(256))
        out = module.apply({"params": params}, catalogue, True, rngs={"dropout": jax.random.key(0)})
        value = ranking_loss(out["users"], out["items"], pairs) + 1e-6 * norms(params, out, pairs)
        return value + 1e-4 * hypergraph_contrast(out, pairs, 0.2), out

    @jax.jit
    def step(params, state, catalogue, batch):
        (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params, catalogue, batch)
        updates, state = chain.update(grads, state, params)
        scores = out["users"][1:17] @ out["items"][1:].T
        return optax.apply_updates(params, updates), state, value, grads, scores

    params = tree_of(reference, "init")
    state = chain.init(params)
    for k in range(5):
        batch = reference[f"batch{k}"] + 1
        params, state, value, grads, _ = step(params, state, catalogue, batch)
        close(value, reference["loss"][k])
        if k == 0:
            jax.tree.map(alike, grads, tree_of(reference, "grad0"))
    close(step(params, state, catalogue, batch)[-1], reference["scores_first16"])
