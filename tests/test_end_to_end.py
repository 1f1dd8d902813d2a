"""Encoders trained with the model: each item once, any loss, exact where the batch is all asked."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import N_ITEMS, training, world

from pipelines import synthetic
from zoo import api
from zoo import mesh as meshes
from zoo.data import as_loaded, with_raw
from zoo.encoders.side import side_encoder
from zoo.encoders.small import Encoding, encoders
from zoo.end_to_end import ContentEncoder, _distinct, end_to_end
from zoo.models import build
from zoo.models.fusion import fuse
from zoo.optim import optimizer
from zoo.train import create, make_dispatch, make_step

WIDTH = 6
KEY = jax.random.key(1)


def pixels() -> ContentEncoder:
    """tanh of a linear map of 4 x 4 pictures and of how many words there are."""

    def init(key, raw):
        size = raw["pixels"][0].size
        return {"kernel": 0.1 * jax.random.normal(key, (size, WIDTH)), "bias": jnp.zeros(WIDTH)}

    def apply(params, raw, key):
        x = raw["pixels"].reshape(len(raw["pixels"]), -1) / 255.0
        return jnp.tanh(x @ params["kernel"] + params["bias"][None] + raw["words"][:, None])

    return ContentEncoder(init, apply, WIDTH)


def catalogue(rows: int = 1024) -> dict:
    """The contract's, with pictures."""
    known, rng = world(rows)[0], np.random.default_rng(3)
    raw = {
        "pixels": rng.integers(0, 256, (rows, 4, 4)).astype(np.uint8),
        "words": rng.random(rows).astype(np.float32),
    }
    return {**known, "raw": {"image": raw}, "features": {"text": known["features"]["text"]}}


def plain(objective: str = "in-batch"):
    fields = {"width": 8, "layers": 1, "max_len": 12, "dropout": 0.0, "modality_dropout": 0.0}
    return build("sasrec", items="content", objective=objective, **fields)


def model(objective: str = "in-batch", bound: int | None = 1024):
    return end_to_end(plain(objective), {"image": pixels()}, bound)


def encoded(params, made) -> dict:
    """The catalogue with pictures encoded here and now."""
    image = pixels().apply(params["encoders"]["image"], made["raw"]["image"], None)
    return {**made, "features": {**made["features"], "image": image}}


def started(recommender, seed: int = 0):
    made = recommender.prepare(catalogue())
    return recommender.init(jax.random.key(seed), made, training("sasrec")), made


def gradient(recommender, params, made, batch=None):
    grad = jax.jit(
        jax.grad(lambda p: recommender.loss(p, made, batch or training("sasrec"), KEY)[0])
    )
    return grad(params)


def same(a, b, rtol: float = 1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=1e-7), a, b)


@pytest.mark.parametrize("bound", [None, 96])
def test_each_item_once_or_often_gives_one_gradient(bound):
    params, made = started(model())
    same(gradient(model(bound=bound), params, made), gradient(model(), params, made))


def test_activations_computed_again_give_one_gradient_in_less_memory():
    raw = {"image": np.random.default_rng(0).integers(0, 256, (96, 32, 32, 3)).astype(np.uint8)}
    plan = Encoding(("image",), layers=4, patch=8, pixels=32, scan=True)
    kept, again = (encoders(replace(plan, remat=r), raw)["image"] for r in (False, True))
    params, far = jax.jit(kept.init)(KEY, raw["image"]), 1e-4 * jnp.arange(64.0)[None]

    def grad(one):
        loss = lambda p: jnp.sum(one.apply(p, raw["image"], KEY) * far)  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(params).compile()

    kept, again = grad(kept), grad(again)
    same(kept(params), again(params), 1e-4)
    sizes = [one.memory_analysis().temp_size_in_bytes for one in (kept, again)]
    assert sizes[1] < 0.6 * sizes[0]


def test_the_gradient_is_that_of_encoding_everything_where_the_loss_asks_of_the_batch():
    recommender = model()
    params, made = started(recommender)

    def whole(p):
        key = jax.random.split(KEY)[0]
        return plain().loss(p["model"], encoded(p, made), training("sasrec"), key)[0]

    got = gradient(recommender, params, made)
    same(got, jax.jit(jax.grad(whole))(params))
    assert np.abs(got["encoders"]["image"]["kernel"]).max() > 1e-5


def test_negatives_of_a_full_softmax_are_as_old_as_the_draw():
    recommender = model("ce")
    params, made = started(recommender)
    fresh = recommender.draw(params, made, KEY)
    assert np.abs(fresh["features"]["image"]).max() > 0.1
    np.testing.assert_array_equal(fresh["features"]["text"], made["features"]["text"])
    loss = lambda p, c: recommender.loss(p, c, training("sasrec"), KEY)[0]  # noqa: E731
    stale = loss(params, made)
    assert abs(stale - loss(params, fresh)) > 1e-4
    whole = plain("ce").loss(
        params["model"], encoded(params, made), training("sasrec"), jax.random.split(KEY)[0]
    )
    np.testing.assert_allclose(loss(params, fresh), whole[0], rtol=1e-6)


def linear() -> ContentEncoder:
    """Of the pictures' pixels, with a bias that moves all items alike."""

    def init(key, raw):
        return {"kernel": jax.random.normal(key, (16, WIDTH)), "bias": jnp.zeros(WIDTH)}

    def apply(params, raw, key):
        x = raw["pixels"].reshape(len(raw["pixels"]), -1) / 255.0
        return x @ params["kernel"] + params["bias"][None]

    return ContentEncoder(init, apply, WIDTH)


def test_what_all_items_moved_alike_since_the_draw_is_taken_out():
    """Or else a loss over all items pulls at it: the targets are of the batch, the others are not.
    Here every item has a picture, so that the true gradient along the bias is nothing."""
    every = lambda c: {**c, "present": {m: c["valid"] for m in c["present"]}}  # noqa: E731
    ways = {
        way: end_to_end(plain("ce"), {"image": linear()}, remove_drift=way) for way in (True, False)
    }
    params, made = started(ways[True])
    seen = ways[True].draw(params, every(made), KEY)
    pulls = {way: gradient(model, params, seen)["encoders"]["image"] for way, model in ways.items()}
    assert np.abs(pulls[False]["bias"]).max() > 1e-3
    assert np.abs(pulls[True]["bias"]).max() < 1e-6 < 1e-4 < np.abs(pulls[True]["kernel"]).max()
    there = {**params["encoders"]["image"], "bias": jnp.full(WIDTH, 3.0)}
    moved = {**params, "encoders": {"image": there}}
    loss = lambda p, way: float(ways[way].loss(p, seen, training("sasrec"), KEY)[0])  # noqa: E731
    assert loss(moved, True) == pytest.approx(loss(params, True), abs=1e-4)
    assert abs(loss(moved, False) - loss(params, False)) > 1e-2


def test_centred_vectors_have_no_common_part():
    recommender = end_to_end(plain("ce"), {"image": pixels()}, centre=True)
    params, made = started(recommender)
    params["encoders"]["image"]["bias"] += 1.0  # most of every vector
    seen = jax.jit(recommender.draw)(params, made, KEY)
    x = np.asarray(seen["features"]["image"])[np.asarray(made["present"]["image"])]
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-4)
    loss = recommender.loss(params, seen, training("sasrec"), KEY)[0]
    key = jax.random.split(KEY)[0]
    whole = plain("ce").loss(params["model"], seen, training("sasrec"), key)[0]
    assert float(loss) == pytest.approx(float(whole), abs=1e-5), "fresh rows are centred alike"
    table = recommender.index(params, made)["table"]
    np.testing.assert_allclose(table, plain("ce").index(params["model"], seen)["table"], atol=1e-5)
    with pytest.raises(ValueError, match="compare with all items, which only a refresh encodes"):
        end_to_end(plain(), {"image": pixels()}, refresh=False, centre=True)


def test_items_over_the_bound_are_counted_and_left():
    params, made = started(model())
    batch = training("sasrec")
    named = np.unique(np.concatenate([batch["items"].ravel(), batch["targets"].ravel()]))
    left = lambda bound: float(model(bound=bound).loss(params, made, batch, KEY)[1]["items_left"])  # noqa: E731
    assert left(1024) == 0 and left(len(named)) == 0
    assert left(10) == len(named) - 10
    assert "items_left" in model(bound=None).loss(params, made, batch, KEY)[1]


def test_serving_ranks_by_what_the_encoder_makes_of_every_item():
    recommender = model()
    params, made = started(recommender)
    batch = {"items": np.array([[3, 4, 5]]), "segments": np.ones((1, 3), np.int32),
             "positions": np.arange(3)[None], "query": np.array([2]),
             "users": np.zeros((1, 3), np.int32)}  # fmt: skip
    found = recommender.recommend(params, recommender.index(params, made), batch, 10)
    index = plain().index(params["model"], encoded(params, made))
    wanted = plain().recommend(params["model"], index, batch, 10)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    assert np.all((found[0] > 0) & (found[0] <= N_ITEMS))


@pytest.mark.slow
def test_training_moves_the_encoder_and_the_dispatch_sees_it():
    recommender, chain = model("ce"), optimizer(1e-2)
    params, made = started(recommender)
    batch = training("sasrec")
    state = create(recommender, chain, made, batch)
    stacked = {k: np.stack([v] * 3) for k, v in batch.items()}
    dispatch = jax.jit(make_dispatch(recommender, chain))
    first, metrics = dispatch(state, made, stacked)
    second, later = dispatch(first, made, stacked)
    assert later["loss"][-1] < metrics["loss"][0]
    old, new = (s.params["encoders"]["image"]["kernel"] for s in (state, second))
    assert np.abs(new - old).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("data,over", [(8, 1), (2, 4)])
def test_a_step_over_a_mesh_is_a_step_on_one_device(data, over):
    recommender, chain = model("ce"), optax.sgd(1.0)  # not Adam: it blows up what is zero
    made, batch = recommender.prepare(catalogue()), training("sasrec")

    def stepped(mesh):
        with jax.set_mesh(mesh):
            state = jax.jit(lambda c, b: create(recommender, chain, c, b))(made, batch)
            step = jax.jit(make_step(recommender, chain))
            placed = meshes.shard_batch(batch, mesh)
            return jax.device_get(step(state, made, placed)[0].params)

    one, many = stepped(meshes.make_mesh(1)), stepped(meshes.make_mesh(data, over))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), many, one)


def test_two_models_with_an_encoder_each_make_a_fusion():
    one = model("ce")
    both = fuse(one, build("sasrec", width=8, layers=1, max_len=12))
    made = both.prepare(catalogue())
    params = both.init(KEY, made, training("sasrec"))
    drawn = both.draw(params, made, KEY)
    assert np.abs(drawn["features"]["image"]).max() > 0.1


def test_what_is_missing_is_named():
    known = catalogue()
    with pytest.raises(ValueError, match="needs what the encoder reads"):
        model().prepare({k: v for k, v in known.items() if k != "raw"})
    short = jax.tree.map(lambda x: x[:7], known["raw"])
    with pytest.raises(ValueError, match=r"has \{7\} rows; expected 1024"):
        model().prepare({**known, "raw": short})
    with pytest.raises(ValueError, match="which items have it"):
        model().prepare({**known, "present": {}})
    with pytest.raises(ValueError, match="bound is 0"):
        model(bound=0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A small world of pictures, words and sounds on disk."""
    made = synthetic.world(n_items=60, n_users=80, image_size=16, missing=0.2)
    return api.load_data(synthetic.save(made, tmp_path_factory.mktemp("shop")))


SIZES = {"width": 16, "layers": 1, "heads": 2, "patch": 8, "pixels": 16, "tokens": 6}
SIZES |= {"frames": 24, "bands": 16}
ENCODING = api.Encoding(("image", "text"), **SIZES, bound=256, refresh=8)
FIELDS = {"width": 16, "layers": 1, "max_len": 12, "items": "both"}


@pytest.mark.parametrize("name", ["image", pytest.param("audio", marks=pytest.mark.slow)])
def test_a_run_encodes_its_content_and_its_bundle_serves_alike(shop, tmp_path, name):
    settings = api.Settings(epochs=2, batch=16, rate=1e-2)
    more = {"encoding": replace(ENCODING, modalities=(name,)), **FIELDS}
    fitted, seen = api.fit("sasrec", shop, tmp_path / "run", settings, **more)
    assert fitted.steps % 8 == 0, "the catalogue is encoded every so many steps"
    bundle = api.from_pretrained(tmp_path / "run")
    made, there = (bundle.catalogue[part][name] for part in ("features", "present"))
    assert made.shape[1] == 16 and np.asarray(made)[there].std() > 0.5
    assert api.evaluate(bundle, shop).metrics == pytest.approx(api.evaluate(fitted, seen).metrics)
    assert len(bundle.recommend([shop.dataset.item_ids[3]], k=5)) == 5
    again, _ = api.fit("sasrec", shop, tmp_path / "run", settings, **more)
    assert again.params_sha256 == fitted.params_sha256
    with pytest.raises(ValueError, match="another run: .*encoding is .* there, unset here"):
        api.fit("sasrec", shop, tmp_path / "run", settings, **FIELDS)


def test_half_precision_reads_nearly_the_same_and_keeps_float32_parameters(shop):
    raw = with_raw(shop, ENCODING).catalogue()["raw"]
    made = {}
    for dtype in ("float32", "bfloat16"):
        for name, one in encoders(replace(ENCODING, dtype=dtype), raw).items():
            params = one.init(KEY, raw[name])
            assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
            made[name, dtype] = np.asarray(one.apply(params, raw[name], None))
    for name in ("image", "text"):
        full, half = made[name, "float32"], made[name, "bfloat16"]
        assert half.dtype == np.float32 and 0 < np.abs(full - half).max() < 0.1
    with pytest.raises(ValueError, match="unknown dtype of an encoder 'float8'"):
        encoders(replace(ENCODING, dtype="float8"), raw)


@pytest.mark.slow
def test_a_graft_brings_the_encoders_to_a_run_that_has_them(shop, tmp_path):
    settings = api.Settings(steps=8, batch=16, rate=1e-2)
    first, _ = api.fit("sasrec", shop, tmp_path / "a", settings, encoding=ENCODING, **FIELDS)
    slow = replace(settings, rates=(("encoders", 0.0),))
    more = {"graft": tmp_path / "a", "encoding": ENCODING, **FIELDS}
    second, _ = api.fit("sasrec", shop, None, slow, **more)
    same(first.params["encoders"], second.params["encoders"])
    kernels = [x.params["model"]["items"]["image"]["kernel"] for x in (first, second)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


OF_GRAPHS = {"vbpr": {}, "bm3": {"train_features": False}, "lgmrec": {}, "graphsage": {}}


@pytest.mark.parametrize(
    "name", ["vbpr", *(pytest.param(x, marks=pytest.mark.slow) for x in list(OF_GRAPHS)[1:])]
)
def test_graph_models_without_item_graphs_learn_an_encoder(shop, tmp_path, name):
    settings = api.settings_for(name, steps=16, batch=16, rate=1e-2)
    how = {"encoding": replace(ENCODING, remove_drift=True), **OF_GRAPHS[name]}
    fitted, seen = api.fit(name, shop, tmp_path, settings, **how)
    still, _ = api.fit(name, shop, None, replace(settings, rates=(("encoders", 0.0),)), **how)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
        fitted.params["encoders"],
        still.params["encoders"],
    )
    assert all(max(jax.tree.leaves(moved[m])) > 1e-3 for m in ("image", "text"))
    bundle = api.from_pretrained(tmp_path)
    assert api.evaluate(bundle, shop).metrics == pytest.approx(api.evaluate(fitted, seen).metrics)


def test_models_that_cannot_learn_an_encoder_say_so(shop):
    for name in ("freedom", "mgcn", "em3_public"):
        with pytest.raises(ValueError, match="makes item graphs of its features"):
            api.fit(name, shop, encoding=ENCODING)
    with pytest.raises(ValueError, match="learns a copy of its features"):
        api.fit("bm3", shop, encoding=ENCODING)
    with pytest.raises(ValueError, match="reads no content here"):
        api.fit("sasrec", shop, encoding=ENCODING, items="id")
    with pytest.raises(ValueError, match="raw content of 'smell'"):
        api.fit("sasrec", shop, encoding=replace(ENCODING, modalities=("smell",)), items="both")


def test_without_a_refresh_every_item_that_is_asked_must_be_encoded(shop):
    never = replace(ENCODING, refresh=0)
    with pytest.raises(ValueError, match="take --model.objective in-batch"):
        api.fit("sasrec", shop, encoding=never, **FIELDS)
    few = end_to_end(plain(), {"image": pixels()}, 8, refresh=False)
    params, made = started(few)
    with pytest.raises(ValueError, match="and 8 are encoded: without a refresh"):
        few.loss(params, made, training("sasrec"), KEY)


def test_above_the_bound_chance_says_which_items_are_left():
    named = jnp.array([3, 5, 5, 900, 1000, 3, 77])
    draw = jax.jit(lambda key: _distinct(key, named, 2, 1024))
    kept = [draw(jax.random.key(i)) for i in range(60)]
    assert {int(left) for _, left in kept} == {3}
    seen = np.concatenate([ids for ids, _ in kept])
    assert set(seen.tolist()) == {3, 5, 77, 900, 1000}
    ids, left = _distinct(KEY, named, 7, 1024)
    assert sorted(ids.tolist()) == [3, 5, 77, 900, 1000, 1024, 1024] and left == 0


def test_what_a_fit_returns_is_fit_for_another(shop):
    seen = with_raw(shop, ENCODING)
    assert seen.dataset.features["text"].shape[1] == 0
    assert as_loaded(seen).dataset is shop.dataset
    twice = with_raw(with_raw(shop, ENCODING), replace(ENCODING, modalities=("text",)))
    assert as_loaded(twice).dataset is shop.dataset and not as_loaded(twice).raw


def test_codes_are_of_the_content_also_where_the_model_encodes_it(tmp_path, monkeypatch):
    """The run stops where it would begin to train."""
    made = synthetic.world(n_items=300, n_users=60, image_size=8)
    shop, found = api.load_data(synthetic.save(made, tmp_path)), []

    def stop(model, split, catalogue, *rest, **fields):
        found.append(catalogue["codes"])
        raise StopIteration

    monkeypatch.setattr(api, "fit_split", stop)
    for encoding in (None, replace(ENCODING, modalities=("text",))):
        with pytest.raises(StopIteration):
            api.fit("liger", shop, encoding=encoding)
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_other_features_make_another_run(shop):
    rng, rows = np.random.default_rng(0), shop.dataset.n_items + 1
    there = {"image": np.arange(rows) > 0}
    told = []
    for _ in range(2):
        own = {"image": rng.normal(size=(rows, 3)).astype(np.float32)}
        dataset = replace(shop.dataset, features=own, present=there)
        told.append(api._about(replace(shop, dataset=dataset), {}, "content")["read"])
        assert api._about(replace(shop, dataset=dataset), {}, "id") == {}
    assert told[0]["features"] != told[1]["features"]
    computed = api.prepare(shop, "content")
    assert computed.dataset.features
    assert set(api._about(computed, {}, "content")["read"]) == {"content"}, "not the features"


def test_a_side_network_starts_as_a_gated_mean_of_layers_and_reads_one_vector_a_layer():
    made = side_encoder((3, 8), 5)
    raw = jax.random.normal(KEY, (4, 3, 8))
    params = made.init(KEY, raw)
    assert made.apply(params, raw, None).shape == (4, 5)
    normed = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    total = np.zeros((4, 8))
    for i in range(3):  # gates are a half at the start, and what is added to a layer is zero
        total = 0.5 * normed[:, i] + 0.5 * total
    out = total @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])[None]
    out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(made.apply(params, raw, None), out, rtol=1e-4, atol=1e-5)
    grads = jax.grad(lambda p: jnp.sum(made.apply(p, raw, None)[:, 0]))(params)
    assert all(np.abs(grads[f"up_{i}"]["kernel"]).max() > 0 for i in range(3))
    with pytest.raises(ValueError, match="zoo embed --pooling layers"):
        side_encoder((8,), 5)


ADDED = (
    "lora:2:encoders/.*(query|value)/kernel$",
    "adapter:2:^encoders_.*/(attention|ffn)$",
    "prompt:2:^encoders_text/stack$",
)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["encoders", *(f"encoders+{added}" for added in ADDED)])
def test_an_adapted_encoder_keeps_what_is_frozen_and_serves(shop, tmp_path, how):
    settings = api.Settings(steps=8, batch=16, rate=1e-2)
    first, _ = api.fit("sasrec", shop, tmp_path / "a", settings, encoding=ENCODING, **FIELDS)
    again = replace(ENCODING, remat=True)  # computes the additions a second time
    more = {"graft": tmp_path / "a", "encoding": again, "adapt": how, **FIELDS}
    second, seen = api.fit("sasrec", shop, tmp_path / "b", settings, **more)
    jax.tree.map(np.testing.assert_array_equal, first.params["encoders"], second.params["encoders"])
    added = {"lora", "adapter", "prompt"} & set(second.params)
    assert added == {name for name in ("lora", "adapter", "prompt") if name in how}
    bundle = api.from_pretrained(tmp_path / "b")
    assert api.evaluate(bundle, shop).metrics == pytest.approx(api.evaluate(second, seen).metrics)
    index = jax.jit(second.recommender.index)
    for name in added:  # what was added reaches the vectors of items
        gone = {**second.params, name: jax.tree.map(jnp.zeros_like, second.params[name])}
        with_it, without = (index(p, second.catalogue) for p in (second.params, gone))
        far = jax.tree.map(
            lambda a, b: np.abs(np.subtract(a, b, dtype=float)).max(), with_it, without
        )
        assert max(jax.tree.leaves(far)) > 1e-4
