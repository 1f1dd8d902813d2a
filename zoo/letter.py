"""LETTER's regularisers of an RQ-VAE: ids that follow what users do, codebooks that spread.

Wang et al. 2024 (CIKM, arXiv 2405.07314). With q_i the quantised vector of an item, h_i a vector
of it that a recommender learned on the train split, e_c a code and e_+ another of its group:

    L = RQ-VAE + alpha L_cf + beta L_div
    L_cf  = -mean_i ln exp<q_i, h_i> / sum_j exp<q_i, h_j>          j over the batch
    L_div = -mean_{i,l} ln exp<e_c, e_+> / sum_{j != c} exp<e_c, e_j>  c the code of i at level l

Groups are equal shares of a level's codes by k-means, made anew every epoch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.kmeans import kmeans, squared_distances
from zoo.sinkhorn import balanced

Array = jax.Array
EPSILON = 0.05  # of the balanced assignment
NEVER = -1e9


class Letter(NamedTuple):
    """Weights of the two terms; teacher float32 [n,d] is h, d the width of the codes."""

    teacher: Array | None = None  # None: no L_cf
    alpha: float = 0.02
    beta: float = 1e-4
    groups: int = 10


def check_teacher(letter: Letter, rows: int, width: int) -> None:
    """Raise ValueError unless there is a finite vector a row, as wide as the codes."""
    if letter.teacher is None:
        return
    if letter.teacher.shape != (rows, width):
        raise ValueError(
            f"the teacher's vectors are {letter.teacher.shape}; expected ({rows}, {width}): one an "
            "item, as wide as the codes. Give the RQ-VAE their width (--width)."
        )
    if not bool(jnp.isfinite(letter.teacher).all()):
        raise ValueError("the teacher's vectors hold NaN or infinity: look at the run they are of.")


def collaborative(quantised: Array, teacher: Array) -> Array:
    """L_cf of the rows of a batch, [b,d] both."""
    logits = quantised @ teacher.T
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits))


def grouped(codebooks: Array, groups: int, key: Array) -> Array:
    """int32 [c,v]: the group of each code of codebooks [c,v,d], equal shares of a level; at most
    half as many groups as codes, so that codes have company."""

    def level(codebook: Array, key: Array) -> Array:
        centres = kmeans(codebook, key, min(groups, max(1, codebook.shape[0] // 2)), 10)
        shares = balanced(squared_distances(codebook, centres), EPSILON)
        return shares.argmax(1).astype(jnp.int32)

    keys = jax.random.split(key, codebooks.shape[0])
    return jnp.stack([level(*one) for one in zip(codebooks, keys, strict=True)])


def diversity(codebooks: Array, codes: Array, group: Array, key: Array) -> Array:
    """L_div of codes int[b,c]; group int[c,v]. A code alone in its group adds nothing."""

    def level(codebook: Array, code: Array, group: Array, key: Array) -> Array:
        logits = codebook[code] @ codebook.T  # b v
        own = jnp.arange(codebook.shape[0])[None, :] == code[:, None]
        mates = (group[code][:, None] == group[None, :]) & ~own
        mate = jax.random.categorical(key, jnp.where(mates, 0.0, NEVER))
        near = jnp.take_along_axis(logits, mate[:, None], axis=1)[:, 0]
        far = jax.nn.logsumexp(jnp.where(own, NEVER, logits), axis=1)
        return jnp.mean(jnp.where(mates.any(1), far - near, 0.0))

    keys = jax.random.split(key, codebooks.shape[0])
    return jnp.mean(jax.vmap(level, (0, 1, 0, 0))(codebooks, codes, group, keys))
