"""Adaptation: identity at the start, frozen bits, merging, counts, plans and deltas."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines.loader import requests
from pipelines.schema import Ragged
from pipelines.transforms import pack
from zoo import mesh as meshes
from zoo.adapt import bitfit, freeze, lora, merged, plan_of
from zoo.adapters import _wider, adapter, prompt
from zoo.graft import graft
from zoo.models import MODELS, build, fields
from zoo.optim import optimizer
from zoo.plan import counts, delta, describe, labels, names, plan, rates, train_only, with_delta
from zoo.train import TrainState, make_step

N_ITEMS, ROWS, LENGTH, KEY = 40, 64, 6, jax.random.key(0)
SMALL = {"width": 8, "layers": 1, "max_len": LENGTH, "items": "both", "hidden": 8}
SMALL |= {"dropout": 0.0, "modality_dropout": 0.0, "embedding_dropout": 0.0}
# What a low-rank sum or an adapter can be put to, by model: regexes of kernels, of modules.
WHERE = {
    "sasrec": (r"attention/(query|value)/kernel", r"(attention|ffn)$"),
    "hstu": (r"layer_\d/(uvqk|out)", r"layer_\d/out$"),
    "two_tower": (r"^user/head", r"^head/out$"),
    "vbpr": (r"^content/kernel", None),
}
by_lora = pytest.mark.parametrize("name", WHERE)
by_adapter = pytest.mark.parametrize("name", [n for n, (_, m) in WHERE.items() if m])


@cache
def world() -> tuple[dict, Ragged]:
    """Catalogue before `prepare`, histories by user, user 0 empty."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(N_ITEMS)[: rng.integers(3, 6)] + 1 for _ in range(12)]
    histories = Ragged.of([[], *rows])
    valid = (np.arange(ROWS) > 0) & (np.arange(ROWS) <= N_ITEMS)
    users = np.repeat(np.arange(13, dtype=np.int32), histories.lengths)
    catalogue = {
        "valid": valid,
        "popularity": np.bincount(histories.values, minlength=ROWS).astype(np.float32),
        "features": {m: rng.normal(size=(ROWS, 5)).astype(np.float32) for m in ("image", "text")},
        "present": {m: valid & (rng.random(ROWS) < 0.8) for m in ("image", "text")},
        "users": np.ones(16, np.float32),
        "train": {"users": users, "items": histories.values},
    }
    return catalogue, histories


@cache
def model(name: str, **chosen):
    """(recommender, prepared catalogue, training batch) of a small model."""
    small = {k: v for k, v in SMALL.items() if k in fields(name)}
    recommender = build(name, **{**small, **chosen})
    batch = {k: v[:4] for k, v in pack(world()[1], LENGTH, scheme=MODELS[name].targets).items()}
    return recommender, jax.tree.map(jnp.asarray, recommender.prepare(world()[0], 1)), batch


def asked() -> dict[str, np.ndarray]:
    users = np.arange(1, 5, dtype=np.int32)
    return requests(world()[1].take(users), users, LENGTH, LENGTH)


@cache
def lora_of(name: str):
    return lora(model(name)[0], 2, WHERE[name][0])


@cache
def adapter_of(name: str):
    return adapter(model(name)[0], 3, WHERE[name][1])


@cache
def made(recommender, name: str, **chosen):
    _, catalogue, batch = model(name, **chosen)
    return jax.jit(recommender.init)(KEY, catalogue, batch)


@cache
def teller(recommender):
    """One executable a recommender: loss, and lists and scores of four requests."""

    def run(params, catalogue, batch, ask):
        index = recommender.index(params, catalogue)
        items, scores = recommender.recommend(params, index, ask, 5)
        again = recommender.score(params, index, ask, items)
        return recommender.loss(params, catalogue, batch, KEY)[0], items, scores, again

    return jax.jit(run)


def told(recommender, params, name: str, **chosen):
    """Loss, items [4,5], their scores from recommend and from score."""
    _, catalogue, batch = model(name, **chosen)
    return teller(recommender)(params, catalogue, batch, asked())


def trained(recommender, name: str, chain, steps: int = 3, start=lambda x: x, **chosen):
    """(state before, state after) real steps of training."""
    _, catalogue, batch = model(name, **chosen)
    params = start(made(recommender, name, **chosen))
    state = TrainState(jnp.zeros((), jnp.int32), params, chain.init(params))
    step, before = jax.jit(make_step(recommender, chain)), state
    for _ in range(steps):
        state, _ = step(state, catalogue, batch)
    return before, state


def shaken(params, name: str, size: float = 0.3):
    """Every leaf of one addition moved away from its start."""
    leaves, tree = jax.tree.flatten(params[name])
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return {**params, name: tree.unflatten(moved)}


def same(got, want, tolerance: float):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), got, want)


@by_lora
def test_lora_starts_as_the_identity_and_merges(name):
    recommender, plain = lora_of(name), model(name)[0]
    params = made(recommender, name)
    base = {k: v for k, v in params.items() if k != "lora"}
    jax.tree.map(np.testing.assert_array_equal, base, made(plain, name))
    start = told(plain, base, name)
    same(told(recommender, params, name), start, 1e-6)
    moved = shaken(params, "lora")
    apart, into = told(recommender, moved, name), told(plain, merged(recommender, moved), name)
    same(apart, into, 1e-5)
    assert not np.allclose(apart[2], start[2], atol=1e-4), "B is no longer 0"


@by_adapter
def test_an_adapter_starts_as_the_identity_and_learns(name):
    recommender, plain = adapter_of(name), model(name)[0]
    params = made(recommender, name)
    start = told(plain, made(plain, name), name)
    same(told(recommender, params, name), start, 1e-6)
    moved = told(recommender, shaken(params, "adapter"), name)
    assert not np.allclose(moved[2], start[2], atol=1e-4)
    np.testing.assert_allclose(moved[2], moved[3], atol=1e-5)  # recommend agrees with score
    with pytest.raises(ValueError, match="'adapter' is not a change of kernels"):
        merged(recommender, params)


@pytest.mark.parametrize("name", ["sasrec", "vbpr"])
def test_frozen_leaves_keep_every_bit(name):
    recommender = lora_of(name)
    chain = train_only(optimizer(1e-2, weight_decay=0.1, clip=1.0), plan_of(recommender))
    # -0 is the weight that an update of +0 changes.
    start = lambda params: jax.tree.map(lambda x: jnp.where(x == 0, -0.0, x), params)  # noqa: E731
    before, after = trained(recommender, name, chain, start=start)
    chosen = dict(
        zip(
            names(after.params),
            jax.tree.leaves(labels(after.params, plan_of(recommender))),
            strict=True,
        )
    )
    assert {n for n, label in chosen.items() if label == "train"} == {
        n for n in chosen if n.startswith("lora/")
    }
    pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    for (path, label), (a, b) in zip(chosen.items(), pairs, strict=True):
        changed = np.asarray(a).tobytes() != np.asarray(b).tobytes()
        assert changed == (label == "train"), path


def test_frozen_leaves_have_no_optimizer_state_and_no_gradient():
    recommender = lora_of("sasrec")
    _, catalogue, batch = model("sasrec")
    params = made(recommender, "sasrec")
    state = train_only(optimizer(1e-2), plan_of(recommender)).init(params)
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * counts(params, plan_of(recommender)).trainable
    grads = jax.jit(jax.grad(lambda p: recommender.loss(p, catalogue, batch, KEY)[0]))(params)
    assert not any(np.any(x) for n, x in zip(names(grads), jax.tree.leaves(grads), strict=True)
                   if not n.startswith("lora/"))  # fmt: skip
    attention = grads["lora"]["trunk"]["stack"]["block_0"]["attention"]
    assert all(np.any(attention[k]["kernel"]["b"]) for k in ("query", "value"))


def test_counts_are_those_of_the_papers():
    width, inner = SMALL["width"], 3
    params = made(lora_of("sasrec"), "sasrec")
    total = sum(x.size for x in jax.tree.leaves(made(model("sasrec")[0], "sasrec")))
    low = 2 * 2 * (width + width)  # query and value, rank 2
    assert counts(params, plan_of(lora_of("sasrec"))) == (low, total + low)
    params = made(adapter_of("sasrec"), "sasrec")
    houlsby = 2 * (2 * width * inner + inner)  # after attention and after the feed-forward layer
    assert counts(params, plan_of(adapter_of("sasrec"))) == (houlsby, total + houlsby)
    shapes = jax.eval_shape(lambda: params)
    assert counts(shapes, plan_of(adapter_of("sasrec"))).trainable == houlsby
    text = describe(shapes, plan_of(adapter_of("sasrec")))
    assert f"trains {houlsby:,} of {total + houlsby:,}" in text and "^adapter/  6 leaves" in text


def test_bitfit_trains_biases_and_norms_alone():
    recommender = bitfit(model("sasrec")[0])
    chain = optimizer(1e-2, rates=rates(plan_of(recommender)))
    before, after = trained(recommender, "sasrec", chain)
    moved = [
        n
        for n, a, b in zip(
            names(before.params), *map(jax.tree.leaves, (before.params, after.params)), strict=True
        )
        if np.any(a != b)
    ]
    every = [n for n in names(before.params) if n.endswith(("/bias", "/scale"))]
    assert set(every) - set(moved) <= {n for n in every if n.endswith("key/bias")}, "no gradient"
    assert set(moved) <= set(every) and len(moved) >= 9
    with pytest.raises(ValueError, match=r"found in no parameter's name.*free/items/table"):
        made(bitfit(model("lightgcn")[0]), "lightgcn")


def test_scanned_layers_have_factors_of_their_own():
    chosen = {"scan": True, "layers": 2}
    plain = model("sasrec", **chosen)[0]
    recommender = lora(plain, 2, "attention/query")
    params = made(recommender, "sasrec", **chosen)
    pair = params["lora"]["trunk"]["stack"]["blocks"]["attention"]["query"]["kernel"]
    assert pair["a"].shape == (2, 8, 2) and pair["b"].shape == (2, 2, 8)
    assert np.any(pair["a"][0] != pair["a"][1])
    moved = shaken(params, "lora")
    index = plain.index(params, model("sasrec")[1])
    apart = jax.jit(recommender.encode)(moved, index, asked())
    same(apart, jax.jit(plain.encode)(merged(recommender, moved), index, asked()), 1e-5)
    with pytest.raises(ValueError, match="scan=False"):
        made(adapter(plain), "sasrec", **chosen)


def test_recomputed_layers_have_adapters_too():
    recommender = adapter(model("sasrec", remat=True)[0], 3)
    _, catalogue, batch = model("sasrec")
    params = made(adapter_of("sasrec"), "sasrec")
    shapes = jax.eval_shape(recommender.init, KEY, catalogue, batch)
    assert names(shapes) == names(params)
    moved = shaken(params, "adapter")
    grad = jax.jit(jax.value_and_grad(lambda p: recommender.loss(p, catalogue, batch, KEY)[0]))
    loss, grads = grad(moved)
    np.testing.assert_allclose(loss, told(adapter_of("sasrec"), moved, "sasrec")[0], rtol=1e-5)
    assert np.any(grads["adapter"]["stack"]["block_0"]["ffn"]["up"])


@cache
def stacked():
    """(two LoRA over a plan, an adapter over both)."""
    some = freeze(model("sasrec")[0], [("^items/image", "train"), (".*", "frozen")])
    two = lora(lora(some, 2, "query"), 2, "query|ffn/in", 1.0, "lora_b")
    return two, adapter(two, 3)


def test_additions_stack_and_plans_compose():
    plain, (two, recommender) = model("sasrec")[0], stacked()
    assert [rule for rule, label in plan_of(recommender) if label == "train"] == [
        "^adapter/",
        "^lora_b/",
        "^lora/",
        "^items/image",
    ]
    params = made(recommender, "sasrec")
    same(told(recommender, params, "sasrec"), told(plain, made(plain, "sasrec"), "sasrec"), 1e-6)
    chain = train_only(optimizer(1e-2), plan_of(recommender))
    before, after = trained(recommender, "sasrec", chain)
    for tree in ("adapter", "lora_b", "lora"):
        pairs = zip(*(jax.tree.leaves(s.params[tree]) for s in (before, after)), strict=True)
        assert all(np.any(a != b) for a, b in pairs), tree
    assert np.any(
        before.params["items"]["image"]["kernel"] != after.params["items"]["image"]["kernel"]
    )
    np.testing.assert_array_equal(before.params["trunk"]["positions"]["table"],
                                  after.params["trunk"]["positions"]["table"])  # fmt: skip
    only = freeze(lora(plain, 2, "query"), [("^trunk/stack/norm/", "train")])
    assert plan_of(only)[0] == ("^trunk/stack/norm/", "train") and plan_of(only)[1][0] == "^lora/"
    moved = {k: v for k, v in params.items() if k != "adapter"}
    moved = shaken(shaken(moved, "lora"), "lora_b")
    same(told(two, moved, "sasrec"), told(plain, merged(two, moved), "sasrec"), 1e-5)


@cache
def prompted():
    """(recommender, index, parameters): two layers, so that what a prompt reads would be seen."""
    plain, catalogue, batch = model("sasrec", layers=2)
    recommender = prompt(plain, 3)
    params = made(recommender, "sasrec", layers=2)
    return recommender, plain.index(params, catalogue), params


def test_prompts_are_read_and_learned():
    (recommender, index, params), (_, catalogue, batch) = prompted(), model("sasrec", layers=2)
    assert params["prompt"]["stack"]["tokens"].shape == (3, 8) and recommender.incremental is None
    encode = jax.jit(recommender.encode)
    query, other = (encode(p, index, asked()) for p in (params, shaken(params, "prompt")))
    assert query.shape == (4, 8) and np.abs(query - other).max() > 1e-3
    grads = jax.jit(jax.grad(lambda p: recommender.loss(p, catalogue, batch, KEY)[0]))(params)
    moved = [n for n, x in zip(names(grads), jax.tree.leaves(grads), strict=True) if np.any(x)]
    assert moved == ["prompt/stack/tokens"]


def test_a_prompt_lets_no_segment_see_another_nor_the_future():
    recommender, index, params = prompted()
    batch, encode = {**asked(), "query": np.full(4, 1, np.int32)}, jax.jit(recommender.encode)
    later = np.arange(LENGTH) > 1
    other = {**batch, "items": np.where(later, N_ITEMS - batch["items"], batch["items"])}
    a, b = (encode(params, index, x) for x in (batch, other))
    np.testing.assert_array_equal(a, b)
    halves = {
        "items": np.tile(np.arange(1, LENGTH + 1, dtype=np.int32), (4, 1)),
        "segments": np.tile(np.repeat(np.int32([1, 2]), LENGTH // 2), (4, 1)),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32) % (LENGTH // 2), (4, 1)),
    }
    packed = {**asked(), **halves, "query": np.full(4, LENGTH - 1, np.int32)}
    first = np.arange(LENGTH) < LENGTH // 2
    other = {**packed, "items": np.where(first, packed["items"] + 9, packed["items"])}
    a, b = (encode(params, index, x) for x in (packed, other))
    np.testing.assert_array_equal(a, b)


def test_one_mask_for_all_queries_is_widened_and_others_do_not_open():
    keys = jnp.asarray([[[[True, False]]]])
    np.testing.assert_array_equal(_wider(keys, 2), [[[[True, True, True, False]]]])
    causal = jnp.tril(jnp.ones((2, 2), bool))[None, None]
    want = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(_wider(causal, 1)[0, 0], np.asarray(want, bool))


def test_one_event_at_a_time_with_lora_and_adapter():
    recommender = stacked()[1]
    params = shaken(shaken(made(recommender, "sasrec"), "lora"), "adapter")
    index, batch = recommender.index(params, model("sasrec")[1]), asked()
    extend = jax.jit(recommender.incremental.extend)
    memory = recommender.incremental.begin(index, 4)
    for n in range(3):
        query, memory = extend(params, index, memory, batch["items"][:, n])
    whole = jax.jit(recommender.encode)(params, index, {**batch, "query": np.full(4, 2, np.int32)})
    np.testing.assert_allclose(query, whole, atol=1e-5)


def test_pretrained_weights_keep_their_names():
    plain, recommender = model("sasrec")[0], lora_of("sasrec")
    pretrained = jax.jit(plain.init)(jax.random.key(5), *model("sasrec")[1:])
    got = graft(made(recommender, "sasrec"), pretrained)
    assert all(name.startswith("lora/") for name in got.fresh)
    same(told(recommender, got.params, "sasrec"), told(plain, pretrained, "sasrec"), 1e-6)


def test_a_plan_is_data():
    rules = [("^items/id", "frozen"), ["bias$", "train"], (".*", "train")]
    made_of = plan(rules)
    assert plan(json.loads(json.dumps(made_of))) == made_of and hash(made_of)
    tree = {"items": {"id": {"bias": np.ones(2)}, "text": {"bias": np.ones(3)}}, "w": np.ones(4)}
    assert jax.tree.leaves(labels(tree, made_of)) == ["frozen", "train", "train"], "first match"
    assert counts(tree, made_of) == (7, 9)
    assert rates(made_of) == (("^items/id", 0.0), ("bias$", 1.0), (".*", 1.0))


def test_plans_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"'thaw'.*expected \(regex.*'frozen' or 'train'"):
        plan([("a", "thaw")])
    with pytest.raises(ValueError, match="not a regular expression"):
        plan([("(", "train")])
    tree = {"items": {"w": np.ones(2)}, "trunk": {"w": np.ones(2)}}
    with pytest.raises(ValueError, match="no rule covers the parameter 'trunk/w'"):
        labels(tree, [("items", "train")])
    with pytest.raises(
        ValueError, match=r"'tronk', 'train'\) is found in no parameter's name.*trunk/w"
    ):
        labels(tree, [("tronk", "train"), (".*", "frozen")])
    plain, _, _ = model("sasrec")
    with pytest.raises(ValueError, match="no plan: all of its parameters train"):
        merged(plain, {})
    with pytest.raises(ValueError, match="found in no parameter's name"):
        made(freeze(plain, [("^lora/", "train"), (".*", "frozen")]), "sasrec")


def test_additions_without_a_place_are_refused():
    plain, _, _ = model("sasrec")
    with pytest.raises(
        ValueError, match=r"where='atention' is found in no kernel's name.*attention/"
    ):
        made(lora(plain, 2, "atention"), "sasrec")
    with pytest.raises(ValueError, match="found in no kernel's name"):
        made(lora(plain, 2, "items/id/table"), "sasrec")
    with pytest.raises(ValueError, match="rank=0"):
        lora(plain, 0, "attention")
    with pytest.raises(ValueError, match="an addition named 'lora'.*another `name`"):
        made(lora(lora(plain, 2, "query"), 2, "query"), "sasrec")
    with pytest.raises(ValueError, match=r"where='\(\^\|/\)stack\$' is found in no module's name"):
        made(prompt(model("hstu")[0]), "hstu")
    with pytest.raises(ValueError, match="expected x .b,l,d. and a mask"):
        made(prompt(plain, where="ffn/in"), "sasrec")
    with pytest.raises(ValueError, match="the parameters have no .'lora'"):
        told(lora_of("sasrec"), made(plain, "sasrec"), "sasrec")


def test_a_module_path_that_two_towers_share_is_refused():
    towers = model("two_tower")[0]
    with pytest.raises(ValueError, match="two modules of this recommender have the path ''"):
        made(adapter(towers, 2, "^$"), "two_tower")


def test_a_delta_and_its_base_give_the_whole():
    recommender = lora_of("sasrec")
    params = made(recommender, "sasrec")
    rules = plan_of(recommender)
    change = delta(shaken(params, "lora"), rules)
    assert set(change.leaves) == {n for n in names(params) if n.startswith("lora/")}
    assert json.loads(json.dumps(change.base)) == change.base and plan(change.plan) == rules
    jax.tree.map(np.testing.assert_array_equal, with_delta(params, change), shaken(params, "lora"))
    mesh = meshes.make_mesh(4, 2)
    placed = jax.device_put(params, meshes.shardings(params, mesh))
    state = jax.eval_shape(train_only(optimizer(), rules).init, params)
    assert jax.tree.structure(meshes.shardings(state, mesh)) == jax.tree.structure(state)
    again = with_delta(placed, change)
    jax.tree.map(np.testing.assert_array_equal, again, shaken(params, "lora"))
    assert jax.tree.map(lambda x: x.sharding, again) == jax.tree.map(lambda x: x.sharding, placed)


def test_a_delta_of_something_else_lists_the_paths():
    base = {"w": np.ones(2), "lora": {"w": {"a": np.ones((2, 2)), "b": np.zeros((2, 2))}}}
    change = delta(base, [("^lora/", "train"), (".*", "frozen")])
    with pytest.raises(ValueError, match="w, frozen, has other contents.*same pretrained base"):
        with_delta({**base, "w": np.zeros(2)}, change)
    wide = {"w": {"a": np.ones((2, 3)), "b": np.zeros((2, 2))}}
    with pytest.raises(ValueError, match=r"lora/w/a is float64\[2, 3\] here, float64\[2, 2\] in"):
        with_delta({**base, "lora": wide}, change)
    named = {"w": {"a": np.ones((2, 2)), "c": np.zeros((2, 2))}}
    with pytest.raises(ValueError, match="lora/w/b is in the delta alone; lora/w/c is not in the"):
        with_delta({**base, "lora": named}, change)
