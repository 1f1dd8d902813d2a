"""Content: what is broken is named, masked and counted; what is sound comes out right."""

import io
import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from pipelines import content, features, raw, synthetic
from pipelines.features import standardise
from pipelines.schema import DataError, Dataset
from pipelines.sources import from_arrays, load
from zoo.cli import main


def picture(
    mode: str = "RGB", size: tuple[int, int] = (40, 30), form: str = "PNG", **save
) -> bytes:
    """A picture with a left half of (255, 0, 0) and a right half of (0, 0, 255)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2], pixels[:, size[0] // 2 :] = (255, 0, 0), (0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **save)
    return file.getvalue()


def tone(rate: int = 8000, hertz: float = 440, form: str = "WAV", channels: int = 1) -> bytes:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    file = io.BytesIO()
    soundfile.write(file, np.repeat(wave[:, None], channels, 1), rate, format=form)
    return file.getvalue()


def one_image(data, size=(30, 40), **options) -> np.ndarray:
    images, present, problems = content.decode_images([data], size, **options)
    assert present[0] and not problems
    return images[0].astype(int)


MODES = {"PNG": "RGB P RGBA", "JPEG": "RGB CMYK", "WEBP": "RGB P RGBA", "BMP": "RGB P RGBA"}


@pytest.mark.parametrize("form,mode", [(f, m) for f, modes in MODES.items() for m in modes.split()])
def test_formats_and_modes_come_out_as_rgb(form, mode):
    image = one_image(picture(mode, form=form))
    assert abs(image[15, 5] - (255, 0, 0)).max() < 20
    assert abs(image[15, 35] - (0, 0, 255)).max() < 20


def test_alpha_lies_over_white_and_deep_grey_keeps_its_scale():
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file, "PNG")
    assert (one_image(file.getvalue()) == 255).all()
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x4000, np.uint16)).save(file, "PNG")
    assert (one_image(file.getvalue()) == 0x40).all()


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise: the left half comes to the top
    image = one_image(picture(form="JPEG", exif=exif), (40, 30))
    assert abs(image[3, 15] - (255, 0, 0)).max() < 20
    assert abs(image[36, 15] - (0, 0, 255)).max() < 20


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    file = io.BytesIO()
    Image.fromarray(stripes).save(file, "PNG")
    assert abs(one_image(file.getvalue(), (8, 8)) - 127.5).max() < 6  # not black, not white


def test_broken_images_are_named_masked_and_counted(tmp_path):
    good = tmp_path / "good.png"
    good.write_bytes(picture())
    sources = [good, None, "", tmp_path / "none.png", b"", b"no image at all", picture()[:-40]]
    sources += [picture(form="JPEG")[:-60], picture(size=(300, 200)), str(good)]
    images, present, problems = content.decode_images(sources, (6, 8), max_pixels=50_000)
    assert images.shape == (10, 6, 8, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.flatnonzero(present), [0, 9])
    assert not images[~present].any()
    assert [p.row for p in problems] == [3, 4, 5, 6, 7, 8]  # None and '' are absent, not broken
    told = ["No such file", "zero bytes", "cannot identify", "", "truncated", "over the limit"]
    for problem, words in zip(problems, told, strict=True):
        assert words in problem.why
    assert problems[0].where.endswith("none.png") and problems[1].where == "<bytes>"


def test_a_decompression_bomb_is_not_unpacked():
    bomb = io.BytesIO()
    Image.new("1", (20000, 10000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    _, present, problems = content.decode_images([bomb.getvalue()])
    assert not present[0] and re.search("bomb|limit", problems[0].why)


def peak(wave: np.ndarray, rate: int) -> float:
    """The strongest frequency in hertz."""
    return np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave)


@pytest.mark.parametrize("form", ["WAV", "OGG", "FLAC"])
@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_sounds_are_resampled_and_mixed(form, rate):
    data = tone(rate, form=form, channels=2)
    sounds, present, problems = content.decode_sounds([data], 16000, 1.0)
    assert sounds.shape == (1, 16000) and sounds.dtype == np.float32
    assert present[0] and not problems
    assert peak(sounds[0], 16000) == pytest.approx(440, abs=2)
    assert np.abs(sounds[0, 4000:12000]).max() == pytest.approx(0.5, abs=0.03)


def test_resampling_does_not_alias():
    sounds, *_ = content.decode_sounds([tone(16000, 6000)], 8000, 1.0)
    assert np.abs(sounds[0, 100:-100]).max() < 0.01  # 6 kHz would fold to 2 kHz


def test_short_sounds_end_in_zeros_and_long_ones_are_cut():
    sounds, *_ = content.decode_sounds([tone()], 8000, 1.5)
    assert sounds[0, :8000].any() and not sounds[0, 8000:].any()
    short, *_ = content.decode_sounds([tone()], 8000, 0.5)
    np.testing.assert_array_equal(short[0], sounds[0, :4000])


def test_broken_sounds_are_named_masked_and_counted(tmp_path):
    bad = io.BytesIO()
    soundfile.write(bad, np.full(100, np.nan), 8000, format="WAV", subtype="FLOAT")
    empty = io.BytesIO()
    soundfile.write(empty, np.zeros(0), 8000, format="WAV")
    ogg = tone(form="OGG")
    sources = [tone(), None, tmp_path / "none.wav", b"", b"no sound", tone()[:9000]]
    sources += [ogg[: len(ogg) // 2], bad.getvalue(), empty.getvalue()]
    sounds, present, problems = content.decode_sounds(sources, 8000, 1.0)
    np.testing.assert_array_equal(np.flatnonzero(present), [0])
    assert not sounds[~present].any()
    assert [p.row for p in problems] == [2, 3, 4, 5, 6, 7, 8]
    told = ["No such file", "zero bytes", "", "cut off", "cut off", "not finite", "no samples"]
    for problem, words in zip(problems, told, strict=True):
        assert words in problem.why


def test_text_is_cleaned():
    assert content.clean_text("Tom &amp; Jerry\n\t &#39;94 ") == "Tom & Jerry '94"
    assert [content.clean_text(v) for v in (None, "", " \n", float("nan"))] == [""] * 4


def test_text_features_put_like_beside_like():
    texts = ["", "red wool scarf", "scarlet wool scarf", "steel bicycle chain", "bicycle chain oil"]
    x = features.text_features(texts, dim=4)
    assert x.shape == (5, 4) and x.dtype == np.float32
    assert not x[0].any() and x[1:].any(1).all()
    unit = x[1:] / np.linalg.norm(x[1:], axis=1, keepdims=True)
    near = unit @ unit.T - 2 * np.eye(4)
    np.testing.assert_array_equal(near.argmax(1), [1, 0, 3, 2])
    np.testing.assert_array_equal(x, features.text_features(texts, dim=4))


def test_text_features_are_the_truncated_svd():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(60)]
    counts = features._tfidf(texts)
    left, values, _ = np.linalg.svd(counts.toarray(), full_matrices=False)
    found = features._leading(counts, 6, rng)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :6] * values[:6]), atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(counts.toarray(), axis=1), 1)


def test_texts_without_a_word_are_zero():
    assert not features.text_features(["", "", "!?"], 3).any()


def test_image_features_see_colour_place_and_direction():
    stripes = np.zeros((4, 32, 48, 3), np.uint8)
    stripes[0, ::4], stripes[1, :, ::4] = 200, 200  # same colours, other direction
    stripes[2, ::4] = (200, 0, 0)
    x = features.image_features(stripes)
    assert x.shape == (4, 384) and x.dtype == np.float32
    assert not x[3].any()  # black is absent unless `present` says otherwise
    colours, edges = x[:, :64], x[:, 256:]
    np.testing.assert_array_equal(colours[0], colours[1])
    assert (colours[0] != colours[2]).any()
    assert (edges[0] != edges[1]).any()
    assert features.image_features(stripes, np.ones(4, bool))[3].any()


def test_sound_features_see_pitch():
    clips, *_ = content.decode_sounds([tone(hertz=h) for h in (300, 310, 1500, 1550)], 8000, 1.0)
    x = features.sound_features(np.vstack([np.zeros_like(clips[:1]), clips]), 8000)
    assert x.shape == (5, 64) and x.dtype == np.float32 and not x[0].any()
    apart = np.linalg.norm(x[1:, None] - x[None, 1:], axis=-1) + 1e6 * np.eye(4)
    np.testing.assert_array_equal(apart.argmin(1), [1, 0, 3, 2])


def test_padding_does_not_change_sound_features():
    clips, *_ = content.decode_sounds([tone(hertz=h) for h in (300, 900)], 8000, 1.0)
    padded = np.pad(clips, ((0, 0), (0, 8192)))
    whole = features.describe_sounds(clips[:, :7936], 8000)  # 62 frames, none half zeros
    padded[:, 7936:] = 0
    found = features.describe_sounds(padded, 8000)
    np.testing.assert_allclose(found[:, :32], whole[:, :32], atol=0.3)  # one frame is half padding


def test_files_in_blocks_are_as_files_at_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = []
    for name in "abc":
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    (tmp_path / "c.png").write_bytes(b"broken")
    whole, problems = content.with_features(catalogue(image=paths))
    monkeypatch.setattr(content, "BLOCK", 2)
    parts, found = content.with_features(catalogue(image=paths))
    np.testing.assert_array_equal(parts.features["image"], whole.features["image"])
    assert found == problems and problems[0].row == 3


def test_standardise_looks_at_the_present_rows_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (200, 4))
    x[:, 3] = 7  # constant columns say nothing
    present = rng.random(200) < 0.7
    x[~present] = 1e9
    found = standardise(x, present)
    assert not found[~present].any() and not found[:, 3].any()
    np.testing.assert_allclose(found[present][:, :3].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found[present][:, :3].std(0), 1, atol=1e-5)
    assert not standardise(x, np.zeros(200, bool)).any()


def catalogue(**columns) -> Dataset:
    ids = np.array(["", "a", "b", "c"], object)
    one = np.ones(1, np.int32)
    columns = {k: np.array(["", *v], object) for k, v in columns.items()}
    return Dataset("tiny", one, one, ids, ids, columns=columns)


def test_with_features_makes_what_there_is_content_for(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "c.png").write_bytes(b"broken")
    (tmp_path / "b.wav").write_bytes(tone())
    data = catalogue(
        title=["Red &amp; blue", "", " "],
        genres=["", "sound", ""],
        image=[str(tmp_path / "a.png"), "", str(tmp_path / "c.png")],
        audio=["", str(tmp_path / "b.wav"), ""],
    )
    made, problems = content.with_features(data)
    assert {m: list(p) for m, p in made.present.items()} == {
        "text": [False, True, True, False],
        "image": [False, True, False, False],
        "audio": [False, False, True, False],
    }
    assert {m: x.shape[0] for m, x in made.features.items()} == dict.fromkeys(made.features, 4)
    assert all(not x[~made.present[m]].any() for m, x in made.features.items())
    assert [(p.row, p.where) for p in problems] == [(3, str(tmp_path / "c.png"))]
    assert not data.features  # the argument is as it was
    again, problems = content.with_features(made)
    assert problems == [] and again.features["text"] is made.features["text"]


def test_with_features_leaves_out_what_there_is_no_content_for():
    made, problems = content.with_features(catalogue(title=["x", "y", "z"]), ("text", "audio"))
    assert set(made.features) == {"text"} and problems == []
    with pytest.raises(DataError, match="smell.*expected some of"):
        content.with_features(made, ("smell",))


def test_real_posters_and_clips_decode(real_data):
    posters = sorted((real_data / "ml-latest-small" / "posters").glob("*.jpg"))[:300]
    images, present, problems = content.decode_images(posters, (32, 32))
    assert present.all() and not problems
    assert images.reshape(300, -1).std(1).min() > 0
    clips = sorted((real_data / "esc10" / "clips").glob("*.ogg"))[:20]
    sounds, present, problems = content.decode_sounds(clips, 16000, 5.0)
    assert present.all() and not problems
    assert sounds.shape == (20, 80000) and sounds.any(1).all()


def test_keywords_stand_in_for_text_where_there_is_none():
    words = ["|▁grip|lock|▁ghost", "|▁grip|lock|▁brush", "|▁lamp|▁oil"]
    made, _ = content.with_features(catalogue(gram_text_id=words), ("text",))
    assert made.present["text"].tolist() == [False, True, True, True]
    x = made.features["text"][1:]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert x[0] @ x[1] > x[0] @ x[2], "shared pieces bring items together"
    titled, _ = content.with_features(
        catalogue(title=["a lamp", "a lamp", "a tent"], gram_text_id=words), ("text",)
    )
    y = titled.features["text"][1:]
    np.testing.assert_allclose(y[0], y[1], atol=1e-6)


def test_content_is_told_apart_by_words_and_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    told = lambda **columns: content.content_sha256(catalogue(**columns), ("text", "image"))  # noqa: E731
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "none.png"), ""]
    first = told(title=["a", "b", ""], image=pictures)
    moved = [str(tmp_path / "b.png"), str(tmp_path / "elsewhere.png"), ""]
    (tmp_path / "b.png").write_bytes(b"one")
    assert told(title=["a", "b", ""], image=moved) == first, "wherever the files lie"
    assert told(title=["b", "a", ""], image=pictures) != first
    (tmp_path / "a.png").write_bytes(b"two")
    assert told(title=["a", "b", ""], image=pictures) != first


def test_features_of_words_are_as_wide_as_asked():
    data = catalogue(title=["red lamp", "red tent", "blue tent"])
    wide = lambda text: content.with_features(data, ("text",), text=text)[0].features["text"]  # noqa: E731
    assert wide("lsa").shape == (4, 64) and wide("hashed").shape == (4, 1024)
    assert wide("lsa:2").shape == (4, 2) and wide("hashed:32").shape == (4, 32)
    scale = wide("lsa:3")[1:, :2].std() / wide("lsa:2")[1:].std()
    np.testing.assert_allclose(wide("lsa:3")[:, :2], wide("lsa:2") * scale, atol=1e-5)
    for text in ("words", "lsa:", "lsa:0", "lsa:-1", "lsa:many", ":3"):
        with pytest.raises(DataError, match="NAME:COLUMNS"):
            content.with_features(data, ("text",), text=text)


def test_semantic_ids_of_images_stand_in_for_images():
    codes = ["<a_1> <b_2>", "<a_1> <b_3>", "<a_9> <b_2>", ""]
    columns = {"item_id": list("wxyz"), "sid_image": codes}
    dataset = from_arrays(["u"] * 4, list("wxyz"), item_columns=columns)
    found, problems = content.with_features(dataset)
    x = found.features["image"]
    assert not problems and found.present["image"].tolist() == [False, True, True, True, False]
    near, far = x[1] @ x[2], x[2] @ x[3]
    assert near > 0.2 > abs(far), "a shared first code brings items together"
    assert not x[[0, 4]].any()


def test_validate_opens_every_file_and_tells_the_damaged(tmp_path, capsys):
    world = synthetic.world(n_items=60, n_users=80, image_size=16, missing=0.0)
    made = synthetic.save(world, tmp_path / "w")
    assert raw.unreadable(load(made)) == []
    cut = sorted((tmp_path / "w").rglob("*.png"))[:2]
    for path in cut:
        path.write_bytes(path.read_bytes()[:40])
    (told,) = raw.unreadable(load(made))
    assert "2 of 60 files of 'image' cannot be read and count as missing, first" in told
    assert str(cut[0]) in told
    assert main(["data", "validate", "--data", str(made), "--json"]) == 1
    assert told in json.loads(capsys.readouterr().out)["findings"]
