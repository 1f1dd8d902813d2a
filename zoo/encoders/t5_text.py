"""T5's encoder as a text encoder: its words, its stack, the mean of the real tokens."""

import flax.linen as nn
import jax.numpy as jnp

from zoo.encoders.blocks import Array, Outputs, mean_of_tokens, unit_length
from zoo.encoders.t5 import T5Stack
from zoo.layers import Table


class T5Text(nn.Module):
    """The encoder half of T5 (arXiv 1910.10683); `pooled` as in Sentence-T5 (2108.08877), its mean.

    Texts have no positions but relative ones, so none is too long. normalize: `pooled` has unit
    length. Sentence-T5's own projection behind the mean is not part of it.
    """

    vocabulary: int = 32128
    width: int = 512
    stack: T5Stack = T5Stack(6, 8, 64, 512, 2048, dropout=0.0)
    pooling: str = "mean"
    normalize: bool = False

    def example(self) -> tuple[Array, ...]:
        """Inputs of one text."""
        return jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool)

    @nn.compact
    def __call__(self, ids: Array, mask: Array, train: bool = False) -> Outputs:
        """ids int[b,l], mask bool[b,l] of the real tokens."""
        if self.pooling != "mean":
            raise ValueError(f"pooling={self.pooling!r}: T5 has no first token; choose 'mean'.")
        mask = mask.astype(bool)
        x = Table(self.vocabulary, self.width, name="words")()[ids]
        tokens = self.stack.encode(x, mask[:, None, :], train).astype(jnp.float32)
        mean = mean_of_tokens(tokens, mask)
        pooled = unit_length(mean) if self.normalize else mean
        return {"tokens": tokens, "mean": mean, "pooled": pooled}
