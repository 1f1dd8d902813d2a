"""Sound as published encoders read it: Whisper's log-mel, AST's filter bank, Wav2Vec2's wave.

Windows of 25 ms every 10 ms at 16 kHz (400 and 160 samples) in both spectrograms.
"""

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines.content import Problem, Source, decode_sounds
from pipelines.schema import DataError

WINDOW, HOP = 400, 160
RATE = 16000
AUDIOSET = (-4.2677393, 4.5689974)  # mean and deviation by which AST scales
QUIET = 1.192092955078125e-07  # the least power that AST hears
KINDS = {"audio-spectrogram-transformer": "fbank", "whisper": "log-mel", "wav2vec2": "wave"}


class Hearing(NamedTuple):
    """How a clip becomes an encoder's input; JSON-able."""

    kind: str  # log-mel, fbank or wave
    samples: int  # that are heard of a clip, from its beginning
    bands: int = 0  # of a spectrogram
    frames: int = 0  # fbank: of every clip
    mean: float = 0.0
    std: float = 0.5
    unit: bool = True  # wave: mean 0, variance 1


def hearing_of(config: Mapping[str, Any], model_type: str, seconds: float = 5.0) -> Hearing:
    """What a parsed preprocessor_config.json says, of the families in KINDS.

    seconds: how much of a clip Wav2Vec2 hears; the others' own files say it. Raises DataError for
    another sampling rate or window than 16 kHz, 400 and 160.
    """
    expected = {"sampling_rate": RATE, "hop_length": HOP, "n_fft": WINDOW}
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise DataError(
                f"preprocessor_config.json: expected {name} {value}, found {config[name]}."
            )
    kind = KINDS[model_type]
    if kind == "log-mel":
        chunk = round(config.get("chunk_length", 30) * RATE)
        return Hearing(kind, chunk, int(config.get("feature_size", 80)))
    if kind == "fbank":
        frames, bands = int(config.get("max_length", 1024)), int(config.get("num_mel_bins", 128))
        mean, std = config.get("mean", AUDIOSET[0]), config.get("std", AUDIOSET[1])
        if not config.get("do_normalize", True):
            mean, std = 0.0, 0.5
        heard = frames * HOP + WINDOW - HOP
        return Hearing(kind, heard, bands, frames, float(mean), float(std))
    return Hearing(kind, round(seconds * RATE), unit=bool(config.get("do_normalize", True)))


def log_mel(wave: np.ndarray, bands: int = 80) -> np.ndarray:
    """float32 [samples/160, bands] of a wave [samples] padded to the chunk (arXiv 2212.04356, 2.2).

    Logarithms of powers in bands evenly spaced on Slaney's mel scale, at most 8 decades below the
    loudest, (x + 4) / 4.
    """
    padded = np.pad(wave.astype(np.float64), WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:-1]
    window = np.hanning(WINDOW + 1)[:-1]  # periodic
    power = np.abs(np.fft.rfft(frames * window[None, :])) ** 2
    x = np.log10(np.maximum(power @ slaney_bands(bands), 1e-10))
    return ((np.maximum(x, x.max() - 8) + 4) / 4).astype(np.float32)


@lru_cache
def slaney_bands(bands: int) -> np.ndarray:
    """[201, bands]: triangles of area 1 to 8 kHz, linear below 1 kHz, logarithmic above."""
    step = np.log(6.4) / 27
    top = 15 + np.log(RATE / 2 / 1000) / step
    mel = np.linspace(0, top, bands + 2)
    corners = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(step * (mel - 15)))
    triangles = _triangles(np.fft.rfftfreq(WINDOW, 1 / RATE), corners)
    return triangles * 2 / (corners[2:] - corners[:-2])[None, :]


def fbank(wave: np.ndarray, bands: int, frames: int, mean: float, std: float) -> np.ndarray:
    """float32 [frames, bands] as AST reads it (arXiv 2104.01778, section 2), of a wave [samples].

    Kaldi's filter bank: no constant part, pre-emphasis .97, a symmetric window, 512 frequencies,
    triangles evenly spaced in mel from 20 Hz; logarithms; zeros behind the end of the clip; all
    (x - mean) / (2 std).
    """
    wave = np.pad(wave.astype(np.float64), (0, max(WINDOW - len(wave), 0)))
    rows = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP][:frames]
    rows = rows - rows.mean(1, keepdims=True)
    before = np.concatenate([rows[:, :1], rows[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft((rows - 0.97 * before) * np.hanning(WINDOW)[None, :], 512)) ** 2
    x = np.log(np.maximum(power @ kaldi_bands(bands), QUIET))
    x = np.pad(x, ((0, frames - len(x)), (0, 0)))
    return ((x - mean) / (2 * std)).astype(np.float32)


@lru_cache
def kaldi_bands(bands: int) -> np.ndarray:
    """[257, bands]: triangles on the scale mel = 1127 ln(1 + f/700), 20 Hz to 8 kHz."""
    low, high = 1127 * np.log1p(np.array([20, RATE / 2]) / 700)
    at = 1127 * np.log1p(np.fft.rfftfreq(512, 1 / RATE) / 700)
    return _triangles(at, np.linspace(low, high, bands + 2))


def _triangles(at: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """[places, bands]: 0 at corners i and i + 2, 1 at corner i + 1."""
    rise = (at[:, None] - corners[None, :-2]) / np.diff(corners)[None, :-1]
    fall = (corners[None, 2:] - at[:, None]) / np.diff(corners)[None, 1:]
    return np.maximum(0, np.minimum(rise, fall))


def unit_variance(wave: np.ndarray) -> np.ndarray:
    """float32 [samples]: mean 0 and variance 1 over the clip (arXiv 2006.11477, section 2)."""
    return ((wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)).astype(np.float32)


def heard(wave: np.ndarray, length: int, how: Hearing) -> np.ndarray:
    """An encoder's input of a wave [samples] whose first `length` samples are the clip."""
    if how.kind == "log-mel":
        return log_mel(wave, how.bands)
    if how.kind == "fbank":
        return fbank(wave[:length], how.bands, how.frames, how.mean, how.std)
    clip = unit_variance(wave[:length]) if how.unit else wave[:length]
    return np.pad(clip, (0, how.samples - len(clip)))


def decode_heard(
    sources: Sequence[Source], how: Hearing
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Files or bytes to (float32 [n, time, bands] or [n, samples], present bool [n], problems)."""
    waves, present, problems = decode_sounds(sources, RATE, how.samples / RATE)
    frames = how.frames if how.kind == "fbank" else how.samples // HOP
    shape = (how.samples,) if how.kind == "wave" else (frames, how.bands)
    out = np.zeros((len(sources), *shape), np.float32)
    for row in np.flatnonzero(present):
        out[row] = heard(waves[row], _length(sources[row], how.samples), how)
    return out, present, problems


def _length(source: Source, most: int) -> int:
    """Samples of a readable clip at 16 kHz: what decode_sounds padded is not part of it."""
    import soundfile

    file = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    info = soundfile.info(file)
    return min(most, -(-info.frames * RATE // info.samplerate))
