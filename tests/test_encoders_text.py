"""Text encoders against published weights and outputs; what masks, scan and pooling mean."""

import jax
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.encoders.load import encoder

HIGHEST = jax.default_matmul_precision("highest")


def published(name: str) -> tuple[dict, dict]:
    """Inputs and outputs of the reference implementation, by name."""
    with np.load(FIXTURES / name / "io.npz") as z:
        return (
            {k[3:]: z[k] for k in z.files if k.startswith("in_")},
            {k[4:]: z[k] for k in z.files if k.startswith("out_")},
        )


def run(enc, modality: str, *inputs) -> dict:
    with HIGHEST:
        return jax.jit(enc.apply[modality])(enc.params, *inputs)


def close(found, expected) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def bert():
    return encoder(FIXTURES / "hf_bert")


def test_bert_is_the_published_one(bert):
    given, expected = published("hf_bert")
    inputs = given["input_ids"], given["attention_mask"], given["token_type_ids"]
    unit = bert.modules["text"].clone(normalize=True)
    with HIGHEST:
        out = jax.jit(unit.apply)({"params": bert.params["text"]}, *inputs)
    close(out["tokens"], expected["last_hidden_state"])
    close(out["hidden_states"][1], expected["hidden_1"])
    close(out["pooler"], expected["pooler_output"])
    close(out["mean"], expected["mean_pooled"])
    close(out["pooled"], expected["mean_pooled_l2"])


def test_roberta_counts_its_positions_behind_the_padding_id():
    given, expected = published("hf_roberta")
    out = run(encoder(FIXTURES / "hf_roberta"), "text", *given.values())
    close(out["tokens"], expected["last_hidden_state"])
    close(out["hidden_states"][1], expected["hidden_1"])
    close(out["pooler"], expected["pooler_output"])
    close(out["pooled"], expected["mean_pooled"])


def test_scanned_layers_are_the_same_layers():
    given, expected = published("hf_bert")
    scanned = encoder(FIXTURES / "hf_bert", scan=True, remat=True)
    kernel = scanned.params["text"]["stack"]["blocks"]["ffn"]["in"]["kernel"]
    assert kernel.shape == (3, 32, 64)
    inputs = given["input_ids"], given["attention_mask"], given["token_type_ids"]
    out = run(scanned, "text", *inputs)
    close(out["hidden_states"][1], expected["hidden_1"])
    close(out["tokens"], expected["last_hidden_state"])


def test_padding_does_not_reach_the_real_tokens(bert):
    given, _ = published("hf_bert")
    ids, mask = given["input_ids"], given["attention_mask"]
    assert (mask == 0).any()
    other = np.where(mask == 1, ids, (ids + 7) % 60)
    first, second = (run(bert, "text", x, mask) for x in (ids, other))
    close(first["pooled"], second["pooled"])
    close(np.asarray(first["tokens"])[mask == 1], np.asarray(second["tokens"])[mask == 1])


def test_half_precision_stays_near_and_returns_float32():
    given, expected = published("hf_siglip")
    half = encoder(FIXTURES / "hf_siglip", dtype=jax.numpy.bfloat16)
    tokens = run(half, "text", given["input_ids"])["tokens"]
    error = np.abs(np.asarray(tokens) - expected["text_last_hidden"]).max()
    assert tokens.dtype == np.float32
    assert 1e-4 < error < 0.1


def test_gradients_reach_every_parameter_of_the_pooled_vector(bert):
    given, _ = published("hf_bert")

    def size(text):
        inputs = given["input_ids"], given["attention_mask"]
        pooled = bert.apply["text"]({"text": text}, *inputs)["pooled"]
        return (pooled * np.arange(32.0)[None, :]).sum()

    grads = jax.jit(jax.grad(size))(bert.params["text"])
    grads.pop("pooler")  # the mean does not pass through it
    flat, _ = jax.tree_util.tree_flatten_with_path(grads)
    dead = [jax.tree_util.keystr(path) for path, g in flat if not np.abs(g).max() > 1e-9]
    # softmax does not see what is added to all keys, so key biases have no gradient but rounding
    assert [name for name in dead if "['key']['bias']" not in name] == []


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_text_towers_are_the_published_ones(name):
    given, expected = published(name)
    inputs = [given[k] for k in ("input_ids", "attention_mask") if k in given]
    out = run(encoder(FIXTURES / name), "text", *inputs)
    close(out["tokens"], expected["text_last_hidden"])
    close(out["pooled"], expected["text_features"])


def test_clip_text_sees_no_later_token():
    given, _ = published("hf_clip")
    enc = encoder(FIXTURES / "hf_clip")
    ids = given["input_ids"]
    later = ids.copy()
    later[:, 6:] = (later[:, 6:] + 3) % 50
    first, second = (run(enc, "text", x)["tokens"] for x in (ids, later))
    close(first[:, :6], second[:, :6])
    assert np.abs(first[:, 6:] - second[:, 6:]).max() > 0.1


def test_the_end_of_text_is_its_first_token_of_that_id():
    enc = encoder(FIXTURES / "hf_clip")
    tower = enc.modules["text"].clone(pooling="eos", eos_id=9)
    ids = np.array([[3, 9, 4, 9], [5, 6, 7, 9]])
    out = jax.jit(tower.apply)({"params": enc.params["text"]}, ids)
    chosen = np.asarray(out["tokens"])[[0, 1], [1, 3]]
    np.testing.assert_array_equal(out["unprojected"], chosen)


def test_texts_longer_than_the_positions_are_refused(bert):
    with pytest.raises(ValueError, match="25 tokens.*24 positions: truncate to 24"):
        bert.apply["text"](bert.params, np.ones((1, 25), int), np.ones((1, 25), bool))
    roberta = encoder(FIXTURES / "hf_roberta")  # 16 rows, two of them for padding
    with pytest.raises(ValueError, match="truncate to 14"):
        roberta.apply["text"](roberta.params, np.ones((1, 15), int), np.ones((1, 15), bool))


def test_an_unknown_pooling_names_those_there_are(bert):
    module = bert.modules["text"].clone(pooling="max")
    ids = np.ones((1, 2), np.int32)
    with pytest.raises(ValueError, match="pooling='max'.*cls.*mean.*pooler"):
        jax.eval_shape(module.apply, {"params": bert.params["text"]}, ids, ids > 0)
