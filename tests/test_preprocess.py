"""Pixels and waves as published encoders read them: the reference's values, sizes, refusals."""

import io

import numpy as np
import pytest
import soundfile
from conftest import FIXTURES
from PIL import Image

from pipelines import pixels, waves
from pipelines.schema import DataError

PICTURES = np.load(FIXTURES / "preproc_image.npz")
SOUNDS = np.load(FIXTURES / "preproc_audio.npz")
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {
    "size": {"shortest_edge": 24},
    "crop_size": {"height": 20, "width": 20},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP = {"size": {"height": 24, "width": 24}, "resample": 3, **HALF}
VIT = {"size": {"height": 24, "width": 20}, **HALF}


@pytest.mark.parametrize("name,config", [("clip", CLIP), ("siglip", SIGLIP), ("vit", VIT)])
def test_pictures_are_prepared_as_published(name, config):
    steps = pixels.steps_of(config, name)
    files = [io.BytesIO() for _ in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(PICTURES[f"image_{i}"]).save(file, "PNG")
    found, present, problems = pixels.decode_pixels([f.getvalue() for f in files], steps)
    assert present.all() and not problems
    expected = PICTURES[f"out_{name}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_old_files_give_one_number():
    old = {**CLIP, "size": 24, "crop_size": 20}
    assert pixels.steps_of(old, "clip") == pixels.steps_of(CLIP, "clip")
    assert pixels.steps_of({"size": 24, **HALF}, "vit").size == (24, 24)
    assert pixels.steps_of({"size": 24, **HALF}, "vit").resample == 2


def test_pictures_of_no_one_size_are_refused():
    with pytest.raises(DataError, match="different sizes"):
        pixels.steps_of({"size": {"shortest_edge": 24}, **HALF}, "clip")
    with pytest.raises(DataError, match="needs size 12 to hold it"):
        pixels.steps_of({**CLIP, "size": {"shortest_edge": 12}}, "clip")
    with pytest.raises(DataError, match="three numbers image_mean, found None"):
        pixels.steps_of({"size": 8}, "vit")


def test_broken_pictures_are_named_and_zero():
    steps = pixels.steps_of(VIT, "vit")
    found, present, problems = pixels.decode_pixels([b"no image", "", None], steps)
    assert not present.any() and not found.any()
    assert [p.row for p in problems] == [0] and "UnidentifiedImageError" in problems[0].why


def clip(row: int) -> np.ndarray:
    return SOUNDS["waveform_f16"][row, : SOUNDS["lengths"][row]].astype(np.float32)


def test_log_mel_is_whispers():
    how = waves.hearing_of({"chunk_length": 1, "feature_size": 16}, "whisper")
    for row in range(2):
        wave = np.pad(clip(row), (0, how.samples - len(clip(row))))
        found = waves.heard(wave, len(clip(row)), how)
        expected = SOUNDS["out_whisper_log_mel"][row].T
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    mel = SOUNDS["out_whisper_mel_filters"]
    np.testing.assert_allclose(waves.slaney_bands(16), mel, rtol=0, atol=1e-6)


def test_the_filter_bank_is_asts():
    config = {"num_mel_bins": 32, "max_length": 60}
    how = waves.hearing_of(config, "audio-spectrogram-transformer")
    for row in range(2):
        found = waves.heard(clip(row)[: how.samples], len(clip(row)), how)
        expected = SOUNDS["out_ast_input_values"][row]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)


def test_files_are_resampled_and_their_padding_is_not_heard(tmp_path):
    tone = 0.3 * np.sin(2 * np.pi * 500 * np.arange(1600) / 8000)
    soundfile.write(tmp_path / "tone.wav", tone, 8000)
    how = waves.hearing_of({}, "wav2vec2", seconds=0.5)
    found, present, _ = waves.decode_heard([str(tmp_path / "tone.wav"), ""], how)
    assert found.shape == (2, 8000) and present.tolist() == [True, False]
    real = found[0, :3200]
    assert abs(real.mean()) < 1e-5 and abs(real.var() - 1) < 1e-3 and not found[0, 3200:].any()
    mel = waves.hearing_of({"num_mel_bins": 8, "max_length": 30}, "audio-spectrogram-transformer")
    banks, _, _ = waves.decode_heard([str(tmp_path / "tone.wav")], mel)
    silence = np.float32((0 - mel.mean) / (2 * mel.std))
    assert (banks[0, 18:] == silence).all() and (banks[0, :18] != silence).all()


def test_other_rates_are_refused():
    with pytest.raises(DataError, match="expected sampling_rate 16000, found 8000"):
        waves.hearing_of({"sampling_rate": 8000}, "wav2vec2")
