"""Audio and video encoders against published weights and outputs."""

import jax
import numpy as np
import pytest
from conftest import FIXTURES
from test_encoders_text import close, published, run

from zoo.encoders.audio import windows
from zoo.encoders.load import encoder
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
