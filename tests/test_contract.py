"""One suite over everything registered: what a recommender of this zoo promises."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.loader import requests
from pipelines.schema import Ragged
from pipelines.transforms import pack
from zoo import mesh as meshes
from zoo.layers import Stack, Trunk
from zoo.models import MODELS, build
from zoo.models.sequential import sequential
from zoo.objectives import Objective
from zoo.optim import optimizer
from zoo.train import create, make_step

N_ITEMS, N_USERS, ROWS, LENGTH = 90, 30, 1024, 12
SMALL = {"width": 16, "layers": 1, "max_len": LENGTH, "dropout": 0.0, "modality_dropout": 0.0}
PRETRAINED = ("unisrec", "mp4sr")  # no ID of their own: test_pretrained_models.py
LEARNED = [n for n, e in MODELS.items() if e.family in ("sequential", "two-tower")]
LEARNED = [name for name in LEARNED if name not in PRETRAINED]
# What feeds the items is the same module for all of them: two models try each way.
CASES = [(name, items) for name in ("sasrec", "two_tower") for items in ("id", "content", "both")]
CASES += [(name, "both") for name in LEARNED if name not in ("sasrec", "two_tower")]
by_case = pytest.mark.parametrize("name,items", CASES)
by_name = pytest.mark.parametrize("name", LEARNED)


@cache
def world(rows: int = ROWS) -> tuple[dict, Ragged]:
    """Catalogue and histories with times."""
    rng = np.random.default_rng(0)
    rows_of = [rng.permutation(N_ITEMS - 10)[: rng.integers(3, 10)] + 1 for _ in range(N_USERS)]
    histories = Ragged.of([[], *rows_of])
    histories = replace(histories, times=np.cumsum(rng.integers(1, 9**6, len(histories.values))))
    valid = (np.arange(rows) > 0) & (np.arange(rows) <= N_ITEMS)
    catalogue = {
        "valid": valid,
        "popularity": np.bincount(histories.values, minlength=rows).astype(np.float32),
        "features": {
            "image": rng.normal(size=(rows, 6)).astype(np.float32),
            "text": rng.normal(size=(rows, 5)).astype(np.float32),
        },
        "present": {m: valid & (rng.random(rows) < 0.8) for m in ("image", "text")},
        "users": np.ones(128, np.float32),
    }
    return catalogue, histories


@cache
def training(name: str) -> dict[str, np.ndarray]:
    """A batch of 8 packed rows, as the model is trained on."""
    rows = pack(world()[1], LENGTH, scheme=MODELS[name].targets)
    return {k: v[:8] for k, v in rows.items()}


@cache
def made(name: str, items: str = "both", **fields):
    """(recommender, params) of a small model."""
    recommender = build(name, **{**SMALL, **fields}, items=items)
    return recommender, jax.jit(recommender.init)(jax.random.key(0), world()[0], training(name))


def asked(rows=slice(1, 9)) -> dict[str, np.ndarray]:
    histories = world()[1].take(np.arange(1, N_USERS + 1)[rows])
    users = np.arange(1, N_USERS + 1, dtype=np.int32)[rows]
    return requests(histories, users, LENGTH, LENGTH)


@by_case
def test_full_size_shapes_and_hand_given_names(name, items):
    recommender = build(name, items=items)
    catalogue, batch = world()[0], training(name)
    big = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1 << 20, *x.shape[1:]), x.dtype), catalogue)
    shapes = jax.eval_shape(recommender.init, jax.random.key(0), big, batch)
    for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        assert meshes.path_name(path).islower(), (
            f"{meshes.path_name(path)}: a name that Flax made up"
        )


@by_case
def test_loss_gradients_and_jit(name, items):
    recommender, params = made(name, items)
    catalogue, batch = world()[0], training(name)
    key = jax.random.key(1)
    catalogue = jax.tree.map(jnp.asarray, catalogue)
    batch = jax.tree.map(jnp.asarray, batch)
    eager, _ = recommender.loss(params, catalogue, batch, key)
    grad = jax.jit(jax.value_and_grad(recommender.loss, has_aux=True))
    (loss, _), grads = grad(params, catalogue, batch, key)
    np.testing.assert_allclose(loss, eager, rtol=1e-5)
    for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.isfinite(g).all(), meshes.path_name(path)
        assert np.abs(g).max() > 0 or meshes.path_name(path).endswith("key/bias"), meshes.path_name(
            path
        )


@by_name
def test_one_trace(name):
    recommender, params = made(name)
    catalogue, batch = world()[0], training(name)
    traces = []

    def loss(params, catalogue, batch, key):
        traces.append(1)
        return recommender.loss(params, catalogue, batch, key)[0]

    step = jax.jit(loss)
    for seed in range(3):
        rolled = {k: np.roll(v, seed, axis=0) for k, v in batch.items()}
        step(params, catalogue, rolled, jax.random.key(seed))
    assert len(traces) == 1


def unpacked(batch: dict, width: int) -> dict[str, np.ndarray]:
    """Every segment in a row of its own, with more padding behind it."""
    found = [(r, s) for r, row in enumerate(batch["segments"]) for s in np.unique(row[row > 0])]
    per_row = ("ends", "targets") if "ends" in batch else ()
    out = {k: np.zeros((len(found), 1 if k in per_row else width), np.int32) for k in batch}
    for i, (r, s) in enumerate(found):
        at = np.flatnonzero(batch["segments"][r] == s)
        for k in out.keys() - per_row:
            out[k][i, : len(at)] = batch[k][r, at]
        if per_row:
            out["ends"][i], out["targets"][i] = len(at) - 1, batch["targets"][r, s - 1]
    out["segments"] = (out["segments"] > 0).astype(np.int32)
    return out


OFFICIAL = {"official": True}  # padding as published: in the model, whatever stands in the row
CERTAIN = {"bert4rec": {"last": 1.0}, "hstu": {"embedding_dropout": 0.0}}  # no chance in the loss


FROM_THE_NEWEST = [("sasrec", {"align": "right"}), ("hstu", {"align": "right"})]


@pytest.mark.parametrize(
    "name,fields", [*((n, {}) for n in LEARNED), ("bsarec", OFFICIAL), *FROM_THE_NEWEST]
)
def test_packing_and_padding_change_nothing(name, fields):
    recommender, params = made(name, objective="ce", **CERTAIN.get(name, {}), **fields)
    together = training(name)
    alone = unpacked(together, LENGTH + 3)
    if name == "two_tower":  # users by row number, the same in both
        together, alone = ({**b, "users": np.zeros_like(b["users"])} for b in (together, alone))
    values = [
        jax.jit(recommender.loss)(params, world()[0], b, jax.random.key(0))[0]
        for b in (together, alone)
    ]
    np.testing.assert_allclose(*values, rtol=2e-5)


@by_case
def test_the_future_changes_nothing(name, items):
    recommender, params = made(name, items)
    index = recommender.index(params, world()[0])
    batch = asked()
    batch["query"] = np.minimum(batch["query"], 1)
    later = np.arange(LENGTH)[None, :] > batch["query"][:, None]
    other = {**batch, "items": np.where(later, N_ITEMS - batch["items"], batch["items"])}
    a, b = (recommender.encode(params, index, x) for x in (batch, other))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


@by_name
def test_of_a_long_history_the_newest_events_are_read(name):
    """requests cut a history to its newest events, whose clock starts anew; a batch that was not
    cut is refused by what has positions."""
    recommender, params = made(name)
    index, encode = recommender.index(params, world()[0]), jax.jit(recommender.encode)
    rng = np.random.default_rng(4)
    rows = np.stack([rng.permutation(N_ITEMS)[: LENGTH + 3] + 1 for _ in range(4)])
    clock = np.cumsum(rng.integers(1, 9**6, rows.shape), axis=1)

    def ask(kept, length=LENGTH):
        histories = replace(Ragged.of(list(rows[:, kept])), times=clock[:, kept].reshape(-1))
        return requests(histories, np.arange(1, 5, dtype=np.int32), length)

    long, newest, oldest = (
        encode(params, index, ask(kept)) for kept in (slice(None), slice(3, None), slice(LENGTH))
    )
    np.testing.assert_array_equal(long, newest)
    assert np.abs(long - oldest).max() > 1e-4
    if name != "two_tower":  # a set has no positions
        with pytest.raises(ValueError, match="for a model of .* positions: cut them"):
            recommender.encode(params, index, ask(slice(None), LENGTH + 3))


@by_name
def test_missing_modality_is_masked(name):
    recommender, params = made(name)
    catalogue = world()[0]
    silent = {**catalogue, "present": {m: p & False for m, p in catalogue["present"].items()}}
    noisy = {**silent, "features": {m: x + 1e3 for m, x in catalogue["features"].items()}}
    a, b = (recommender.index(params, c)["table"] for c in (silent, noisy))
    np.testing.assert_array_equal(a, b)


GROWING = [("sasrec", {"layers": 2}), ("esasrec", {})]
GROWING += [("hstu", {"time_bias": bias, "layers": 2}) for bias in ("none", "self")]


@pytest.mark.parametrize("name,fields", GROWING)
def test_reading_one_event_at_a_time_gives_the_same_query(name, fields):
    recommender, params = made(name, **fields)
    index, batch = recommender.index(params, world()[0]), asked()
    extend = jax.jit(recommender.incremental.extend)
    memory = recommender.incremental.begin(index, 8)
    encode = jax.jit(recommender.encode)
    for n in range(4):
        query, memory = extend(params, index, memory, batch["items"][:, n], batch["times"][:, n])
        whole = encode(params, index, {**batch, "query": np.full(8, n, np.int32)})
        reached = batch["query"] >= n
        np.testing.assert_allclose(query[reached], whole[reached], atol=1e-5)
    assert reached.any()


@pytest.mark.parametrize("objective,roles", [("bce", 3), ("mixed", 3), ("in-batch", 2), ("ce", 1)])
def test_history_targets_and_negatives_draw_dropout_of_their_own(objective, roles):
    """With one key an item's ID would be hidden exactly where its target's is."""
    keys = []

    class Rows:
        width = 8

        def init(self, key, catalogue, ids):
            return {"params": {}}

        def apply(self, params, catalogue, ids=None, train=False, rngs=None):
            keys.append(tuple(jax.random.key_data(rngs["dropout"]).tolist()))
            shape = catalogue["valid"].shape if ids is None else ids.shape
            return jnp.ones((*shape, self.width))

    catalogue, batch = world()[0], training("sasrec")
    trunk = Trunk(LENGTH, stack=Stack(layers=0))
    model = sequential(Rows(), trunk, Objective(objective, negatives=4))
    params = model.init(jax.random.key(0), catalogue, batch)
    model.loss(params, catalogue, batch, jax.random.key(1))
    assert len(keys) == len(set(keys)) == roles


def test_models_whose_past_changes_are_not_incremental():
    for name in ("bert4rec", "bsarec"):
        assert build(name).incremental is None
    recommender, params = made("hstu")  # its batches have times
    index = recommender.index(params, world()[0])
    with pytest.raises(ValueError, match="encoded again"):
        recommender.incremental.extend(
            params, index, recommender.incremental.begin(index, 1), jnp.ones(1, jnp.int32)
        )


def test_hstu_reading_its_own_times_hears_when_things_happened():
    """The memory keeps the times: other gaps are another query, another start is not."""
    recommender, params = made("hstu", time_bias="self", layers=2)
    index, batch = recommender.index(params, world()[0]), asked()
    extend = jax.jit(recommender.incremental.extend)

    def read(times):
        memory = recommender.incremental.begin(index, 8)
        for n in range(3):
            query, memory = extend(params, index, memory, batch["items"][:, n], times[:, n])
        return np.asarray(query)

    plain = read(batch["times"])
    np.testing.assert_allclose(read(batch["times"] + 3600), plain, atol=1e-6)
    assert np.abs(read(batch["times"] // 1000) - plain).max() > 1e-4
    with pytest.raises(ValueError, match="has no 'times'"):
        extend(params, index, recommender.incremental.begin(index, 8), batch["items"][:, 0])


@by_case
def test_recommend_agrees_with_score(name, items):
    recommender, params = made(name, items)
    catalogue = world()[0]
    index, batch = recommender.index(params, catalogue), asked()
    got, scores = jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, 7)
    everything = np.broadcast_to(np.arange(1, N_ITEMS + 1, dtype=np.int32), (8, N_ITEMS))
    full = np.array(recommender.score(params, index, batch, everything))
    for row in range(8):
        full[row, batch["exclude"][row][batch["exclude"][row] > 0] - 1] = -np.inf
    np.testing.assert_allclose(np.sort(full, axis=1)[:, :-8:-1], scores, atol=1e-5)
    chosen = np.take_along_axis(full, np.asarray(got) - 1, axis=1)
    np.testing.assert_allclose(chosen, scores, atol=1e-5)
    assert all(len(set(row)) == 7 for row in np.asarray(got).tolist())


@by_name
def test_serving_is_deterministic_and_vmaps(name):
    recommender, params = made(name)
    index, batch = recommender.index(params, world()[0]), asked()
    twice = [recommender.encode(params, index, batch) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *twice)
    one_by_one = jax.vmap(
        lambda row: recommender.encode(params, index, jax.tree.map(lambda x: x[None], row))
    )(jax.tree.map(jnp.asarray, batch))
    np.testing.assert_allclose(one_by_one[:, 0], twice[0], atol=1e-5)


@pytest.mark.parametrize(
    "name,objective,shape",
    [
        ("sasrec", "ce", (8, 1)),
        ("sasrec", "ce", (4, 2)),
        ("sasrec", "ce", (2, 4)),
        ("bert4rec", "ce", (4, 2)),
        ("bsarec", "ce", (4, 2)),
        ("hstu", "ce", (4, 2)),
        ("two_tower", "mixed", (4, 2)),
    ],
)
def test_sharded_equals_one_device(name, objective, shape):
    recommender, params = made(name, objective=objective)
    catalogue, batch = world()[0], training(name)
    key = jax.random.key(2)
    grad = jax.value_and_grad(recommender.loss, has_aux=True)
    (loss, _), grads = jax.jit(grad)(params, catalogue, batch, key)
    mesh = meshes.make_mesh(*shape)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, meshes.shardings(params, mesh))
        rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "model")))
        on_mesh = jax.device_put(catalogue, rows)
        spread = meshes.shard_batch(batch, mesh)
        (loss_s, _), grads_s = jax.jit(grad)(placed, on_mesh, spread, key)
    np.testing.assert_allclose(loss_s, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads_s, grads)


def table_sized_collectives(text: str, rows: int, width: int) -> list[str]:
    """Lines of compiled HLO where a collective moves as much as the item table."""
    kinds = ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute(", "reduce-scatter(")
    shapes = (f"[{rows},{width}]", f"[{rows // 2},{width}]", f"[{rows // 4},{width}]")
    lines = [line for line in text.splitlines() if any(kind in line for kind in kinds)]
    return [line for line in lines if any(shape in line for shape in shapes)]


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4)])
def test_no_table_sized_collective_in_the_step(shape):
    recommender, _ = made("sasrec", "id")
    catalogue, batch = world()[0], training("sasrec")
    mesh = meshes.make_mesh(*shape)
    chain = optimizer(1e-3, weight_decay=1e-2)
    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "model")))
        on_mesh = jax.device_put(catalogue, rows)
        shapes = jax.eval_shape(lambda c: create(recommender, chain, c, batch), on_mesh)
        places = meshes.shardings(shapes, mesh)
        state = jax.jit(lambda c: create(recommender, chain, c, batch), out_shardings=places)
        step = jax.jit(
            make_step(recommender, chain), donate_argnums=0, out_shardings=(places, None)
        )
        spread = meshes.shard_batch(batch, mesh)
        text = step.lower(state(on_mesh), on_mesh, spread).compile().as_text()
    assert not table_sized_collectives(text, ROWS, SMALL["width"])
    assert "all-reduce" in text or "all-gather" in text, "the reader of the text works"


@by_name
def test_bfloat16_runs(name):
    if name == "two_tower":
        pytest.skip("two_tower computes in float32: its towers are two small products")
    recommender, params = made(name, dtype="bfloat16")
    plain, _ = made(name)
    catalogue, batch = world()[0], training(name)
    key = jax.random.key(0)
    values = [jax.jit(r.loss)(params, catalogue, batch, key)[0] for r in (recommender, plain)]
    assert values[0].dtype == jnp.float32
    np.testing.assert_allclose(*values, rtol=2e-2)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="nearest: .*sasrec"):
        build("sasrek")
    with pytest.raises(ValueError, match="nearest: dropout"):
        build("sasrec", dropot=0.1)
    with pytest.raises(ValueError, match="nearest: sampled"):
        build("sasrec", objective="sample")
