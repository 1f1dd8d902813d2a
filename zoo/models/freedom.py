"""FREEDOM: a frozen item graph of content neighbours beside a pruned interaction graph.

Zhou & Shen 2023 (arXiv 2211.06924). S = Σ_m w_m S^m, S^m the k nearest items by cosine of the
raw features (the item itself among them), 0/1, D^-1/2 S D^-1/2; it is built once. Each epoch
keeps a share 1 - dropout of the train interactions, drawn by 1/√(d_u d_i), with degrees of their
own. Ē = LightGCN mean over that graph, h = S e_i:
    user = ē_u,   item = ē_i + h_i,   L = BPR(user, item) + reg · Σ_m BPR(user, W_m x^m + b_m).
Serving and the sampling of negatives use all interactions.
Train:  zoo train freedom --data tiktok --out runs/freedom
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.graph import light_mean, product, renormalised, sample_edges
from zoo.models.collaborative import Free, Pairs, collaborative, ranking_loss
from zoo.models.content import (
    batch_items,
    chosen,
    content_maps,
    content_rows,
    item_graph,
    modality_weights,
)
from zoo.names import unknown
from zoo.recommender import Recommender, undrawn

Array = jax.Array
COLD = ("sum", "graph")
lecun_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's Linear


def pruned(params: dict, catalogue: dict, key: Array) -> dict:
    """The catalogue with `pruned`, the graph of this epoch: `kept_edges` of R̂, drawn by its
    weights 1/√(d_u d_i), with degrees of their own."""
    del params
    graph = catalogue["graph"]
    kept = sample_edges(key, graph.forward.weights, catalogue["kept_edges"][0])
    fresh = renormalised(graph, kept, len(catalogue["users"]), len(catalogue["valid"]))
    return catalogue | {"pruned": fresh}


def with_pruning(catalogue: dict, dropout: float, parts: int = 1) -> dict:
    """The catalogue with how many edges an epoch keeps; `pruned` is all of them until a draw."""
    edges = int(np.count_nonzero(np.asarray(catalogue["graph"].forward.weights)))
    keep = np.full(parts, int(edges * (1 - dropout)), np.int32)  # one a part: it shards
    return catalogue | {"pruned": catalogue["graph"], "kept_edges": keep}


class FREEDOM(nn.Module):
    """users, items: the vectors of the score; contents: what the modal losses read."""

    width: int = 64
    layers: int = 2
    item_layers: int = 1
    modalities: tuple[str, ...] | None = None
    train_features: bool = True
    cold: str = "sum"
    contents: bool = True  # False: the loss reads none, so there is nothing to learn
    kernel_init: Callable = lecun_uniform

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict:
        names = chosen(catalogue, self.modalities, "freedom")
        users, items = Free(self.width, name="free")(catalogue)
        graph = catalogue["pruned" if train else "graph"]
        u, i = light_mean(graph, users, items, self.layers)
        h = items
        for _ in range(self.item_layers):
            h = product(catalogue["item_graph"], h)
        if self.cold == "graph":
            i = jnp.where((catalogue["popularity"] > 0)[:, None], i, 0)
        contents = content_maps(self, catalogue, names) if self.contents else {}
        return {"users": u, "items": i + h, "contents": contents}


def modal_losses(out: dict, pairs: Pairs) -> dict[str, Array]:
    """BPR(user, W_m x^m + b_m) by modality, means over the batch; a pair counts in the mean and
    adds 0 unless both of its items have the modality."""
    ids, near = batch_items(pairs)
    total = jnp.maximum(jnp.sum(pairs.weights), 1.0)
    losses = {}
    for m, content in out["contents"].items():
        rows, present = content_rows(content, ids)
        both = pairs.weights * present[near.positives] * present[near.negatives]
        share = jnp.sum(both) / total
        losses[m] = share * ranking_loss(out["users"], rows, near._replace(weights=both))
    return losses


def loss(out: dict, pairs: Pairs, reg: float) -> Array:
    """BPR + reg · the modal losses."""
    modal = sum(modal_losses(out, pairs).values())
    return ranking_loss(out["users"], out["items"], pairs) + reg * modal


def freedom(
    width: int = 64,
    layers: int = 2,
    item_layers: int = 1,
    dropout: float = 0.8,
    reg: float = 1e-3,
    knn: int = 10,
    weights: tuple[float, ...] | None = None,
    cold: str = "sum",
    modalities: tuple[str, ...] | None = None,
    train_features: bool = True,
) -> Recommender:
    """Score ē_u·(ē_i + h_i).

    dropout: share of the interactions that an epoch leaves out. reg: weight of the modal losses; 0
    leaves them and their parameters out.
    weights: w_m by modality, see `modality_weights`. cold `sum`: every item as above; `graph`:
    items without train interactions are h_i alone, what their content neighbours learned.
    train_features: raw features are parameters that start as given, as in the authors' code;
    False: frozen. The item graph is of the given features either way. modalities None: all,
    sorted. An item that lacks one has no edges for it in S (its row of S sums to less) and no
    part in its loss. Raises ValueError for an unknown `cold`, a wrong number of weights, a
    modality the catalogue lacks, and without any.
    """
    if cold not in COLD:
        raise unknown("unknown cold", cold, COLD)

    def prepare(catalogue, parts):
        names = chosen(catalogue, modalities, "freedom")
        catalogue = with_pruning(catalogue, dropout, parts)
        graph = item_graph(catalogue, names, modality_weights(names, weights), knn, parts)
        return catalogue | {"item_graph": graph}

    def aim(params, out, pairs, catalogue, key):
        return loss(out, pairs, reg)

    module = FREEDOM(width, layers, item_layers, modalities, train_features, cold, reg > 0)
    return collaborative(module, aim, prepare, pruned if dropout else undrawn)
