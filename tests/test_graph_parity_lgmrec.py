"""LGMRec against the authors' numbers, a dense float64 twin of the equations, and its own rules."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.hypergraph import NOISE, Hyper, assign, contrast, draw_noise, gather_messages, vectors
from zoo.models.collaborative import Pairs, batch_norms, ranking_loss
from zoo.models.lgmrec import LGMRec, anywhere, hypergraph_contrast, lgmrec

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
    return LGMRec(NAMES, 8, hyper_layers=2, hyperedges=3, **fields)


def total(out: dict, pairs: Pairs) -> jax.Array:
    """The loss of the fixture's settings."""
    loss = ranking_loss(out["users"], out["items"], pairs)
    loss += 1e-6 * batch_norms(out["users"], out["items"], pairs)
    return loss + 1e-4 * hypergraph_contrast(out, pairs, 0.2)


def forward(params, pairs=None, **fields):
    catalogue, _, noise, _ = tiny()
    return module(**fields).apply({"params": params}, catalogue, False, noise)


def test_the_authors_vectors_and_losses():
    f, (_, params, _, pairs) = fixture(), tiny()
    out = jax.jit(forward)(params)
    np.testing.assert_allclose(out["users"][1:], f["user_out"], atol=ATOL)
    np.testing.assert_allclose(out["items"][1:], f["item_out"], atol=ATOL)
    for hyper, side in zip(out["hyper"], "ui", strict=True):
        for k, m in enumerate("vt"):
            got = vectors(Hyper(hyper.assignment[:, k], hyper.hubs[k]))
            np.testing.assert_allclose(got[1:], f[f"{side}{m}"], atol=ATOL)
    bpr = ranking_loss(out["users"], out["items"], pairs)
    np.testing.assert_allclose(bpr, f["bpr"], atol=ATOL)
    np.testing.assert_allclose(total(out, pairs), f["loss"], atol=1e-6)
