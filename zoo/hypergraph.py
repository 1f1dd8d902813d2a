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

Array = jax.Array
SMALLEST = 1e-12  # a vector is divided by its length, but by no less
COLDEST = 1 / 80  # the temperature at which exp(1/τ) is near the end of float32
EXPONENTIALS = 1_200_000  # held at once by a contrast (5 MB), the measured best on CPU
LANES = 8  # narrow products are as fast as ones of this width, and odd widths are slower


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
    with n p. LGMRec (arXiv 2312.16400), the hypergraph contrast, in one direction. Raises
    ValueError for a temperature below 1/80, whose exponentials float32 cannot hold.
    """
    if temperature < COLDEST:
        raise ValueError(f"temperature {temperature} is below {COLDEST}; take a higher one.")
    x, y = unit(anchors), unit(others)
    a, d = anchors.hubs.shape
    if a < d:  # x·y = (share in x) (hubs hubsᵀ) (share in y)
        queries = jnp.take(x.assignment, nodes, axis=0) @ (x.hubs @ y.hubs.T)
        table = y.assignment
    else:
        queries, table = jnp.take(vectors(x), nodes, axis=0), vectors(y)
    queries = queries / temperature
    own = jnp.sum(queries * jnp.take(table, nodes, axis=0), axis=-1)
    return log_sums(queries, weights, table, valid) - jnp.sum(weights * own)


@jax.custom_vjp
def log_sums(queries: Array, weights: Array, table: Array, valid: Array) -> Array:
    """Σ_p w_p ln Σ_{j valid} exp(q_p·t_j) of queries [p,c], weights [p], table [n,c], valid [n].

    Nothing is subtracted before exp: |q·t| must stay below 80. This is what makes it faster than
    zoo.softmax.full_softmax where c is small: a chunk of exponentials is written once and read
    by two products, Σ_j e_pj (t_j, 1) and Σ_p e_pj q_p, that hold loss and both gradients.
    """
    return _sums(queries, weights, table, valid)[0]


def _sums(queries, weights, table, valid):
    """(loss, (d queries, d weights, d table))."""
    columns, there = table.T, valid.astype(table.dtype)
    c, n = columns.shape
    read = jnp.concatenate([table * there[:, None], there[:, None]], axis=1)
    read = jnp.pad(read, ((0, 0), (0, -(c + 1) % LANES)))
    rows = max(1, min(len(queries), EXPONENTIALS // n))
    lack = -len(queries) % rows
    xs = jnp.pad(queries, ((0, lack), (0, 0))), jnp.pad(weights, (0, lack))

    def step(grown, x):
        q, w = x
        exps = jnp.exp(q @ columns)
        means = exps @ read
        sums = jnp.where(means[:, c] > 0, means[:, c], 1.0)
        share = (w / sums)[:, None]
        return grown + (q * share).T @ exps, (jnp.log(sums), means[:, :c] * share)

    xs = (x.reshape(-1, rows, *x.shape[1:]) for x in xs)
    grown, (logs, dq) = jax.lax.scan(step, jnp.zeros_like(columns), tuple(xs))
    logs = logs.reshape(-1)[: len(queries)]
    dq = dq.reshape(-1, c)[: len(queries)]
    return jnp.sum(weights * logs), (dq, logs, (grown * there[None, :]).T)


def _sums_backward(gradients, cotangent):
    return *(cotangent * x for x in gradients), None


log_sums.defvjp(_sums, _sums_backward)


def unit(hyper: Hyper) -> Hyper:
    """The factors of x / max(|x|, 1e-12).

    Dropout can leave a row its smallest shares alone, 1e-20 and less: without the floor its
    gradient would overflow.
    """
    square = jnp.sum(jnp.square(vectors(hyper)), axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(square, SMALLEST**2))
    return hyper._replace(assignment=hyper.assignment * scale)
