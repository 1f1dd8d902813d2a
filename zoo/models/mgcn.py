"""MGCN and SMORE: an ID row seen through each modality, each view on a graph of its own.

MGCN (Yu et al. 2023, arXiv 2308.03588) and SMORE (Ong & Khong 2025, arXiv 2412.14978) are one
skeleton; a node is a user or an item, m a modality:
    p^m = W_m X^m + b_m                                        X^m learned, starts as the features
    x^m = e_i ⊙ σ(G_m p^m), z^m = [R̂ S^m x^m ; S^m x^m]        S^m: k nearest items by cosine
    c   = LightGCN mean of [e_u ; e_i]
  fusion `attention` (MGCN)
    common = Σ_m softmax_m(q(z^m)) z^m
    side   = (Σ_m σ(W_m c) ⊙ (z^m - common) + common) / (M + 1)
  fusion `spectral` (SMORE): p^m filtered in the frequencies of its features, and one more view f
    from the product of all spectra (zoo/fusion.py), over S^f, the element-wise maximum of the S^m
    side   = (Σ_m σ(W_m c) ⊙ softmax_d(Q_m(z^f)) ⊙ z^m + σ(W_f c) ⊙ z^f) / (M + 1)
  out = c + side,  L = BPR + reg · ½‖batch of out‖²/B + contrast · (side against c, of positives
  and of users, in the batch).
Train:  zoo train mgcn --data tiktok --out runs/mgcn
        zoo train smore --data tiktok --out runs/smore
"""

from collections.abc import Callable
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import scipy.sparse

from zoo.edges import from_edges
from zoo.fusion import AttentionMean, SpectralFusion
from zoo.graph import Graph, light_mean, product
from zoo.layers import Dropout
from zoo.losses import info_nce, normalise
from zoo.models.collaborative import (
    Free,
    Pairs,
    batch_squares,
    collaborative,
    ranking_loss,
    xavier,
)
from zoo.models.content import Content, affine, chosen, content_maps, nearest_items
from zoo.names import unknown
from zoo.recommender import Recommender

Array = jax.Array
FUSIONS = ("attention", "spectral")


def tokens(contents: dict[str, Content]) -> tuple[Array, Array]:
    """(x [n,m,d], present bool [n,m]): W_m x^m + b_m of every item, zero where it lacks m."""
    present = jnp.stack([content.present for content in contents.values()], axis=1)
    x = jnp.stack([affine(content.map, content.rows) for content in contents.values()], axis=1)
    return jnp.where(present[..., None], x, 0), present


class MGCN(nn.Module):
    """users [u,d], items [n,d]: out; side and behaviour (c), each (users, items).

    An item without m has no view x^m and no row in S^m: z^m is zero there, as it is for a user
    none of whose items has m, and such rows have no part in the attention and add nothing to side.
    """

    modalities: tuple[str, ...] | None = None
    width: int = 64
    layers: int = 2
    item_layers: int = 1
    fusion: str = "attention"
    dropout: float = 0.0
    train_features: bool = True
    kernel_init: Callable = xavier  # of the maps from features

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict:
        names = chosen(catalogue, self.modalities, "mgcn")
        free = Free(self.width, name="free")(catalogue)
        behaviour = jnp.concatenate(light_mean(catalogue["graph"], *free, self.layers))  # u+n d
        x, present = tokens(content_maps(self, catalogue, names))
        tags, graphs = [f"content_{m}" for m in names], [catalogue["item_graphs"][m] for m in names]
        if self.fusion == "spectral":
            x, fused = SpectralFusion(name="spectral")(x, present)
            x = jnp.concatenate([x, fused[:, None]], axis=1)
            present = jnp.concatenate([present, jnp.any(present, axis=1)[:, None]], axis=1)
            tags, graphs = [*tags, "fused"], [*graphs, catalogue["fused_graph"]]
        x = self._seen(tags, free[1], jnp.where(present[..., None], x, 0), present)
        views = self._spread(x, graphs, catalogue["graph"])
        gates = self._gates(tags, behaviour, train)
        side = {"attention": self._attention, "spectral": self._spectral}[self.fusion]
        side = side(tags, views, gates)
        halves = {"side": side, "behaviour": behaviour, "out": behaviour + side}
        cut = {k: (rows[: len(free[0])], rows[len(free[0]) :]) for k, rows in halves.items()}
        users, items = cut.pop("out")
        return {"users": users, "items": items, **cut}

    def _seen(self, tags, rows: Array, x: Array, present: Array) -> Array:
        """e ⊙ σ(G_m p^m) [n,m,d]."""
        gates = [nn.sigmoid(self._dense(f"{tag}_view", x[:, k])) for k, tag in enumerate(tags)]
        return jnp.where(present[..., None], rows[:, None] * jnp.stack(gates, axis=1), 0)

    def _spread(self, x: Array, graphs: list[Graph], bipartite: Graph) -> Array:
        """z [u+n,m,d]: each view over its item graph, then from items to users."""
        n, m, d = x.shape
        views = [x[:, k] for k in range(m)]
        for _ in range(self.item_layers):
            views = [product(graph, view) for graph, view in zip(graphs, views, strict=True)]
        items = jnp.concatenate(views, axis=1)
        return jnp.concatenate([product(bipartite, items), items]).reshape(-1, m, d)

    def _gates(self, tags, behaviour: Array, train: bool) -> Array:
        """σ(W_m c) [u+n,m,d], dropped out."""
        gates = [nn.sigmoid(self._dense(f"{tag}_gate", behaviour)) for tag in tags]
        drop = Dropout(self.dropout, name="dropout")
        return drop(jnp.stack(gates, axis=1), deterministic=not train)

    def _attention(self, tags, views: Array, gates: Array) -> Array:
        there = jnp.any(views != 0, axis=-1)
        common = AttentionMean(name="common")(views, there)
        own = jnp.where(there[..., None], views - common[:, None], 0)
        return (jnp.sum(gates * own, axis=1) + common) / (len(tags) + 1)

    def _spectral(self, tags, views: Array, gates: Array) -> Array:
        fused = views[:, -1]
        shares = [self._preference(tag, fused) for tag in tags[:-1]] + [jnp.ones_like(fused)]
        return jnp.mean(gates * jnp.stack(shares, axis=1) * views, axis=1)

    def _preference(self, tag: str, fused: Array) -> Array:
        """softmax over the d features of Q_m(z^f) [u+n,d]."""
        hidden = jnp.tanh(self._dense(f"{tag}_query", fused))
        return jax.nn.softmax(self._dense(f"{tag}_preference", hidden, use_bias=False))

    def _dense(self, name: str, x: Array, **options) -> Array:
        return nn.Dense(self.width, kernel_init=xavier, name=name, **options)(x)


def union(graphs: list[Graph], parts: int = 1) -> Graph:
    """S^f [n,n], the element-wise maximum of square matrices; an absent edge is a 0."""
    n = len(graphs[0].forward.starts)
    matrices = []
    for side in (graph.forward for graph in graphs):
        real = side.weights != 0
        edges = (side.weights[real], (side.rows[real], side.columns[real]))
        matrices.append(scipy.sparse.coo_array(edges, shape=(n, n)).tocsr())
    most = reduce(lambda a, b: a.maximum(b), matrices).tocoo()
    return from_edges(most.row, most.col, most.data, (n, n), parts)


def one_each(neighbours: int | tuple[int, ...], names: tuple[str, ...]) -> dict[str, int]:
    """k by modality, of one number for all or one each. ValueError for another number of them."""
    ks = (neighbours,) * len(names) if isinstance(neighbours, int) else tuple(neighbours)
    if len(ks) != len(names) or min(ks) < 1:
        raise ValueError(
            f"neighbours={neighbours} for the modalities {list(names)}; give one number from 1 up, "
            f"or {len(names)}, in the order of the modalities."
        )
    return dict(zip(names, ks, strict=True))


def side_contrast(out: dict, pairs: Pairs, temperature: float) -> Array:
    """InfoNCE of side against c, of the batch's positives plus that of its users."""
    there = jnp.broadcast_to((pairs.weights > 0)[None], (len(pairs.weights),) * 2)
    total = jnp.zeros(())
    ids = (pairs.users, pairs.positives)
    for near, *tables in zip(ids, out["side"], out["behaviour"], strict=True):
        a, b = (normalise(jnp.take(rows, near, axis=0)) for rows in tables)
        total += info_nce(a, b, there, temperature, pairs.weights)
    return total


def mgcn(
    width: int = 64,
    layers: int = 2,
    item_layers: int = 1,
    neighbours: int | tuple[int, ...] = 10,
    fusion: str = "attention",
    dropout: float = 0.0,
    contrast: float = 1e-2,
    tau: float = 0.2,
    reg: float = 1e-4,
    modalities: tuple[str, ...] | None = None,
    train_features: bool = True,
) -> Recommender:
    """Score out_u·out_i; fusion `attention` is MGCN, `spectral` is SMORE.

    layers: of the LightGCN mean c. neighbours: k of the item graphs, one number or one a
    modality in their order. dropout: of the gates σ(W c). contrast, tau: weight and temperature
    of side against c. train_features: raw features are parameters that start as given; False:
    frozen. The item graphs are of the given features either way. modalities None: all, sorted.
    The authors' settings of SMORE, image and text: Amazon Baby layers 4, neighbours (40, 15),
    contrast .01, dropout .1; Sports layers 3, neighbours 10, contrast .03, dropout .1.
    With one modality f is that modality again, under filters and gates of its own. Raises
    ValueError for an unknown fusion, a wrong number of neighbours, a modality that the catalogue
    lacks, and without any.
    """
    if fusion not in FUSIONS:
        raise unknown("unknown fusion", fusion, FUSIONS)

    def prepare(catalogue, parts):
        names = chosen(catalogue, modalities, "mgcn")
        ks = one_each(neighbours, names).items()
        graphs = {m: nearest_items(catalogue, m, k, True, parts) for m, k in ks}
        fused = {"fused_graph": union([*graphs.values()], parts)} if fusion == "spectral" else {}
        return catalogue | {"item_graphs": graphs} | fused

    def aim(params, out, pairs, catalogue, key):
        return loss(out, pairs, reg, contrast, tau)

    module = MGCN(modalities, width, layers, item_layers, fusion, dropout, train_features)
    return collaborative(module, aim, prepare)


def loss(out: dict, pairs: Pairs, reg: float, contrast: float, tau: float) -> Array:
    """BPR + reg · half squares of the batch + contrast · side against c."""
    penalty = batch_squares(out["users"], out["items"], pairs)
    value = ranking_loss(out["users"], out["items"], pairs) + reg * penalty
    return value + contrast * side_contrast(out, pairs, tau)
