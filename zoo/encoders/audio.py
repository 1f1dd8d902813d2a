"""Audio encoders: AST and Whisper's on log-mel spectrograms, Wav2Vec2 on the waveform.

Spectrograms are float32 [b,time,mel], scaled as the weights expect. Every encoder returns a dict:
`tokens` [b,l,d], `hidden_states` [layers+1,b,l,d], `pooled`, the vector of the clip.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.encoders.blocks import ACTIVATIONS, Array, EncoderStack, Outputs, attention_mask
from zoo.layers import init_normal


def windows(x: Array, size: int, stride: int, axis: int) -> Array:
    """Axis `axis` of x as windows: [..., n, size, ...]; n whole windows, `stride` apart."""
    starts = jnp.arange((x.shape[axis] - size) // stride + 1) * stride
    return jnp.take(x, starts[:, None] + jnp.arange(size)[None, :], axis=axis)


def sound_patches(mel: Array, size: int, stride: tuple[int, int]) -> Array:
    """[b,l,size²] squares of spectrograms [b,frames,bands], bands first; stride (mel, time)."""
    x = windows(mel.transpose(0, 2, 1), size, stride[0], axis=1)
    x = windows(x, size, stride[1], axis=3)  # b h p w p
    return x.transpose(0, 1, 3, 2, 4).reshape(len(mel), -1, size**2)


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
        x = sound_patches(mel, self.patch, self.stride)
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


class Wav2Vec2(nn.Module):
    """Wav2Vec2 (arXiv 2006.11477) in its base layout: convolutions, post-norm blocks.

    The first convolution is normalised by channel over the time of a clip, so silence that pads
    a clip changes its tokens: cut clips to one length. `pooled` is the mean of the tokens.

    kernels, strides, channels   of the convolutions, one each
    position_kernel, position_groups   of the convolution that stands for positions
    """

    kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    channels: tuple[int, ...] = (512,) * 7
    activation: str = "gelu"
    position_kernel: int = 128
    position_groups: int = 16
    width: int = 768
    stack: EncoderStack = EncoderStack(kind="post", epsilon=1e-5)

    def example(self) -> tuple[Array, ...]:
        """Inputs of one short silent clip."""
        return (jnp.zeros((1, 2 * sum(self.kernels) * math.prod(self.strides))),)

    @nn.compact
    def __call__(self, wave: Array, train: bool = False) -> Outputs:
        """wave float[b,samples] at 16 kHz."""
        epsilon = self.stack.epsilon
        x = nn.LayerNorm(epsilon, dtype=jnp.float32, name="features_norm")(self._features(wave))
        out = {"features": x}
        x = nn.Dense(self.width, dtype=self.stack.dtype, name="projection")(x)
        x = nn.LayerNorm(epsilon, dtype=jnp.float32, name="norm")(x + self._positions(x))
        tokens, states = self.stack(x, attention_mask(None, x.shape[1]), train)
        return out | {"tokens": tokens, "hidden_states": states, "pooled": tokens.mean(1)}

    def _features(self, wave: Array) -> Array:
        """[b,l,channels]: strided convolutions, dense layers on windows."""
        x, layers = wave[:, :, None], zip(self.kernels, self.strides, self.channels, strict=True)
        for i, (size, stride, channels) in enumerate(layers):
            if x.shape[1] < size:
                raise ValueError(f"waves of {wave.shape[1]} samples are too short; pad the clip.")
            x = windows(x, size, stride, axis=1).reshape(len(x), -1, size * x.shape[2])
            name = f"convolution_{i}"
            x = nn.Dense(channels, use_bias=False, dtype=self.stack.dtype, name=name)(x)
            x = ACTIVATIONS[self.activation](x if i else TimeNorm(name="time_norm")(x))
        return x

    def _positions(self, x: Array) -> Array:
        """A convolution over neighbours in groups of channels, its weight length * direction."""
        k, groups, ones = self.position_kernel, self.position_groups, nn.initializers.ones
        shape = (self.width, self.width // groups, k)
        direction = self.param("position_direction", init_normal, shape)
        length = self.param("position_length", ones, (k,))
        bias = self.param("position_bias", nn.initializers.zeros, (self.width,))
        unit = direction / jnp.sqrt((direction**2).sum((0, 1), keepdims=True))
        y = jax.lax.conv_general_dilated(
            x,
            (length[None, None, :] * unit).astype(x.dtype),
            window_strides=(1,),
            padding=[(k // 2, (k - 1) // 2)],
            dimension_numbers=("NHC", "OIH", "NHC"),
            feature_group_count=groups,
        )
        return ACTIVATIONS[self.activation](y + bias[None, None, :])


class TimeNorm(nn.Module):
    """Every channel of a clip [b,l,d] to mean 0 and variance 1 over its time, then scaled."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-5)
        return x * scale[None, None, :] + bias[None, None, :]
