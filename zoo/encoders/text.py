"""Text encoders: BERT, MiniLM and RoBERTa (two-way, post-norm), the text towers of CLIP and SigLIP.

Every encoder returns a dict: `tokens` [b,l,d], `hidden_states` [layers+1,b,l,d], `pooled`, the
vector that stands for the text, and what led to it. float32, whatever `dtype` the layers use.
"""

import flax.linen as nn
import jax.numpy as jnp

from zoo.encoders.blocks import (
    Array,
    EncoderStack,
    Outputs,
    attention_mask,
    mean_of_tokens,
    unit_length,
)
from zoo.layers import Dropout, Table


class Bert(nn.Module):
    """BERT (arXiv 1810.04805) and its kin: LN(word + position + type), post-norm blocks, a pooling.

    pooling    `mean` of the real tokens (Sentence-BERT, arXiv 1908.10084), `cls`, the first
               token, or `pooler`, tanh(W first + b), which needs the field `pooler`
    pad_id     None: positions are 0, 1, ...; else RoBERTa's (arXiv 1907.11692) count of the
               real tokens, which starts behind the padding id
    normalize  `pooled` has unit length
    """

    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    width: int = 768
    stack: EncoderStack = EncoderStack(kind="post", epsilon=1e-12)
    pad_id: int | None = None
    pooler: bool = True
    pooling: str = "mean"
    normalize: bool = False

    def example(self) -> tuple[Array, ...]:
        """Inputs of one text."""
        return jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool)

    @nn.compact
    def __call__(
        self, ids: Array, mask: Array, types: Array | None = None, train: bool = False
    ) -> Outputs:
        """ids int[b,l], mask bool[b,l] of the real tokens, types int[b,l] (default 0)."""
        x = self._embed(ids, jnp.zeros_like(ids) if types is None else types)
        norm = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")
        x = Dropout(self.stack.dropout, name="dropout")(norm(x), deterministic=not train)
        tokens, states = self.stack(x, attention_mask(mask, ids.shape[1]), train)
        out = {"tokens": tokens, "hidden_states": states, "cls": tokens[:, 0]}
        out["mean"] = mean_of_tokens(tokens, mask)
        if self.pooler:
            out["pooler"] = jnp.tanh(nn.Dense(self.width, name="pooler")(tokens[:, 0]))
        return out | {"pooled": self._pooled(out)}

    def _pooled(self, out: Outputs) -> Array:
        if self.pooling not in (known := {"mean", "cls", "pooler"} & set(out)):
            raise ValueError(f"pooling={self.pooling!r}: this encoder has {sorted(known)}.")
        pooled = out[self.pooling]
        return unit_length(pooled) if self.normalize else pooled

    def _embed(self, ids: Array, types: Array) -> Array:
        offset = 0 if self.pad_id is None else self.pad_id + 1
        check_length(ids, self.positions - offset)
        at = jnp.arange(ids.shape[1])[None, :]
        if self.pad_id is not None:
            real = (ids != self.pad_id).astype(jnp.int32)
            at = jnp.cumsum(real, axis=1) * real + self.pad_id
        x = Table(self.vocabulary, self.width, name="words")()[ids]
        x = x + Table(self.positions, self.width, name="positions")()[at]
        return x + Table(self.types, self.width, name="types")()[types]


class ContrastiveText(nn.Module):
    """The text tower of CLIP (arXiv 2103.00020) and SigLIP (2303.15343): pre-norm, one vector.

    pooling     `eos`, the first token `eos_id`; `largest`, the token of the largest id, which is
                how CLIP's first release found it; `last`, SigLIP's last place, so texts are
                padded to `positions` and the padding is not masked
    projection  the width of `pooled`; bias as published: CLIP none, SigLIP one
    """

    vocabulary: int = 49408
    positions: int = 77
    width: int = 512
    stack: EncoderStack = EncoderStack(heads=8, inner=2048, activation="quick_gelu", epsilon=1e-5)
    causal: bool = True
    pooling: str = "eos"
    eos_id: int = 49407
    projection: int | None = 512
    projection_bias: bool = False

    def example(self) -> tuple[Array, ...]:
        """Inputs of one text."""
        return jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool)

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None, train: bool = False) -> Outputs:
        """ids int[b,l], mask bool[b,l] of the real tokens or None."""
        length = ids.shape[1]
        check_length(ids, self.positions)
        x = Table(self.vocabulary, self.width, name="words")()[ids]
        x = x + Table(self.positions, self.width, name="positions")()[None, :length]
        x, states = self.stack(x, attention_mask(mask, length, self.causal), train)
        tokens = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(x)
        chosen = jnp.take_along_axis(tokens, self._place(ids)[:, None, None], axis=1)[:, 0]
        pooled = chosen
        if self.projection is not None:
            project = nn.Dense(self.projection, use_bias=self.projection_bias, name="projection")
            pooled = project(chosen)
        return {"tokens": tokens, "hidden_states": states, "unprojected": chosen, "pooled": pooled}

    def _place(self, ids: Array) -> Array:
        """int[b]: which token stands for the text."""
        places = {
            "eos": lambda: jnp.argmax(ids == self.eos_id, axis=1),
            "largest": lambda: jnp.argmax(ids, axis=1),
            "last": lambda: jnp.full(ids.shape[0], ids.shape[1] - 1),
        }
        if self.pooling not in places:
            raise ValueError(f"pooling={self.pooling!r}: a text tower has {sorted(places)}.")
        return places[self.pooling]()


def check_length(ids: Array, longest: int) -> None:
    """Raise ValueError for texts with more tokens than the encoder has positions."""
    if ids.shape[1] > longest:
        raise ValueError(
            f"texts of {ids.shape[1]} tokens, but the encoder has {longest} positions: "
            f"truncate to {longest}."
        )
