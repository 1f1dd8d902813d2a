"""Image encoders against published weights and outputs, at their own and at other resolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from test_encoders_text import close, published, run

from zoo.encoders.blocks import EncoderStack
from zoo.encoders.image import VisionTransformer, bicubic, patches, resize_positions
from zoo.encoders.load import encoder


def channels_last(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def vit():
    return encoder(FIXTURES / "hf_vit")


@pytest.fixture(scope="module")
def dinov2():
    return encoder(FIXTURES / "hf_dinov2")


@pytest.mark.parametrize(
    "name, other", [("vit", ""), ("vit", "_big"), ("dinov2", ""), ("dinov2", "_other")]
)
def test_vit_and_dinov2_are_the_published_ones(name, other, request):
    given, expected = published(f"hf_{name}")
    pixels = channels_last(given[f"pixel_values{other}"])
    out = run(request.getfixturevalue(name), "image", pixels)
    close(out["tokens"], expected[f"last_hidden_state{other}"])
    close(out["pooled"], expected[f"pooler_output{other}"])
    assert out["hidden_states"].shape == (3, *out["tokens"].shape)


@pytest.mark.parametrize("name, grid", [("vit", (6, 5)), ("dinov2", (4, 5))])
def test_positions_are_interpolated_as_published(name, grid, request):
    table = request.getfixturevalue(name).params["image"]["positions"]
    expected = published(f"hf_{name}")[1]["interpolated_pos"][0]
    close(resize_positions(jnp.asarray(table[1:]), grid), expected[1:])
    np.testing.assert_array_equal(table[0], expected[0])


def test_bicubic_weights_sum_to_one_and_keep_a_line_inside():
    weights = bicubic(8, 16)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    line = weights @ np.arange(8.0)
    at = (np.arange(16) + 0.5) / 2 - 0.5
    assert np.abs(line - at)[4:12].max() < 0.05  # a = -0.75 bends a line a little
    np.testing.assert_array_equal(bicubic(5, 5), np.eye(5))


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_vision_towers_are_the_published_ones(name):
    given, expected = published(name)
    out = run(encoder(FIXTURES / name), "image", channels_last(given["pixel_values"]))
    close(out["tokens"], expected["vision_last_hidden"])
    close(out["pooled"], expected["image_features"])


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_both_towers_and_the_scale_give_the_published_logits(name):
    given, expected = published(name)
    enc = encoder(FIXTURES / name)
    inputs = [given[k] for k in ("input_ids", "attention_mask") if k in given]
    text = np.asarray(run(enc, "text", *inputs)["pooled"])
    image = np.asarray(run(enc, "image", channels_last(given["pixel_values"]))["pooled"])
    text, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text, image))
    scale, bias = enc.params["logit_scale"], enc.params.get("logit_bias", 0.0)
    close(np.exp(scale) * text @ image.T + bias, expected["logits_per_text"])


def test_scanned_layers_are_the_same_layers(dinov2):
    given, expected = published("hf_dinov2")
    scanned = encoder(FIXTURES / "hf_dinov2", scan=True)
    assert scanned.params["image"]["stack"]["blocks"]["ffn_scale"].shape == (2, 32)
    out = run(scanned, "image", channels_last(given["pixel_values"]))
    close(out["tokens"], expected["last_hidden_state"])


def test_patches_are_read_row_by_row():
    pixels = np.arange(4 * 6 * 2, dtype=np.float32).reshape(1, 4, 6, 2)
    cut = np.asarray(patches(jnp.asarray(pixels), 2))
    assert cut.shape == (1, 6, 8)
    np.testing.assert_array_equal(cut[0, 4], pixels[0, 2:4, 2:4].ravel())
    np.testing.assert_array_equal(patches(jnp.asarray(pixels[:, :, :5]), 2), cut[:, [0, 1, 3, 4]])


def test_mean_pooling_leaves_out_the_class_token(vit):
    given, expected = published("hf_vit")
    module = vit.modules["image"].clone(pooling="mean")
    pixels = channels_last(given["pixel_values"])
    out = jax.jit(module.apply)({"params": vit.params["image"]}, pixels)
    close(out["pooled"], expected["last_hidden_state"][:, 1:].mean(1))


def test_pictures_that_fit_no_patch_and_unknown_poolings_are_refused(vit):
    with pytest.raises(ValueError, match=r"\[b,h,w,c\] of at least 4 a side"):
        vit.apply["image"](vit.params, np.zeros((1, 3, 16, 16), np.float32))
    stack = EncoderStack(layers=1, heads=2, inner=8)
    module = VisionTransformer(8, 4, 8, stack, class_token=False, pooling="cls")
    with pytest.raises(ValueError, match="pooling='cls' with class_token=False"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
