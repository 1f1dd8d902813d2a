"""VBPR: a free item row beside a linear map of the item's content, ranked pairwise.

He & McAuley 2016 (arXiv 1510.01784), in the form that MMRec trains: no bias terms and a user
row of twice the width,
    item_i = [q_i ; W [x_i^1 ; x_i^2 ...] + b],   score(u, i) = p_u · item_i,
    L = BPR + reg · (‖p_u‖_F + ‖item_p‖_F + ‖item_q‖_F) / B  over the rows of the batch.
Train:  zoo train vbpr --data tiktok --out runs/vbpr
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.models.collaborative import Free, Pairs, batch_norms, collaborative, ranking_loss
from zoo.recommender import Recommender

Array = jax.Array
xavier_normal = nn.initializers.xavier_normal()


class Affine(nn.Module):
    """(kernel [f,d], bias [d]) of a linear map from f features: the caller applies them to the
    rows that it needs, which in training are those of the batch."""

    width: int
    kernel_init: Callable = xavier_normal
    spread: bool = False  # bias uniform within 1/sqrt(f), as torch draws it; else zero

    @nn.compact
    def __call__(self, features: int) -> tuple[Array, Array]:
        bias_init = within(features**-0.5) if self.spread else nn.initializers.zeros
        kernel = self.param("kernel", self.kernel_init, (features, self.width))
        return kernel, self.param("bias", bias_init, (self.width,))


def within(bound: float) -> Callable:
    """Initializer: uniform on [-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def chosen(catalogue: dict, modalities: tuple[str, ...] | None, model: str) -> tuple[str, ...]:
    """The modalities to read, in the order given; None: all, sorted. ValueError without any."""
    has = sorted(catalogue.get("features", {}))
    names = tuple(has) if modalities is None else tuple(modalities)
    if not names or set(names) - set(has):
        raise ValueError(
            f"{model} reads content: asked for modalities {list(names) or '(none)'}, the catalogue "
            f"has {has or '(none)'}. Choose among them with the field modalities, add features to "
            "the data, or train lightgcn, which needs none."
        )
    return names


def present_rows(catalogue: dict, name: str, ids: Array | None = None) -> Array:
    """Raw features [p,f] of items `ids` [p], or of all; zero where the modality is missing."""
    x, present = catalogue["features"][name], catalogue["present"][name]
    if ids is not None:
        x, present = jnp.take(x, ids, axis=0), jnp.take(present, ids, axis=0)
    return jnp.where(present[:, None], x, 0).astype(jnp.float32)


def batch_items(pairs: Pairs) -> tuple[Array, Pairs]:
    """(item ids [2p], the pairs renumbered to point into rows of those ids)."""
    p = len(pairs.positives)
    ids = jnp.concatenate([pairs.positives, pairs.negatives])
    return ids, pairs._replace(positives=jnp.arange(p), negatives=jnp.arange(p, 2 * p))


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
