"""Content in the graph family: which modalities, raw or learned rows, linear maps, item graphs."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.edges import from_edges, nearest, neighbour_graph
from zoo.graph import Graph
from zoo.layers import Table
from zoo.models.collaborative import Pairs
from zoo.names import unknown

Array = jax.Array
IMAGE_WEIGHT = 0.1  # what FREEDOM's authors give images beside text
xavier_normal = nn.initializers.xavier_normal()


def chosen(catalogue: dict, modalities: tuple[str, ...] | None, model: str) -> tuple[str, ...]:
    """The modalities to read, in the order given; None: all, sorted. Raises ValueError for one
    that the catalogue lacks, and without any."""
    has = sorted(catalogue.get("features", {}))
    names = tuple(has) if modalities is None else tuple(modalities)
    for name in names:
        if name not in has:
            raise unknown(f"{model}: the items have no modality", name, has)
    if not names:
        raise ValueError(
            f"{model} reads content, and here is none: the catalogue has {has or 'no features'}, "
            f"asked for is {modalities}. Give the items features, or train lightgcn, which needs "
            "none."
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


class Content(NamedTuple):
    """One modality as the losses read it."""

    rows: Array  # n f, raw features, frozen or learned
    present: Array  # bool n
    map: tuple[Array, Array]  # kernel [f,d], bias [d]


class ContentMap(nn.Module):
    """The Content of one modality; learned rows start as the features (items/table)."""

    width: int
    learned: bool
    kernel_init: Callable = xavier_normal

    @nn.compact
    def __call__(self, x: Array, present: Array) -> Content:
        if self.learned:
            x = Table(*x.shape, lambda key, shape: x.astype(jnp.float32), name="items")()
        affine = Affine(self.width, self.kernel_init, spread=True, name="map")
        return Content(x, present, affine(x.shape[1]))


def content_maps(module: nn.Module, catalogue: dict, names: tuple[str, ...]) -> dict[str, Content]:
    """Contents by modality; `module` lends width, train_features and kernel_init."""
    return {
        m: ContentMap(module.width, module.train_features, module.kernel_init, name=f"content_{m}")(
            catalogue["features"][m], catalogue["present"][m]
        )
        for m in names
    }


def affine(map: tuple[Array, Array], x: Array) -> Array:
    """x W + b for x [p,f]."""
    kernel, bias = map
    return x @ kernel + bias[None, :]


def content_rows(content: Content, ids: Array) -> tuple[Array, Array]:
    """(W x + b [p,d] of items `ids`, bool [p] whether they have the modality)."""
    rows, present = jnp.take(content.rows, ids, axis=0), jnp.take(content.present, ids)
    return affine(content.map, rows), present


def modality_weights(
    names: tuple[str, ...], given: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """The w_m, in the order of `names`. Unless given: `image` .1 and the others even shares of the
    rest; even shares where there is no `image`; 1 for a modality alone. ValueError for a wrong
    number of weights.
    """
    if given is not None and len(given) != len(names):
        raise ValueError(
            f"{len(given)} weights {tuple(given)} for {len(names)} modalities {names}; give one a "
            "modality, in their order, or None."
        )
    if given is not None:
        return tuple(given)
    if "image" not in names or len(names) == 1:
        return (1 / len(names),) * len(names)
    rest = (1 - IMAGE_WEIGHT) / (len(names) - 1)
    return tuple(IMAGE_WEIGHT if m == "image" else rest for m in names)


def nearest_items(catalogue: dict, name: str, k: int, weighted: bool, parts: int = 1) -> Graph:
    """S^m [n,n]: D^-1/2 S D^-1/2 of the k nearest items by cosine of the raw features of one
    modality, the item itself among them; S 0/1, or the cosines if `weighted`."""
    present = np.asarray(catalogue["present"][name]) & np.asarray(catalogue["valid"])
    features = np.asarray(catalogue["features"][name], np.float32)
    return neighbour_graph(*nearest(features, k, present), weighted=weighted, parts=parts)


def item_graph(
    catalogue: dict, names: tuple[str, ...], weights: tuple[float, ...], knn: int, parts: int = 1
) -> Graph:
    """S [n,n] = Σ_m w_m S^m of the modalities `names`; an item without m has no row in S^m."""
    n = len(catalogue["valid"])
    places, values = [], []
    for m, w in zip(names, weights, strict=True):
        side = nearest_items(catalogue, m, knn, weighted=False).forward
        places.append(side.rows.astype(np.int64) * n + side.columns)
        values.append(w * side.weights)
    cells, where = np.unique(np.concatenate(places), return_inverse=True)
    summed = np.bincount(where, np.concatenate(values))
    real = summed != 0  # without any edge a graph holds one, of weight 0
    return from_edges(cells[real] // n, cells[real] % n, summed[real], (n, n), parts)
