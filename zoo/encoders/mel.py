"""Spectrograms on the device: waves to what audio encoders read, batched and differentiable.

As pipelines/waves.py, which makes them on the host, clip by clip, in float64: windows of 25 ms
every 10 ms at 16 kHz. Behind the end of a short clip there is silence here, and zeros there.
"""

import jax
import jax.numpy as jnp

from pipelines.raw import LOUDEST
from pipelines.waves import AUDIOSET, HOP, QUIET, WINDOW, kaldi_bands, slaney_bands
from zoo.encoders.audio import windows

Array = jax.Array


def samples_of(frames: int) -> int:
    """How long a wave is that gives so many frames of `filter_bank`."""
    return frames * HOP + WINDOW - HOP


def filter_bank(
    wave: Array, bands: int, mean: float = AUDIOSET[0], std: float = AUDIOSET[1]
) -> Array:
    """float32 [b,frames,bands] as AST reads it (arXiv 2104.01778, section 2), of waves
    float[b,samples] in -1..1; `samples_of` says how many frames there are.

    Logarithms of powers in Kaldi's bands, pre-emphasis .97, (x - mean) / (2 std).
    """
    rows = windows(wave.astype(jnp.float32), WINDOW, HOP, axis=1)  # b frames window
    rows = rows - rows.mean(-1, keepdims=True)
    before = jnp.concatenate([rows[..., :1], rows[..., :-1]], axis=-1)
    power = _power(rows - 0.97 * before, jnp.hanning(WINDOW), 512)
    x = jnp.log(jnp.maximum(power @ kaldi_bands(bands).astype("float32"), QUIET))
    return (x - mean) / (2 * std)


def spectrogram(samples: Array, bands: int) -> Array:
    """The filter bank of int16 [b,samples], as pipelines/raw.py keeps sound."""
    return filter_bank(samples.astype(jnp.float32) / LOUDEST, bands)


def log_mel(wave: Array, bands: int = 80) -> Array:
    """float32 [b,samples/160,bands] as Whisper reads it (arXiv 2212.04356, 2.2), of waves
    float[b,samples] padded to the chunk.

    Logarithms of powers in Slaney's bands, at most 8 decades below the clip's loudest, (x + 4) / 4.
    """
    half = WINDOW // 2
    padded = jnp.pad(wave.astype(jnp.float32), ((0, 0), (half, half)), mode="reflect")
    rows = windows(padded, WINDOW, HOP, axis=1)[:, :-1]
    power = _power(rows, jnp.hanning(WINDOW + 1)[:-1], WINDOW)
    x = jnp.log10(jnp.maximum(power @ slaney_bands(bands).astype("float32"), 1e-10))
    return (jnp.maximum(x, x.max((1, 2), keepdims=True) - 8) + 4) / 4


def _power(rows: Array, window: Array, size: int) -> Array:
    """|FFT|² [b,frames,size//2+1] of windowed rows [b,frames,window]."""
    return jnp.square(jnp.abs(jnp.fft.rfft(rows * window[None, None], size)))
