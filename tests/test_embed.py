"""zoo embed: vectors of a catalogue by a published encoder, gone on with, never mixed."""

import json
import shutil
from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
import pytest
from conftest import FIXTURES
from PIL import Image

from checkpoints.rows import RowsError, Shards, read_rows
from pipelines import pixels, sources, synthetic
from pipelines.render import COLOURS, SYNONYMS, TEXTURES, THINGS
from pipelines.schema import DataError
from zoo import api
from zoo import embed as module
from zoo.cli import main
from zoo.embed import embed
from zoo.embedded import embedded, rows_of
from zoo.encoders import inputs
from zoo.encoders.inputs import content_of, item_sentences, item_texts, widths_of
from zoo.encoders.load import encoder
from zoo.knockout import knock_out
from zoo.mesh import make_mesh

N = 30
VIT = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Widths and blocks as if these few short texts were many long ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "COMPILING", 4)
        patch.setattr(module, "HELD", {"cpu": 40})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small world as files; texts, pictures and sounds are missing here and there."""
    made = synthetic.world(n_items=N, n_users=20, length=(4, 6), missing=0.2, seed=1)
    return synthetic.save(made, tmp_path_factory.mktemp("data") / "world")


@pytest.fixture(scope="module")
def dataset(folder):
    """With every other text twice as long, so that two widths are asked for."""
    data = sources.load(folder)
    text = [row % 2 * f" {x}" + x for row, x in enumerate(data.columns["text"])]
    return replace(data, columns={**data.columns, "text": np.array(text, object)})


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The tiny BERT with a tokenizer of 60 words in its folder."""
    pytest.importorskip("transformers", reason="a published tokenizer needs transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    said = (word for name in COLOURS + TEXTURES for word in SYNONYMS[name])
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys([*THINGS, *said])]
    words = (words + [f"word{i}" for i in range(60)])[:60]
    made = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    made.enable_truncation(3)  # what a file says of padding and truncation must not count
    made.enable_padding(length=20)
    path = tmp_path_factory.mktemp("encoder") / "bert"
    copied("hf_bert", path)
    names = dict(zip(("pad", "unk", "cls", "sep"), words[:4], strict=True))
    tokens = {f"{name}_token": word for name, word in names.items()}
    PreTrainedTokenizerFast(tokenizer_object=made, **tokens).save_pretrained(path)
    return path


def copied(name: str, to, preprocessor: dict | None = None):
    """A fixture's config and weights; they are read-only there."""
    to.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(FIXTURES / name / file, to / file)
    if preprocessor is not None:
        (to / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return to


@pytest.fixture(scope="module")
def texts(dataset, bert, tmp_path_factory):
    """An uninterrupted run over the texts, and what it told."""
    out = tmp_path_factory.mktemp("texts") / "bert"
    return out, embed(dataset, bert, out, batch=4)


def test_widths_cost_the_fewest_tokens_and_compilations():
    """Against all subsets of the widths that there could be."""
    rng = np.random.default_rng(0)
    for price in (0, 5, 40, 1000):
        lengths = np.concatenate([rng.integers(1, 4, 9), rng.integers(6, 9, 5)])
        found = widths_of(lengths, price)
        assert found[-1] == lengths.max() and found == sorted(set(found))

        def cost(widths, lengths=lengths, price=price):
            read = np.array(widths)[np.searchsorted(widths, lengths)].sum()
            return read + price * len(widths)

        subsets = (s for n in range(8) for s in combinations(range(1, lengths.max()), n))
        assert cost(found) == min(cost([*s, lengths.max()]) for s in subsets)


def test_texts_are_the_encoders_own_vectors_row_by_row(dataset, bert, texts):
    out, told = texts
    made = read_rows(out)
    said, tokenizer, enc = item_texts(dataset), tokens_of(bert), encoder(bert)
    apply = jax.jit(enc.apply["text"])
    assert told["present"] == sum(map(bool, said)) == made.present.sum() < N
    assert told["width"] == 32 and made.vectors.shape == (N, 32)
    np.testing.assert_array_equal(made.present, [bool(text) for text in said[1:]])
    assert not made.vectors[~made.present].any(), "missing is zero"
    lengths = set()
    for row in np.flatnonzero(made.present):
        ids = tokenizer(said[row + 1], truncation=True, max_length=24, padding=False)["input_ids"]
        lengths.add(len(ids))
        padded = np.array([ids + [0] * (24 - len(ids))])
        with jax.default_matmul_precision("highest"):
            pooled = apply(enc.params, padded, np.arange(24)[None] < len(ids))["pooled"]
        np.testing.assert_allclose(made.vectors[row], pooled[0], rtol=0, atol=1e-5)
    assert max(lengths) > 16 > min(lengths), "two widths are made"


@pytest.mark.parametrize("name,limit,widest", [("hf_siglip", 8, 8), ("hf_t5", 512, 20)])
def test_other_text_encoders_are_read_in_their_own_way(name, limit, widest, dataset, bert):
    """SigLIP reads texts padded to all its places, T5 has no places."""
    enc, whole = encoder(FIXTURES / name), name == "hf_siglip"
    content = content_of(dataset, bert, enc, "text")
    assert content.how == {"max_length": limit, "tokens": "padded" if whole else "masked"}
    (ids, mask), _, _ = content.take(np.arange(len(content.rows)))
    assert ids.shape == mask.shape == (len(content.rows), widest)
    assert mask.all() if whole else (mask == (ids > 0)).all()
    strange = replace(dataset, columns={"title": np.array(["", *["word20"] * N], object)})
    with pytest.raises(ValueError, match="gives the id 59, its encoder has .. words"):
        content_of(strange, bert, enc, "text")


def tokens_of(path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def test_lists_in_a_cell_become_words(dataset):
    cells = {"title": "A  title", "genres": "Drama|Crime", "categories": '[["Hair", "Hair Care"]]'}
    data = replace(dataset, columns={k: np.array(["", *[x] * N], object) for k, x in cells.items()})
    assert item_texts(data)[:2] == ["", "A title Drama Crime Hair , Hair Care"]
    keywords = {"gram_text_id": np.array(["", *["|▁red|▁pol|ish"] * N], object)}
    assert item_texts(replace(dataset, columns=keywords))[1] == "red pol ish"


def test_texts_are_cut_where_the_encoder_was_trained_to_read(dataset, bert, tmp_path):
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert/sentence_bert_config.json"
    for cut, asked in ((9, None), (24, 24)):
        file.write_text('{"max_seq_length": 9}')
        content = content_of(dataset, tmp_path / "bert", encoder(bert), "text", asked)
        (ids, mask), there, _ = content.take(np.arange(3))
        assert content.how["max_length"] == cut and ids.shape[1] == min(cut, 12) and there.all()
        assert mask.sum(1).max() <= cut
    file.write_text("[")
    with pytest.raises(ValueError, match="sentence_bert_config.json: expected JSON"):
        content_of(dataset, tmp_path / "bert", encoder(bert), "text")


def stopping_at(rows: int):
    def report(step, steps, metrics):
        if step >= rows:
            raise KeyboardInterrupt

    return report


def test_a_killed_run_goes_on_to_the_same_bits(dataset, bert, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD", 2)
    whole, counts = read_rows(texts[0]), []
    for stop in (12, 20):
        with pytest.raises(KeyboardInterrupt):
            embed(dataset, bert, tmp_path, batch=4, report=stopping_at(stop))
        counts.append(json.loads((tmp_path / "manifest.json").read_text())["done"])
    assert counts == [8, 16]
    with pytest.raises(RowsError, match=r"16 of \d+ rows are done.*goes on from there"):
        embedded(tmp_path, dataset)
    shard = sorted(tmp_path.glob("shard-*.npy"))[1]
    shard.write_bytes(shard.read_bytes()[:-3])  # damaged since: made again
    told = embed(dataset, bert, tmp_path, batch=4)
    assert told["resumed_at"] == 8
    again = read_rows(tmp_path)
    assert again.vectors.tobytes() == whole.vectors.tobytes()
    np.testing.assert_array_equal(again.present, whole.present)
    assert not list(tmp_path.glob("shard-*")) and not list(tmp_path.glob(".*"))


def test_a_mesh_of_one_device_is_none(dataset, bert, texts, tmp_path):
    """As the command line has it where there is one."""
    embed(dataset, bert, tmp_path, batch=4, mesh=make_mesh(1))
    assert read_rows(tmp_path).vectors.tobytes() == read_rows(texts[0]).vectors.tobytes()


def test_an_encoder_over_a_mesh_makes_the_same_vectors(dataset, bert, texts, tmp_path):
    embed(dataset, bert, tmp_path, batch=4, mesh=make_mesh(2, 2))
    one, many = (read_rows(folder).vectors for folder in (texts[0], tmp_path))
    np.testing.assert_allclose(many, one, atol=2e-6)


def test_what_is_done_is_not_done_again(dataset, bert, texts):
    def report(*_):
        raise AssertionError("it ran")

    told = embed(dataset, bert, texts[0], batch=4, report=report)
    assert told == {**texts[1], "resumed_at": told["present"]}


def test_vectors_of_another_making_are_refused_with_what_differs(dataset, bert, texts, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(bert, other)
    from safetensors.numpy import load_file, save_file

    weights = load_file(other / "model.safetensors")
    weights = {
        name: x * np.float32(1 + name.endswith("LayerNorm.bias")) for name, x in weights.items()
    }
    save_file(weights, other / "model.safetensors")
    with pytest.raises(RowsError) as told:
        embed(dataset, other, texts[0], batch=4, pooling="cls", max_length=9)
    lines = [line.split(":")[0].strip() for line in str(told.value).splitlines()[1:-1]]
    names = ["encoder", "encoder_files/model.safetensors", "pooling", "preprocessing/max_length"]
    assert lines == names
    columns = {**dataset.columns, "title": dataset.columns["title"][::-1]}
    with pytest.raises(RowsError, match="content_sha256"):
        embed(replace(dataset, columns=columns), bert, texts[0], batch=4)


def test_vectors_that_are_not_finite_are_refused_by_item(dataset, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = copied("hf_vit", tmp_path / "vit", VIT)
    weights = load_file(path / "model.safetensors")
    save_file(
        {k: np.where(x > 0, np.nan, x) for k, x in weights.items()}, path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"NaN or infinite for \d+ items.*first \['item-"):
        embed(dataset, path, tmp_path / "out", batch=8)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["done"] == 0


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return copied("hf_vit", tmp_path_factory.mktemp("encoder") / "vit", VIT)


def test_pictures_are_read_and_broken_ones_masked(folder, vit, tmp_path, caplog, capsys):
    broken = tmp_path / "world"
    shutil.copytree(folder, broken)
    victim = sorted((broken / "images").glob("*.png"))[3]
    victim.write_bytes(victim.read_bytes()[:-40])
    data = sources.load(broken)
    command = f"embed --data {broken} --encoder {vit} --batch 8 --json --out"
    with caplog.at_level("WARNING", "zoo"):
        assert main([*command.split(), str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main([*command.split(), str(broken)]) == 2, "never into the data folder"
    assert "Name another folder" in capsys.readouterr().err
    assert victim.name in caplog.text
    made = read_rows(tmp_path / "out")
    there = [bool(file) and file != str(victim) for file in data.columns["image"][1:]]
    np.testing.assert_array_equal(made.present, there)
    assert told["modality"] == "image" and not made.vectors[~made.present].any()
    files = [file for file in data.columns["image"][1:] if file and file != str(victim)]
    x, _, _ = pixels.decode_pixels(files, pixels.steps_of(VIT, "vit"))
    enc = encoder(vit)
    with jax.default_matmul_precision("highest"):
        pooled = jax.jit(enc.apply["image"])(enc.params, x)["pooled"]
    np.testing.assert_allclose(made.vectors[made.present], pooled, rtol=0, atol=1e-5)


def test_pictures_replaced_by_others_of_their_size_are_other_content(folder, vit, tmp_path):
    """The bytes count, not names and sizes."""
    world = tmp_path / "world"
    shutil.copytree(folder, world)
    for file in (world / "images").glob("*.png"):
        with Image.open(file) as picture:
            picture.convert("RGB").save(file.with_suffix(".bmp"))
        file.write_bytes(file.with_suffix(".bmp").read_bytes())  # told by content, not by name
        file.with_suffix(".bmp").unlink()
    embed(sources.load(world), vit, tmp_path / "out", batch=8)
    victim = sorted((world / "images").glob("*.png"))[0]
    inside = bytearray(victim.read_bytes())
    inside[-600:] = bytes(600)
    victim.write_bytes(inside)
    with pytest.raises(RowsError, match="content_sha256"):
        embed(sources.load(world), vit, tmp_path / "out", batch=8)


def test_a_picture_of_too_many_pixels_is_masked(folder, vit, tmp_path, monkeypatch, caplog):
    world = tmp_path / "world"
    shutil.copytree(folder, world)
    victim = sorted((world / "images").glob("*.png"))[0]
    Image.new("L", (20_000, 20_000)).save(victim)
    with caplog.at_level("WARNING", "zoo"):
        embed(sources.load(world), vit, tmp_path / "out", batch=8)
    assert victim.name in caplog.text
    files = sources.load(world).columns["image"][1:]
    (row,) = np.flatnonzero([str(file) == str(victim) for file in files])
    assert not read_rows(tmp_path / "out").present[row]


def test_sound_becomes_a_spectrogram_and_a_vector(dataset, tmp_path):
    path = copied("hf_ast", tmp_path / "ast", {"num_mel_bins": 16, "max_length": 24})
    told = embed(dataset, path, tmp_path / "out", batch=16)
    made = read_rows(tmp_path / "out")
    np.testing.assert_array_equal(made.present, [bool(x) for x in dataset.columns["audio"][1:]])
    assert told["modality"] == "audio" and made.vectors[made.present].std(0).min() > 1e-3


def test_vectors_become_features_by_item_id(dataset, texts):
    made, with_them = read_rows(texts[0]), embedded(texts[0], dataset)
    np.testing.assert_array_equal(with_them.features["text"][1:], made.vectors)
    np.testing.assert_array_equal(with_them.present["text"][1:], made.present)
    assert not with_them.features["text"][0].any() and not with_them.present["text"][0]
    assert with_them.source["embedded"]["text"]["encoder"] == "bert"
    rows = np.r_[0, np.arange(N, 3, -2)]
    some = replace(dataset, item_ids=dataset.item_ids[rows])
    np.testing.assert_array_equal(
        embedded(texts[0], some).features["text"][1:], made.vectors[rows[1:] - 1]
    )
    with pytest.raises(DataError, match="name one folder a modality"):
        embedded(texts[0], with_them)
    with pytest.raises(DataError, match="vectors of world, the data set is beauty"):
        embedded(texts[0], replace(dataset, name="beauty"))
    titles = {**dataset.columns, "title": dataset.columns["title"][::-1]}
    with pytest.raises(DataError, match="vectors of other texts"):
        embedded(texts[0], replace(dataset, columns=titles))
    strange = np.array([*dataset.item_ids[:-1], "new"], object)
    with pytest.raises(DataError, match=r"no rows for 1 of 30 items, first \['new'\]"):
        embedded(texts[0], replace(dataset, item_ids=strange))


def test_damage_is_found_before_vectors_are_used(dataset, texts, tmp_path):
    shutil.copytree(texts[0], tmp_path / "out")
    vectors = np.load(tmp_path / "out/text_feat.npy")
    np.save(tmp_path / "out/text_feat.npy", vectors + 1)
    with pytest.raises(RowsError, match="is damaged: text_feat.npy: expected sha256"):
        embedded(tmp_path / "out", dataset)
    with pytest.raises(RowsError, match="expected a folder that `zoo embed` made"):
        embedded(tmp_path, dataset)
    with pytest.raises(RowsError, match="0 rows are done, 3 have places"):
        Shards(tmp_path / "new", {}).finish("text", np.arange(3), ["a", "b", "c"])


def test_what_an_encoder_cannot_read_is_said(dataset, bert, vit, tmp_path):
    with pytest.raises(ValueError, match="no tower for the modality 'audio'.*known: text"):
        embed(dataset, bert, tmp_path, "audio")
    with pytest.raises(ValueError, match="no pooling 'max'.*cls, mean, pooled, pooler"):
        embed(dataset, bert, tmp_path, pooling="max")
    with pytest.raises(ValueError, match="max_length is 25; this encoder takes 1 to 24 tokens"):
        embed(dataset, bert, tmp_path, max_length=25)
    with pytest.raises(ValueError, match="holds no tokenizer: expected one of tokenizer.json"):
        embed(dataset, FIXTURES / "hf_bert", tmp_path)
    with pytest.raises(ValueError, match="holds no preprocessor_config.json"):
        embed(dataset, FIXTURES / "hf_vit", tmp_path)
    with pytest.raises(DataError, match="no column 'image' that names files"):
        embed(replace(dataset, columns={}), vit, tmp_path)
    with pytest.raises(DataError, match="no item of world has text"):
        embed(replace(dataset, columns={}), bert, tmp_path)


def test_a_model_reads_the_vectors_and_its_bundle_says_whose_they_are(dataset, texts, tmp_path):
    options = api.DataOptions(features=(str(texts[0]),))
    data = api.load_data(dataset, options)
    settings = api.settings_for("vbpr", steps=2, batch=16, dispatch=1)
    small = {"width": 8, "modalities": ("text",)}
    _, seen = api.fit("vbpr", data, tmp_path / "run", settings, **small)
    np.testing.assert_array_equal(seen.dataset.features["text"][1:], read_rows(texts[0]).vectors)
    bundle = api.from_pretrained(tmp_path / "run")
    made = bundle.bundle.features["text"]["made_by"]
    assert (made["encoder"], made["pooling"], made["rows"]) == (
        "bert",
        "pooled",
        texts[1]["present"],
    )
    assert api.pretrained_for("vbpr", bundle, api.prepare(seen, "content")) is bundle.params
    plain = api.prepare(api.load_data(dataset), "content")
    with pytest.raises(
        ValueError, match="other 'text' vectors:\n  dtype: there .float32., here null"
    ):
        api.pretrained_for("vbpr", bundle, plain)


SMALL = {"items": "content", "width": 16, "layers": 1, "max_len": 8, "modalities": ("text",)}


@pytest.mark.slow
def test_a_side_network_learns_beside_the_layers_that_embed_keeps(dataset, bert, texts, tmp_path):
    told = embed(dataset, bert, tmp_path / "layers", pooling="layers", batch=8)
    layers = encoder(bert).modules["text"].stack.layers + 1
    assert told["width"] == layers * 32
    data = api.load_data(dataset, api.DataOptions(features=(str(tmp_path / "layers"),)))
    beside = api.Encoding(("text",), "side", width=8, refresh=0)
    settings = api.Settings(steps=4, batch=8, rate=1e-2)
    run = {"encoding": beside, "objective": "in-batch", **SMALL}
    fitted, seen = api.fit("sasrec", data, tmp_path / "run", settings, **run)
    assert set(fitted.params["encoders"]["text"]) >= {"gates", "down_0", "out"}
    bundle = api.from_pretrained(tmp_path / "run")
    assert api.evaluate(bundle, data).metrics == pytest.approx(api.evaluate(fitted, seen).metrics)
    plain = api.load_data(dataset, api.DataOptions(features=(str(texts[0]),)))
    with pytest.raises(DataError, match="zoo embed --pooling layers"):
        api.fit("sasrec", plain, None, settings, **run)


@pytest.mark.slow
def test_a_published_encoder_learns_with_the_model_from_its_own_weights(dataset, bert, tmp_path):
    data, known = api.load_data(dataset), encoder(bert).params["text"]
    whole = api.Encoding(("text",), str(bert), dropout=0.0, refresh=0)
    settings = api.Settings(steps=4, batch=8, rate=1e-3)
    run = {"encoding": whole, "objective": "in-batch", **SMALL}
    still, _ = api.fit("sasrec", data, None, settings, adapt="encoders", **run)
    jax.tree.map(np.testing.assert_array_equal, still.params["encoders"]["text"], known)
    moved, _ = api.fit("sasrec", data, tmp_path / "run", settings, **run)
    ours = moved.params["encoders"]["text"]["words"]["table"]
    assert 0 < np.abs(ours - known["words"]["table"]).max() < 0.02
    lists = api.from_pretrained(tmp_path / "run").recommend([data.dataset.item_ids[2]], k=5)
    assert len(lists) == 5
    with pytest.raises(ValueError, match="no tower for the modality"):
        api.fit(
            "sasrec",
            data,
            None,
            settings,
            **run | {"encoding": replace(whole, modalities=("image",))},
        )


def test_sentences_are_rows_of_an_item_and_mp4sr_pools_them(dataset, bert, tmp_path):
    said = np.array(dataset.columns["text"], object)
    said[1], said[2] = "red square. blue!  green? soft round", "one. two"
    many = replace(dataset, columns={**dataset.columns, "text": said, "title": said * 0})
    many.columns["title"][3] = "red"
    assert item_sentences(many, 3)[1] == ["red square.", "blue!", "green?"]
    assert item_sentences(many, 3)[3][0] == "red" and item_sentences(many, 3)[0] == []
    embed(many, bert, tmp_path / "rows", batch=4, sentences=3)
    one = replace(many, columns={**many.columns, "text": np.array([""] * (N + 1), object)})
    one.columns["text"][1] = "blue!"
    embed(one, bert, tmp_path / "one", batch=4)
    rows = embedded(tmp_path / "rows", many)
    alone = embedded(tmp_path / "one", one).features["text"][1]
    table = rows.features["text"].reshape(N + 1, 3, -1)
    np.testing.assert_allclose(table[1, 1], alone, atol=1e-6)
    there = rows_of(rows)["text"]
    assert there[1].all() and there[2].tolist() == [True, True, False] and not there[0].any()
    np.testing.assert_array_equal(there.any(1), rows.present["text"])
    options = api.DataOptions(features=(str(tmp_path / "rows"),))
    small = {"width": 8, "layers": 1, "experts": 2, "modalities": ("text",)}
    settings = api.settings_for("mp4sr", steps=2, batch=8)
    fitted, seen = api.fit(
        "mp4sr", api.load_data(many, options), tmp_path / "run", settings, **small
    )
    assert "pool" in fitted.params["items"]["text"]
    again = api.from_pretrained(tmp_path / "run")
    own = api.evaluate(fitted, seen).metrics
    assert api.evaluate(again, seen).metrics == own
    knocked = knock_out(fitted.catalogue, "text", "permute")
    assert not np.array_equal(knocked["rows"]["text"], np.asarray(fitted.catalogue["rows"]["text"]))
    for wrong in ({"sentences": -1}, {"sentences": 2, "pooling": "layers"}):
        with pytest.raises(ValueError, match="expected at least 0, and 0 with 'layers'"):
            embed(many, bert, tmp_path / "wrong", **wrong)
    width = {**rows.features, "text": np.zeros((N + 1, 0), np.float32)}
    assert not rows_of(replace(rows, features=width))  # encoded by the model itself
    with pytest.raises(ValueError, match="sentences are rows of text; 'image' has one row an item"):
        content_of(dataset, bert, encoder(bert), "image", sentences=2)
