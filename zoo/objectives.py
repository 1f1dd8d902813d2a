"""What a next-item model is trained for: queries and their targets to a loss, one name each.

An objective sees queries [p,d], targets int[p] (0 = none), weights f32[p], and the items behind
two functions: `vectors(ids [...], role) -> [...,d]` and `matrix() -> [n,d]`. Only `ce` needs the
matrix. role: what the items are asked for; each draws dropout of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from zoo import losses
from zoo.names import check
from zoo.softmax import full_softmax, sharded_softmax

Array = jax.Array
HISTORY, TARGETS, NEGATIVES = range(3)  # the roles


@dataclass(frozen=True)
class Objective:
    """name: `ce` full softmax, `bce` one negative, `gbce`, `sampled` softmax over shared uniform
    negatives, `in-batch` softmax with logQ, `mixed` in-batch and uniform negatives with logQ.
    A negative is any item that training has seen but the target, one of the history's others, too.

    Sources: specs of SASRec (bce), gSASRec (gbce, t), eSASRec (sampled), Yi et al. 2019 (logQ).
    """

    name: str = "ce"
    negatives: int = 256
    t: float = 0.75  # gbce: 0 is plain bce, 1 fully calibrated
    similarity: str = "dot"  # or cosine
    temperature: float = 1.0

    def __post_init__(self):
        check(objective=(self.name, NAMES), similarity=(self.similarity, ("dot", "cosine")))

    def __call__(
        self,
        queries: Array,  # p d
        targets: Array,  # p
        weights: Array,  # p
        vectors: Callable[[Array, int], Array],
        matrix: Callable[[], Array],
        catalogue: dict,
        key: Array,
    ) -> Array:
        q = self.scaled(queries)
        return NAMES[self.name](self, q, targets, weights, vectors, matrix, catalogue, key)

    def items(self, x: Array) -> Array:
        """Item vectors as they enter the inner product."""
        return losses.normalise(x) if self.similarity == "cosine" else x

    def scaled(self, x: Array) -> Array:
        """Queries as they enter the inner product: over the temperature."""
        x = losses.normalise(x) if self.similarity == "cosine" else x
        return x / self.temperature


def _seen(catalogue) -> Array:
    return catalogue["valid"] & (catalogue["popularity"] > 0)


def _ce(o: Objective, q, targets, weights, vectors, matrix, catalogue, key) -> Array:
    mesh, table = jax.sharding.get_abstract_mesh(), o.items(matrix())
    if mesh.empty or mesh.size == 1:
        return full_softmax(q, targets, weights, table, _seen(catalogue))
    return sharded_softmax(q, targets, weights, table, _seen(catalogue), mesh)


def _negatives(o: Objective, catalogue, key, shape) -> Array:
    return losses.sample_among(key, shape, _seen(catalogue))


def _bce(o: Objective, q, targets, weights, vectors, matrix, catalogue, key) -> Array:
    ids = _negatives(o, catalogue, key, targets.shape)
    positive = jnp.sum(q * o.items(vectors(targets, TARGETS)), axis=-1)
    negative = jnp.sum(q * o.items(vectors(ids, NEGATIVES)), axis=-1)
    negative = jnp.where((ids > 0) & (ids != targets), negative, -1e9)
    return losses.bce(positive, negative[:, None], weights)


def _shared(o: Objective, q, targets, vectors, catalogue, key) -> tuple[Array, Array, Array]:
    """Scores of the positive [p], of shared uniform negatives [p,k], and which are none [p,k]."""
    ids = _negatives(o, catalogue, key, (o.negatives,))
    positive = jnp.sum(q * o.items(vectors(targets, TARGETS)), axis=-1)
    hits = (ids[None, :] == targets[:, None]) | (ids == 0)[None, :]
    return positive, q @ o.items(vectors(ids, NEGATIVES)).T, hits


def _gbce(o: Objective, q, targets, weights, vectors, matrix, catalogue, key) -> Array:
    positive, negative, hits = _shared(o, q, targets, vectors, catalogue, key)
    n_items = jnp.sum(_seen(catalogue)).astype(jnp.float32)
    return losses.gbce(positive, jnp.where(hits, -1e9, negative), weights, n_items, o.t)


def _sampled(o: Objective, q, targets, weights, vectors, matrix, catalogue, key) -> Array:
    positive, negative, hits = _shared(o, q, targets, vectors, catalogue, key)
    return losses.sampled_softmax(positive, negative, weights, hits)


def _log_q(catalogue, ids) -> Array:
    counts = jnp.maximum(catalogue["popularity"], 1.0)
    return jnp.log(counts[ids]) - jnp.log(jnp.sum(catalogue["popularity"]))


def _in_batch(o: Objective, q, targets, weights, vectors, matrix, catalogue, key) -> Array:
    columns = o.items(vectors(targets, TARGETS))
    return losses.in_batch_softmax(q, columns, targets, _log_q(catalogue, targets), weights)


def _mixed(o: Objective, q, targets, weights, vectors, matrix, catalogue, key) -> Array:
    ids = _negatives(o, catalogue, key, (o.negatives,))
    columns = o.items(vectors(targets, TARGETS))
    n_items = jnp.sum(_seen(catalogue)).astype(jnp.float32)
    log_pop = _log_q(catalogue, jnp.concatenate([targets, ids]))
    return losses.mixed_negatives(
        q, columns, targets, o.items(vectors(ids, NEGATIVES)), ids, log_pop, n_items, weights
    )


NAMES = {
    "ce": _ce,
    "bce": _bce,
    "gbce": _gbce,
    "sampled": _sampled,
    "in-batch": _in_batch,
    "mixed": _mixed,
}
