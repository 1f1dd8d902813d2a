"""Transformer blocks of published encoders: post- and pre-norm, every layer's output kept."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Attention, Dropout

Array = jax.Array
Outputs = dict[str, Array]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # of layers; parameters are float32
ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_new": partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


def attention_mask(keys: Array | None, length: int, causal: bool = False) -> Array:
    """bool[b or 1,1,l or 1,l] of what a query sees: the real keys, and with `causal` no later one.

    keys  bool[b,l] or None, which hides nothing
    """
    mask = (
        jnp.ones((1, 1, 1, length), bool) if keys is None else keys[:, None, None, :].astype(bool)
    )
    if causal:
        mask = mask & jnp.tril(jnp.ones((length, length), bool))[None, None]
    return mask


def mean_of_tokens(tokens: Array, mask: Array) -> Array:
    """[b,d] float32: the mean of the real tokens [b,l,d] under mask bool[b,l]; none gives zeros."""
    weights = mask.astype(jnp.float32)[:, :, None]
    return (tokens * weights).sum(1) / jnp.maximum(weights.sum(1), 1e-9)


def unit_length(x: Array) -> Array:
    """x / |x| over the last axis, float32; zero stays zero."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class MLP(nn.Module):
    """W_out act(W_in x + b_in) + b_out; `inner` is the width between."""

    inner: int
    activation: str = "gelu"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = ACTIVATIONS[self.activation](nn.Dense(self.inner, dtype=self.dtype, name="in")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(y)


class EncoderBlock(nn.Module):
    """One layer: `post` LN(x + f(x)) (Transformer, BERT), `pre` x + s * f(LN x) (ViT, CLIP).

    s is 1, or with `layer_scale` learned by channel (CaiT, arXiv 2103.17239, equation 1).
    """

    kind: str = "pre"
    heads: int = 12
    inner: int = 3072
    activation: str = "gelu"
    epsilon: float = 1e-6
    layer_scale: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool = False) -> Array:
        attention = Attention(self.heads, self.dropout, self.dtype, name="attention")
        feed = MLP(self.inner, self.activation, self.dtype, name="ffn")
        x = self._sub(x, "attention", lambda z: attention(z, z, mask, train), train)
        return self._sub(x, "ffn", feed, train)

    def _sub(self, x: Array, name: str, layer, train: bool) -> Array:
        norm = nn.LayerNorm(self.epsilon, dtype=jnp.float32, name=f"{name}_norm")
        drop = Dropout(self.dropout, deterministic=not train, name=f"{name}_dropout")
        if self.kind == "post":
            return norm(x + drop(layer(x)))
        y = layer(norm(x))
        if self.layer_scale:
            scale = self.param(f"{name}_scale", nn.initializers.constant(1e-5), (x.shape[-1],))
            y = y * scale[None, None, :]
        return x + drop(y)


class EncoderStack(nn.Module):
    """`layers` blocks: the last output [b,l,d], and all of them [layers+1,b,l,d], input first.

    `scan` compiles one layer instead of all (parameters `blocks`, with a leading layer axis,
    instead of `block_0` ...); `remat` recomputes a layer's activations in the backward pass.
    """

    layers: int = 12
    kind: str = "pre"
    heads: int = 12
    inner: int = 3072
    activation: str = "gelu"
    epsilon: float = 1e-6
    layer_scale: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array, train: bool = False) -> tuple[Array, Array]:
        block = nn.remat(EncoderBlock, static_argnums=(3,)) if self.remat else EncoderBlock
        sizes = (self.kind, self.heads, self.inner, self.activation, self.epsilon)
        block = partial(block, *sizes, self.layer_scale, self.dropout, self.dtype)
        if self.scan:
            return self._scanned(block(name="blocks"), x, mask, train)
        states = [x]
        for i in range(self.layers):
            states.append(block(name=f"block_{i}")(states[-1], mask, train))
        return states[-1], jnp.stack(states)

    def _scanned(self, block, x: Array, mask: Array, train: bool) -> tuple[Array, Array]:
        run = nn.scan(
            lambda module, carry, _: (module(carry, mask, train),) * 2,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.layers,
        )
        last, states = run(block, x.astype(jnp.float32), None)
        return last, jnp.concatenate([x[None], states])


class Named(nn.Module):
    """An encoder under its modality: what is added to it finds it by the path encoders_image/..."""

    encoders: dict[str, nn.Module]

    def __call__(self, *inputs: Array, **options: Any) -> Outputs:
        (one,) = self.encoders.values()
        return one(*inputs, **options)
