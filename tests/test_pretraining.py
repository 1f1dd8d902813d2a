"""Encoders learn from content alone: what is hidden is guessed, what belongs together is found."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines import synthetic
from pipelines.schema import DataError
from zoo import api
from zoo.cli import main
from zoo.cli_content import OBJECTIVES as TOLD
from zoo.content_objectives import (
    OBJECTIVES,
    Captioner,
    _alike,
    _hide_patches,
    _hide_sound,
    _hide_words,
    objective,
)
from zoo.data import with_raw
from zoo.embed import embed
from zoo.embedded import embedded
from zoo.encoders.small import Encoding, encoders
from zoo.pretraining import SETTINGS, _catalogue, _parts, pretrain_content

SIZES = {"width": 16, "layers": 1, "heads": 2, "patch": 8, "pixels": 16, "tokens": 6}
SIZES |= {"frames": 24, "bands": 16}
ENCODING = Encoding(("image", "text"), **SIZES, dropout=0.0, bound=256, refresh=8)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A small world of pictures, words and sounds on disk."""
    made = synthetic.world(n_items=150, n_users=60, image_size=16, missing=0.1)
    return api.load_data(synthetic.save(made, tmp_path_factory.mktemp("shop")))


def started(name: str, shop, modalities: tuple[str, ...] = ("image", "text")):
    data = with_raw(shop, replace(ENCODING, modalities=modalities))
    read = ("image",) if name == "autoregressive" else modalities
    catalogue = jax.tree.map(jnp.asarray, _catalogue(data))
    made = encoders(replace(ENCODING, modalities=read), data.raw)
    model = objective(name, made, 8, ENCODING.patch, ENCODING.bands)
    batch = {"items": np.arange(1, 33, dtype=np.int32)}
    batch |= {"others": np.arange(2, 34, dtype=np.int32)} if name == "co-consumption" else {}
    return model, jax.jit(model.init)(KEY, catalogue, batch), catalogue, batch


LONG = ("contrastive", "siglip", "co-consumption", "autoregressive")  # to compile


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in OBJECTIVES]
)
def test_every_objective_teaches_its_encoders_and_reads_no_padding(name, shop):
    model, params, catalogue, batch = started(name, shop)
    grad = jax.jit(jax.grad(lambda p, b: model.loss(p, catalogue, b, KEY)[0]))
    for x in jax.tree.leaves(grad(params, batch)["encoders"]):
        assert np.all(np.isfinite(x))
    assert max(np.abs(x).max() for x in jax.tree.leaves(grad(params, batch)["encoders"])) > 1e-5
    loss = jax.jit(lambda b: model.loss(params, catalogue, b, KEY)[0])
    if name not in ("contrastive", "siglip", "co-consumption", "autoregressive"):
        return  # whose noise is drawn by the row
    filled = {k: np.concatenate([v, np.zeros(8, np.int32)]) for k, v in batch.items()}
    np.testing.assert_allclose(loss(filled), loss(batch), rtol=1e-5)


def test_a_word_is_told_from_the_words_before_it_and_the_picture():
    words = jnp.array([[3, 5, 2, 7]])
    memory = jax.random.normal(KEY, (1, 4, 16))
    model = Captioner(9, 16, 1, 2)
    params = model.init(KEY, memory, words)
    log_p = model.apply(params, memory, words)
    later = model.apply(params, memory, words.at[0, 2].set(8))
    np.testing.assert_allclose(later[0, :2], log_p[0, :2], rtol=1e-5)
    assert np.abs(later[0, 3] - log_p[0, 3]) > 1e-6
    assert np.abs(model.apply(params, memory + 1, words) - log_p).min() > 0
    every = jnp.stack([model.apply(params, memory, jnp.array([[w]]))[0, 0] for w in range(9)])
    np.testing.assert_allclose(jnp.sum(jnp.exp(every)), 1.0, rtol=1e-5)


def test_hidden_patches_are_grey_and_the_others_as_they_were():
    raw = jax.random.randint(KEY, (5, 18, 16, 3), 0, 256).astype(jnp.uint8)
    seen, target, hidden = _hide_patches(KEY, raw, 8)
    assert target.shape == (5, 4, 192) and hidden.shape == (5, 4)
    grid = np.asarray(hidden).reshape(5, 2, 2).repeat(8, 1).repeat(8, 2)
    assert np.all(np.asarray(seen)[:, :16][grid] == 127)
    np.testing.assert_array_equal(np.asarray(seen)[:, :16][~grid], np.asarray(raw)[:, :16][~grid])
    np.testing.assert_allclose(np.mean(target, axis=-1), 0, atol=1e-5)
    assert 0.3 < hidden.mean() < 0.9


def test_hidden_sound_is_silent_and_the_rest_as_it_was(shop):
    model, params, catalogue, batch = started("masked", shop, ("audio",))
    raw = catalogue["raw"]["audio"][batch["items"]]
    assert raw.shape == (32, 24 * 160 + 240) and raw.dtype == jnp.int16
    seen, target, hidden = _hide_sound(KEY, raw, 8, 16)
    assert target.shape == (32, 6, 64) and hidden.shape == (32, 6)  # two bands of three stretches
    np.testing.assert_array_equal(hidden[:, :3], hidden[:, 3:])
    over = np.repeat(np.asarray(hidden[:, :3]), 1280, axis=1)
    heard = np.asarray(seen)[:, :3840]
    assert not heard[over].any()
    np.testing.assert_array_equal(heard[~over], np.asarray(raw)[:, :3840][~over])
    grad = jax.jit(jax.grad(lambda p: model.loss(p, catalogue, batch, KEY)[0]))(params)
    sizes = [np.abs(x).max() for x in jax.tree.leaves(grad["encoders"])]
    assert np.all(np.isfinite(sizes)) and max(sizes) > 1e-5


def test_hidden_words_are_the_only_ones_that_change():
    ids = jax.random.randint(KEY, (400, 6), 2, 30)
    mask = jnp.arange(6)[None] < 4
    raw = {"ids": ids * mask, "mask": jnp.broadcast_to(mask, ids.shape)}
    seen, target, hidden = _hide_words(KEY, raw, 30)
    moved = np.asarray(seen["ids"] != raw["ids"])
    assert not np.any(moved & ~np.asarray(hidden)) and not np.any(hidden & ~raw["mask"])
    assert np.asarray(hidden[:, :4]).mean() == pytest.approx(0.15, abs=0.03)
    assert np.asarray(seen["ids"] == 1)[np.asarray(hidden)].mean() == pytest.approx(0.8, abs=0.08)
    np.testing.assert_array_equal(target, raw["ids"])


def test_held_out_examples_are_not_trained_on_and_pairs_are_of_training(shop):
    data = with_raw(shop, ENCODING)
    train, held = _parts("contrastive", data, 0)
    assert not set(train["items"]) & set(held["items"])
    both = data.dataset.present["image"] & data.dataset.present["text"]
    assert both[train["items"]].all() and both[held["items"]].all()
    train, held = _parts("co-consumption", data, 0)
    known = set(data.split.train.values.tolist())
    assert {*train["items"].tolist(), *train["others"].tolist()} <= known
    follows = set()
    for row in range(len(data.split.train)):
        items = data.split.train[row].tolist()
        follows |= set(zip(items, items[1:], strict=False))
    assert set(zip(train["items"].tolist(), train["others"].tolist(), strict=True)) <= follows


def test_co_consumption_holds_out_users_and_no_item_is_its_own_negative(shop):
    data = with_raw(shop, ENCODING)
    parts = _parts("co-consumption", data, 0)
    users, items = data.split.train.rows, data.split.train.values
    some, followed = np.any([data.dataset.present[m] for m in data.raw], axis=0), {}
    for user in np.unique(users):
        own = items[users == user]
        pairs = zip(own.tolist(), own[1:].tolist(), strict=False)
        followed[user] = {(a, b) for a, b in pairs if some[a] and some[b]}
    here, there = (
        set(zip(part["items"].tolist(), part["others"].tolist(), strict=True)) for part in parts
    )
    held = [user for user, pairs in followed.items() if pairs and pairs <= there]
    assert set().union(*(followed[user] for user in held)) == there
    assert here and len(parts[0]["items"]) > len(parts[1]["items"]) > 1
    model, params, catalogue, _ = started("co-consumption", shop)
    both = jnp.flatnonzero(jnp.all(jnp.stack([*catalogue["present"].values()]), axis=0))[:3]
    ring = {"items": both, "others": jnp.roll(both, 1)}  # each of the three is in three rows
    value = jax.jit(lambda p: model.loss(p, catalogue, ring, KEY)[0])(params)
    np.testing.assert_allclose(value, 0, atol=1e-5)


def test_another_word_is_a_word_of_the_data(shop):
    _, _, catalogue, _ = started("masked", shop, ("text",))
    words = int(catalogue["raw"]["text"]["ids"].max()) + 1
    assert int(jnp.sum(catalogue["vocabulary"])) == words < len(catalogue["vocabulary"])


@pytest.mark.slow
def test_a_run_of_another_split_is_another_run(shop, tmp_path):
    settings = replace(SETTINGS, epochs=1, batch=32)
    what = ("co-consumption", shop, tmp_path / "run", ENCODING, settings)
    pretrain_content(*what)
    other = api.load_data(shop.dataset, api.DataOptions(split="random", split_seed=3))
    with pytest.raises(ValueError, match="holds another run: split"):
        pretrain_content(what[0], other, *what[2:])
    run = {"graft": tmp_path / "run", "encoding": ENCODING, "items": "content"}
    with pytest.raises(ValueError, match="may know what is held out here"):
        api.fit("sasrec", other, None, api.Settings(steps=1), **run)
    embed(shop.dataset, tmp_path / "run", tmp_path / "text", "text")
    folders = replace(other.options, features=(str(tmp_path / "text"),))
    with pytest.raises(DataError, match="learned from another split"):
        api.prepare(replace(other, options=folders), "content")


def test_items_of_equal_words_are_told_apart_by_no_one(shop):
    data = with_raw(shop, ENCODING)
    twin = jax.tree.map(np.copy, data.raw["text"])
    for rows in twin.values():
        rows[7] = rows[3]
    catalogue = jax.tree.map(jnp.asarray, _catalogue(replace(data, raw={**data.raw, "text": twin})))
    assert catalogue["alike"]["text"][7] == catalogue["alike"]["text"][3]
    ids = jnp.array([3, 7, 9])
    alone = catalogue["alike"]["image"][ids]
    assert len(set(alone.tolist())) == 3
    same = np.asarray(_alike(catalogue, ("image", "text"), ids))
    np.testing.assert_array_equal(same, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


@pytest.mark.slow
def test_a_pretrained_pair_finds_the_other_view_and_starts_a_model(shop, tmp_path):
    settings = replace(SETTINGS, epochs=25, batch=32, rate=3e-3, patience=25)
    fitted, told = pretrain_content("contrastive", shop, tmp_path / "pre", ENCODING, settings)
    found = told["retrieval"]
    assert found["image>text"]["recall@5"] > 1.5 * found["chance"]["recall@5"]
    _, again = pretrain_content("contrastive", shop, tmp_path / "pre", ENCODING, settings)
    assert again == told, "a finished run is read back"
    with pytest.raises(ValueError, match="zoo train ... --graft"):
        api.from_pretrained(tmp_path / "pre")
    short = api.Settings(steps=8, batch=16)
    frozen = replace(short, rates=(("encoders", 0.0),))
    fields = {"items": "content", "width": 16, "layers": 1, "max_len": 12}
    run = {"encoding": ENCODING, "graft": tmp_path / "pre", **fields}
    tuned, _ = api.fit("sasrec", shop, None, frozen, **run)
    for a, b in zip(*(jax.tree.leaves(x.params["encoders"]) for x in (fitted, tuned)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="another make: width 16 there, 32 here"):
        api.fit("sasrec", shop, None, short, **run | {"encoding": replace(ENCODING, width=32)})
    with pytest.raises(ValueError, match="this run reads features"):
        api.fit("sasrec", shop, None, short, **run | {"encoding": None})


@pytest.fixture(scope="module")
def pretrained(shop, tmp_path_factory):
    """(the folder of a short pretraining, what came out)."""
    folder, settings = tmp_path_factory.mktemp("run") / "pre", replace(SETTINGS, epochs=1, batch=32)
    return folder, pretrain_content("contrastive", shop, folder, ENCODING, settings)[0]


def test_a_pretrained_encoder_embeds_the_catalogue_for_any_model(shop, pretrained, tmp_path):
    run, fitted = pretrained
    data = with_raw(shop, ENCODING)
    made = encoders(ENCODING, data.raw)
    for name in ("image", "text"):
        told = embed(shop.dataset, run, tmp_path / name, name, batch=32)
        assert told["encoder"] == "pre" and told["width"] == 16
        there = np.flatnonzero(data.dataset.present[name])
        rows = jax.tree.map(lambda x, there=there: x[there], data.raw[name])
        want = made[name].apply(fitted.params["encoders"][name], rows, None)
        got = embedded(tmp_path / name, shop.dataset).features[name]
        np.testing.assert_allclose(got[there], want, atol=1e-5)
    folders = tuple(str(tmp_path / name) for name in ("image", "text"))
    seen = replace(shop, options=replace(shop.options, features=folders))
    fitted, read = api.fit("vbpr", seen, None, api.settings_for("vbpr", epochs=1))
    assert read.dataset.features["text"].shape[1] == 16 and fitted.best
    embed(shop.dataset, run, tmp_path / "layers", "text", pooling="layers")
    seen = replace(shop, options=replace(shop.options, features=(str(tmp_path / "layers"),)))
    assert with_raw(seen, Encoding(("text",), kind="side")).raw["text"].shape[1:] == (2, 16)


def test_encoders_of_other_words_or_of_no_pretraining_are_refused(shop, pretrained, tmp_path):
    run = pretrained[0]
    columns = {**shop.dataset.columns, "text": shop.dataset.columns["text"][::-1].copy()}
    columns["text"][0] = ""
    with pytest.raises(ValueError, match="under other ids"):
        embed(replace(shop.dataset, columns=columns), run, tmp_path / "a", "text")
    with pytest.raises(ValueError, match="no tower for the modality.*'audio'"):
        embed(shop.dataset, run, tmp_path / "b", "audio")
    with pytest.raises(ValueError, match="computes in float32"):
        embed(shop.dataset, run, tmp_path / "c", "text", dtype="bfloat16")
    api.fit("bpr", shop, tmp_path / "run", api.settings_for("bpr", epochs=1))
    with pytest.raises(ValueError, match="is a run of bpr"):
        embed(shop.dataset, tmp_path / "run", tmp_path / "d")


def test_what_cannot_be_pretrained_says_so(shop, tmp_path, capsys):
    assert TOLD == OBJECTIVES
    with pytest.raises(ValueError, match="did you mean masked|masked"):
        pretrain_content("mask", shop, tmp_path, ENCODING)
    with pytest.raises(ValueError, match="name modalities"):
        pretrain_content("masked", shop, tmp_path, Encoding())
    with pytest.raises(ValueError, match="encode.kind is 'side'"):
        pretrain_content("masked", shop, tmp_path, replace(ENCODING, kind="side"))
    with pytest.raises(ValueError, match="compares two modalities"):
        pretrain_content("siglip", shop, tmp_path, replace(ENCODING, modalities=("text",)))
    with pytest.raises(ValueError, match="tells words from pictures"):
        pretrain_content("autoregressive", shop, tmp_path, ENCODING)
    assert (
        main(["pretrain", "masked", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    )
    assert "zoo pretrain" in capsys.readouterr().err
