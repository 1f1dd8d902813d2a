"""Audio and video encoders against published weights and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from test_encoders_text import close, published, run

from pipelines import waves
from zoo.encoders.audio import windows
from zoo.encoders.load import encoder
from zoo.encoders.mel import filter_bank, log_mel, samples_of
from zoo.encoders.video import sinusoids, tubes


def test_ast_is_the_published_one():
    given, expected = published("hf_ast")
    out = run(encoder(FIXTURES / "hf_ast"), "audio", given["input_values"])
    close(out["tokens"], expected["last_hidden_state"])
    close(out["pooled"], expected["pooler_output"])


@pytest.mark.parametrize("scan", [False, True])
def test_whisper_encoder_is_the_published_one(scan):
    given, expected = published("hf_whisper")
    enc = encoder(FIXTURES / "hf_whisper", scan=scan)
    out = run(enc, "audio", given["input_features"].transpose(0, 2, 1))
    close(out["tokens"], expected["encoder_last_hidden_state"])


def test_wav2vec2_is_the_published_one():
    given, expected = published("hf_wav2vec2")
    out = run(encoder(FIXTURES / "hf_wav2vec2"), "audio", given["input_values"])
    close(out["features"], expected["extract_features"])
    close(out["tokens"], expected["last_hidden_state"])


def clip(seconds: float = 0.5) -> np.ndarray:
    """A falling tone under noise, silent at its end."""
    t = np.arange(round(16000 * seconds)) / 16000
    noise = np.random.default_rng(0).normal(size=len(t))
    return ((0.4 * np.sin(2 * np.pi * (900 - 600 * t) * t) + 0.01 * noise) * (t < 0.4)).astype("f")


@pytest.mark.parametrize("bands", [32, 128])
def test_spectrograms_of_the_device_are_those_of_the_host(bands):
    wave = clip()[: samples_of(48)]
    got = jax.jit(lambda x: filter_bank(x, bands))(np.stack([wave, 0 * wave]))
    for row, one in zip(got, (wave, 0 * wave), strict=True):
        mean, std = -4.2677393, 4.5689974
        np.testing.assert_allclose(row, waves.fbank(one, bands, 48, mean, std), atol=1e-3)
    got = jax.jit(lambda x: log_mel(x, bands))(clip()[None])[0]
    np.testing.assert_allclose(got, waves.log_mel(clip(), bands), atol=1e-3)


def test_a_spectrogram_has_a_gradient_by_its_wave_also_in_silence():
    for make in (filter_bank, log_mel):
        grad = jax.jit(jax.grad(lambda x, f=make: jnp.sum(f(x, 32)[:, 3])))
        assert all(np.all(np.isfinite(grad(wave[None]))) for wave in (clip(), 0 * clip()))
        assert np.abs(grad(clip()[None])).max() > 0


def test_keys_without_a_bias_have_zeros():
    stack = encoder(FIXTURES / "hf_whisper").params["audio"]["stack"]
    assert not stack["block_0"]["attention"]["key"]["bias"].any()
    assert stack["block_0"]["attention"]["query"]["bias"].any()


def test_videomae_is_the_published_one():
    given, expected = published("hf_videomae")
    enc = encoder(FIXTURES / "hf_videomae")
    out = run(enc, "video", given["pixel_values"].transpose(0, 1, 3, 4, 2))
    close(out["tokens"], expected["last_hidden_state"])
    close(out["pooled"], expected["pooled"])


def test_windows_and_tubes_are_read_in_order():
    x = np.arange(14).reshape(1, 7, 2)
    found = np.asarray(windows(x, 3, 2, axis=1))
    assert found.shape == (1, 3, 3, 2)
    np.testing.assert_array_equal(found[0, 1], x[0, 2:5])
    video = np.arange(4 * 4 * 4).reshape(1, 4, 4, 4, 1)
    cut = np.asarray(tubes(video, 2, 2))
    assert cut.shape == (1, 8, 8)
    np.testing.assert_array_equal(cut[0, 6], video[0, 2:, 2:, :2].ravel())


def test_sinusoids_at_known_places():
    table = sinusoids(3, 4)
    np.testing.assert_allclose(table[0], [0, 1, 0, 1])
    expected = [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)]
    np.testing.assert_allclose(table[2], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, modality, shape, message",
    [
        ("hf_ast", "audio", (1, 16, 24), r"expected \[b,24,16\]"),
        ("hf_whisper", "audio", (1, 26, 10), "a time of at most 24"),
        ("hf_whisper", "audio", (1, 10, 24), r"expected \[b,time,10\]"),
        ("hf_wav2vec2", "audio", (1, 20), "20 samples are too short"),
        ("hf_videomae", "video", (1, 5, 16, 16, 3), "t divisible by 2"),
    ],
)
def test_inputs_of_another_size_are_refused(name, modality, shape, message):
    enc = encoder(FIXTURES / name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(enc.apply[modality], enc.params, np.zeros(shape, np.float32))
