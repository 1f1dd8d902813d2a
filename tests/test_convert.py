"""Published weights into our tree: both sides are checked, and a bad file says what is wrong."""

import json
import math
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from checkpoints.convert import ConvertError, convert, destinations, rules_of
from checkpoints.maps import MAPS
from zoo.encoders.load import encoder, shapes
from zoo.encoders.published import FAMILIES, towers
from zoo.mesh import make_mesh

BERT = FIXTURES / "hf_bert"
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def target() -> dict:
    """The shapes of our parameters for hf_bert."""
    return shapes(towers(json.loads((BERT / "config.json").read_text())))


def weights(folder, change=None):
    """A folder of hf_bert's weights, changed."""
    tensors = load_file(BERT / "model.safetensors")
    tensors = tensors if change is None else change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def to_bert(folder, target):
    return convert(folder, rules_of("bert"), target)


def same(tree, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_dense_layers_are_transposed_and_every_leaf_is_there(target):
    params = to_bert(BERT, target).params
    published = load_file(BERT / "model.safetensors")
    block = params["text"]["stack"]["block_1"]
    np.testing.assert_array_equal(block["attention"]["query"]["kernel"], published[QUERY].T)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, target)


@pytest.mark.parametrize("scan", [False, True])
def test_weights_go_straight_onto_a_mesh_by_its_rules(scan):
    plain, spread = encoder(BERT, scan=scan), encoder(BERT, mesh=make_mesh(4, 2), scan=scan)
    same(plain.params, spread.params)
    stack = spread.params["text"]["stack"]
    block = stack["blocks" if scan else "block_0"]
    lead = (None,) * scan
    assert block["attention"]["query"]["kernel"].sharding.spec == P(*lead, None, "model")
    assert block["ffn"]["out"]["kernel"].sharding.spec == P(*lead, "model", None)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(spread.params))


def test_a_parameter_leaves_the_host_as_soon_as_it_is_whole(target):
    taken = []

    def put(path, x):
        taken.append(path)
        return x.max()

    params = convert(BERT, rules_of("bert"), target, put).params
    assert len(taken) == len(set(taken)) == len(jax.tree.leaves(target))
    published = load_file(BERT / "model.safetensors")
    kernel = params["text"]["stack"]["block_1"]["attention"]["query"]["kernel"]
    assert kernel == published[QUERY].max()


def test_a_tensor_without_a_rule_is_an_error(tmp_path, target):
    weights(tmp_path, lambda t: t | {"surprise.weight": np.ones(3, np.float32)})
    with pytest.raises(ConvertError, match="surprise.weight: published, no rule uses it"):
        to_bert(tmp_path, target)


def test_a_missing_tensor_is_an_error(tmp_path, target):
    weights(tmp_path, lambda t: {k: v for k, v in t.items() if k != QUERY})
    lost = r"text/stack/block_1/attention/query/kernel \(32, 32\): ours, 0 of 1 filled"
    with pytest.raises(ConvertError, match=lost):
        to_bert(tmp_path, target)


def test_a_missing_layer_of_stacked_blocks_is_an_error(tmp_path):
    config = json.loads((BERT / "config.json").read_text())
    weights(tmp_path, lambda t: {k: v for k, v in t.items() if k != QUERY})
    with pytest.raises(ConvertError, match=r"blocks/attention/query/kernel .*2 of 3 filled"):
        to_bert(tmp_path, shapes(towers(config, scan=True)))


def test_layers_that_the_model_does_not_have_are_an_error(target):
    text = dict(target["text"], stack=dict(target["text"]["stack"]))
    text["stack"].pop("block_2")
    with pytest.raises(ConvertError, match="the model has no text/stack/block_2/attention"):
        to_bert(BERT, {"text": text})


@pytest.mark.parametrize("shape", [(32, 31), (16, 64), (8, 32, 4)])
def test_a_wrong_shape_is_an_error(tmp_path, target, shape):
    weights(tmp_path, lambda t: t | {QUERY: np.zeros(shape, np.float32)})
    with pytest.raises(ConvertError, match=r"query.weight.*published.*\(32, 32\)"):
        to_bert(tmp_path, target)


def test_two_tensors_for_one_place_are_an_error(tmp_path, target):
    twice = {f"bert.{QUERY}": np.zeros((32, 32), np.float32)}
    weights(tmp_path, lambda t: t | twice)
    with pytest.raises(ConvertError, match="query/kernel is filled already"):
        to_bert(tmp_path, target)


def test_a_truncated_file_is_an_error(tmp_path, target):
    whole = (BERT / "model.safetensors").read_bytes()
    for cut in (4, 100, len(whole) - 1):
        (tmp_path / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(ConvertError, match="expected a whole safetensors file"):
            to_bert(tmp_path, target)


def test_other_formats_are_not_read(tmp_path, target):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ConvertError, match="expected weights as safetensors"):
        to_bert(tmp_path, target)


def shard(folder, wrong: str | None = None) -> dict[str, str]:
    """hf_bert in two shards with an index; `wrong` replaces the file of one tensor."""
    tensors = load_file(BERT / "model.safetensors")
    names = sorted(tensors)
    halves = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    for file, mine in halves.items():
        save_file({name: tensors[name] for name in mine}, folder / file)
    table = {name: file for file, mine in halves.items() for name in mine}
    table |= {} if wrong is None else {names[0]: wrong}
    text = json.dumps({"metadata": {}, "weight_map": table})
    (folder / "model.safetensors.index.json").write_text(text)
    return table


def test_shards_are_the_whole(tmp_path, target):
    shard(tmp_path)
    same(to_bert(tmp_path, target).params, to_bert(BERT, target).params)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("../a-1.safetensors", "expected a file here"),
        ("/etc/passwd", "expected a file here"),
        ("a-2.safetensors", "differ in 1 tensors"),
        ("a-3.safetensors", "a-3.safetensors: expected a whole safetensors file"),
    ],
)
def test_an_index_that_does_not_fit_is_an_error(tmp_path, target, wrong, message):
    shard(tmp_path, wrong)
    with pytest.raises(ConvertError, match=message):
        to_bert(tmp_path, target)


def test_an_index_that_is_no_table_is_an_error(tmp_path, target):
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ConvertError, match="expected JSON with a weight_map"):
        to_bert(tmp_path, target)


def test_old_names_and_pretraining_heads(tmp_path, target):
    def old(tensors):
        def name(k: str) -> str:
            k = k.replace("LayerNorm.weight", "LayerNorm.gamma")
            return "bert." + k.replace("LayerNorm.bias", "LayerNorm.beta")

        extra = {"cls.predictions.bias": np.zeros(60, np.float32)}
        extra["bert.embeddings.position_ids"] = np.arange(24)[None]
        return {name(k): v for k, v in tensors.items()} | extra

    converted = to_bert(weights(tmp_path, old), target)
    same(converted.params, to_bert(BERT, target).params)
    assert converted.ignored == ("bert.embeddings.position_ids", "cls.predictions.bias")


def test_half_precision_files_become_our_dtype(tmp_path, target):
    weights(tmp_path, lambda t: {k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()})
    table = to_bert(tmp_path, target).params["text"]["words"]["table"]
    whole = load_file(BERT / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, whole, rtol=2**-8)
    assert not np.array_equal(table, whole)


def test_packed_projections_are_split_in_order():
    paths, _ = destinations("vision_model.head.attention.in_proj_bias", MAPS["siglip"])
    assert [p.split("/")[-2:] for p in paths] == [[p, "bias"] for p in ("query", "key", "value")]


def test_maps_and_families_are_the_same_architectures():
    assert set(MAPS) == set(FAMILIES)


def config_of(folder, **changes):
    shutil.copy(BERT / "model.safetensors", folder)
    config = json.loads((BERT / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model_type": "mamba"},
            "no name table for model_type 'mamba'; there are .*bert, clip",
        ),
        ({"hidden_act": "swish"}, "hidden_act 'swish'.*is not among.*gelu"),
        ({"position_embedding_type": "relative_key"}, "only 'absolute' is supported"),
        ({"num_hidden_layers": 2}, "the model has no text/stack/block_2"),
        ({"hidden_size": 48}, r"published, ours .*\(48"),
        ({"model_type": ["bert"]}, r"no name table for model_type \['bert'\]"),
        ({"hidden_size": "32"}, "config.json does not describe a bert.*heads that divide"),
        ({"num_attention_heads": 5}, "config.json does not describe a bert"),
        ({"model_type": "clip"}, "does not describe a clip: KeyError..text_config"),
    ],
)
def test_a_config_that_does_not_fit_is_an_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        encoder(config_of(tmp_path, **changes))


def test_both_sides_of_a_mismatch_are_told(tmp_path):
    """However many of the published tensors do not fit, those that we lack are there, too."""
    with pytest.raises(ConvertError) as told:
        encoder(config_of(tmp_path, hidden_size=48, num_hidden_layers=30))
    message = str(told.value)
    assert ": published, ours " in message and "word" in message
    assert ": ours, 0 of 1 filled" in message and "... and " in message


def test_a_missing_or_broken_config_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no config.json"):
        encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: expected JSON"):
        encoder(tmp_path)


def sentence(folder, *kinds: str, **modes: bool):
    """hf_bert as Sentence Transformers keep it."""
    config_of(folder)
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes | {"dimension": 32}))
    return folder


def test_pooling_of_sentence_transformers_is_read(tmp_path):
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    module = encoder(sentence(tmp_path, "Transformer", "Pooling", "Normalize", **modes))
    assert (module.modules["text"].pooling, module.modules["text"].normalize) == ("cls", True)
    plain = encoder(BERT).modules["text"]
    assert (plain.pooling, plain.normalize) == ("mean", False)


@pytest.mark.parametrize(
    "kinds, modes, message",
    [
        (["Transformer", "Pooling", "Dense"], {}, "supported, not.*Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "not.*max_tokens"),
        (["Transformer", "Pooling"], {}, r"not \[\]"),
    ],
)
def test_sentence_transformers_that_do_more_are_refused(tmp_path, kinds, modes, message):
    with pytest.raises(ValueError, match=message):
        encoder(sentence(tmp_path, *kinds, **modes))


def test_variants_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="use_swiglu_ffn=True.*only False.*'dinov2'"):
        towers({"model_type": "dinov2", "use_swiglu_ffn": True})
    with pytest.raises(ValueError, match="model_type 'mamba'.*bert, clip, dinov2"):
        towers({"model_type": "mamba"})


@pytest.mark.parametrize(
    "model_type, parameters",  # of bert-base-uncased, clip-vit-base-patch32, siglip-base-patch16
    [("bert", 109_482_240), ("clip", 151_277_313), ("siglip", 203_155_970)],
)
def test_full_sizes_have_the_published_number_of_parameters(model_type, parameters):
    empty = {"model_type": model_type, "text_config": {}, "vision_config": {}}
    tree = shapes(towers(empty, scan=True))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == parameters
