"""HSTU: pointwise SiLU attention with biases by position and by time, no softmax, no FFN.

Zhai et al. 2024 (ICML, arXiv 2402.17152). [U,V,Q,K] = SiLU(W LN x);
A_ij = SiLU(Q_i.K_j + by_position[i-j] + by_time[bucket(t_{i+1} - t_j)]) / n for j <= i, else 0;
x <- x + W_o drop(LN(A V) * U).
Train:  zoo train hstu --data ml-latest-small --out runs/hstu
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.items import Items
from zoo.layers import (
    Dropout,
    Memory,
    Table,
    check_fits,
    init_normal,
    next_column,
    read_so_far,
    remembered,
)
from zoo.models.sequential import aligned, sequential
from zoo.names import check
from zoo.objectives import Objective
from zoo.places import at_columns, segment_mask
from zoo.recommender import ReadAgain, Recommender

Array = jax.Array
BUCKETS = 129
EPSILON = 1e-6
TIME_BIASES = ("auto", "target", "self", "none")


def bucket(seconds: Array) -> Array:
    """uint8: floor(ln(max(1, |seconds|)) / 0.301), at most 128: a day is 37.

    One byte, as [b,l,l] of them are kept for the gradient of every layer.
    """
    logs = jnp.log(jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32)) / 0.301
    return jnp.clip(logs.astype(jnp.int32), 0, BUCKETS - 1).astype(jnp.uint8)


class Layer(nn.Module):
    """One block; `length` is the longest history n. distance int[1,l,l], times uint8[b,l,l] of
    `bucket`, mask bool[b,1,l,l].

    With `memory` {key, value [b,n,h,e], at} x is one new column, and the new memory comes, too.
    """

    heads: int = 2
    qk_width: int = 16
    v_width: int = 16
    dropout: float = 0.1
    length: int = 50
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        distance: Array,
        times: Array | None,
        train: bool = False,
        memory: Memory | None = None,
    ) -> Array | tuple[Array, Memory]:
        h, inner = self.heads, self.heads * self.v_width
        widths = (inner, inner, h * self.qk_width, h * self.qk_width)
        y = nn.LayerNorm(EPSILON, use_bias=False, use_scale=False)(x)
        y = nn.silu(nn.Dense(sum(widths), use_bias=False, dtype=self.dtype, name="uvqk")(y))
        u, v, q, k = jnp.split(y, [inner, 2 * inner, 2 * inner + widths[2]], axis=-1)
        bias = jnp.take(self.param("by_position", init_normal, (self.length,)), distance)
        if times is not None:
            bias = bias + jnp.take(self.param("by_time", init_normal, (BUCKETS,)), times)
        q, k, v = (z.reshape(*z.shape[:2], h, -1) for z in (q, k, v))
        if memory is not None:
            k, v = remembered(memory, "key", k), remembered(memory, "value", v)
        a = nn.silu(jnp.einsum("bihd,bjhd->bhij", q, k) + bias[:, None].astype(q.dtype))
        a = jnp.where(mask, a / self.length, 0.0)
        y = jnp.einsum("bhij,bjhd->bihd", a, v).reshape(u.shape)
        y = u * nn.LayerNorm(EPSILON, use_bias=False, use_scale=False)(y)
        y = Dropout(self.dropout)(y, deterministic=not train)
        x = x + nn.Dense(x.shape[-1], dtype=self.dtype, name="out")(y)
        return x if memory is None else (x, {"key": k, "value": v})


class HSTUTrunk(nn.Module):
    """Item vectors of packed histories to states [b,l,d], or [b,s,d] at `columns` int[b,s].

    time_bias: `target` (row i is asked at the time of its target, as published), `self` (at its
    own time, so a new event changes no row before it and the history can be read one event at a
    time), `none`, or `auto`: `target` where the data of the first batch have times.
    Raises ValueError when a trunk that reads times is given a batch without, and ReadAgain when
    one that asks at the time of the target is given a memory.
    """

    max_len: int = 50
    layers: int = 2
    heads: int = 2
    qk_width: int = 16
    v_width: int = 16
    dropout: float = 0.1
    embedding_dropout: float = 0.2
    time_bias: str = "auto"
    dtype: jnp.dtype = jnp.float32

    def __post_init__(self):
        check(time_bias=(self.time_bias, TIME_BIASES))
        super().__post_init__()

    @property
    def causal(self) -> bool:
        """Rows see what came before them only."""
        return True

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
            batch = {**batch, **next_column(memory)}
        check_fits(batch, self.max_len)
        positions = Table(self.max_len, x.shape[-1], name="positions")()
        x = x * jnp.sqrt(x.shape[-1]).astype(x.dtype)
        x = x + jnp.take(positions, batch["positions"], axis=0, mode="clip")
        x = x * (batch["segments"] > 0)[:, :, None]
        x = Dropout(self.embedding_dropout, name="dropout")(x, deterministic=not train)
        (times, clock), (mask, distance) = self._times(batch, memory), self._places(batch, memory)
        widths = (self.heads, self.qk_width, self.v_width)
        kept: Memory = {}
        for name in self._names():
            layer = Layer(*widths, self.dropout, self.max_len, self.dtype, name=name)
            if memory is None:
                x = layer(x, mask, distance, times, train)
            else:
                so_far = {"at": memory["at"], **memory[name]}
                x, kept[name] = layer(x, mask, distance, times, train, so_far)
        if memory is None:
            return at_columns(x, columns)
        return x, {"at": memory["at"] + 1, **clock, **kept}

    def _names(self) -> list[str]:
        return [f"layer_{i}" for i in range(self.layers)]

    def _places(self, batch: dict[str, Array], memory: Memory | None) -> tuple[Array, Array]:
        """Which columns a row sees, [b,1,i,j], and how far back they stand, [1 or b,i,j]."""
        if memory is None:
            column = jnp.arange(batch["segments"].shape[1])
            distance = (column[:, None] - column[None, :])[None]
            mask = segment_mask(batch["segments"])
        else:
            distance = (memory["at"][:, None] - jnp.arange(self.max_len)[None, :])[:, None]
            mask = read_so_far(memory, self.max_len)
        return mask, jnp.clip(distance, 0, self.max_len - 1)

    def empty(self, b: int, width: int) -> Memory:
        """The memory of `b` histories of which nothing has been read."""
        del width
        sizes = {"key": self.qk_width, "value": self.v_width}
        zeros = {k: jnp.zeros((b, self.max_len, self.heads, e)) for k, e in sizes.items()}
        clock = {"times": jnp.zeros((b, self.max_len), jnp.int32)}
        clock = clock if self.time_bias == "self" else {}
        at = {"at": jnp.zeros(b, jnp.int32)}
        return {**at, **clock, **{name: zeros for name in self._names()}}

    def _times(self, batch: dict[str, Array], memory: Memory | None) -> tuple[Array | None, Memory]:
        """Buckets of the time from item j to when row i is asked, uint8 [b,i,j], once for all
        layers; and what a memory keeps of the times."""
        if not self._reads_times(batch):
            return None, {}
        if memory is not None and self.time_bias != "self":
            raise ReadAgain(
                "this hstu reads times: a new event changes when the rows before it are asked, so "
                "the history has to be encoded again (time_bias='self' asks each row at its own)."
            )
        if "times" not in batch:
            raise ValueError(
                "this hstu reads when things happened and the batch has no 'times': give the "
                "times of the history (zoo recommend --times), use data with timestamps, or build "
                "it with time_bias='none'."
            )
        asked = batch["times" if self.time_bias == "self" else "target_times"]
        clock = {} if memory is None else {"times": remembered(memory, "times", batch["times"])}
        happened = clock.get("times", batch["times"])
        return bucket(asked[:, :, None] - happened[:, None, :]), clock

    def _reads_times(self, batch: dict[str, Array]) -> bool:
        """`auto` is settled when the parameters are made, and then stands in them."""
        if self.time_bias != "auto":
            return self.time_bias != "none"
        if self.is_initializing():
            return "times" in batch
        return "by_time" in self.variables["params"].get("layer_0", {})


def hstu(
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    max_len: int = 50,
    dropout: float = 0.1,
    embedding_dropout: float = 0.2,
    qk_width: int = 16,
    v_width: int = 16,
    time_bias: str = "auto",
    objective: str = "sampled",
    negatives: int = 512,
    similarity: str = "cosine",
    temperature: float = 0.1,
    items: str = "id",
    modalities: tuple[str, ...] | None = None,
    fuse: str = "sum",
    hidden: int = 0,
    modality_dropout: float = 0.0,
    align: str = "left",
    dtype: str = "float32",
) -> Recommender:
    """qk_width, v_width: of a head; dropout: inside a block; time_bias: HSTUTrunk; align: where
    positions count from (sequential.aligned).

    Fields not named here are those of Items and Objective.
    """
    trunk = HSTUTrunk(
        max_len,
        layers,
        heads,
        qk_width,
        v_width,
        dropout,
        embedding_dropout,
        time_bias,
        jnp.dtype(dtype),
    )
    return sequential(
        Items(width, items, modalities, fuse, hidden, modality_dropout),
        trunk,
        Objective(objective, negatives, 0.75, similarity, temperature),
        aligned(align, max_len),
    )
