"""Films: pictures at even distances of real files, what is broken is named, encoders over time."""

import io
from dataclasses import replace

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import FIXTURES
from PIL import Image

from pipelines import films, pixels
from pipelines.sources import load
from zoo import api
from zoo.content_objectives import objective
from zoo.data import with_raw
from zoo.embed import embed
from zoo.encoders.image import VisionTransformer
from zoo.encoders.load import encoder
from zoo.encoders.small import Encoding, encoders
from zoo.encoders.video import EncoderStack, FilmTransformer

GREYS = np.linspace(20, 230, 12).astype(np.uint8)  # a picture each


def film(greys=GREYS, size=(48, 32), form: str = "mp4", codec: str = "mpeg4") -> bytes:
    """A film of plain pictures, ever lighter."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for grey in greys:
            picture = Image.new("RGB", size, (int(grey),) * 3)
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode())
    return file.getvalue()


def gif(greys=GREYS) -> bytes:
    file, (first, *rest) = io.BytesIO(), [Image.new("L", (24, 16), int(g)) for g in greys]
    first.save(file, "GIF", save_all=True, append_images=rest, duration=100)
    return file.getvalue()


@pytest.mark.parametrize("data", [film(), gif(), film(form="webm", codec="libvpx")])
def test_the_middle_of_each_part_is_seen(data):
    found, present, problems = films.decode_films([data, None], 4, (8, 6))
    assert found.shape == (2, 4, 8, 6, 3) and found.dtype == np.uint8
    assert present.tolist() == [True, False] and not problems and not found[1].any()
    expected = np.broadcast_to(GREYS[[1, 4, 7, 10]][:, None, None, None], found[0].shape)
    np.testing.assert_allclose(found[0], expected, atol=6)  # greys are 19 apart


def test_a_short_film_repeats_its_pictures():
    found = films.decode_films([film(GREYS[:2])], 5, (4, 4))[0][0, :, 0, 0, 0]
    np.testing.assert_allclose(found, GREYS[[0, 0, 1, 1, 1]], atol=3)


def trimmed(data: bytes, first: int) -> bytes:
    """The same packets, shown from the picture `first` on: what cutting without encoding leaves."""
    file, options = io.BytesIO(), {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(io.BytesIO(data)) as old, av.open(file, "w", format="mp4", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.size]
        away = packets[first].pts
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - away, packet.dts - away, stream
            new.mux(packet)
    return file.getvalue()


def test_what_was_trimmed_away_is_not_counted():
    data = trimmed(film(codec="libx264"), 4)
    with av.open(io.BytesIO(data)) as shown:
        assert any(packet.is_discard for packet in shown.demux(shown.streams.video[0]))
    found, _, problems = films.decode_films([data], 4, (4, 4))
    assert not problems
    np.testing.assert_allclose(found[0, :, 0, 0, 0], GREYS[4:][[1, 3, 5, 7]], atol=6)


def test_broken_films_are_named_and_zero(tmp_path):
    whole, sound = film(), tone(tmp_path)
    given = [b"no film", whole[: len(whole) // 2], b"", sound, tmp_path / "gone.mp4", whole]
    found, present, problems = films.decode_films(given, 2, (4, 4), max_pixels=48 * 32)
    assert present.tolist() == [False] * 5 + [True] and not found[:5].any()
    assert [p.row for p in problems] == [0, 1, 2, 3, 4]
    assert "zero bytes" in problems[2].why and "no pictures" in problems[3].why
    _, present, (problem,) = films.decode_films([whole], 2, (4, 4), max_pixels=48 * 32 - 1)
    assert not present.any() and "over the limit of 1535" in problem.why


def tone(folder) -> bytes:
    soundfile.write(folder / "tone.wav", np.sin(np.arange(800)), 8000)
    return (folder / "tone.wav").read_bytes()


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Items with films, of which one is broken and one has none."""
    folder, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    names = [f"film{i}.mp4" for i in range(10)]
    for i, name in enumerate(names):
        greys = np.roll(GREYS, i)[: 6 + i % 3]
        (folder / name).write_bytes(film(greys) if i != 3 else b"broken")
    rows = "".join(f"i{i},{name if i != 5 else ''}\n" for i, name in enumerate(names))
    (folder / "items.csv").write_text("item_id,video\n" + rows)
    taken = [f"u{u},i{i},{t}" for u in range(30) for t, i in enumerate(rng.permutation(10)[:6])]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(taken))
    return folder


SIZES = {"width": 8, "layers": 1, "heads": 2, "patch": 8, "pixels": 16, "shots": 3}
ENCODING = Encoding(("video",), **SIZES, dropout=0.0, bound=16)


def test_a_small_encoder_sees_the_order_of_the_pictures(shop):
    data = with_raw(api.load_data(shop), ENCODING)
    raw, there = data.raw["video"], data.dataset.present["video"]
    assert raw.shape == (11, 3, 16, 16, 3) and there.sum() == 8
    one = encoders(ENCODING, data.raw)["video"]
    params = jax.jit(one.init)(jax.random.key(0), raw[:1])
    read = jax.jit(lambda x: one.apply(params, x, None))
    vectors = read(raw[there])
    assert vectors.shape == (8, 8) and np.all(np.isfinite(vectors))
    assert np.abs(read(raw[there][:, ::-1]) - vectors).max() > 1e-3
    grad = jax.jit(jax.grad(lambda p: jnp.sum(one.apply(p, raw[there], None)[:, 0])))(params)
    assert np.abs(grad["image"]["patches"]["kernel"]).max() > 0


@pytest.mark.slow
def test_a_recommender_learns_from_films_and_its_bundle_serves(shop, tmp_path):
    data, fields = api.load_data(shop), {"width": 8, "layers": 1, "max_len": 6, "items": "both"}
    settings = api.Settings(steps=8, batch=8)
    fitted, seen = api.fit("sasrec", data, tmp_path, settings, encoding=ENCODING, **fields)
    bundle = api.from_pretrained(tmp_path)
    assert api.evaluate(bundle, data).metrics == pytest.approx(api.evaluate(fitted, seen).metrics)


def test_attention_in_time_goes_over_any_image_encoder():
    image = VisionTransformer(16, 8, 8, EncoderStack(1, heads=2, inner=16))
    module = FilmTransformer(image, EncoderStack(1, heads=2, inner=16))
    film = jax.random.normal(jax.random.key(0), (2, 3, 16, 16, 3))
    params = jax.jit(module.init)(jax.random.key(1), film)["params"]
    out = jax.jit(module.apply)({"params": params}, film)
    assert out["tokens"].shape == (2, 3, 8) and out["pooled"].shape == (2, 8)
    with pytest.raises(ValueError, match="expected \\[b,t,h,w,c\\]"):
        module.apply({"params": params}, film[0])


def test_the_published_video_encoder_embeds_a_catalogue(shop, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((FIXTURES / "hf_videomae" / name).read_bytes())
    size = '{"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}'
    scale = '"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]'
    (folder / "preprocessor_config.json").write_text(
        f'{{"size": {size}, "do_center_crop": true, {scale}}}'
    )
    told = embed(load(shop), folder, tmp_path / "out", batch=4)
    assert told["modality"] == "video"
    present = np.load(tmp_path / "out" / "video_present.npy")
    vectors = np.load(tmp_path / "out" / "video_feat.npy")
    assert present.tolist() == [i not in (3, 5) for i in range(10)]
    steps = pixels.Steps(18, 2, (16, 16), 1 / 255, (0.5,) * 3, (0.5,) * 3)
    enc = encoder(folder)
    shots = enc.modules["video"].frames
    film, _, _ = films.decode_clips([shop / "film0.mp4"], shots, steps)
    expected = enc.apply["video"](enc.params, film)["pooled"]
    np.testing.assert_allclose(vectors[0], expected[0], atol=1e-5)


def test_masked_pretraining_has_no_films(shop):
    data = with_raw(api.load_data(shop), replace(ENCODING, shots=2))
    with pytest.raises(ValueError, match="masked hides nothing of the modality"):
        objective("masked", encoders(ENCODING, data.raw))
