"""Video encoders: VideoMAE, a ViT over tubes of pixels, and any image encoder under attention in
time.

Pixels are float32 [b,t,h,w,c]. It returns a dict: `tokens` [b,l,d], `hidden_states`
[layers+1,b,l,d], `pooled`, the vector of the video.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from zoo.encoders.blocks import Array, EncoderStack, Outputs, attention_mask
from zoo.layers import init_normal


def sinusoids(length: int, width: int) -> np.ndarray:
    """float32[length,width]: sin in even and cos in odd columns (arXiv 1706.03762, section 3.5)."""
    column = np.arange(width)
    angle = np.arange(length)[:, None] / 10000.0 ** (2 * (column // 2) / width)[None, :]
    return np.where(column[None, :] % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


def tubes(pixels: Array, frames: int, size: int) -> Array:
    """[b,l,frames*size*size*c]: tubes of [b,t,h,w,c], frames first, then row by row."""
    b, t, h, w, c = pixels.shape
    if t % frames or h % size or w % size:
        raise ValueError(
            f"videos are {pixels.shape}: expected [b,t,h,w,c] with t divisible by {frames}, "
            f"h and w by {size}; resize or cut them."
        )
    x = pixels.reshape(b, t // frames, frames, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, frames * size * size * c)


class VideoMAE(nn.Module):
    """VideoMAE (arXiv 2203.12602): tubes, fixed positions, pre-norm blocks.

    norm       a LayerNorm on the last tokens: models from pretraining have it
    mean_norm  one on their mean: models fine-tuned with a mean have that instead
    """

    frames: int = 16
    image: int = 224
    patch: int = 16
    tube: int = 2
    width: int = 768
    stack: EncoderStack = EncoderStack(epsilon=1e-12)
    norm: bool = True
    mean_norm: bool = False

    def example(self) -> tuple[Array, ...]:
        """Inputs of one black video."""
        return (jnp.zeros((1, self.frames, self.image, self.image, 3)),)

    @nn.compact
    def __call__(self, pixels: Array, train: bool = False) -> Outputs:
        """pixels float[b,t,h,w,c]."""
        x = tubes(pixels, self.tube, self.patch)
        x = nn.Dense(self.width, dtype=self.stack.dtype, name="patches")(x)
        x = x + sinusoids(x.shape[1], self.width)[None]
        tokens, states = self.stack(x, attention_mask(None, x.shape[1]), train)
        if self.norm:
            tokens = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(tokens)
        pooled = tokens.mean(1)
        if self.mean_norm:
            pooled = nn.LayerNorm(1e-5, dtype=jnp.float32, name="mean_norm")(pooled)
        return {"tokens": tokens, "hidden_states": states, "pooled": pooled}


class FilmTransformer(nn.Module):
    """Each picture through `image`, an image encoder, then `stack` over the pictures' vectors and
    learned positions: the factorised encoder of ViViT (arXiv 2103.15691, model 2).

    `tokens` are those of the pictures, [b,t,d]; `pooled` is their mean.
    """

    image: Any
    stack: EncoderStack = EncoderStack(layers=2)

    @nn.compact
    def __call__(self, pixels: Array, train: bool = False) -> Outputs:
        """pixels float[b,t,h,w,c]."""
        if pixels.ndim != 5:
            raise ValueError(f"films are {pixels.shape}: expected [b,t,h,w,c].")
        b, t = pixels.shape[:2]
        x = self.image(pixels.reshape(b * t, *pixels.shape[2:]), train)["pooled"].reshape(b, t, -1)
        x = x + self.param("positions", init_normal, x.shape[1:])[None]
        x, states = self.stack(x, attention_mask(None, t), train)
        tokens = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(x)
        return {"tokens": tokens, "hidden_states": states, "pooled": tokens.mean(1)}
