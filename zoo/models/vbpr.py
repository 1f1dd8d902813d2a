"""VBPR: a free item row beside a linear map of the item's content, ranked pairwise.

He & McAuley 2016 (arXiv 1510.01784), in the form that MMRec trains: no bias terms and a user
row of twice the width,
    item_i = [q_i ; W [x_i^1 ; x_i^2 ...] + b],   score(u, i) = p_u · item_i,
    L = BPR + reg · (‖p_u‖_F + ‖item_p‖_F + ‖item_q‖_F) / B  over the rows of the batch.
Train:  zoo train vbpr --data tiktok --out runs/vbpr
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.models.collaborative import Free, Pairs, batch_norms, collaborative, ranking_loss
from zoo.models.content import Affine, batch_items, chosen, present_rows
from zoo.recommender import Recommender

Array = jax.Array


class VBPR(nn.Module):
    """users [u,2d], items [n,2d]; own [n,d] and map: what the items are made of."""

    width: int = 64
    modalities: tuple[str, ...] | None = None

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict[str, Array]:
        names = chosen(catalogue, self.modalities, "vbpr")
        users, own = Free(self.width, 2 * self.width, name="free")(catalogue)
        features = sum(catalogue["features"][m].shape[1] for m in names)
        out = {"users": users, "own": own, "map": Affine(self.width, name="content")(features)}
        return out | {"items": item_rows(out, catalogue, names)}


def item_rows(out: dict, catalogue: dict, names: tuple[str, ...], ids: Array | None = None):
    """[own ; W x + b] of items `ids`, or of all: one product a modality, W cut as x would be."""
    kernel, bias = out["map"]
    xs = [present_rows(catalogue, m, ids) for m in names]
    ends = np.cumsum([x.shape[1] for x in xs])
    parts = jnp.split(kernel, ends[:-1])
    content = sum(x @ w for x, w in zip(xs, parts, strict=True)) + bias[None, :]
    own = out["own"] if ids is None else jnp.take(out["own"], ids, axis=0)
    return jnp.concatenate([own, content], axis=-1)


def loss(out: dict, pairs: Pairs, catalogue: dict, names: tuple[str, ...], reg: float) -> Array:
    """BPR + reg · norms of the batch; content is mapped for the items of the batch alone."""
    ids, near = batch_items(pairs)
    rows = item_rows(out, catalogue, names, ids)
    penalty = batch_norms(out["users"], rows, near)
    return ranking_loss(out["users"], rows, near) + reg * penalty


def vbpr(
    width: int = 64, reg: float = 2.0, modalities: tuple[str, ...] | None = None
) -> Recommender:
    """Score p_u·[q_i ; W x_i + b], x_i the raw features of `modalities` side by side, in order.

    width: of q_i; the vectors of the score are twice as wide. modalities None: all that the
    catalogue has, sorted. A missing modality adds nothing to W x_i; b stays. Raises ValueError
    for a modality that the catalogue lacks, and without any.
    """

    def aim(params, out, pairs, catalogue, key):
        names = chosen(catalogue, modalities, "vbpr")
        return loss(out, pairs, catalogue, names, reg)

    return collaborative(VBPR(width, modalities), aim)
