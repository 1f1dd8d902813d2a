"""Many modalities to one item vector: attention, spectra, Q-Former; missing ones are masked.

Each block takes the tokens of a row, x [n,m,d], and which of them are there, present bool [n,m].
Tokens that are not there are neither read nor averaged, whatever they hold. Sum and gate, which
also know the item's ID, stand in items.py.
"""

from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Attention, Dropout

Array = jax.Array
xavier = nn.initializers.xavier_uniform()


class AttentionMean(nn.Module):
    """x [n,m,d] to [n,d]: the mean by softmax over m of v·tanh(W x + b); zero without a token.

    What MGCN (arXiv 2308.03588) calls the shared features of the modalities.
    """

    @nn.compact
    def __call__(self, x: Array, present: Array) -> Array:
        hidden = jnp.tanh(nn.Dense(x.shape[-1], kernel_init=xavier, name="hidden")(x))
        logits = nn.Dense(1, use_bias=False, kernel_init=xavier, name="score")(hidden)[..., 0]
        weights = jax.nn.softmax(jnp.where(present, logits, -1e9)) * present
        return jnp.einsum("nm,nmd->nd", weights, x)


class SpectralFusion(nn.Module):
    """x [n,m,d] to (each token filtered [n,m,d], all of them fused [n,d]), SMORE (arXiv
    2412.14978).

    P = rfft(x) along d, orthonormal; filtered_m = irfft(P_m ⊙ w_m), fused = irfft(Π_m P_m ⊙ w_f)
    with complex w over the d//2 + 1 bins: a circular convolution of the tokens. The product runs
    over the tokens that a row has; a row with one token is fused to that token alone, under w_f,
    and one with none to zero.
    """

    @nn.compact
    def __call__(self, x: Array, present: Array) -> tuple[Array, Array]:
        m, d = x.shape[1:]
        initial = nn.initializers.normal(1.0)
        parts = self.param("filters", initial, (m + 1, d // 2 + 1, 2))  # real, imaginary
        filters = jax.lax.complex(parts[..., 0], parts[..., 1])
        spectra = jnp.fft.rfft(jnp.where(present[..., None], x, 0), norm="ortho")
        neutral = jnp.where(present[..., None], spectra, 1)
        product = reduce(jnp.multiply, [neutral[:, i] for i in range(m)])
        product = jnp.where(jnp.any(present, axis=1)[:, None], product, 0)
        both = jnp.concatenate([spectra, product[:, None]], axis=1) * filters[None]
        back = jnp.fft.irfft(both, n=d, norm="ortho")
        return back[:, :m], back[:, m]


class QFormer(nn.Module):
    """x [n,m,d] to the rows [n,q,d] of q learned queries that attended to it, EM3's Fusion
    Q-Former (arXiv 2404.06078).

    T = [queries ; x]; each layer T ← LN(T + drop(W_o · heads(T) + b_o)), multi-head
    self-attention over all tokens, without a feed-forward. `present` None: all. Of a row without
    tokens only the queries remain: the caller decides what such a row is.
    """

    queries: int = 1
    layers: int = 1
    heads: int = 4
    dropout: float = 0.5
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, present: Array | None = None, train: bool = False) -> Array:
        n, m, d = x.shape
        present = jnp.ones((n, m), bool) if present is None else present
        queries = self.param("queries", nn.initializers.normal(0.02), (self.queries, d))
        t = jnp.concatenate([jnp.broadcast_to(queries[None], (n, self.queries, d)), x], axis=1)
        read = jnp.concatenate([jnp.ones((n, self.queries), bool), present], axis=1)
        for i in range(self.layers):
            y = Attention(self.heads, name=f"layer_{i}_attention")(t, t, read[:, None, None])
            y = Dropout(self.dropout, name=f"layer_{i}_dropout")(y, deterministic=not train)
            t = nn.LayerNorm(self.epsilon, name=f"layer_{i}_norm")(t + y)
        return t[:, : self.queries]
