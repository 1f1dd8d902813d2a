"""BM3: no negatives; each view predicts a dropped-out, gradient-free copy of the other.

Zhou et al. 2023 (arXiv 2207.05969). h = LightGCN mean over the layers, items get + e_i; content
m_i = W_m x_i^m + b_m; f one linear predictor; z̃ = sg(dropout(z)):
    L = [1 - cos(f(h_u), h̃_i)] + [1 - cos(f(h_i), h̃_u)]
      + content · Σ_m {[1 - cos(f(m_i), h̃_i)] + [1 - cos(f(m_i), m̃_i)]} + reg · penalty,
cosines as means over the batch. Score f(h_u)·f(h_i): content teaches, and is not read in serving.
Train:  zoo train bm3 --data tiktok --out runs/bm3
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.graph import light_mean
from zoo.losses import cosine, mean
from zoo.models.collaborative import Free, Pairs, collaborative, gathered, norm
from zoo.models.content import Affine, affine, chosen, content_maps, content_rows, xavier_normal
from zoo.names import unknown
from zoo.recommender import Recommender

Array = jax.Array


class BM3(nn.Module):
    """users, items: f(h), the vectors of the score; h_users, h_items: before the predictor."""

    width: int = 64
    layers: int = 1
    modalities: tuple[str, ...] | None = None
    train_features: bool = True
    kernel_init: Callable = xavier_normal

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict:
        names = chosen(catalogue, self.modalities, "bm3")
        users, items = Free(self.width, name="free")(catalogue)
        u, i = light_mean(catalogue["graph"], users, items, self.layers)
        i = i + items
        predictor = Affine(self.width, xavier_normal, spread=True, name="predictor")(self.width)
        return {
            "users": affine(predictor, u),
            "items": affine(predictor, i),
            "h_users": u,
            "h_items": i,
            "predictor": predictor,
            "contents": content_maps(self, catalogue, names),
        }


def target(x: Array, keep: Array, dropout: float) -> Array:
    """z̃ = sg(dropout(z)): entries that `keep` [p,d] drops are 0, the others scaled up."""
    return jax.lax.stop_gradient(jnp.where(keep, x / (1 - dropout), 0))


def draw_keeps(key: Array, out: dict, pairs: Pairs, dropout: float) -> dict[str, Array]:
    """What dropout keeps of the targets: {users, items, and each modality: bool [p,d]}.

    Drawn by row id, as if whole tables were dropped out: an item that occurs twice in a batch
    has one mask.
    """
    names = ("users", "items", *(f"content_{m}" for m in out["contents"]))
    ids = jnp.stack([pairs.users, *[pairs.positives] * (len(names) - 1)])
    width = out["h_users"].shape[1]

    def row(key: Array, id: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, id), 1 - dropout, (width,))

    rows = jax.vmap(jax.vmap(row, in_axes=(None, 0)))
    return dict(zip(names, rows(jax.random.split(key, len(names)), ids), strict=True))


def agreements(
    out: dict, pairs: Pairs, keep: dict[str, Array], dropout: float
) -> tuple[dict[str, Array], dict[str, Array]]:
    """({ui, iu}, {m_item, m_own for each modality m}): the terms 1 - cos, means over the batch.

    A pair whose item lacks the modality counts in the mean and adds 0 to its terms.
    """
    users, items = out["h_users"][pairs.users], out["h_items"][pairs.positives]
    user_target = target(users, keep["users"], dropout)
    item_target = target(items, keep["items"], dropout)

    def term(view: Array, goal: Array, present: Array | float = 1.0) -> Array:
        away = 1 - cosine(affine(out["predictor"], view), goal)
        return mean(away * present, pairs.weights)

    contents = {}
    for m, content in out["contents"].items():
        rows, present = content_rows(content, pairs.positives)
        own = target(rows, keep[f"content_{m}"], dropout)
        contents[f"{m}_item"] = term(rows, item_target, present)
        contents[f"{m}_own"] = term(rows, own, present)
    return {"ui": term(users, item_target), "iu": term(items, user_target)}, contents


def table_norms(out: dict, pairs: Pairs, catalogue: dict) -> Array:
    """(‖H_U‖_F + ‖H_I‖_F) / N over all users and all N items."""
    users, items = real_users(catalogue["users"]), catalogue["valid"]
    total = norm(out["h_users"] * users[:, None]) + norm(out["h_items"] * items[:, None])
    return total / jnp.sum(items)


def real_users(counts: Array) -> Array:
    """bool [u]: rows 1 to the last user with train interactions; the others are padding."""
    rows = jnp.arange(len(counts))
    return (rows > 0) & (rows <= jnp.max(jnp.where(counts > 0, rows, 0)))


def pair_squares(out: dict, pairs: Pairs, catalogue: dict) -> Array:
    """(‖H_u‖² + ‖H_i‖²) / B over the rows of the batch's users and positives."""
    users, items, _ = gathered(out["h_users"], out["h_items"], pairs)
    total = jnp.sum(jnp.square(users)) + jnp.sum(jnp.square(items))
    return total / jnp.maximum(jnp.sum(pairs.weights), 1.0)


REGS = {"official": table_norms, "paper": pair_squares}


def loss(
    out: dict,
    pairs: Pairs,
    catalogue: dict,
    keep: dict[str, Array],
    dropout: float,
    content: float,
    reg: float,
    reg_kind: str,
) -> Array:
    """The agreements, content ones `content` times, and reg · penalty."""
    ids, contents = agreements(out, pairs, keep, dropout)
    penalty = REGS[reg_kind](out, pairs, catalogue)
    return sum(ids.values()) + content * sum(contents.values()) + reg * penalty


def bm3(
    width: int = 64,
    layers: int = 1,
    dropout: float = 0.5,
    content: float = 2.0,
    reg: float = 0.1,
    reg_kind: str = "official",
    modalities: tuple[str, ...] | None = None,
    train_features: bool = True,
) -> Recommender:
    """Score f(h_u)·f(h_i) after bootstrapped agreement of users, items and content.

    dropout: of the targets. content: weight of the modality terms. reg_kind: `official` norms of
    the whole tables over the number of items; `paper` squared norms of the batch over B.
    train_features: raw features are parameters that start as given; False: read from the
    catalogue, frozen. modalities None: all, sorted; a missing one adds nothing to the loss.
    Raises ValueError for an unknown reg_kind, a modality the catalogue lacks, and without any.
    """
    if reg_kind not in REGS:
        raise unknown("unknown reg_kind", reg_kind, REGS)

    def aim(params, out, pairs, catalogue, key):
        keep = draw_keeps(key, out, pairs, dropout)
        return loss(out, pairs, catalogue, keep, dropout, content, reg, reg_kind)

    return collaborative(BM3(width, layers, modalities, train_features), aim)
