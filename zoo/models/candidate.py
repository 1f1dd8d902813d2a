"""Candidate-side fusion: how much each modality of an item counts depends on who asks.

MISSRec (Wang et al. 2023, arXiv 2308.11175), its dynamic fusion, over the modalities m that item j
has:
    f_jm = q·z_jm,   w_jm = softmax_m(φ f_jm),   score_j = Σ_m w_jm f_jm
φ is learned; at 0, where it starts, the score is the mean over the modalities. Histories are read
as before, an item there is the sum of its modalities.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from zoo.experts import present
from zoo.losses import mean
from zoo.objectives import Objective
from zoo.recommender import Recommender
from zoo.scorer import scorer
from zoo.softmax import MASKED, chunk_size

Array = jax.Array


def fused(scores: Array, there: Array, phi: Array) -> Array:
    """Scores [...,m] by modality, which there are bool (broadcast), to [...]; 0 without any."""
    there = jnp.broadcast_to(there, scores.shape)
    weights = jax.nn.softmax(jnp.where(there, phi * scores, MASKED)) * there
    return jnp.sum(weights * jnp.where(there, scores, 0), axis=-1)


def fused_softmax(
    queries: Array, targets: Array, weights: Array, views: Array, there: Array, seen: Array, phi
) -> Array:
    """Mean cross entropy of targets int[p] among all seen items, by their fused scores.

    queries [p,d], weights [p], views [n,m,d], there bool[n,m], seen bool[n]. As many positions at
    a time as hold about 4M scores, which are computed again for the gradient.
    """

    @jax.checkpoint
    def one(position: tuple[Array, Array]) -> Array:
        query, target = position
        scores = fused(jnp.einsum("d,nmd->nm", query, views), there, phi)
        scores = jnp.where(seen, scores.astype(jnp.float32), MASKED)
        return jax.nn.logsumexp(scores) - scores[target]

    size = chunk_size(len(queries), there.size)
    return mean(lax.map(one, (queries, targets), batch_size=size), weights)


def by_candidate(
    base: Recommender,
    views: Callable[..., tuple[Array, Array]],
    queries: Callable[..., Array],
    objective: Objective,
) -> Recommender:
    """`base` with fused scores; its `encode` stays, and in its index the `table` that this reads.

    views(params, catalogue, key or None) -> (z [n,m,d], bool[n,m]), zero where there is none;
    queries(params, x [b,l,d], batch, key) -> states [p,d], one a target.
    """

    def init(key: Array, catalogue: dict, batch: dict) -> Any:
        return base.init(key, catalogue, batch) | {"fusion": {"phi": jnp.zeros(())}}

    def loss(params: Any, catalogue: dict, batch: dict, key: Array):
        item_key, trunk_key = jax.random.split(key)
        z, there = views(params, catalogue, item_key)
        x = jnp.take(jnp.sum(z, axis=1), batch["items"], axis=0)
        q = objective.scaled(queries(params, x, batch, trunk_key))
        targets = batch["targets"].reshape(-1)
        weights = (targets > 0).astype(jnp.float32)
        what = (q, targets, weights, objective.items(z), there, present(catalogue, "id"))
        return fused_softmax(*what, params["fusion"]["phi"]), {"targets": jnp.sum(weights)}

    def index(params: Any, catalogue: dict) -> Any:
        z, there = views(params, catalogue, None)
        table = {"table": jnp.sum(z, axis=1), "valid": catalogue["valid"]}
        return table | {"views": objective.items(z), "there": there}

    def match(params: Any, index: Any, query: Array, ids: Array) -> Array:
        z, there = (jnp.take(index[k], ids, axis=0) for k in ("views", "there"))
        scores = jnp.einsum("bd,cmd->bcm" if ids.ndim == 1 else "bd,bcmd->bcm", query, z)
        return fused(scores, there, params["fusion"]["phi"])

    return scorer(init, loss, index, base.encode, match, incremental=base.incremental)
