"""Hypergraphs over users and items: noisy assignment to hyperedges, messages, all-rows contrast.

A hypergraph has few hyperedges (a, such as 4), so what it says about n nodes is a matrix of rank
a at most: `Hyper` keeps its two factors. The contrast of all rows of one hypergraph with all rows
of another then has inner products over a columns instead of d. The source is LGMRec (arXiv
2312.16400).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.names import unknown
from zoo.softmax import full_softmax, sharded_softmax

Array = jax.Array


class Hyper(NamedTuple):
    """Node vectors x = assignment @ hubs, as factors."""

    assignment: Array  # float32 [n,a], a row of zeros where the node is in no hyperedge
    hubs: Array  # float32 [a,d]


def vectors(hyper: Hyper) -> Array:
    """float32 [n,d]: the node vectors of a hypergraph."""
    return hyper.assignment @ hyper.hubs


NOISE: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "none": lambda key, shape: jnp.zeros(shape),
    "gumbel": lambda key, shape: jax.random.gumbel(key, shape),  # -ln(-ln u)
    "logistic": lambda key, shape: jax.random.logistic(key, shape),  # ln u - ln(1 - u)
}


def draw_noise(law: str, key: Array, shape: tuple[int, ...]) -> Array:
    """float32 of `shape` from `gumbel`, `logistic` or `none`. Raises ValueError for others."""
    if law not in NOISE:
        raise unknown("unknown noise", law, NOISE)
    return NOISE[law](key, shape)


def assign(logits: Array, noise: Array, temperature: float, present: Array) -> Array:
    """softmax((logits + noise) / temperature) over the hyperedges, [...,a] to [...,a].

    Rows sum to 1, or to 0 where `present` [...] is False: such a node is in no hyperedge.
    """
    shares = jax.nn.softmax((logits + noise) / temperature, axis=-1)
    return jnp.where(present[..., None], shares, 0.0)


def drop(key: Array, x: Array, keep: float) -> Array:
    """Inverted dropout: each entry kept with probability `keep` and divided by it."""
    if keep >= 1:
        return x
    return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, 0.0)


def gather_messages(assignment: Array, x: Array, layers: int) -> Array:
    """Hubs Z = Hᵀ x^{l-1} [a,d] of the last of `layers` rounds x^{l+1} = H Hᵀ x^l, x^0 = x [n,d].

    Rounds after the first pass through the [a,a] matrix Hᵀ H alone. Raises ValueError without
    a round.
    """
    if layers < 1:
        raise ValueError(
            f"a hypergraph of {layers} layers passes no message; use at least 1, or give it no "
            "say (alpha=0, contrast=0)."
        )
    hubs = assignment.T @ x
    if layers > 1:
        between = assignment.T @ assignment
        for _ in range(layers - 1):
            hubs = between @ hubs
    return hubs


def contrast(
    anchors: Hyper,  # n nodes
    others: Hyper,  # the same nodes
    nodes: Array,  # int32 p
    weights: Array,  # float32 p
    valid: Array,  # bool n
    temperature: float,
) -> Array:
    """Σ_p w_p (-ln [exp(cos(x_p, y_p)/τ) / Σ_{j valid} exp(cos(x_p, y_j)/τ)]), a sum, no mean.

    x are the vectors of `anchors`, y those of `others`; a node named twice counts twice. Nodes
    that are not `valid` are in no denominator; give them weight 0. Memory grows with n + p, not
    with n p. LGMRec (arXiv 2312.16400), the hypergraph contrast, in one direction.
    """
    x, y = unit(anchors), unit(others)
    a, d = anchors.hubs.shape
    if a < d:  # x·y = (x's share) (hubs hubsᵀ) (y's share)
        queries = jnp.take(x.assignment, nodes, axis=0) @ (x.hubs @ y.hubs.T)
        table = y.assignment
    else:
        queries, table = jnp.take(vectors(x), nodes, axis=0), vectors(y)
    return jnp.sum(weights) * _softmax(queries, nodes, weights, table, valid, temperature)


def _softmax(queries, nodes, weights, table, valid, temperature) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return full_softmax(queries, nodes, weights, table, valid, temperature=temperature)
    return sharded_softmax(queries, nodes, weights, table, valid, mesh, temperature=temperature)


def unit(hyper: Hyper) -> Hyper:
    """The factors of the node vectors over their lengths; a zero vector stays zero."""
    x = vectors(hyper)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    scale = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return hyper._replace(assignment=hyper.assignment * scale)
