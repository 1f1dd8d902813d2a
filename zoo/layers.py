"""Attention, feed-forward, block, stack, tables. The legend of axis letters stands here.

b batch   l length   d width   h heads   n items   m modality   f features   k results
c candidates or code level   v codebook size   e edges   p positions of a batch, flattened
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.names import check
from zoo.places import at_columns, segment_mask
from zoo.recommender import ReadAgain

Array = jax.Array
KINDS, FEEDS = ("pre", "post", "ligr", "original"), ("relu", "gelu", "swiglu")
init_normal = nn.initializers.normal(0.02)


Memory = dict  # what a causal trunk keeps of the columns it has read; `extend` adds one


def remembered(memory: Memory, name: str, new: Array) -> Array:
    """[b,l,...] of the columns so far, `new` [b,1,...] written at memory['at'] int[b]."""
    return memory[name].at[jnp.arange(len(new)), memory["at"]].set(new[:, 0])


def next_column(memory: Memory) -> dict[str, Array]:
    """The one-column batch behind what was read: its place in the history."""
    return {"positions": memory["at"][:, None], "segments": jnp.ones_like(memory["at"])[:, None]}


def read_so_far(memory: Memory, length: int) -> Array:
    """bool[b,1,1,l]: the columns that the next one may look at, itself included."""
    return (jnp.arange(length)[None, :] <= memory["at"][:, None])[:, None, None]


class Table(nn.Module):
    """Rows to look up. Row 0 is the padding item: the caller masks it."""

    rows: int
    width: int
    initial: Callable = init_normal

    @nn.compact
    def __call__(self) -> Array:
        return self.param("table", self.initial, (self.rows, self.width))  # n d


class Dropout(nn.Module):
    """Zeros a share `rate` of x and divides the rest by the share that is kept, as in Flax, with
    one random byte a number in place of four: rates are multiples of 1/256.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: Array, deterministic: bool | None = None) -> Array:
        kept = round(256 * (1 - self.rate))
        if nn.merge_param("deterministic", self.deterministic, deterministic) or kept == 256:
            return x
        if kept == 0:
            return jnp.zeros_like(x)
        drawn = random_bytes(self.make_rng("dropout"), x.shape)
        return jnp.where(drawn < kept, x * (256 / kept), jnp.zeros_like(x))


def random_bytes(key: Array, shape: tuple[int, ...]) -> Array:
    """uint8 of `shape`, four of each random word; words lie along the last axis alone, so that
    the others are spread over devices as x is."""
    *rows, width = shape
    words = jax.random.bits(key, (*rows, -(-width // 4)), jnp.uint32)
    drawn = jax.lax.bitcast_convert_type(words, jnp.uint8)
    return drawn.reshape(*rows, -1)[..., :width]


class Attention(nn.Module):
    """Multi-head softmax attention; softmax in float32. `values` may differ from the queries.

    With `memory` {key, value [b,l,h,e], at} x is one new column, and the new memory comes, too.
    """

    heads: int = 1
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        values: Array,
        mask: Array,
        train: bool = False,
        memory: Memory | None = None,
    ) -> Array | tuple[Array, Memory]:
        width = x.shape[-1]

        def project(name: str, y: Array) -> Array:
            y = nn.Dense(width, dtype=self.dtype, name=name)(y)
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)

        q, k, v = project("query", x), project("key", values), project("value", values)
        if memory is not None:
            k, v = remembered(memory, "key", k), remembered(memory, "value", v)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
        logits = jnp.where(mask, logits.astype(jnp.float32), -1e9)  # not -inf: no NaN rows
        weights = jax.nn.softmax(logits).astype(v.dtype)
        weights = Dropout(self.dropout)(weights, deterministic=not train)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        y = nn.Dense(width, dtype=self.dtype, name="out")(y)
        return y if memory is None else (y, {"key": k, "value": v})


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
        y = Dropout(self.dropout)(y, deterministic=not train)
        return nn.Dense(width, dtype=self.dtype, name="out")(y)


class Block(nn.Module):
    """One layer. kind: `pre` x + f(LN x), `post` LN(x + f(x)), `ligr` x + sigmoid(W x) * f(LN x),
    `original` as gSASRec's code: queries and residual from LN x, keys and values from x.

    columns int[b,s]: what stands there is all that is computed, [b,s,d].
    """

    kind: str = "pre"
    heads: int = 1
    ffn: str = "relu"
    multiplier: int = 1
    dropout: float = 0.0
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        train: bool = False,
        memory: Memory | None = None,
        columns: Array | None = None,
    ) -> Array | tuple[Array, Memory]:
        attention = Attention(self.heads, self.dropout, self.dtype, name="attention")
        feed = FeedForward(self.ffn, self.multiplier, self.dropout, self.dtype, name="ffn")
        kept: Memory = {}
        seen = at_columns(mask, columns, axis=2)

        def attend(q: Array, v: Array) -> Array:
            if memory is None:
                return attention(q, v, seen, train)
            y, new = attention(q, v, seen, train, memory)
            kept.update(new)
            return y

        y = self._sub(x, "attention", attend, train, columns)
        y = self._sub(y, "ffn", lambda q, _: feed(q, train), train)
        return y if memory is None else (y, kept)

    def _sub(
        self, x: Array, name: str, layer: Callable, train: bool, columns: Array | None = None
    ) -> Array:
        """The layer and what it is added to, at the columns; layer(there, everywhere)."""
        norm = nn.LayerNorm(self.epsilon, dtype=jnp.float32, name=f"{name}_norm")
        drop = Dropout(self.dropout, deterministic=not train, name=f"{name}_dropout")
        own = at_columns(x, columns)
        if self.kind == "post":
            return norm(own + drop(layer(own, x)))
        z = norm(x)
        there = at_columns(z, columns)
        if self.kind == "original":
            return there + drop(layer(there, x))
        y = drop(layer(there, z))
        if self.kind == "ligr":
            y = y * nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name=f"{name}_gate")(own))
        return own + y


class Stack(nn.Module):
    """`layers` blocks and, unless they are post-norm, a last LayerNorm.

    `scan` compiles one layer instead of all (parameters get a leading layer axis); `remat`
    recomputes a layer's activations in the backward pass. columns int[b,s]: the states wanted,
    [b,s,d]; the last layer computes no others, unless scanned.
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

    def __post_init__(self):
        check(block=(self.kind, KINDS), ffn=(self.ffn, FEEDS))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        train: bool = False,
        memory: Memory | None = None,
        columns: Array | None = None,
    ) -> Array | tuple[Array, Memory]:
        fields = (self.kind, self.heads, self.ffn, self.multiplier, self.dropout, self.epsilon)
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        kept: Memory = {}
        names = [] if self.scan else self._names()
        x = self._scanned(block, fields, x, mask, train) if self.scan else x
        x = x if names else at_columns(x, columns)
        for name in names:
            layer = block(*fields, self.dtype, name=name)
            if memory is None:
                x = layer(x, mask, train, None, columns if name == names[-1] else None)
            else:
                x, kept[name] = layer(x, mask, train, {"at": memory["at"], **memory[name]})
        last = self.kind != "post" if self.final_norm is None else self.final_norm
        x = nn.LayerNorm(self.epsilon, dtype=jnp.float32, name="norm")(x) if last else x
        return x if memory is None else (x, kept)

    def _names(self) -> list[str]:
        return [f"block_{i}" for i in range(self.layers)]

    def empty(self, b: int, length: int, width: int) -> Memory:
        """Nothing read yet: keys and values of every block, zeros. ReadAgain under scan."""
        if self.scan:
            raise ReadAgain("blocks under scan keep no memory; build the model with scan=False.")
        zeros = jnp.zeros((b, length, self.heads, width // self.heads), self.dtype)
        return {name: {"key": zeros, "value": zeros} for name in self._names()}

    def _scanned(self, block, fields, x: Array, mask: Array, train: bool) -> Array:
        layers = nn.scan(
            lambda module, carry, _: (module(carry, mask, train), None),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.layers,
        )
        return layers(block(*fields, self.dtype, name="blocks"), x, None)[0]


def check_fits(batch: dict[str, Array], max_len: int) -> None:
    """Raise ValueError for histories to be asked about (a batch with `query`) of more events than
    there are positions; rows of training are packed and may be longer."""
    length = batch["segments"].shape[1]
    if "query" in batch and length > max_len:
        raise ValueError(
            f"histories of up to {length} events for a model of {max_len} positions: cut them to "
            f"their newest {max_len}, as max_len={max_len} does where batches are made."
        )


class Trunk(nn.Module):
    """Item vectors of packed histories to states [b,l,d]: positions, dropout, stack.

    scale: item vectors times sqrt(d); norm: LayerNorm of item plus position, as BERT has it.
    columns int[b,s]: the states wanted, [b,s,d].
    """

    max_len: int = 50
    scale: bool = True
    dropout: float = 0.2
    stack: Stack = Stack()
    norm: bool = False
    causal: bool = True

    @nn.compact
    def __call__(
        self,
        x: Array,
        batch: dict[str, Array],
        train: bool = False,
        memory: Memory | None = None,
        columns: Array | None = None,
    ) -> Array | tuple[Array, Memory]:
        if memory is not None:
            batch = next_column(memory)
        check_fits(batch, self.max_len)
        positions = Table(self.max_len, x.shape[-1], name="positions")()
        x = x * jnp.sqrt(x.shape[-1]).astype(x.dtype) if self.scale else x
        x = x + jnp.take(positions, batch["positions"], axis=0, mode="clip")
        x = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(x) if self.norm else x
        x = x * (batch["segments"] > 0)[:, :, None]
        x = Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        if memory is None:
            mask = segment_mask(batch["segments"], self.causal)
            return self.stack(x, mask, train, columns=columns)
        x, kept = self.stack(x, read_so_far(memory, self.max_len), train, memory)
        return x, {"at": memory["at"] + 1, **kept}

    def empty(self, b: int, width: int) -> Memory:
        """The memory of `b` histories of which nothing has been read. ReadAgain where the past
        changes with what comes, and under scan."""
        if not self.causal:
            raise ReadAgain("a trunk that looks ahead has to read the history again.")
        return {"at": jnp.zeros(b, jnp.int32), **self.stack.empty(b, self.max_len, width)}
