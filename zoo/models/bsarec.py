"""BSARec: self-attention beside a frequency filter, trained on every prefix of a history.

Shin et al. 2024 (AAAI, arXiv 2312.10325). With F the Fourier transform over the positions:
low = the c//2 + 1 lowest frequencies of x; filter = LN(x + low + beta^2 (x - low));
block = alpha filter + (1 - alpha) LN(x + attention(x)), then a feed-forward part, all post-norm.
Train:  zoo train bsarec --data amazon-beauty --out runs/bsarec
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.items import Items
from zoo.layers import Attention, Dropout, FeedForward, Table, check_fits
from zoo.models.sequential import Reading, next_item, sequential
from zoo.objectives import Objective
from zoo.places import at_columns, columns_behind, segment_mask
from zoo.recommender import Recommender

Array = jax.Array
EPSILON = 1e-12


def lowpass(length: int, c: int) -> np.ndarray:
    """float32 [length]: how much of x_j the low-passed x_i holds, by |i - j|.

    Keeping the bins 0 .. c//2 of a transform of real numbers over `length` positions, or all
    length//2 + 1 that there are, is a circulant matrix of cosines; as a matrix it follows the
    segments of a packed row.
    """
    bins = np.arange(min(c, length) // 2 + 1)
    twice = np.where((bins == 0) | (2 * bins == length), 1.0, 2.0)
    angles = 2 * np.pi * np.outer(np.arange(length), bins) / length
    return (np.cos(angles) @ twice / length).astype(np.float32)


class Filter(nn.Module):
    """LN(x + drop(low + beta^2 (x - low))); mixing [b,s,l] is the low-pass as a matrix, whose rows
    stand at `columns` int[b,s] of x [b,l,d], None: at all of them."""

    dropout: float = 0.5

    @nn.compact
    def __call__(
        self, x: Array, mixing: Array, train: bool = False, columns: Array | None = None
    ) -> Array:
        beta = self.param("beta", nn.initializers.normal(1.0), (x.shape[-1],))
        low, x = jnp.einsum("bij,bjd->bid", mixing, x), at_columns(x, columns)
        y = low + jnp.square(beta)[None, None] * (x - low)
        y = Dropout(self.dropout)(y, deterministic=not train)
        return nn.LayerNorm(EPSILON, name="norm")(x + y)


class Block(nn.Module):
    """alpha filter + (1 - alpha) attention, then feed-forward; alpha 0 is a post-norm SASRec.

    columns int[b,s]: what stands there is all that is computed, [b,s,d].
    """

    heads: int = 1
    alpha: float = 0.7
    multiplier: int = 4
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        mask: Array,
        mixing: Array,
        train: bool = False,
        columns: Array | None = None,
    ) -> Array:
        def residual(x: Array, y: Array, name: str) -> Array:
            y = Dropout(self.dropout, name=f"{name}_dropout")(y, deterministic=not train)
            return nn.LayerNorm(EPSILON, name=f"{name}_norm")(x + y)

        own, mixing = at_columns(x, columns), at_columns(mixing, columns)
        mask = at_columns(mask, columns, axis=2)
        y = Attention(self.heads, self.dropout, self.dtype, name="attention")(own, x, mask, train)
        attended = residual(own, y, "attention")
        filtered = Filter(self.dropout, name="filter")(x, mixing, train, columns)
        x = self.alpha * filtered + (1 - self.alpha) * attended
        y = FeedForward("gelu", self.multiplier, dtype=self.dtype, name="ffn")(x, train)
        return residual(x, y, "ffn")


class BSARecTrunk(nn.Module):
    """Item vectors of packed prefixes to states [b,l,d], or [b,s,d] at `columns` int[b,s].

    Positions count back from the newest item of a segment (a left-padded window's), so one
    segment is one prefix. Padding never enters the filter, unless `official`: then a row is one
    left-padded prefix (`windows`), padding has positions, and enters the filter as items do.
    """

    max_len: int = 50
    layers: int = 2
    heads: int = 1
    c: int = 5
    alpha: float = 0.7
    multiplier: int = 4
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32
    official: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        batch: dict[str, Array],
        train: bool = False,
        columns: Array | None = None,
    ) -> Array:
        check_fits(batch, self.max_len)
        real = batch["segments"] > 0
        later, mixing, mask = self._places(batch["segments"], real)
        positions = Table(self.max_len, x.shape[-1], name="positions")()
        x = x + jnp.take(positions, self.max_len - 1 - later, axis=0, mode="clip")
        x = nn.LayerNorm(EPSILON, name="norm")(x)
        x = x if self.official else x * real[:, :, None]
        x = Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        fields = (self.heads, self.alpha, self.multiplier, self.dropout, self.dtype)
        for i in range(self.layers):
            asked = columns if i == self.layers - 1 else None
            x = Block(*fields, name=f"block_{i}")(x, mask, mixing, train, asked)
        return x if self.layers else at_columns(x, columns)

    def _places(self, segments: Array, real: Array) -> tuple[Array, Array, Array]:
        """Columns between each and the newest [b,l], the low-pass [b,l,l], who sees whom."""
        column, mask = jnp.arange(segments.shape[1]), segment_mask(segments)
        same = segments[:, :, None] == segments[:, None, :]
        weights = jnp.asarray(lowpass(self.max_len, self.c))
        distance = jnp.abs(column[:, None] - column[None, :])
        mixing = jnp.take(weights, distance, mode="clip")[None]
        if self.official:  # their -1e4 on every key of a padding row leaves its softmax as it was
            later = jnp.broadcast_to(column[::-1][None], segments.shape)
            return later, jnp.broadcast_to(mixing, same.shape), mask | ~real[:, None, :, None]
        return columns_behind(segments), jnp.where(same, mixing, 0.0), mask


def windows(length: int) -> Reading:
    """Every prefix of packed rows in a row of its own, left-padded to `length` with zeros.

    x [b,l,d] becomes [b s,length,d] for the s segments a row may hold: what the published code
    computes, and s times the work of packed rows (ten and more where histories are short).
    """

    def cut(x, batch, ends):
        columns = ends[:, :, None] + jnp.arange(1 - length, 1)[None, None, :]
        take = jax.vmap(lambda rows, at: jnp.take(rows, at, axis=0, mode="clip"))
        segments = take(batch["segments"], columns)
        own = (columns >= 0) & (segments == segments[:, :, -1:]) & (segments > 0)
        x = jnp.where(own[..., None], take(x, columns), 0)
        flat = {"segments": own.reshape(-1, length).astype(jnp.int32)}
        return x.reshape(-1, length, x.shape[-1]), flat, jnp.full(ends.size, length - 1)

    def learn(params, x, batch, key):
        x, rows, column = cut(x, batch, batch["ends"])
        return x, rows, column[:, None], batch["targets"].reshape(-1, 1)

    def ask(params, x, batch):
        check_fits(batch, length)
        return cut(x, batch, batch["query"][:, None])

    return next_item._replace(learn=learn, ask=ask)


def bsarec(
    width: int = 64,
    layers: int = 2,
    heads: int = 1,
    max_len: int = 50,
    dropout: float = 0.5,
    c: int = 5,
    alpha: float = 0.7,
    multiplier: int = 4,
    objective: str = "ce",
    negatives: int = 256,
    similarity: str = "dot",
    temperature: float = 1.0,
    items: str = "id",
    modalities: tuple[str, ...] | None = None,
    fuse: str = "sum",
    hidden: int = 0,
    modality_dropout: float = 0.0,
    official: bool = False,
    dtype: str = "float32",
) -> Recommender:
    """c: the lowest c//2 + 1 frequencies count as low; alpha: weight of the filter.

    official: padding takes part in the filter, as in the published code (`windows`): other scores
    from the same weights, so it belongs to a checkpoint. Fields not named here are those of Items
    and Objective.
    """
    sizes = (max_len, layers, heads, c, alpha, multiplier, dropout)
    trunk = BSARecTrunk(*sizes, jnp.dtype(dtype), official)
    return sequential(
        Items(width, items, modalities, fuse, hidden, modality_dropout),
        trunk,
        Objective(objective, negatives, 0.75, similarity, temperature),
        windows(max_len) if official else next_item,
    )
