"""T5: pre-norm blocks without biases, scores unscaled, one relative bias a stack (1910.10683).

Encoder and decoder are separate: a user is encoded once, and many things are decoded from it. The
decoder's axes are [b,w,t,d]: w beams, candidates or places of a packed row, each of t tokens that
see each other causally, and all of them the memory [b,l,d] of their row, which is never repeated.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.layers import Dropout

Array = jax.Array
KeysValues = tuple[Array, Array]  # [...,k,h,e] each


def buckets(
    distance: np.ndarray, both_ways: bool, count: int = 32, furthest: int = 128
) -> np.ndarray:
    """int bucket of (key place - query place): exact when near, logarithmic when far.

    Raffel et al. 2020, section 2.1. Half of the buckets are for later keys where `both_ways`,
    else a later key counts as distance 0. Beyond `furthest` all share the last bucket.
    """
    side = np.zeros_like(distance)
    if both_ways:
        count //= 2
        side, distance = count * (distance > 0), np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = count // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(furthest / exact)) * (count - exact)).astype(int)
    return side + np.where(distance < exact, distance, np.minimum(far, count - 1))


def normal(variance: float) -> Callable:
    """N(0, variance): T5 gives each kernel its own, so that unscaled scores start near 1."""
    return nn.initializers.normal(math.sqrt(variance))


class RelativeBias(nn.Module):
    """[h,q,k] of queries at `first`, first+1, ... and keys from 0."""

    heads: int
    width: int
    both_ways: bool
    count: int = 32
    furthest: int = 128

    @nn.compact
    def __call__(self, queries: int, keys: int, first: int = 0) -> Array:
        table = self.param("table", normal(1 / self.width), (self.count, self.heads))
        distance = np.arange(keys)[None, :] - (first + np.arange(queries))[:, None]
        at = buckets(distance, self.both_ways, self.count, self.furthest)
        return jnp.moveaxis(table[at], -1, 0)


class T5Attention(nn.Module):
    """softmax(q k + bias) v, without biases or scaling; softmax in float32."""

    heads: int
    head_width: int
    width: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        inner, d = self.heads * self.head_width, self.width
        plain = {"use_bias": False, "dtype": self.dtype}
        self.query = nn.Dense(inner, kernel_init=normal(1 / (d * self.head_width)), **plain)
        self.key = nn.Dense(inner, kernel_init=normal(1 / d), **plain)
        self.value = nn.Dense(inner, kernel_init=normal(1 / d), **plain)
        self.out = nn.Dense(d, kernel_init=normal(1 / inner), **plain)
        self.drop = Dropout(self.dropout)

    def read(self, x: Array) -> KeysValues:
        """Keys and values [...,l,h,e] of x [...,l,d]."""
        return self._split(self.key(x)), self._split(self.value(x))

    def __call__(
        self, x: Array, read: KeysValues, bias: Array | float, mask: Array, train: bool = False
    ) -> Array:
        """x [b,w,t,d] by what is read [b,w,l,h,e]; bias and mask broadcast to [b,w,h,t,l]."""
        keys, values = read
        q = self._split(self.query(x))
        scores = jnp.einsum("bwthe,bwlhe->bwhtl", q, keys).astype(jnp.float32) + bias
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9)).astype(values.dtype)
        weights = self.drop(weights, deterministic=not train)
        y = jnp.einsum("bwhtl,bwlhe->bwthe", weights, values)
        return self.out(y.reshape(*y.shape[:-2], -1))

    def shared(self, x: Array, read: KeysValues, seen: Array, train: bool = False) -> Array:
        """x [b,w,t,d] by the memory of its row [b,l,h,e], of which seen [b,w or 1,l] is shown.

        All w x t are queries of one product, so that the memory is not repeated.
        """
        b, w, t, d = x.shape
        seen = jnp.broadcast_to(seen, (b, w, seen.shape[2]))
        mask = jnp.repeat(seen, t, axis=1)[:, None, None]
        read = tuple(part[:, None] for part in read)
        return self(x.reshape(b, 1, w * t, d), read, 0.0, mask, train).reshape(x.shape)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, self.head_width)


class T5Block(nn.Module):
    """Attention, with `cross` attention to the memory, W_out relu(W_in x): each x + f(norm x)."""

    heads: int
    head_width: int
    width: int
    inner: int
    cross: bool = False
    dropout: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        sizes = (self.heads, self.head_width, self.width, self.dropout, self.dtype)
        norm = lambda: nn.RMSNorm(self.epsilon, dtype=jnp.float32)  # noqa: E731
        self.attention, self.attention_norm = T5Attention(*sizes), norm()
        if self.cross:
            self.memory, self.memory_norm = T5Attention(*sizes), norm()
        start = {"use_bias": False, "dtype": self.dtype}
        self.ffn_in = nn.Dense(self.inner, kernel_init=normal(1 / self.width), **start)
        self.ffn_out = nn.Dense(self.width, kernel_init=normal(1 / self.inner), **start)
        self.ffn_norm, self.drop = norm(), Dropout(self.dropout)

    def __call__(
        self,
        x: Array,  # b w t d
        bias: Array,  # h t k
        mask: Array,  # to b w h t k
        memory: KeysValues | None = None,
        seen: Array | None = None,  # bool b w l: what of the memory each one sees
        past: KeysValues | None = None,  # b w t' h e: tokens read before x
        train: bool = False,
    ) -> tuple[Array, KeysValues]:
        """The block's output and the keys and values of all tokens so far."""
        z = self.attention_norm(x)
        read = self.attention.read(z)
        if past is not None:
            read = tuple(jnp.concatenate(pair, axis=2) for pair in zip(past, read, strict=True))
        x = x + self._drop(self.attention(z, read, bias[None, None], mask, train), train)
        if self.cross:
            y = self.memory.shared(self.memory_norm(x), memory, seen, train)
            x = x + self._drop(y, train)
        y = self._drop(nn.relu(self.ffn_in(self.ffn_norm(x))), train)
        return x + self._drop(self.ffn_out(y), train), read

    def _drop(self, x: Array, train: bool) -> Array:
        return self.drop(x, deterministic=not train)


class T5Stack(nn.Module):
    """`layers` blocks under one relative bias, and a last norm; dropout before and after."""

    layers: int = 2
    heads: int = 4
    head_width: int = 32
    width: int = 128
    inner: int = 256
    cross: bool = False
    both_ways: bool = True
    dropout: float = 0.1
    epsilon: float = 1e-6
    buckets: int = 32
    furthest: int = 128
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        sizes = (self.heads, self.head_width, self.width, self.inner, self.cross)
        rest = (self.dropout, self.epsilon, self.dtype)
        self.block = [T5Block(*sizes, *rest) for _ in range(self.layers)]
        bias = (self.heads, self.width, self.both_ways, self.buckets, self.furthest)
        self.relative = RelativeBias(*bias)
        self.norm = nn.RMSNorm(self.epsilon, dtype=jnp.float32)
        self.drop = Dropout(self.dropout)

    def encode(self, x: Array, mask: Array, train: bool = False) -> Array:
        """States [b,l,d] of x [b,l,d]; mask bool to [b,l,l]: what a place sees."""
        bias, mask = self.relative(x.shape[1], x.shape[1]), mask[:, None, None]
        x = self.drop(x, deterministic=not train)[:, None]
        for block in self.block:
            x, _ = block(x, bias, mask, train=train)
        return self.drop(self.norm(x), deterministic=not train)[:, 0]

    def read(self, memory: Array) -> list[KeysValues]:
        """What each block keeps of the memory [b,l,d]: once a user, however much is decoded."""
        return [block.memory.read(memory) for block in self.block]

    def decode(
        self,
        x: Array,  # b w t d
        memory: list[KeysValues],
        seen: Array,  # bool b w l
        past: list[KeysValues] | None = None,
        train: bool = False,
    ) -> tuple[Array, list[KeysValues]]:
        """States [b,w,t,d] of tokens behind those of `past`, and the past with them."""
        t, before = x.shape[2], 0 if past is None else past[0][0].shape[2]
        bias = self.relative(t, before + t, before)
        mask = jnp.arange(before + t)[None, :] <= (before + jnp.arange(t))[:, None]
        x = self.drop(x, deterministic=not train)
        kept = []
        for i, block in enumerate(self.block):
            old = None if past is None else past[i]
            x, read = block(x, bias, mask[None, None, None], memory[i], seen, old, train)
            kept.append(read)
        return self.drop(self.norm(x), deterministic=not train), kept


def encoder_decoder(
    layers: int, decoder_layers: int, causal: bool, dropout: float, **sizes: int
) -> tuple[T5Stack, T5Stack]:
    """(encoder, decoder that reads it) of one size; causal: whether the encoder hides what comes
    later, too."""
    return (
        T5Stack(layers, **sizes, both_ways=not causal, dropout=dropout),
        T5Stack(decoder_layers, **sizes, cross=True, both_ways=False, dropout=dropout),
    )
