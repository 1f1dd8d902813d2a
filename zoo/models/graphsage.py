"""GraphSAGE over the interactions, from content: the vectors that MMGRec makes its ids of.

Hamilton et al. 2017 (arXiv 1706.02216), as MMGRec (Liu et al. 2024, arXiv 2404.16555) has it,
h of a node, user or item, N its neighbours in the train interactions:
    h_i = W_f [x̂_i^1 ; x̂_i^2 ...],  h_u a free row                       `hidden` wide
    h'  = drop(LeakyReLU(W_1 h  + V_1 mean_N h))                         `hidden` wide
    h'' = drop(W_2 h' + V_2 mean_N h')                                   `width` wide
    score(u, i) = h''_u · h''_i,  L = BPR
without biases; a node without neighbours has the mean 0. Features of any widths go into W_f (in
MMGRec each modality has been brought to 128 columns before), their columns standardised over the
items that have them: W_f has no bias, and a mean that all items share, which published features
have, would drown what tells them apart. A positive has one negative, as for all graph models of
this zoo, where MMGRec draws 5.
Train:  zoo train graphsage --data tiktok --out runs/graphsage
Ids of its items (MMGRec's Rec-IDs):
        zoo tokenize --data tiktok --run runs/graphsage --method rqvae --size 128 --out ids.json
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.graph import Graph, binary, product, transpose
from zoo.layers import Dropout, Table
from zoo.models.collaborative import collaborative, ranking_loss, xavier
from zoo.models.content import chosen, present_rows
from zoo.recommender import Recommender

Array = jax.Array


class SageLayer(nn.Module):
    """W h + V mean_N h: (users [u,d], items [n,d]) to the same, `width` wide; W, V for both."""

    width: int

    @nn.compact
    def __call__(self, graph: Graph, users: Array, items: Array) -> tuple[Array, Array]:
        own = nn.Dense(self.width, use_bias=False, kernel_init=xavier, name="own")
        near = nn.Dense(self.width, use_bias=False, kernel_init=xavier, name="near")
        back = transpose(graph)
        return (
            own(users) + near(neighbour_mean(graph, items)),
            own(items) + near(neighbour_mean(back, users)),
        )


def neighbour_mean(graph: Graph, x: Array) -> Array:
    """[n,d]: the mean of x [m,d] over the edges of every row, whatever their weights; 0 without."""
    count = jnp.maximum(graph.forward.ends - graph.forward.starts, 1).astype(x.dtype)
    return product(binary(graph), x) / count[:, None]


def standardised(x: Array, present: Array) -> Array:
    """x [n,f] with columns of mean 0 and sd 1 over the rows that are there; the others are 0.

    A column without spread is 0. The statistics are data: no gradient goes through them.
    """
    weights = present[:, None].astype(x.dtype)
    count = jnp.maximum(jnp.sum(weights), 1.0)
    centred = (x - jax.lax.stop_gradient(jnp.sum(x * weights, 0) / count)[None]) * weights
    sd = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(jnp.square(centred), 0) / count))[None]
    return jnp.where(sd > 1e-6, centred / jnp.maximum(sd, 1e-6), 0.0)


class GraphSage(nn.Module):
    """users [u,width], items [n,width] of the catalogue's graph and features."""

    width: int = 64
    hidden: int = 128
    dropout: tuple[float, float] = (0.5, 0.2)  # behind the first layer and the second
    modalities: tuple[str, ...] | None = None
    standardise: bool = True

    @nn.compact
    def __call__(self, catalogue: dict, train: bool = False) -> dict[str, Array]:
        graph = catalogue["graph"]
        users = Table(len(catalogue["users"]), self.hidden, xavier, name="users")()
        items = self._fused(catalogue)
        users, items = SageLayer(self.hidden, name="layer_0")(graph, users, items)
        users, items = (self._drop(0, nn.leaky_relu(x), train) for x in (users, items))
        users, items = SageLayer(self.width, name="layer_1")(graph, users, items)
        users, items = (self._drop(1, x, train) for x in (users, items))
        return {"users": users, "items": items}

    def _fused(self, catalogue: dict) -> Array:
        """W_f x [n,hidden]: one product a modality, W_f cut as x would be; the missing add 0."""
        names = chosen(catalogue, self.modalities, "graphsage")
        xs = [present_rows(catalogue, m) for m in names]
        if self.standardise:
            xs = [standardised(x, catalogue["present"][m]) for x, m in zip(xs, names, strict=True)]
        widths = [x.shape[1] for x in xs]
        kernel = self.param("fuse", xavier, (sum(widths), self.hidden))
        parts = jnp.split(kernel, np.cumsum(widths)[:-1])
        return sum(x @ w for x, w in zip(xs, parts, strict=True))

    def _drop(self, place: int, x: Array, train: bool) -> Array:
        return Dropout(self.dropout[place])(x, deterministic=not train)


def graphsage(
    width: int = 64,
    hidden: int = 128,
    dropout: tuple[float, float] = (0.5, 0.2),
    modalities: tuple[str, ...] | None = None,
    standardise: bool = True,
) -> Recommender:
    """Score h''_u·h''_i of two GraphSAGE layers over content and free users; BPR.

    dropout: behind the first layer and the second. modalities None: all that the catalogue has,
    sorted; a missing one adds nothing. standardise: False takes features as they are. Weight decay
    is the optimiser's (1e-6 in MMGRec). Raises ValueError for a modality that the catalogue lacks,
    and without any.
    """

    def aim(params, out, pairs, catalogue, key):
        return ranking_loss(out["users"], out["items"], pairs)

    return collaborative(GraphSage(width, hidden, dropout, modalities, standardise), aim)
