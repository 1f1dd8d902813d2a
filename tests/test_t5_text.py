"""T5's encoder from its published folder: the reference's states and mean; what it refuses."""

import json

import jax
import numpy as np
import pytest
from conftest import FIXTURES
from test_encoders_text import close, published, run

from checkpoints.convert import convert, rules_of
from zoo.encoders.load import encoder, shapes
from zoo.encoders.published import towers


@pytest.fixture(scope="module")
def t5():
    return encoder(FIXTURES / "hf_t5")


def test_the_encoder_and_its_mean_are_the_published_ones(t5):
    given, expected = published("hf_t5")
    mask = given["attention_mask"]
    out = run(t5, "text", given["input_ids"], mask)
    real = mask.astype(bool)
    close(np.asarray(out["tokens"])[real], expected["encoder_last_hidden_state"][real])
    close(out["pooled"], expected["encoder_mean_pooled"])
    unit = t5.modules["text"].clone(normalize=True)
    with jax.default_matmul_precision("highest"):
        params = {"params": t5.params["text"]}
        found = jax.jit(unit.apply)(params, given["input_ids"], mask)["pooled"]
    mean = expected["encoder_mean_pooled"]
    close(found, mean / np.linalg.norm(mean, axis=1, keepdims=True))


def test_padding_does_not_reach_the_mean(t5):
    given, _ = published("hf_t5")
    ids, mask = given["input_ids"], given["attention_mask"]
    assert (mask == 0).any()
    other = np.where(mask == 1, ids, (ids + 7) % 48)
    first, second = (run(t5, "text", x, mask)["pooled"] for x in (ids, other))
    close(first, second)


def test_the_decoder_is_left_out_and_nothing_else():
    config = json.loads((FIXTURES / "hf_t5" / "config.json").read_text())
    made = convert(FIXTURES / "hf_t5", rules_of("t5"), shapes(towers(config)))
    assert made.ignored and all(name.startswith("decoder.") for name in made.ignored)


def test_gated_t5_and_other_poolings_are_refused(t5):
    config = json.loads((FIXTURES / "hf_t5" / "config.json").read_text())
    with pytest.raises(ValueError, match="feed_forward_proj='gated-gelu'.*only 'relu'"):
        towers(config | {"feed_forward_proj": "gated-gelu"})
    with pytest.raises(ValueError, match="scan and remat are not fields of T5's stack"):
        towers(config, scan=True)
    module = t5.modules["text"].clone(pooling="cls")
    with pytest.raises(ValueError, match="T5 has no first token; choose 'mean'"):
        jax.eval_shape(module.init, jax.random.key(0), *module.example())
