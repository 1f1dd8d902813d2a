"""Audio encoders on log-mel spectrograms: AST and the encoder of Whisper.

Spectrograms are float32 [b,time,mel], scaled as the weights expect. Every encoder returns a dict:
`tokens` [b,l,d], `hidden_states` [layers+1,b,l,d], `pooled`, the vector of the clip.
"""

import flax.linen as nn
import jax.numpy as jnp

from zoo.encoders.blocks import ACTIVATIONS, Array, EncoderStack, Outputs, attention_mask
from zoo.layers import init_normal


def windows(x: Array, size: int, stride: int, axis: int) -> Array:
    """Axis `axis` of x as windows: [..., n, size, ...]; n whole windows, `stride` apart."""
    starts = jnp.arange((x.shape[axis] - size) // stride + 1) * stride
    return jnp.take(x, starts[:, None] + jnp.arange(size)[None, :], axis=axis)


class SpectrogramTransformer(nn.Module):
    """AST (arXiv 2104.01778): a ViT over overlapping patches of the spectrogram.

    Two tokens go first, class and distillation; `pooled` is their mean. Patches run over the mel
    bands first. The positions are for `frames` x `bands`, stride (mel, time).
    """

    frames: int = 1024
    bands: int = 128
    patch: int = 16
    stride: tuple[int, int] = (10, 10)
    width: int = 768
    stack: EncoderStack = EncoderStack(epsilon=1e-12)

    def example(self) -> tuple[Array, ...]:
        """Inputs of one silent clip."""
        return (jnp.zeros((1, self.frames, self.bands)),)

    @nn.compact
    def __call__(self, mel: Array, train: bool = False) -> Outputs:
        """mel float[b,frames,bands]."""
        if mel.shape[1:] != (self.frames, self.bands):
            raise ValueError(
                f"spectrograms are {mel.shape}: expected [b,{self.frames},{self.bands}]; pad or "
                "cut the clip."
            )
        x = windows(mel.transpose(0, 2, 1), self.patch, self.stride[0], axis=1)
        x = windows(x, self.patch, self.stride[1], axis=3)  # b h p w p
        x = x.transpose(0, 1, 3, 2, 4).reshape(len(mel), -1, self.patch**2)
        x = nn.Dense(self.width, dtype=self.stack.dtype, name="patches")(x)
        first = [self.param(name, init_normal, (self.width,)) for name in ("cls", "distillation")]
        first = jnp.broadcast_to(jnp.stack(first)[None], (len(mel), 2, self.width))
        x = jnp.concatenate([first, x], axis=1)
        x = x + self.param("positions", init_normal, x.shape[1:])[None]
        x, states = self.stack(x, attention_mask(None, x.shape[1]), train)
        tokens = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(x)
        return {"tokens": tokens, "hidden_states": states, "pooled": tokens[:, :2].mean(1)}


class WhisperEncoder(nn.Module):
    """The encoder of Whisper (arXiv 2212.04356): two convolutions of width 3, pre-norm blocks.

    The second convolution halves the time. `pooled` is the mean of the tokens.
    """

    positions: int = 1500
    bands: int = 80
    width: int = 384
    activation: str = "gelu"
    stack: EncoderStack = EncoderStack(layers=4, heads=6, inner=1536, epsilon=1e-5)

    def example(self) -> tuple[Array, ...]:
        """Inputs of one silent clip."""
        return (jnp.zeros((1, 2 * self.positions, self.bands)),)

    @nn.compact
    def __call__(self, mel: Array, train: bool = False) -> Outputs:
        """mel float[b,time,bands], time at most 2 * positions."""
        if mel.shape[1] > 2 * self.positions or mel.shape[2] != self.bands:
            raise ValueError(
                f"spectrograms are {mel.shape}: expected [b,time,{self.bands}] and a time of at "
                f"most {2 * self.positions}; cut the clip."
            )
        x = self._convolve(self._convolve(mel, 1, "convolution_1"), 2, "convolution_2")
        table = self.param("positions", init_normal, (self.positions, self.width))
        x = x + table[None, : x.shape[1]]
        x, states = self.stack(x, attention_mask(None, x.shape[1]), train)
        tokens = nn.LayerNorm(self.stack.epsilon, dtype=jnp.float32, name="norm")(x)
        return {"tokens": tokens, "hidden_states": states, "pooled": tokens.mean(1)}

    def _convolve(self, x: Array, stride: int, name: str) -> Array:
        """A convolution over three frames, zeros outside: a dense layer on windows."""
        x = windows(jnp.pad(x, ((0, 0), (1, 1), (0, 0))), 3, stride, axis=1)
        x = x.reshape(*x.shape[:2], -1)
        x = nn.Dense(self.width, dtype=self.stack.dtype, name=name)(x)
        return ACTIVATIONS[self.activation](x)
