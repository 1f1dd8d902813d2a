"""Sinkhorn balancing: soft assignment with equal shares, in the log domain."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def balanced(distances: Array, epsilon: float = 0.003, rounds: int = 50) -> Array:
    """log Q of distances [n,v]: rows of Q sum to 1/n, columns to nearly 1/v, Q ~ exp(-d/epsilon).

    Distances are first scaled to [-1, 1], so that epsilon means the same for every codebook;
    exp(1/.003) overflows, hence logarithms (Cuturi, 2013; for codes: Asano et al., 2020, arXiv
    1911.05371, and LC-Rec, arXiv 2311.09049). Assign by argmax over codes.
    """
    low, high = distances.min(), distances.max()
    scaled = (2 * distances - (high + low)) / jnp.maximum(high - low, 1e-12)
    n, v = distances.shape

    def normalise(_: Array, log_q: Array) -> Array:
        log_q = log_q - jax.nn.logsumexp(log_q, axis=0, keepdims=True) - jnp.log(v)
        return log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True) - jnp.log(n)

    return lax.fori_loop(0, rounds, normalise, -scaled.astype(jnp.float32) / epsilon)
