"""T5 blocks against published outputs; decoding with and without a cache; the published beams."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES
from safetensors.numpy import load_file

from zoo import decode
from zoo import trie as tries
from zoo.encoders.t5 import T5Stack

HIGHEST = jax.default_matmul_precision("highest")
SIZES = {"layers": 2, "heads": 4, "head_width": 6, "width": 32, "inner": 48, "dropout": 0.0}
SIZES |= {"buckets": 8, "furthest": 20}
ENCODER = T5Stack(**SIZES)
DECODER = T5Stack(**SIZES, cross=True, both_ways=False)


def place(name: str, cross: bool) -> str:
    """Our path of a published name below `encoder.` or `decoder.`."""
    if "relative_attention_bias" in name:
        return "relative/table"
    if name == "final_layer_norm.weight":
        return "norm/scale"
    block, layer, rest = re.fullmatch(r"block\.(\d)\.layer\.(\d)\.(.*)\.weight", name).groups()
    part = ["attention", *(["memory"] if cross else []), "ffn"][int(layer)]
    one = rest.split(".")[-1]
    known = {"q": "query", "k": "key", "v": "value", "o": "out"}
    if one == "layer_norm":
        return f"block_{block}/{part}_norm/scale"
    if one in known:
        return f"block_{block}/{part}/{known[one]}/kernel"
    return f"block_{block}/ffn_{'in' if one == 'wi' else 'out'}/kernel"


def published(side: str) -> dict:
    tree: dict = {}
    for name, x in load_file(FIXTURES / "hf_t5" / "model.safetensors").items():
        if not name.startswith(side + "."):
            continue
        path = place(name.removeprefix(side + "."), side == "decoder").split("/")
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = x.T if path[-1] == "kernel" else x
    return {"params": tree}


WORDS = load_file(FIXTURES / "hf_t5" / "model.safetensors")["shared.weight"]
IO = np.load(FIXTURES / "hf_t5" / "io.npz")


def encoded(ids, mask):
    with HIGHEST:
        run = jax.jit(lambda p, x, m: ENCODER.apply(p, x, m, method="encode"))
        return run(published("encoder"), WORDS[ids], np.asarray(mask, bool)[:, None, :])


def decoded(states, mask, ids, past=None):
    """Logits [b,w,t,v] of tokens ids [b,w,t], and the past."""
    params = published("decoder")
    seen = jnp.broadcast_to(jnp.asarray(mask, bool)[:, None], (*ids.shape[:2], mask.shape[1]))

    def run(params, states, ids, past):
        memory = DECODER.apply(params, states, method="read")
        x = jnp.asarray(WORDS)[ids]
        h, past = DECODER.apply(params, x, memory, seen, past, method="decode")
        return jnp.einsum("bwtd,vd->bwtv", h * 32**-0.5, WORDS), past

    with HIGHEST:
        return jax.jit(run)(params, states, ids, past)


def test_parameters_are_all_of_the_published_ones():
    x, mask = jnp.zeros((1, 3, 32)), jnp.ones((1, 1, 3), bool)
    own = ENCODER.init(jax.random.key(0), x, mask, method="encode")
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, published("encoder"))


def test_encoder_and_decoder_are_the_published_ones():
    mask = IO["in_attention_mask"]
    states = encoded(IO["in_input_ids"], mask)
    real = mask.astype(bool)
    expected = IO["out_encoder_last_hidden_state"]
    np.testing.assert_allclose(np.asarray(states)[real], expected[real], rtol=0, atol=1e-5)
    logits, _ = decoded(states, mask, IO["in_decoder_input_ids"][:, None])
    np.testing.assert_allclose(logits[:, 0], IO["out_logits"], rtol=0, atol=1e-5)


def test_relative_bias_is_the_published_one():
    encoder, decoder = (published(side)["params"]["relative"] for side in ("encoder", "decoder"))
    for tree, both, name, n in ((encoder, True, "encoder", 26), (decoder, False, "decoder", 9)):
        module = T5Stack(**SIZES, both_ways=both).bind({"params": {"relative": tree}}).relative
        np.testing.assert_allclose(
            module(n, n), IO[f"out_{name}_position_bias"][0], rtol=0, atol=1e-6
        )


def test_a_cache_changes_nothing():
    states = encoded(IO["in_input_ids"], IO["in_attention_mask"])
    ids = IO["in_decoder_input_ids"][:, None]
    whole, _ = decoded(states, IO["in_attention_mask"], ids)
    past, parts = None, []
    for cut in (slice(0, 1), slice(1, 4), slice(4, 9)):
        part, past = decoded(states, IO["in_attention_mask"], ids[:, :, cut], past)
        parts.append(part)
    np.testing.assert_allclose(np.concatenate(parts, axis=2), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_published_beams_and_likelihoods(renormalise):
    z = np.load(FIXTURES / "t5_trie_beam.npz")
    states, mask = encoded(z["in_input_ids"], z["in_attention_mask"]), z["in_attention_mask"]
    codes = np.concatenate([np.zeros((1, 3), int), z["items"]])  # item 0 is padding
    trie = tries.build(codes, (48, 48, 48), np.arange(21) > 0)
    params = published("decoder")
    seen = lambda w: jnp.broadcast_to(jnp.asarray(mask, bool)[:, None], (3, w, mask.shape[1]))  # noqa: E731

    def search(params, states, k, beam):
        memory = DECODER.apply(params, states, method="read")

        def step(past, tokens, level):
            tokens = jnp.zeros((3, 1), int) if level == 0 else tokens
            x = jnp.asarray(WORDS)[tokens][:, :, None]
            look = seen(tokens.shape[1])
            h, past = DECODER.apply(params, x, memory, look, past, method="decode")
            logits = jnp.einsum("bwd,vd->bwv", h[:, :, 0] * 32**-0.5, WORDS)
            return jax.nn.log_softmax(logits), past

        return decode.generate(step, trie, k, 3, beam, renormalise=renormalise)

    run = jax.jit(search, static_argnums=(2, 3))
    exact = z["out_item_logprob_renormalised" if renormalise else "out_item_logprob"]
    with HIGHEST:
        ids, scores = run(params, states, 20, 20)
        few, likely = run(params, states, 6, 6)
    ids, few = np.asarray(ids) - 1, np.asarray(few) - 1
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, 1), rtol=0, atol=1e-5)
    assert np.array_equal(ids, np.argsort(-exact, axis=1, kind="stable"))
    if not renormalise:
        assert np.array_equal(ids, z["out_exact_ranking"])
        assert np.array_equal(few, z["out_beam_items"])
        np.testing.assert_allclose(likely, z["out_beam_scores"], rtol=0, atol=1e-5)
