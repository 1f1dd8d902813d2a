"""UniSRec and MP4SR: the promises of a recommender at every stage, and what their stages mean."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.loader import requests
from pipelines.schema import Ragged
from pipelines.transforms import pack
from zoo import mesh as meshes
from zoo.models import build
from zoo.models.unisrec import TRAINABLE

N_ITEMS, N_USERS, ROWS, LENGTH = 60, 8, 128, 8
SMALL = {"width": 8, "layers": 1, "max_len": LENGTH, "dropout": 0.0, "adaptor_dropout": 0.0}
SMALL |= {"drop_rate": 0.0, "experts": 3}
STILL = {"unisrec": {}, "mp4sr": {"mix_rate": 0.0}}  # no draws but the noise of gates
CASES = [("unisrec", stage) for stage in TRAINABLE]
CASES += [("mp4sr", "pretrain"), ("mp4sr", "finetune")]
by_case = pytest.mark.parametrize("name,stage", CASES)
by_loss = pytest.mark.parametrize(
    "name,stage",
    [
        ("unisrec", "pretrain"),
        ("unisrec", "transductive"),
        ("mp4sr", "pretrain"),
        ("mp4sr", "finetune"),
    ],
)
by_service = pytest.mark.parametrize("name,stage", [CASES[2], CASES[4]])  # with an ID, without
BOTH = ("text", "image")


@cache
def world() -> tuple[dict, dict, Ragged]:
    """Catalogue, training batch of 24 rows of packed prefixes, the last ones empty, histories."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(N_ITEMS - 10)[: rng.integers(2, 5)] + 1 for _ in range(N_USERS)]
    histories = Ragged.of([[], *rows])
    valid = (np.arange(ROWS) > 0) & (np.arange(ROWS) <= N_ITEMS)
    catalogue = {
        "valid": valid,
        "popularity": np.bincount(histories.values, minlength=ROWS).astype(np.float32),
        "features": {
            "image": rng.normal(size=(ROWS, 6)).astype(np.float32),
            "text": rng.normal(size=(ROWS, 5)).astype(np.float32),
        },
        "present": {m: valid & (rng.random(ROWS) < 0.8) for m in BOTH},
    }
    packed = pack(histories, LENGTH, scheme="last")
    batch = {k: np.pad(v, ((0, 24 - len(v)), (0, 0))) for k, v in packed.items()}
    return catalogue, batch, histories


@cache
def made(name: str, stage: str, **fields):
    """(recommender, params) of a small model; parameters are drawn here, gates open."""
    recommender = build(name, **{**SMALL, **STILL[name], **fields}, stage=stage)
    return recommender, drawn(recommender, world()[0])


def drawn(recommender, catalogue) -> dict:
    """Random parameters: to compile each `init` would take most of this file's time."""
    shapes = jax.eval_shape(recommender.init, jax.random.key(0), catalogue, world()[1])
    rng = np.random.default_rng(1)

    def one(path, x):
        mean = 1.0 if path[-1].key in ("scale", "norm_scale") else 0.0
        return jnp.asarray(rng.normal(mean, 0.3, x.shape), x.dtype)

    return jax.tree_util.tree_map_with_path(one, shapes)


@cache
def compiled(name: str, stage: str, **fields):
    """(params, catalogue, batch, key) -> ((loss, metrics), grads)."""
    recommender, _ = made(name, stage, **fields)
    return jit(jax.value_and_grad(recommender.loss, has_aux=True))


def jit(function):
    """Compiled quickly rather than to run quickly: these are tiny."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def asked() -> dict[str, np.ndarray]:
    users = np.arange(1, 9, dtype=np.int32)
    return requests(world()[2].take(users), users, LENGTH, LENGTH)


def without(modality: str, noise: float = 0.0) -> dict:
    """The catalogue with a modality that no item has, whose features are noise."""
    catalogue = world()[0]
    present = {**catalogue["present"], modality: catalogue["valid"] & False}
    features = {**catalogue["features"], modality: catalogue["features"][modality] + noise}
    return {**catalogue, "present": present, "features": features}


@by_case
def test_full_size_shapes_and_hand_given_names(name, stage):
    recommender = build(name, stage=stage)
    catalogue, batch, _ = world()
    big = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1 << 20, *x.shape[1:]), x.dtype), catalogue)
    shapes = jax.eval_shape(recommender.init, jax.random.key(0), big, batch)
    names = [meshes.path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    assert all(n.islower() for n in names), "a name that Flax made up"
    has_id = stage in ("transductive", "scratch", "finetune")
    assert ("items/id/table" in names) == has_id


@by_loss
def test_loss_and_gradients_are_finite_and_reach_everything(name, stage):
    catalogue, batch, _ = world()
    params = made(name, stage)[1]
    (loss, _), grads = compiled(name, stage)(params, catalogue, batch, jax.random.key(1))
    assert np.isfinite(loss) and loss > 0
    for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
        parameter = meshes.path_name(path)
        assert np.isfinite(g).all(), parameter
        # A key's bias shifts all logits of a softmax alike: its gradient is 0 but for rounding.
        assert np.abs(g).max() > 0 or parameter.endswith("key/bias"), parameter


def test_mp4sr_as_published_pretrains_beside_filling_and_missing_modalities():
    """Empty rows of the batch, and histories without an image, have states of zeros. Not compiled:
    XLA may make a select of a product with a mask, which hides a NaN x 0."""
    catalogue, batch, _ = world()
    assert (batch["targets"] == 0).any(), "there is filling"
    recommender, params = made("mp4sr", "pretrain", official=True)
    step = jax.value_and_grad(recommender.loss, has_aux=True)
    for known in (catalogue, without("image")):
        (loss, metrics), grads = step(params, known, batch, jax.random.key(1))
        assert np.isfinite(loss) and loss > 0 and np.isfinite(metrics["cmcl"])
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def measured(name: str, **fields) -> tuple[float, dict]:
    """Loss and metrics of pretraining."""
    params = made(name, "pretrain", **fields)[1]
    step = compiled(name, "pretrain", **fields)
    (loss, metrics), _ = step(params, *world()[:2], jax.random.key(1))
    return float(loss), {k: float(x) for k, x in metrics.items()}


def test_pretraining_sums_its_losses_and_augments():
    loss, own = measured("unisrec", contrast=0.3)
    np.testing.assert_allclose(loss, own["seq_item"] + 0.3 * own["seq_seq"], rtol=1e-6)
    _, dropped = measured("unisrec", contrast=0.3, drop_rate=0.9)
    assert dropped["seq_item"] == own["seq_item"], "one view is the history as it is"
    assert abs(dropped["seq_seq"] - own["seq_seq"]) > 1e-3
    loss, own = measured("mp4sr", contrast=0.3)
    np.testing.assert_allclose(loss, own["nip"] + 0.3 * own["cmcl"], rtol=1e-6)
    for augmented in ({"drop_rate": 0.9}, {"mix_rate": 0.9}):
        _, other = measured("mp4sr", contrast=0.3, **augmented)
        assert all(abs(other[k] - own[k]) > 1e-3 for k in ("nip", "cmcl")), augmented


def test_mp4sr_compares_the_states_of_the_text_with_the_others():
    usual, first, last = (
        measured("mp4sr", **fields)[1]["cmcl"]
        for fields in ({}, {"modalities": BOTH}, {"modalities": BOTH[::-1]})
    )
    assert usual == first and abs(first - last) > 1e-4


@by_loss
def test_packing_and_padding_change_nothing(name, stage):
    """Several segments a row and one segment a row, in one trace: the same loss."""
    catalogue, batch, _ = world()
    params = quiet(made(name, stage)[1])
    alone = {k: np.zeros_like(v) for k, v in batch.items()}
    pairs = np.argwhere(batch["targets"])
    assert len(np.unique(pairs[:, 0])) < len(pairs) <= 24
    for row, (r, s) in enumerate(pairs):
        own = np.flatnonzero(batch["segments"][r] == batch["segments"][r, batch["ends"][r, s]])
        for k in ("items", "segments", "positions", "users"):
            alone[k][row, 1 : 1 + len(own)] = batch[k][r, own]
        alone["ends"][row, 0], alone["targets"][row, 0] = len(own), batch["targets"][r, s]
    step = compiled(name, stage)
    values = [step(params, catalogue, b, jax.random.key(0))[0][0] for b in (batch, alone)]
    np.testing.assert_allclose(*values, rtol=2e-5)
    assert step._cache_size() == 1


def quiet(params: dict) -> dict:
    """Experts that are all alike: then it does not matter which column the noise falls on."""

    def one(path, x):
        alike = (
            path[0].key == "items" and path[-1].key in ("kernel", "bias") and "experts" in str(path)
        )
        return jnp.broadcast_to(x[:1], x.shape) if alike else x

    return jax.tree_util.tree_map_with_path(one, params)


@by_service
def test_the_future_changes_nothing(name, stage):
    recommender, params = made(name, stage)
    index, batch = jit(recommender.index)(params, world()[0]), asked()
    batch["query"] = np.minimum(batch["query"], 1)
    later = np.arange(LENGTH)[None, :] > batch["query"][:, None]
    other = {**batch, "items": np.where(later, N_ITEMS - batch["items"], batch["items"])}
    encode = jit(recommender.encode)
    np.testing.assert_allclose(*(encode(params, index, b) for b in (batch, other)), atol=1e-6)


@by_loss
def test_sharded_equals_one_device(name, stage):
    """Also where a batch is contrasted with itself, and the noise of the gates is the same."""
    catalogue, batch, _ = world()
    recommender, params = made(name, stage)
    (loss, _), grads = compiled(name, stage)(params, catalogue, batch, jax.random.key(2))
    mesh = meshes.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, meshes.shardings(params, mesh))
        rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "model")))
        what = placed, jax.device_put(catalogue, rows), meshes.shard_batch(batch, mesh)
        step = jit(jax.value_and_grad(recommender.loss, has_aux=True))
        (loss_s, _), grads_s = step(*what, jax.random.key(2))
    np.testing.assert_allclose(loss_s, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads_s, grads)


@by_loss
def test_bfloat16_runs(name, stage):
    catalogue, batch, _ = world()
    params, key = made(name, stage)[1], jax.random.key(0)
    (plain, _), _ = compiled(name, stage)(params, catalogue, batch, key)
    (loss, _), grads = compiled(name, stage, dtype="bfloat16")(params, catalogue, batch, key)
    assert loss.dtype == jnp.float32 and loss != plain
    np.testing.assert_allclose(loss, plain, rtol=2e-2)
    assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in jax.tree.leaves(grads))


@by_case
def test_of_a_long_history_the_newest_events_are_read(name, stage):
    recommender, params = made(name, stage)
    index, encode = jit(recommender.index)(params, world()[0]), jit(recommender.encode)
    rows = np.random.default_rng(3).integers(1, N_ITEMS, (4, LENGTH + 3))
    users = np.arange(1, 5, dtype=np.int32)
    ask = lambda rows, length=LENGTH: requests(Ragged.of(list(rows)), users, length)  # noqa: E731
    long, newest = (encode(params, index, ask(r)) for r in (rows, rows[:, 3:]))
    np.testing.assert_array_equal(long, newest)
    assert np.abs(long - encode(params, index, ask(rows[:, :LENGTH]))).max() > 1e-3
    with pytest.raises(ValueError, match="for a model of 8 positions: cut them"):
        recommender.encode(params, index, ask(rows, LENGTH + 3))


@by_case
def test_reading_one_event_at_a_time_gives_the_same_query(name, stage):
    """Also where nothing in the history so far has a modality, and where it comes later."""
    recommender, params = made(name, stage)
    catalogue, batch = world()[0], asked()
    first = np.unique(batch["items"][:, 0])
    image = catalogue["present"]["image"].copy()
    image[first] = False
    catalogue = {**catalogue, "present": {**catalogue["present"], "image": image}}
    if stage == "finetune":  # else an ID is heard in every stream
        catalogue["popularity"] = np.where(image, catalogue["popularity"], 0)
    index, encode = jit(recommender.index)(params, catalogue), jit(recommender.encode)
    extend, memory = jit(recommender.incremental.extend), recommender.incremental.begin(index, 8)
    silent = 0
    for n in range(4):
        query, memory = extend(params, index, memory, batch["items"][:, n])
        whole = encode(params, index, {**batch, "query": np.full(8, n, np.int32)})
        reached = batch["query"] >= n
        np.testing.assert_allclose(query[reached], whole[reached], atol=1e-5)
        silent += int(np.sum(~np.any(np.asarray(query).reshape(8, -1, 8), axis=2)))
    assert reached.any() and (silent > 0) == (name == "mp4sr")


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("stage", ["pretrain", "transductive"])
def test_unisrec_masks_what_is_missing(stage, combine):
    recommender, params = made("unisrec", stage, combine=combine)
    index = jit(recommender.index)
    a, b = (index(params, without("image", noise))["table"] for noise in (0.0, 1e3))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - index(params, world()[0])["table"]).max() > 1e-3
    gone = np.flatnonzero(~world()[0]["present"]["text"])  # neither text nor, here, an image
    if stage == "pretrain":
        np.testing.assert_array_equal(a[gone], 0)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_mp4sr_masks_what_is_missing(stage):
    recommender, params = made("mp4sr", stage)
    index = jit(recommender.index)
    a, b = (index(params, without("image", noise))["table"] for noise in (0.0, 1e3))
    np.testing.assert_array_equal(a, b)
    cold = world()[0]["popularity"] == 0
    images = np.asarray(a)[:, 8:]  # text comes first
    np.testing.assert_array_equal(images if stage == "pretrain" else images[cold], 0)


@by_service
def test_recommend_agrees_with_score(name, stage):
    recommender, params = made(name, stage)
    index, batch = jit(recommender.index)(params, world()[0]), asked()
    got, scores = jit(lambda *x: recommender.recommend(*x, 7))(params, index, batch)
    everything = np.broadcast_to(np.arange(1, N_ITEMS + 1, dtype=np.int32), (8, N_ITEMS))
    full = np.array(jit(recommender.score)(params, index, batch, everything))
    for row in range(8):
        full[row, batch["exclude"][row][batch["exclude"][row] > 0] - 1] = -np.inf
    np.testing.assert_allclose(np.sort(full, axis=1)[:, :-8:-1], scores, atol=1e-5)
    chosen = np.take_along_axis(full, np.asarray(got) - 1, axis=1)
    np.testing.assert_allclose(chosen, scores, atol=1e-5)


def test_mp4sr_scores_are_sums_of_cosines():
    recommender, params = made("mp4sr", "finetune")
    index, batch = jit(recommender.index)(params, world()[0]), asked()
    query = np.asarray(jit(recommender.encode)(params, index, batch)).reshape(8, 2, -1)
    np.testing.assert_allclose(np.linalg.norm(query, axis=2), 1 / 0.07, rtol=1e-5)
    inputs = np.asarray(index["inputs"])
    unit = inputs / np.maximum(np.linalg.norm(inputs, axis=2, keepdims=True), 1e-12)
    expected = np.einsum("bmd,nmd->bn", query, unit)[:, 1 : N_ITEMS + 1]
    items = np.broadcast_to(np.arange(1, N_ITEMS + 1, dtype=np.int32), (8, N_ITEMS))
    got = recommender.match(params, index, query.reshape(8, -1), items)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("names", [("text",), ("text", "image", "sound")])
def test_mp4sr_takes_any_number_of_modalities(names):
    catalogue = world()[0]
    more = {"features": {"sound": catalogue["features"]["text"][::-1].copy()}}
    more["present"] = {"sound": catalogue["valid"]}
    catalogue = {**catalogue, **{k: {**catalogue[k], **more[k]} for k in more}}
    recommender = build("mp4sr", **SMALL, stage="pretrain", modalities=names)
    params = drawn(recommender, catalogue)
    shapes = jax.eval_shape(recommender.loss, params, catalogue, world()[1], jax.random.key(1))
    assert ("cmcl" in shapes[1]) == (len(names) > 1)
    table = jit(recommender.index)(params, catalogue)["table"]
    assert table.shape == (ROWS, 8 * len(names))
    squares = np.sum(np.square(table), axis=1)
    there = [catalogue["present"][m] for m in names]
    np.testing.assert_allclose(squares, np.sum(there, axis=0), atol=1e-5)


def test_items_of_several_rows_need_a_mask_of_them():
    catalogue = world()[0]
    features = {**catalogue["features"], "text": np.ones((ROWS, 3, 5), np.float32)}
    many = {**catalogue, "features": features, "rows": {"text": np.ones((ROWS, 3), bool)}}
    recommender, _ = made("mp4sr", "pretrain")
    params = drawn(recommender, many)
    assert set(params["items"]["text"]) == {"pool", "experts"}
    assert set(params["items"]["image"]) == {"experts"}
    assert recommender.index(params, many)["table"].shape == (ROWS, 16)
    with pytest.raises(ValueError, match="no mask for them"):
        recommender.index(params, {**many, "rows": {}})


@pytest.mark.parametrize("stage", TRAINABLE)
def test_unisrec_says_what_each_stage_trains(stage):
    _, params = made("unisrec", stage)
    names = [meshes.path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    trained = {n for n in names if any(re.search(p, n) for p in TRAINABLE[stage])}
    expected = set(names)
    if stage in ("inductive", "transductive"):
        expected = {n for n in names if n.startswith("items/")}
    assert trained == expected and trained


@pytest.mark.parametrize(
    "name,after",
    [("unisrec", "inductive"), ("unisrec", "transductive"), ("mp4sr", "finetune")],
)
def test_finetuning_has_the_names_of_pretraining_and_at_most_an_id(name, after):
    a, b = (made(name, stage)[1] for stage in ("pretrain", after))
    fresh = {k: v for k, v in b["items"].items() if k not in a["items"]}
    assert list(fresh) == ([] if after == "inductive" else ["id"])
    rest = {**b, "items": {k: b["items"][k] for k in a["items"]}}
    assert jax.tree.map(jnp.shape, rest) == jax.tree.map(jnp.shape, a)


@by_loss
def test_each_loss_falls(name, stage):
    """Twenty steps along the normalised gradient, on one batch."""
    catalogue, batch, _ = world()
    params, step = made(name, stage)[1], compiled(name, stage)
    values = []
    for _ in range(20):
        (loss, _), grads = step(params, catalogue, batch, jax.random.key(0))
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
        params = jax.tree.map(
            lambda p, g, n=norm: np.asarray(p) - 0.3 * np.asarray(g) / n, params, grads
        )
        values.append(float(loss))
    assert values[-1] < 0.7 * values[0], values


def test_codes_stand_for_content():
    """VQ-Rec's item: the mean of one embedding a digit, each level with a book of its own."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (ROWS, 3)).astype(np.int32)
    codes[7] = -1
    coded = {**world()[0], "codes": codes}
    fields = {**SMALL, "item_input": "codes", "codebook": 4}
    recommender = build("unisrec", **fields, stage="inductive")
    params = drawn(recommender, coded)
    assert set(params["items"]) == {"codes"}
    books = np.asarray(params["items"]["codes"]["table"]).reshape(3, 4, 8)
    table = np.asarray(jit(recommender.index)(params, coded)["table"])
    np.testing.assert_allclose(
        table[5], np.mean([books[c, codes[5, c]] for c in range(3)], axis=0), atol=1e-6
    )
    np.testing.assert_array_equal(table[[0, 7, ROWS - 1]], 0)
    with_id = build("unisrec", **fields, stage="transductive")
    assert set(drawn(with_id, coded)["items"]) == {"codes", "id"}
    pretrain = build("unisrec", **fields, stage="pretrain")
    assert (
        jax.eval_shape(pretrain.loss, params, coded, world()[1], jax.random.key(0))[0].shape == ()
    )
    with pytest.raises(ValueError, match=r"read catalogue\['codes'\]"):
        drawn(recommender, world()[0])


def test_codes_are_an_item_of_sasrec():
    """The sum of one embedding a digit, in the trunk that reads IDs or content otherwise."""
    codes = np.random.default_rng(0).integers(0, 4, (ROWS, 3)).astype(np.int32)
    known = {k: v for k, v in world()[0].items() if k != "codes"}
    recommender = build("sasrec", width=8, layers=1, max_len=16, items="codes", codebook=4)
    coded = recommender.prepare({**known, "codes": {"ids": codes}, "sizes": {"ids": (4,) * 3}}, 1)
    params = drawn(recommender, coded)
    assert set(params["items"]) == {"codes"}
    books = np.asarray(params["items"]["codes"]["table"]).reshape(3, 4, 8)
    table = np.asarray(jit(recommender.index)(params, coded)["table"])
    want = np.sum([books[c, codes[5, c]] for c in range(3)], axis=0)
    np.testing.assert_allclose(table[5], want, atol=1e-6)
    assert np.isfinite(recommender.loss(params, coded, world()[1], jax.random.key(0))[0])
    with pytest.raises(ValueError, match="take --model.codebook 4"):
        build("sasrec", items="codes", codebook=3).prepare(
            {**known, "codes": {"ids": codes}, "sizes": {"ids": (4,) * 3}}, 1
        )


def test_wrong_fields_are_named():
    with pytest.raises(ValueError, match="unknown stage 'finetune'; .*known: pretrain"):
        build("unisrec", stage="finetune")
    with pytest.raises(ValueError, match="unknown combine 'mean'"):
        build("unisrec", combine="mean")
    with pytest.raises(ValueError, match="unknown item_input 'pixels'"):
        build("unisrec", item_input="pixels")
    with pytest.raises(ValueError, match="stage is 'scratch'"):
        build("mp4sr", stage="scratch")
    recommender = build("unisrec", modalities=("sound",))
    with pytest.raises(ValueError, match=r"the catalogue has \['image', 'text'\]"):
        recommender.init(jax.random.key(0), *world()[:2])
