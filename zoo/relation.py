"""Attention within a set of items that knows whose set it is: MMGRec's encoder layer.

Liu et al. 2024 (arXiv 2404.16555). With user vector h and set e_1 ... e_l, per head:
    P_Q(j) = g_Q(h) · U_Q e_j,  g_Q(h) = W_b ReLU(W_a h) a number; P_K and P_V alike
    A = softmax((Q Kᵀ + P_Q P_Kᵀ) / sqrt(head width)),  out = A (V + P_V)
The P, one head wide, are the same for all heads. Then, as after any post-norm block,
    y = LN(x + drop(W_O out)),  z = LN(y + W_2 ReLU(W_1 y))
without biases, LN without scale or shift. There are no positions: permuting the set permutes z.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Dropout

Array = jax.Array


class Bend(nn.Module):
    """P = g(h) · U x: vectors x [b,l,d] scaled by a number that user h [b,l,u] decides."""

    width: int = 64
    hidden: int = 32  # of g
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, user: Array) -> Array:
        options = {"use_bias": False, "dtype": self.dtype}
        gate = nn.relu(nn.Dense(self.hidden, name="gate_in", **options)(user))
        gate = nn.Dense(1, name="gate_out", **options)(gate)  # b l 1
        return gate * nn.Dense(self.width, name="map", **options)(x)


class RelationAttention(nn.Module):
    """W_O A (V + P_V) [b,l,d] of x [b,l,d] for users [b,l,u]; mask bool[b,1,l,l], as
    layers.segment_mask makes it: what a query sees. Softmax in float32.
    """

    heads: int = 4
    head_width: int = 64
    gate_width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, user: Array, mask: Array) -> Array:
        def project(name: str) -> Array:
            y = nn.Dense(self.heads * self.head_width, False, self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], self.heads, self.head_width)

        def bend(name: str) -> Array:
            return Bend(self.head_width, self.gate_width, self.dtype, name=name)(x, user)

        q, k, v = project("query"), project("key"), project("value")
        p, r, s = bend("query_bend"), bend("key_bend"), bend("value_bend")
        logits = jnp.einsum("bqhe,bkhe->bhqk", q, k) + jnp.einsum("bqe,bke->bqk", p, r)[:, None]
        logits = logits.astype(jnp.float32) / jnp.sqrt(jnp.float32(self.head_width))
        weights = jax.nn.softmax(jnp.where(mask, logits, -1e9)).astype(v.dtype)
        y = jnp.einsum("bhqk,bkhe->bqhe", weights, v + s[:, :, None])
        y = y.reshape(*y.shape[:2], -1)
        return nn.Dense(x.shape[-1], False, self.dtype, name="out")(y)


class Hidden(nn.Module):
    """W_2 ReLU(W_1 x), no biases."""

    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.relu(nn.Dense(self.width, False, self.dtype, name="in")(x))
        return nn.Dense(x.shape[-1], False, self.dtype, name="out")(y)


class RelationBlock(nn.Module):
    """One layer: x [b,l,width], user [b,l,u], mask bool[b,1,l,l] to [b,l,width], float32."""

    width: int = 64
    heads: int = 4
    head_width: int = 64
    dropout: float = 0.2
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, user: Array, mask: Array, train: bool = False) -> Array:
        def norm(name: str, y: Array) -> Array:
            options = {"use_bias": False, "use_scale": False, "dtype": jnp.float32}
            return nn.LayerNorm(self.epsilon, name=name, **options)(y)

        attention = RelationAttention(
            self.heads, self.head_width, dtype=self.dtype, name="attention"
        )
        drop = Dropout(self.dropout, deterministic=not train, name="dropout")
        y = norm("attention_norm", x + drop(attention(x, user, mask)))
        return norm("ffn_norm", y + Hidden(self.width, self.dtype, name="ffn")(y))


class SetEncoder(nn.Module):
    """Sets of item vectors to states [b,l,width], float32: dropout, then the blocks.

    A set is a segment of a packed row. Vectors of another width than `width` are mapped to it
    first (`input`, no bias). What stands at padding is of no meaning: mask it.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    head_width: int = 64
    dropout: float = 0.2
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, user: Array, mask: Array, train: bool = False) -> Array:
        """x [b,l,f]; user [b,l,u], the same in a set, or [b,1,u], one a row; mask bool[b,1,l,l],
        what a query sees (layers.segment_mask(segments, causal=False))."""
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, False, self.dtype, name="input")(x)
        x = Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        fields = (self.width, self.heads, self.head_width, self.dropout, self.epsilon, self.dtype)
        for i in range(self.layers):
            x = RelationBlock(*fields, name=f"block_{i}")(x, user, mask, train)
        return x
