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
from zoo.layers import Attention, FeedForward, Table, check_fits, segment_mask
from zoo.models.sequential import sequential
from zoo.objectives import Objective
from zoo.recommender import Recommender

Array = jax.Array
EPSILON = 1e-12


def lowpass(length: int, c: int) -> np.ndarray:
    """float32 [length]: how much of x_j the low-passed x_i holds, by |i - j|.

    Keeping the bins 0 .. c//2 of a transform of real numbers over `length` positions is a
    circulant matrix of cosines; as a matrix it follows the segments of a packed row.
    """
    bins = np.arange(c // 2 + 1)
    twice = np.where((bins == 0) | (2 * bins == length), 1.0, 2.0)
    angles = 2 * np.pi * np.outer(np.arange(length), bins) / length
    return (np.cos(angles) @ twice / length).astype(np.float32)


class Filter(nn.Module):
    """LN(x + drop(low + beta^2 (x - low))); mixing [b,l,l] is the low-pass as a matrix."""

    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: Array, mixing: Array, train: bool = False) -> Array:
        beta = self.param("beta", nn.initializers.normal(1.0), (x.shape[-1],))
        low = jnp.einsum("bij,bjd->bid", mixing, x)
        y = low + jnp.square(beta)[None, None] * (x - low)
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return nn.LayerNorm(EPSILON, name="norm")(x + y)


class Block(nn.Module):
    """alpha filter + (1 - alpha) attention, then feed-forward; alpha 0 is a post-norm SASRec."""

    heads: int = 1
    alpha: float = 0.7
    multiplier: int = 4
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array, mixing: Array, train: bool = False) -> Array:
        def residual(x: Array, y: Array, name: str) -> Array:
            y = nn.Dropout(self.dropout, name=f"{name}_dropout")(y, deterministic=not train)
            return nn.LayerNorm(EPSILON, name=f"{name}_norm")(x + y)

        y = Attention(self.heads, self.dropout, self.dtype, name="attention")(x, x, mask, train)
        attended = residual(x, y, "attention")
        filtered = Filter(self.dropout, name="filter")(x, mixing, train)
        x = self.alpha * filtered + (1 - self.alpha) * attended
        y = FeedForward("gelu", self.multiplier, dtype=self.dtype, name="ffn")(x, train)
        return residual(x, y, "ffn")


class BSARecTrunk(nn.Module):
    """Item vectors of packed prefixes to states [b,l,d].

    Positions count back from the newest item of a segment (a left-padded window's), so one
    segment is one prefix. Padding never enters the filter: the preset with padding in it is a
    row of one segment.
    """

    max_len: int = 50
    layers: int = 2
    heads: int = 1
    c: int = 5
    alpha: float = 0.7
    multiplier: int = 4
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, batch: dict[str, Array], train: bool = False) -> Array:
        segments, column = batch["segments"], jnp.arange(x.shape[1])
        same = segments[:, :, None] == segments[:, None, :]
        later = jnp.sum(same & (column[:, None] < column[None, :])[None], axis=-1)
        check_fits(batch, self.max_len)
        positions = Table(self.max_len, x.shape[-1], name="positions")()
        x = x + jnp.take(positions, self.max_len - 1 - later, axis=0, mode="clip")
        x = nn.LayerNorm(EPSILON, name="norm")(x) * (segments > 0)[:, :, None]
        x = nn.Dropout(self.dropout, name="dropout")(x, deterministic=not train)
        weights = jnp.asarray(lowpass(self.max_len, self.c))
        distance = jnp.abs(column[:, None] - column[None, :])
        mixing = jnp.where(same, jnp.take(weights, distance, mode="clip")[None], 0.0)
        mask = segment_mask(segments)
        fields = (self.heads, self.alpha, self.multiplier, self.dropout, self.dtype)
        for i in range(self.layers):
            x = Block(*fields, name=f"block_{i}")(x, mask, mixing, train)
        return x


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
    dtype: str = "float32",
) -> Recommender:
    """c: the lowest c//2 + 1 frequencies count as low; alpha: weight of the filter.

    Fields not named here are those of Items and Objective.
    """
    trunk = BSARecTrunk(max_len, layers, heads, c, alpha, multiplier, dropout, jnp.dtype(dtype))
    return sequential(
        Items(width, items, modalities, fuse, hidden, modality_dropout),
        trunk,
        Objective(objective, negatives, 0.75, similarity, temperature),
    )
