"""EM3 as published in code: FREEDOM's graphs, content fused by a Q-Former, contrast with the ID.

Deng et al. 2024 (arXiv 2404.06078); the public form has frozen features and no sequences.
    c_i   = W [queries after the Fusion Q-Former over W_m x_i^m + b_m] + b        (zoo/fusion.py)
    S     = Σ_m w_m S^m, S^m the k nearest items by cosine, 0/1, D^-1/2 S D^-1/2
    id    : LightGCN mean of [e_u ; e_i],   items + S e
    mm    : LightGCN mean of [0 ; c_i],     items + S c
    score = [id_u ; mm_u]·[id_i ; mm_i],    L = BPR + contrast · CIC
  CIC: over all items ½[CE(ĉ → î) + CE(î → ĉ)] among the item itself and random others, ĉ and î
  the normalised linear maps of mm_i and id_i.
As in FREEDOM, an epoch keeps a share 1 - dropout of the train interactions, drawn by
1/√(d_u d_i), with degrees of their own; serving uses all.
Train:  zoo train em3_public --data tiktok --out runs/em3
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.fusion import QFormer
from zoo.graph import light_mean, product
from zoo.losses import normalise, sampled_softmax
from zoo.models.collaborative import Free, collaborative, ranking_loss, xavier
from zoo.models.content import chosen, content_maps, item_graph, modality_weights
from zoo.models.freedom import pruned, with_pruning
from zoo.models.mgcn import tokens
from zoo.negatives import sample_uniform
from zoo.recommender import Recommender, undrawn

Array = jax.Array
EPSILON = 1e-5  # the contrast divides a vector by its length, but by no less


class EM3(nn.Module):
    """users [u,2d], items [n,2d]: [id ; mm]; fused [n,d]: c; contrast: (ĉ, î), [n,d] each.

    The Q-Former does not read a modality that an item lacks, and c_i of an item without any is
    zero: its mm is what the graphs bring.
    """

    modalities: tuple[str, ...] | None = None
    width: int = 64
    layers: int = 2
    queries: int = 1
    blocks: int = 1
    heads: int = 4
    hidden_dropout: float = 0.5
    train_features: bool = False
    kernel_init: Callable = xavier  # of the maps from features

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict:
        names = chosen(catalogue, self.modalities, "em3")
        users, items = Free(self.width, name="free")(catalogue)
        fused, present = self._content(catalogue, names, train)
        graph = catalogue["pruned" if train else "graph"]
        pair = jnp.concatenate([items, fused], axis=1)  # n 2d: both branches in one product
        start = jnp.concatenate([users, jnp.zeros_like(users)], axis=1)
        u, i = light_mean(graph, start, pair, self.layers)
        i = i + product(catalogue["item_graph"], pair)
        halves = {"id": i[:, : self.width], "content": i[:, self.width :]}
        maps = {k: self._dense(f"contrast_{k}", x) for k, x in halves.items()}
        contrast = tuple(normalise(maps[k], EPSILON) for k in ("content", "id"))
        has = jnp.any(present, axis=1) & catalogue["valid"]
        return {"users": u, "items": i, "fused": fused, "contrast": contrast, "has": has}

    def _content(self, catalogue: dict, names: tuple[str, ...], train: bool):
        """(c [n,d], present bool [n,m])."""
        x, present = tokens(content_maps(self, catalogue, names))
        former = QFormer(self.queries, self.blocks, self.heads, self.hidden_dropout, name="fusion")
        read = former(x, present, train).reshape(len(x), -1)
        return jnp.where(jnp.any(present, axis=1)[:, None], self._dense("fused", read), 0), present

    def _dense(self, name: str, x: Array) -> Array:
        return nn.Dense(self.width, kernel_init=xavier, name=name)(x)


def cic(out: dict, negatives: Array, tau: float) -> Array:
    """Contrast of content and ID: mean over the items that have content of ½[CE(ĉ→î) + CE(î→ĉ)].

    negatives: int [n,k], shared by both directions; they may hold the item itself. Items without
    content are nobody's negative.
    """
    weights = out["has"].astype(jnp.float32)
    absent = ~out["has"][negatives]
    content, ids = out["contrast"]
    own = jnp.sum(content * ids, axis=-1) / tau

    def direction(a: Array, b: Array) -> Array:
        others = jnp.einsum("nd,nkd->nk", a, jnp.take(b, negatives, axis=0)) / tau
        return sampled_softmax(own, others, weights, absent)

    return (direction(content, ids) + direction(ids, content)) / 2


def em3(
    width: int = 64,
    layers: int = 2,
    queries: int = 1,
    blocks: int = 1,
    heads: int = 4,
    hidden_dropout: float = 0.5,
    dropout: float = 0.8,
    knn: int = 10,
    weights: tuple[float, ...] | None = None,
    contrast: float = 1e-3,
    tau: float = 0.5,
    negatives: int = 16,
    modalities: tuple[str, ...] | None = None,
    train_features: bool = False,
) -> Recommender:
    """Score [id_u ; mm_u]·[id_i ; mm_i]: the vectors are twice as wide as `width`.

    queries, blocks, heads, hidden_dropout: of the Q-Former. dropout: share of the interactions
    that an epoch leaves out. weights: w_m by modality, see `modality_weights`. contrast, tau,
    negatives: of CIC. Amazon Baby as here; Sports queries 2. train_features: raw features are
    parameters that start as given; False: frozen. modalities None: all, sorted. Raises ValueError
    for a wrong number of weights, a dropout outside [0, 1), a width that `heads` does not divide,
    a modality that the catalogue lacks, and without any.
    """
    if not 0 <= dropout < 1 or width % heads:
        raise ValueError(
            f"dropout={dropout}, width={width}, heads={heads}; dropout is a share from 0 to below "
            "1, and the heads divide the width among themselves."
        )

    def prepare(catalogue, parts):
        names = chosen(catalogue, modalities, "em3")
        graph = item_graph(catalogue, names, modality_weights(names, weights), knn, parts)
        return with_pruning(catalogue, dropout, parts) | {"item_graph": graph}

    def aim(params, out, pairs, catalogue, key):
        n = len(catalogue["valid"])
        ids = sample_uniform(key, (n, negatives), jnp.sum(catalogue["valid"]))
        value = ranking_loss(out["users"], out["items"], pairs)
        return value + contrast * cic(out, ids, tau)

    module = EM3(
        modalities,
        width,
        layers,
        queries,
        blocks,
        heads,
        hidden_dropout,
        train_features,
    )
    return collaborative(module, aim, prepare, pruned if dropout else undrawn)
