"""The contract for the graph family: every registered graph model on a small bipartite world."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.loader import pair_loader, requests
from pipelines.schema import Events, Ragged, Split
from zoo import mesh as meshes
from zoo.models import MODELS, build, fields
from zoo.models.collaborative import sample_pairs
from zoo.optim import optimizer
from zoo.train import create, make_dispatch

N_ITEMS, N_USERS, ROWS = 60, 40, 1024
GRAPH = [name for name, entry in MODELS.items() if entry.family == "graph"]
CONTENT = [name for name in GRAPH if "modalities" in fields(name)]
QUICK = ("lightgcn", "vbpr", "freedom", "lgmrec")
RATES = {"graphsage": 5e-3}  # dense layers under dropout: the tables' rate throws them about
by_name = pytest.mark.parametrize("name", GRAPH)
by_content = pytest.mark.parametrize("name", CONTENT)


@cache
def world(parts: int = 1) -> tuple[dict, dict, Ragged]:
    """Catalogue before `prepare`, a batch of 64 pairs, histories by user."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(N_ITEMS - 10)[: rng.integers(3, 9)] + 1 for _ in range(N_USERS)]
    histories = Ragged.of([[], *rows])
    empty = Events(np.zeros(0, np.int32), Ragged.of([]), Ragged.of([]))
    split = Split("random", "mm-random-v1", histories, empty, empty, "x", ordered=False)
    batch = next(iter(pair_loader(split, 64)))
    valid = (np.arange(ROWS) > 0) & (np.arange(ROWS) <= N_ITEMS)
    users = np.repeat(np.arange(N_USERS + 1, dtype=np.int32), histories.lengths)
    present = {m: valid & (rng.random(ROWS) < 0.9) for m in ("image", "text")}
    for m in present:  # three items have no modality at all, one of them cold
        present[m][[5, 6, N_ITEMS - 2]] = False
    features = {m: rng.normal(size=(ROWS, f)) for m, f in (("image", 6), ("text", 5))}
    catalogue = {
        "valid": valid,
        "popularity": np.bincount(histories.values, minlength=ROWS).astype(np.float32),
        "features": {m: (x * present[m][:, None]).astype(np.float32) for m, x in features.items()},
        "present": present,
        "users": np.pad(histories.lengths, (0, ROWS - N_USERS - 1)).astype(np.float32),
        "train": {"users": users, "items": histories.values},
    }
    return catalogue, batch, histories


@cache
def made(name: str, **chosen):
    """(recommender, prepared catalogue, params) of a small model."""
    recommender = build(name, **{"width": 16, **chosen})
    catalogue = jax.tree.map(jnp.asarray, recommender.prepare(world()[0], 1))
    return recommender, catalogue, jax.jit(recommender.init)(jax.random.key(0), catalogue, {})


def asked(rows=slice(1, 9), known: bool = True) -> dict[str, np.ndarray]:
    users = np.arange(N_USERS + 1, dtype=np.int32)[rows]
    return requests(world()[2].take(users), users if known else users * 0, 12, 12)


@pytest.mark.parametrize("name", ["lightgcn", "vbpr"])  # eager steps are slow
def test_jit_changes_nothing(name):
    recommender, catalogue, params = made(name)
    jitted, told = jax.jit(recommender.loss)(params, catalogue, world()[1], jax.random.key(1))
    eager, _ = recommender.loss(params, catalogue, world()[1], jax.random.key(1))
    assert float(told["targets"]) == 64
    np.testing.assert_allclose(jitted, eager, rtol=1e-5)


@by_name
def test_an_epoch_is_one_dispatch_and_learns(name):
    recommender, catalogue, _ = made(name)
    chain = optimizer(RATES.get(name, 2e-2))
    batches = {k: jnp.asarray(np.stack([x] * 12)) for k, x in world()[1].items()}
    traces = []

    def counted(state, catalogue, batches):
        traces.append(1)
        return make_dispatch(recommender, chain)(state, catalogue, batches)

    dispatch = jax.jit(counted)
    start = state = jax.jit(lambda c: create(recommender, chain, c, {}))(catalogue)
    losses = []
    for _ in range(2):
        state, metrics = dispatch(state, catalogue, batches)
        losses += metrics["loss"].tolist()
        assert np.isfinite(metrics["grad_norm"]).all()
    assert len(traces) == 1 and int(state.step) == 24
    assert losses[-1] < losses[0]
    moved = []
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(start.params),
        jax.tree.leaves(state.params),
        strict=True,
    ):
        assert meshes.path_name(path).islower(), "a name that Flax made up"
        assert np.isfinite(b).all(), meshes.path_name(path)
        moved.append(not np.array_equal(a, b))
    assert np.mean(moved) > 0.9, "parameters learn"


@by_name
def test_serving_is_deterministic_and_agrees_with_score(name):
    recommender, catalogue, params = made(name)
    index, batch = jax.jit(recommender.index)(params, catalogue), asked()
    again = jax.jit(recommender.index)(params, catalogue)
    jax.tree.map(np.testing.assert_array_equal, index, again)
    got, scores = jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, 7)
    everything = np.broadcast_to(np.arange(1, N_ITEMS + 1, dtype=np.int32), (8, N_ITEMS))
    full = np.array(recommender.score(params, index, batch, everything))
    for row in range(8):
        full[row, batch["exclude"][row][batch["exclude"][row] > 0] - 1] = -np.inf
    np.testing.assert_allclose(np.sort(full, axis=1)[:, :-8:-1], scores, atol=1e-5)
    chosen = np.take_along_axis(full, np.asarray(got) - 1, axis=1)
    np.testing.assert_allclose(chosen, scores, atol=1e-5)


@by_name
def test_an_unknown_user_is_folded_in_from_the_history(name):
    recommender, catalogue, params = made(name)
    index, batch = recommender.index(params, catalogue), asked(known=False)
    query = recommender.encode(params, index, batch)
    histories = world()[2]
    for row in range(8):
        mean = np.asarray(index["table"])[histories[row + 1]].mean(0)
        np.testing.assert_allclose(query[row], mean, atol=1e-5)


@by_content
def test_a_missing_modality_is_masked(name):
    recommender, _, params = made(name)
    catalogue = world()[0]
    gone = {**catalogue, "present": {**catalogue["present"], "image": catalogue["valid"] & False}}
    noise = np.random.default_rng(1).normal(size=(ROWS, 6)).astype(np.float32)
    noisy = {**gone, "features": {**catalogue["features"], "image": noise}}
    a, b = (
        jax.tree.map(np.asarray, recommender.index(params, recommender.prepare(c, 1)))
        for c in (gone, noisy)
    )
    np.testing.assert_array_equal(a["table"], b["table"])


@by_content
def test_features_matter_and_one_modality_is_enough(name):
    recommender, catalogue, params = made(name)
    before = recommender.index(params, catalogue)
    source = world()[0]
    features = {m: x[::-1].copy() * source["present"][m][:, None] for m, x in _features().items()}
    other = {**source, "features": features}
    fresh = recommender.init(jax.random.key(0), recommender.prepare(other, 1), {})
    after = recommender.index(fresh, recommender.prepare(other, 1))
    known = slice(1, N_ITEMS + 1)
    same = np.allclose(before["table"][known], after["table"][known], atol=1e-7)
    assert not same or name == "bm3", "bm3 reads features in its loss alone"
    alone, catalogue, params = made(name, modalities=("text",))
    loss, _ = alone.loss(params, catalogue, world()[1], jax.random.key(0))
    assert np.isfinite(loss)


def _features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        m: rng.normal(size=x.shape).astype(np.float32) for m, x in world()[0]["features"].items()
    }


@by_content
def test_a_modality_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match="smell"):
        made.__wrapped__(name, modalities=("smell",))


@pytest.mark.parametrize(  # each compiles twice: the others wait for `pytest -m slow`
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in GRAPH],
)
def test_sharded_equals_one_device(name):
    recommender, catalogue, params = made(name)
    batch, key = world()[1], jax.random.key(2)
    grad = jax.value_and_grad(recommender.loss, has_aux=True)
    (loss, _), grads = jax.jit(grad)(params, catalogue, batch, key)
    mesh = meshes.make_mesh(4, 2)
    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "model")))
        on_mesh = jax.device_put(recommender.prepare(world()[0], 8), rows)
        placed = jax.device_put(params, meshes.shardings(params, mesh))
        spread = meshes.shard_batch(batch, mesh)
        (loss_s, _), grads_s = jax.jit(grad)(placed, on_mesh, spread, key)
    np.testing.assert_allclose(loss_s, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads_s, grads)


def test_pairs_are_train_interactions_with_unseen_negatives():
    _, catalogue, _ = made("lightgcn")
    pairs = sample_pairs(catalogue, world()[1], jax.random.key(0))
    histories, popularity = world()[2], world()[0]["popularity"]
    for u, p, q in zip(pairs.users, pairs.positives, pairs.negatives, strict=True):
        assert int(p) in histories[int(u)] and int(q) not in histories[int(u)]
        assert popularity[int(q)] > 0


def test_a_catalogue_without_interactions_is_refused():
    catalogue = {k: v for k, v in world()[0].items() if k != "train"}
    with pytest.raises(ValueError, match="train"):
        build("lightgcn").prepare(catalogue, 1)
