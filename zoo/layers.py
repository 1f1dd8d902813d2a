"""Attention, feed-forward, block, stack, tables. The legend of axis letters stands here.

b batch   l length   d width   h heads   n items   m modality   f features   k results
c candidates or code level   v codebook size   e edges   p positions of a batch, flattened
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
init_normal = nn.initializers.normal(0.02)


def segment_mask(segments: Array, causal: bool = True) -> Array:
    """bool[b,1,l,l]: a query sees its own segment, with `causal` only itself and what came before.

    Padding (segment 0) sees padding only, so no row is fully masked.
    """
    same = segments[:, :, None] == segments[:, None, :]
    length = segments.shape[1]
    earlier = jnp.arange(length)[:, None] >= jnp.arange(length)[None, :]
    return (same & earlier[None] if causal else same)[:, None]


class Table(nn.Module):
    """Rows to look up. Row 0 is the padding item: the caller masks it."""

    rows: int
    width: int
    initial: Callable = init_normal

    @nn.compact
    def __call__(self) -> Array:
        return self.param("table", self.initial, (self.rows, self.width))  # n d


class Attention(nn.Module):
    """Multi-head softmax attention; softmax in float32. `values` may differ from the queries."""

    heads: int = 1
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, values: Array, mask: Array, train: bool = False) -> Array:
        width = x.shape[-1]

        def project(name: str, y: Array) -> Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        q, k, v = project("query", x), project("key", values), project("value", values)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        logits = jnp.where(mask, logits.astype(jnp.float32), -1e9)  # not -inf: no NaN rows
        weights = jax.nn.softmax(logits).astype(v.dtype)
        weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, name="out")(y)


class FeedForward(nn.Module):
    """kind: `relu`, `gelu` (two maps) or `swiglu` (W3(SiLU(W1 x) * W2 x))."""

    kind: str = "relu"
    multiplier: int = 1
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        width, inner = x.shape[-1], x.shape[-1] * self.multiplier
        y = nn.Dense(inner, dtype=self.dtype, name="in")(x)
        if self.kind == "swiglu":
            y = nn.silu(y) * nn.Dense(inner, dtype=self.dtype, name="gate")(x)
        else:
            y = {"relu": nn.relu, "gelu": partial(nn.gelu, approximate=False)}[self.kind](y)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return nn.Dense(width, dtype=self.dtype, name="out")(y)


class Block(nn.Module):
    """One layer. kind: `pre` x + f(LN x), `post` LN(x + f(x)), `ligr` x + sigmoid(W x) * f(LN x),
    `original` as gSASRec's code: queries and residual from LN x, keys and values from x."""

    kind: str = "pre"
    heads: int = 1
    ffn: str = "relu"
    multiplier: int = 1
    dropout: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool = False) -> Array:
        attention = Attention(self.heads, self.dropout, self.dtype, name="attention")
        feed = FeedForward(self.ffn, self.multiplier, self.dropout, self.dtype, name="ffn")
        y = self._sub(x, "attention", lambda q, v: attention(q, v, mask, train), train)
        return self._sub(y, "ffn", lambda q, _: feed(q, train), train)

    def _sub(self, x: Array, name: str, layer: Callable, train: bool) -> Array:
        norm = nn.LayerNorm(self.epsilon, dtype=jnp.float32, name=f"{name}_norm")
        drop = nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_dropout")
        if self.kind == "post":
            return norm(x + drop(layer(x, x)))
        z = norm(x)
        if self.kind == "original":
            return z + drop(layer(z, x))
        y = drop(layer(z, z))
        if self.kind == "ligr":
            y = y * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name=f"{name}_gate")(x))
        return x + y


class Stack(nn.Module):
    """`layers` blocks and, unless they are post-norm, a last LayerNorm.

    `scan` compiles one layer instead of all (parameters get a leading layer axis); `remat`
    recomputes a layer's activations in the backward pass.
    """

    layers: int = 2
    kind: str = "pre"
    heads: int = 1
    ffn: str = "relu"
    multiplier: int = 1
    dropout: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32
    scan: bool = False
    remat: bool = False
    final_norm: bool | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool = False) -> Array:
        fields = (self.kind, self.heads, self.ffn, self.multiplier, self.dropout, self.epsilon)
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        if self.scan:
            x = self._scanned(block, fields, x, mask, train)
        else:
            for i in range(self.layers):
                x = block(*fields, self.dtype, name=f"block_{i}")(x, mask, train)
        last = self.kind != "post" if self.final_norm is None else self.final_norm
        return nn.LayerNorm(self.epsilon, dtype=jnp.float32, name="norm")(x) if last else x

    def _scanned(self, block, fields, x: Array, mask: Array, train: bool) -> Array:
        layers = nn.scan(
            lambda module, carry, _: (module(carry, mask, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.layers,
        )
        return layers(block(*fields, self.dtype, name="blocks"), x, None)[0]


class Trunk(nn.Module):
    """Item vectors of packed histories to states [b,l,d]: positions, dropout, stack.

    scale: item vectors times sqrt(d); norm: LayerNorm of item plus position, as BERT has it.
    """

    max_len: int = 50
    scale: bool = True
    dropout: float = 0.2
    stack: Stack = Stack()
    norm: bool = False
    causal: bool = True

    @nn.compact
    def __call__(self, x: Array, batch: dict[str, Array], train: bool = False) -> Array:
        positions = Table(self.max_len, x.shape[-1], name="positions")()
        x = x * jnp.sqrt(x.shape[-1]).astype(x.dtype) if self.scale else x
        x = x + jnp.take(positions, batch["positions"], axis=0, mode="clip")
        x = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(x) if self.norm else x
        x = x * (batch["segments"] > 0)[:, :, None]
        x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        return self.stack(x, segment_mask(batch["segments"], self.causal), train)
