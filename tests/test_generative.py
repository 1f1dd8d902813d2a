"""Generative models: lists are the exact ranking, rows are causal, new items need no training."""

import json
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines import codes as coding_files
from pipelines.loader import event_batches, requests
from pipelines.schema import DataError, Ragged
from pipelines.sources import from_arrays
from pipelines.synthetic import world as made_world
from pipelines.transforms import pack
from zoo import api, coding
from zoo import mesh as meshes
from zoo.encoders.t5 import encoder_decoder
from zoo.evaluation import evaluate, invalid_share, top_lists
from zoo.models import MODELS, build, mql4grec
from zoo.models.generative import Speller
from zoo.models.mql4grec import Polyglot, merged
from zoo.optim import optimizer
from zoo.recommender import Recommender
from zoo.run import Fitted
from zoo.semantic_ids import append, with_digit
from zoo.train import create, make_step

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
N, LENGTH, SIZES = 40, 8, (4, 4, 8)
SMALL = {"width": 16, "layers": 1, "decoder_layers": 1, "heads": 2, "head_width": 8, "inner": 16}
SMALL |= {"max_len": LENGTH, "dropout": 0.0}
PARALLEL = {"width": 16, "layers": 1, "heads": 2, "max_len": LENGTH, "dropout": 0.0, "size": 8}
NAMES = [name for name, entry in MODELS.items() if entry.family == "generative"]
# Each is a compilation of its own, of twenty seconds.
SLOW = ("tiger_paper", "liger", "mql4grec", "mmgrec_official")


def _timed(names: list[str], slow: tuple[str, ...] = SLOW) -> list:
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


by_name = pytest.mark.parametrize("name", _timed(NAMES))
ORDERED_OTHERWISE = ("rpg", "liger", "mql4grec", "mmgrec_official")
searching = pytest.mark.parametrize(
    "name", _timed([n for n in NAMES if n not in ORDERED_OTHERWISE])
)
held = pytest.mark.parametrize("name", _timed([n for n in NAMES if n != "mmgrec_official"]))


@cache
def world(n: int = N) -> tuple[dict, Ragged]:
    """A catalogue of n coded items in 64 rows, items 7 and 8 with the same codes, 9 with none."""
    rng = np.random.default_rng(0)
    every = np.stack(np.unravel_index(rng.permutation(np.prod(SIZES)), SIZES), axis=1)
    codes = np.full((64, 3), -1, np.int32)
    codes[1 : n + 1] = every[:n]
    codes[8], codes[9] = codes[7], -1
    histories = [rng.permutation(N)[: rng.integers(3, 8)] + 1 for _ in range(20)]
    catalogue = {
        "valid": (np.arange(64) > 0) & (np.arange(64) <= n),
        "popularity": (np.arange(64) < N - 4).astype(np.float32),  # the last ones are cold
        "features": {"text": rng.normal(size=(64, 6)).astype(np.float32)},
        "present": {"text": np.arange(64) > 0},
        "codes": {"own": codes},
        "sizes": {"own": np.array(SIZES, np.int32)},
        "users": np.ones(64, np.float32),
        "vectors": {
            "items": rng.normal(size=(64, 10)).astype(np.float32),
            "users": rng.normal(size=(64, 10)).astype(np.float32),
        },
    }
    return catalogue, Ragged.of([[], *histories])


def bilingual() -> dict:
    """The catalogue with a second vocabulary, in which items 7 and 8 differ and 10 is not."""
    catalogue, _ = world()
    codes = np.roll(catalogue["codes"]["own"][1:], 3, axis=0)[:, ::-1]
    other = np.concatenate([np.full((1, 3), -1), codes]).astype(np.int32)
    other[41:], other[10] = -1, -1
    sizes = np.array(SIZES[::-1], np.int32)
    return catalogue | {
        "codes": {"own": catalogue["codes"]["own"], "second": other},
        "sizes": {"own": catalogue["sizes"]["own"], "second": sizes},
    }


@cache
def made(name: str, **fields):
    """(recommender, params, prepared catalogue, batch) of a small model."""
    recommender = build(name, **{**(PARALLEL if name == "rpg" else SMALL), **fields})
    given = bilingual() if name == "mql4grec" else {**world()[0]}
    catalogue = jax.tree.map(jnp.asarray, recommender.prepare(given, 1))
    batch = pack(world()[1], LENGTH, scheme=MODELS[name].targets)
    params = jax.jit(recommender.init)(jax.random.key(0), catalogue, batch)
    return recommender, params, catalogue, batch


def asked(rows=slice(1, 7)) -> dict[str, np.ndarray]:
    users = np.arange(21, dtype=np.int32)[rows]
    return requests(world()[1].take(users), users, LENGTH, LENGTH)


@by_name
def test_names_are_given_by_hand_and_gradients_reach_everything(name):
    recommender, params, catalogue, batch = made(name)
    grad = jax.jit(jax.value_and_grad(recommender.loss, has_aux=True))
    (loss, told), grads = grad(params, catalogue, batch, jax.random.key(1))
    assert np.isfinite(loss) and told["targets"] > 0
    for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
        where = meshes.path_name(path)
        assert where.islower() and np.isfinite(g).all() and np.abs(g).max() > 0, where


@searching
def test_a_wide_beam_is_the_exact_ranking_and_scores_are_likelihoods(name):
    recommender, params, catalogue, _ = made(name)
    index = jax.jit(recommender.index)(params, catalogue)
    batch = asked()
    batch["exclude"] = batch["exclude"] * 0
    every = jnp.broadcast_to(jnp.arange(64)[None], (len(batch["items"]), 64))
    exact = np.array(jax.jit(recommender.score)(params, index, batch, every))
    assert np.isneginf(exact[:, [0, 9]]).all()  # padding and the item without codes
    exact[:, ~np.asarray(catalogue["valid"])] = -np.inf
    items, scores = jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, N - 1)
    order = np.argsort(-exact, axis=1, kind="stable")[:, : N - 1]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), atol=1e-4)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, np.asarray(items), 1), atol=1e-4)
    total = np.exp(exact[:, [i for i in range(1, N + 1) if i != 8]]).sum(1)
    if name == "tiger_paper":  # the rest is on codes that nobody has
        assert (total < 1).all()
    else:
        np.testing.assert_allclose(total, 1, rtol=1e-4)


@held
def test_lists_exist_are_unique_and_new_to_the_user(name):
    recommender, params, catalogue, _ = made(name, **({} if name == "rpg" else {"beam": 5}))
    index = jax.jit(recommender.index)(params, catalogue)
    batch = asked()
    items = np.asarray(
        jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, 12)[0]
    )
    codes = np.asarray(catalogue["codes"]).reshape(64, -1, 3)
    spelled = np.asarray(catalogue["valid"]) & (codes[:, :, 0] >= 0).any(axis=1)
    for row, past in zip(items, batch["exclude"], strict=True):
        assert len(set(row)) == 12 and not set(row) & set(past.tolist())
        assert spelled[row].all()


@pytest.mark.parametrize("name", _timed([n for n in NAMES if n != "mql4grec"]))  # tasks by row
def test_rows_do_not_see_each_other_nor_what_comes_later(name):
    recommender, params, catalogue, batch = made(name)
    weigh = jax.jit(recommender.loss)
    key = jax.random.key(0)
    alone = []
    for row in range(len(batch["items"])):
        one = {k: v[row : row + 1] for k, v in batch.items()}
        loss, told = weigh(params, catalogue, one, key)
        alone.append((float(loss), float(told["targets"])))
    loss, told = weigh(params, catalogue, batch, key)
    mean = sum(x * n for x, n in alone) / sum(n for _, n in alone)
    np.testing.assert_allclose(loss, mean, rtol=1e-5)
    if MODELS[name].targets == "next":
        first, cut = early(batch)
        of_both = [weigh(params, catalogue, x, key)[0] for x in (first, cut)]
        np.testing.assert_allclose(*of_both, rtol=1e-5)


def early(batch: dict) -> tuple[dict, dict]:
    """The first four places of a batch; the batch asked at those alone, with other items later."""
    other = dict(batch, items=batch["items"].copy())
    other["items"][:, -1] = 5
    first = {k: v[:, :4] for k, v in batch.items()}
    return first, dict(other, targets=other["targets"] * (np.arange(LENGTH) < 4)[None])


@pytest.mark.slow
def test_a_row_of_any_language_does_not_see_what_comes_later():
    recommender, params, catalogue, batch = made("mql4grec")
    weigh, compared = jax.jit(recommender.loss), 0
    first, cut = early({k: v[:1] for k, v in batch.items()})
    for seed in range(12):  # a task each
        (loss, told), (other, asked_for) = (
            weigh(params, catalogue, x, jax.random.key(seed)) for x in (first, cut)
        )
        if told["targets"] == asked_for["targets"]:  # else it is to translate every item of the row
            compared += 1
            np.testing.assert_allclose(loss, other, rtol=1e-5)
    assert compared >= 3


PAIRS = [(s, t) for s in (0, 1) for t in (0, 1)]
TASKS = [*((s, t, False) for s, t in PAIRS), (0, 1, True), (1, 0, True)]


@cache
def told_task():
    """(batch of a row, task) -> mql4grec's loss and number of targets."""
    recommender, params, catalogue, _ = made("mql4grec")

    @jax.jit
    def weigh(batch, source, target, same):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mql4grec, "_tasks", lambda *_: (source, target, same))
            return recommender.loss(params, catalogue, batch, jax.random.key(0))

    def told(batch, task):
        loss, told = weigh(batch, *(np.array([x]) for x in task))
        return float(loss), int(told["targets"])

    return told


def in_a_row(*items: int) -> dict[str, np.ndarray]:
    """These items, and each asked for after those before it."""
    row = dict.fromkeys(("items", "targets", "segments"))
    for name, own in zip(row, (items, items[1:], np.ones_like(items)), strict=True):
        row[name] = np.zeros((1, LENGTH), np.int32)
        row[name][0, : len(own)] = own
    return row


def test_every_pair_of_languages_is_a_task_and_every_translation_too():
    drawn = np.stack(mql4grec._tasks(jax.random.key(0), 6000, 3), axis=1)
    found, times = np.unique(drawn, axis=0, return_counts=True)
    every = [(s, t, same) for s in range(3) for t in range(3) for same in (0, 1)]
    assert found.tolist() == [list(x) for x in every if x[0] != x[1] or not x[2]]
    assert times.min() > 0.8 * 6000 / 15


def test_a_row_has_every_task_in_turn():
    recommender, params, catalogue, _ = made("mql4grec")
    row, told = in_a_row(4, 13, 5, 20, 6), told_task()
    weigh = jax.jit(lambda key: recommender.loss(params, catalogue, row, key)[0])
    losses = [float(weigh(jax.random.key(seed))) for seed in range(40)]
    wanted = [told(row, task) for task in TASKS]
    assert [n for _, n in wanted] == [4, 4, 4, 4, 5, 5]
    apart = np.abs(np.array(losses)[:, None] - np.array([loss for loss, _ in wanted])[None])
    assert apart.min(axis=1).max() < 1e-5, "a loss of no task"
    assert set(apart.argmin(axis=1)) == set(range(6)), "a task never given"


@pytest.mark.parametrize("source, target", PAIRS)
def test_in_no_language_a_place_hears_what_comes_later(source, target):
    told, task = told_task(), (source, target, False)
    row = in_a_row(4, 13, 5, 20, 6, 21)
    early = row | {"targets": row["targets"] * (np.arange(LENGTH) < 3)[None]}
    later = early | {"items": in_a_row(4, 13, 5, 30, 31, 7)["items"]}
    before = early | {"items": in_a_row(30, 13, 5, 20, 6, 21)["items"]}
    loss, n = told(early, task)
    assert n == 3
    assert told(later, task)[0] == pytest.approx(loss, rel=1e-5)
    assert abs(told(before, task)[0] - loss) > 1e-4


@pytest.mark.parametrize("source, target", [(0, 1), (1, 0)])
def test_a_translation_hears_the_item_alone_and_asks_for_it_where_both_languages_have_it(
    source, target
):
    """Item 9 has no codes in the first language, 10 none in the second."""
    told, task = told_task(), (source, target, True)
    loss, n = told(in_a_row(4, 10, 5, 9, 6), task)
    assert n == 3
    for same in ((4, 5, 6), (6, 5, 4)):
        again, n = told(in_a_row(*same), task)
        assert n == 3 and again == pytest.approx(loss, rel=1e-5)
    assert told(in_a_row(10, 9), task) == (0, 0)


@pytest.mark.parametrize("reader", ["items", "codes", "languages"])
def test_an_item_without_codes_is_read_as_nothing(reader):
    sizes = {k: SMALL[k] for k in ("heads", "head_width", "width", "inner")}
    stacks = encoder_decoder(1, 1, True, 0.0, **sizes)
    if reader == "languages":
        speller, language = Polyglot(SIZES, *stacks), (np.ones(1, np.int32),)
    else:
        speller, language = Speller(SIZES, *stacks, by_token=reader == "codes"), ()
    mask = np.tril(np.ones((1, 3, 3), bool))

    @jax.jit
    def read(params, codes):
        return speller.apply(params, (codes, *language), mask, method="read")

    without, first = (np.array([[[1, 2, 3], [x] * 3, [3, 1, 5]]]) for x in (-1, 0))
    params = jax.jit(partial(speller.init, method="read"))(
        jax.random.key(0), (without, *language), mask
    )
    rows = jnp.array([0, SIZES[0], SIZES[0] + SIZES[1]])  # code 0 of every level
    other = {**params["params"], "codes": params["params"]["codes"].at[..., rows, :].add(1.0)}
    changed = [np.abs(read(params, x) - read({"params": other}, x)).max() for x in (without, first)]
    assert changed[0] == 0 and changed[1] > 1e-3


@pytest.mark.parametrize(
    "name", ["tiger", "rpg", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW), "mmgrec"]
)
def test_a_filter_is_an_argument_and_a_user_may_have_no_history(name):
    recommender, params, catalogue, _ = made(name)
    index = jax.jit(recommender.index)(params, catalogue)
    traces = []

    @jax.jit
    def listed(params, index, batch):
        traces.append(1)
        return recommender.recommend(params, index, batch, 6)

    batch = asked(slice(0, 6))  # user 0 has no history
    if name in ("mmgrec", "mmgrec_official"):
        batch = asked()  # nothing to attend to
    for kept in (2, 3):
        valid = index["valid"] & (jnp.arange(64) % kept == 0)
        items, scores = (np.asarray(x) for x in listed(params, {**index, "valid": valid}, batch))
        for row, own, past in zip(items, scores, batch["exclude"], strict=True):
            found = row[np.isfinite(own)]
            assert len(set(found)) == len(found) and not set(found) & set(past.tolist())
            assert np.asarray(valid)[found].all()
        if name != "mmgrec_official":  # its search is held to nothing
            assert np.isfinite(scores).all()
    assert len(traces) == 1


@pytest.mark.parametrize("by_token", [False, True])
def test_a_user_token_tells_whose_history_it_is(by_token):
    fields = {"by_token": True, "causal": False} if by_token else {}
    recommender, params, catalogue, batch = made("tiger", user_tokens=5, **fields)
    index = jax.jit(recommender.index)(params, catalogue)
    score = jax.jit(recommender.score)
    every = jnp.broadcast_to(jnp.arange(1, 9)[None], (6, 8))
    own = asked()

    def of(users) -> np.ndarray:
        named = np.broadcast_to(np.asarray(users), (6, 1)) * (own["items"] > 0)
        return np.asarray(score(params, index, {**own, "users": named.astype(np.int32)}, every))

    one = of([[2]])
    assert np.abs(one - of([[3]])).max() > 1e-6, "another user"
    np.testing.assert_array_equal(one, of([[7]]))  # of the same row
    plain = dict(params["speller"])
    plain.pop("owners")
    bare = made("tiger", **fields)[0]
    stranger = np.asarray(jax.jit(bare.score)({"speller": plain}, index, own, every))
    np.testing.assert_allclose(of([[0]]), stranger, atol=1e-5)
    if not by_token:
        grads = jax.jit(jax.grad(recommender.loss, has_aux=True))(
            params, catalogue, batch, jax.random.key(1)
        )[0]
        assert np.abs(grads["speller"]["owners"]).min(axis=1).max() > 0
    with pytest.raises(ValueError, match="user_tokens is -1"):
        build("tiger", user_tokens=-1)


def test_lists_of_parallel_ids_are_the_exact_ranking():
    recommender, params, catalogue, _ = made("rpg")
    index = jax.jit(recommender.index)(params, catalogue)
    every = jnp.broadcast_to(jnp.arange(64)[None], (6, 64))
    exact = np.array(jax.jit(recommender.score)(params, index, asked(), every))
    exact[:, ~np.asarray(catalogue["valid"])] = -np.inf
    np.put_along_axis(exact, asked()["exclude"], -np.inf, axis=1)
    coded = np.asarray(catalogue["codes"])[:, 0] >= 0
    listed = jax.jit(recommender.recommend, static_argnums=3)
    items, scores = (np.asarray(x) for x in listed(params, index, asked(), 20))
    order = np.argsort(-np.where(coded, exact, -np.inf), axis=1, kind="stable")[:, :20]
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), atol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, items, 1), atol=1e-5)
    assert coded[items].all()


def test_parallel_codes_are_scored_as_their_definition_says():
    recommender, params, catalogue, batch = made("rpg")
    index = jax.jit(recommender.index)(params, catalogue)
    log_p = np.asarray(jax.jit(recommender.encode)(params, index, asked()))  # b c v
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-5)
    codes = np.asarray(catalogue["codes"])
    own = np.mean([log_p[:, d, codes[1:9, d]] for d in range(3)], axis=0)
    every = jnp.broadcast_to(jnp.arange(1, 10)[None], (6, 9))
    found = np.asarray(jax.jit(recommender.score)(params, index, asked(), every))
    np.testing.assert_allclose(found[:, :8], own, atol=1e-5)
    assert (found[:, 8] < -1e8).all()  # item 9 has no codes
    np.testing.assert_allclose(found[:, 6], found[:, 7], atol=1e-6)  # one id for two items
    with pytest.raises(ValueError, match="--model.size 8"):
        build("rpg", size=4).prepare({**world()[0]}, 1)


def test_liger_ranks_the_spelled_and_the_cold_by_content():
    recommender, params, catalogue, _ = made("liger", beam=5)
    index = jax.jit(recommender.index)(params, catalogue)
    batch = asked()
    items, scores = jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, 8)
    items, cold = np.asarray(items), np.arange(N - 4, N + 1)
    for row, past in zip(items, batch["exclude"], strict=True):
        assert len(set(row)) == 8 and not set(row) & set(past.tolist())
    bare = {**catalogue, "features": {"text": catalogue["features"]["text"].at[-27:].set(0)}}
    bare |= {"present": {"text": catalogue["present"]["text"] & (jnp.arange(64) < N - 3)}}
    shown = jax.jit(recommender.recommend, static_argnums=3)(
        params, jax.jit(recommender.index)(params, bare), batch, 8
    )[0]
    assert not np.isin(shown, np.arange(N - 3, N + 1)).any(), "of these nothing is known"
    state = np.asarray(jax.jit(recommender.encode)(params, index, batch)["state"])
    content = np.asarray(index["content"])
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)  # noqa: E731
    exact = unit(state) @ unit(content).T
    np.testing.assert_allclose(scores, np.take_along_axis(exact, items, 1), atol=1e-5)
    for row, past in enumerate(batch["exclude"]):  # no cold item is better than the last listed
        left = [i for i in cold if i not in items[row] and i not in past]
        assert all(exact[row, i] <= scores[row, -1] + 1e-6 for i in left)


def test_languages_are_merged_and_each_item_listed_once():
    recommender, params, catalogue, _ = made("mql4grec")
    index = jax.jit(recommender.index)(params, catalogue)
    batch = asked()
    items, scores = jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, 10)
    every = jnp.broadcast_to(jnp.arange(64)[None], (6, 64))
    exact = np.asarray(jax.jit(recommender.score)(params, index, batch, every))
    for row, past in zip(np.asarray(items), batch["exclude"], strict=True):
        assert len(set(row)) == 10 and not set(row) & set(past.tolist())
    own = np.take_along_axis(exact, np.asarray(items), 1)
    both = np.abs(own + 1 - np.asarray(scores)) < 1e-4
    assert both.any() and np.isfinite(own).all()
    lists = [
        (jnp.array([[3, 5, 0]]), jnp.array([[-1.0, -2.0, -jnp.inf]])),
        (jnp.array([[5, 4, 3]]), jnp.array([[-1.0, -1.5, -4.0]])),
    ]
    found, merged_scores = merged(lists, 4)
    assert found.tolist() in ([[5, 4, 3, 0]], [[5, 3, 4, 0]])
    np.testing.assert_allclose(merged_scores[0, :3], [-0.5, -1.5, -1.5])
    with pytest.raises(ValueError, match="two or more vocabularies"):
        recommender.prepare({**world()[0]}, 1)


def test_an_item_is_scored_by_the_languages_that_have_it():
    """Item 9 has no codes in the first, 10 none in the second, 45 none at all."""
    recommender, params, catalogue, _ = made("mql4grec")
    index = jax.jit(recommender.index)(params, catalogue)
    every = jnp.broadcast_to(jnp.arange(64)[None], (6, 64))
    score, codes = jax.jit(recommender.score), index["codes"]
    first, second, both = (
        np.asarray(score(params, {**index, "codes": own}, asked(), every))
        for own in (codes.at[:, 1].set(-1), codes.at[:, 0].set(-1), codes)
    )
    np.testing.assert_allclose(both[:, 4], (first[:, 4] + second[:, 4]) / 2, rtol=1e-5)
    np.testing.assert_allclose(both[:, 9], second[:, 9], rtol=1e-5)
    np.testing.assert_allclose(both[:, 10], first[:, 10], rtol=1e-5)
    for scores, missing in ((first, [9, 45]), (second, [10, 45]), (both, [0, 45])):
        assert np.isneginf(scores[:, missing]).all()


def parted() -> dict:
    """`bilingual` with odd items in the one vocabulary and even ones in the other."""
    catalogue, odd = bilingual(), np.arange(64) % 2 == 1
    codes = {
        name: np.where(own[:, None], catalogue["codes"][name], -1)
        for name, own in (("own", odd), ("second", ~odd))
    }
    return catalogue | {"codes": codes}


@pytest.mark.slow
@pytest.mark.parametrize("given", [bilingual, parted])
def test_a_wide_beam_in_every_language_is_the_exact_ranking_of_the_merged(given):
    """The search, code by code with a cache, against `score`, all codes at once without: equal
    only if the decoder hears no later code."""
    recommender, params, *_ = made("mql4grec")
    catalogue = jax.tree.map(jnp.asarray, recommender.prepare(given(), 1))
    index = jax.jit(recommender.index)(params, catalogue)
    batch = asked()
    batch["exclude"] = batch["exclude"] * 0
    every = jnp.broadcast_to(jnp.arange(64)[None], (len(batch["items"]), 64))
    own = np.array(jax.jit(recommender.score)(params, index, batch, every))
    own[:, ~np.asarray(catalogue["valid"])] = -np.inf
    spoken = np.asarray(catalogue["codes"])[:, :, 0] >= 0
    exact = own + spoken.all(axis=1)[None]
    n = np.isfinite(exact[0]).sum()
    assert n == (spoken.any(axis=1) & np.asarray(catalogue["valid"])).sum()
    items, scores = jax.jit(recommender.recommend, static_argnums=3)(params, index, batch, N)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :n]
    np.testing.assert_allclose(scores[:, :n], np.take_along_axis(exact, order, 1), atol=1e-4)
    found = np.take_along_axis(exact, np.asarray(items[:, :n]), 1)
    np.testing.assert_allclose(scores[:, :n], found, atol=1e-4)
    assert all(len(set(row)) == n for row in items[:, :n].tolist()) and not items[:, n:].any()
    if given is parted:  # in each language the words that exist are all there is
        for language in (0, 1):
            total = np.exp(own[:, spoken[:, language]]).sum(axis=1)
            np.testing.assert_allclose(total, 1, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["liger", "mql4grec"])
def test_what_is_ranked_anew_does_not_depend_on_how_much_is_asked_for(name):
    recommender, params, catalogue, _ = made(name)
    index = jax.jit(recommender.index)(params, catalogue)
    listed = jax.jit(recommender.recommend, static_argnums=3)
    few, many = (np.asarray(listed(params, index, asked(), k)[0]) for k in (5, 12))
    np.testing.assert_array_equal(few, many[:, :5])


def test_a_place_that_sees_its_target_is_refused():
    recommender, params, catalogue, batch = made("tiger", causal=False)
    with pytest.raises(ValueError, match="tiger_paper"):
        recommender.loss(params, catalogue, batch, jax.random.key(0))


def test_broken_parameters_are_told_and_ties_at_the_end_of_a_list_count_half():
    recommender, params, catalogue, _ = made("tiger")
    batch = {**asked(), "positives": np.full((6, 1), 7, np.int32), "event": np.arange(6)}
    batch["exclude"] = np.where(np.isin(batch["exclude"], (7, 8)), 0, batch["exclude"])
    run = lambda p, ks: evaluate(recommender, p, catalogue, [batch], ks)  # noqa: E731
    place = run(params, (38,)).asked.greater[:, 0]  # 7 and 8 share their codes and so their place
    k = int(place[0]) + 1
    assert run(params, (k,)).per_event[f"recall@{k}"][0] == 0.5
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.raises(FloatingPointError):
        run(broken, (5,))


def test_evaluation_asks_for_one_length_and_the_widest_tie_beyond_it():
    recommender, params, catalogue, _ = made("tiger")
    lengths = []

    def recommend(params, index, batch, k):
        lengths.append(k)
        return jnp.zeros((len(batch["items"]), k), jnp.int32), jnp.zeros((len(batch["items"]), k))

    batches = []
    for rows in (slice(1, 7), slice(7, 9)):  # of two shapes
        batches.append(asked(rows))
        batches[-1]["positives"] = np.full((len(batches[-1]["items"]), 1), 40, np.int32)
        batches[-1]["exclude"] = 0 * batches[-1]["exclude"]
    watched = recommender._replace(recommend=recommend)
    evaluate(watched, params, catalogue, batches, (5, 20))
    assert lengths == [21, 21]  # items 7 and 8 share their codes


def test_asking_everywhere_at_once_is_asking_prefix_by_prefix():
    recommender, params, catalogue, batch = made("tiger")
    loss, told = jax.jit(recommender.loss)(params, catalogue, batch, jax.random.key(0))
    index, total, count = jax.jit(recommender.index)(params, catalogue), 0.0, 0
    likelihood = jax.jit(recommender.score)
    histories = world()[1]
    cut = [(histories[u][:i], histories[u][i]) for u in range(1, 21) for i in range(1, 8)
           if i < len(histories[u])]  # fmt: skip
    ask = requests(Ragged.of([h for h, _ in cut]), np.zeros(len(cut), np.int32), LENGTH, LENGTH)
    own = likelihood(params, index, ask, jnp.array([[t] for _, t in cut]))
    own = np.asarray(own)[:, 0]
    kept = np.isfinite(own)
    total, count = -own[kept].sum(), kept.sum()
    assert count == told["targets"]
    np.testing.assert_allclose(loss, total / count, rtol=1e-4)


def test_liger_learns_the_spelling_and_which_content_comes_next():
    """The loss is -ln p of the codes and -ln softmax(cosine / .07) among the valid items."""
    recommender, params, catalogue, _ = made("liger")
    histories = [[3, 14, 5], [21, 9, 30]]  # item 9 has no codes: it is not asked for
    batch = pack(Ragged.of(histories), LENGTH, scheme=MODELS["liger"].targets)
    loss, told = jax.jit(recommender.loss)(params, catalogue, batch, jax.random.key(0))
    index = jax.jit(recommender.index)(params, catalogue)
    ask = requests(Ragged.of([[3], [3, 14], [21, 9]]), np.zeros(3, np.int32), LENGTH, LENGTH)
    targets = np.array([14, 5, 30])

    @jax.jit
    def read(params, index):
        state = recommender.encode(params, index, ask)["state"]
        return state, recommender.score(params, index, ask, targets[:, None])

    state, spelled = (np.asarray(x) for x in read(params, index))
    table = np.asarray(index["content"])[np.asarray(catalogue["valid"])]  # items 1 to N
    state, table = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (state, table))
    near = np.exp(state @ table.T / 0.07)
    content = -np.log(near[np.arange(3), targets - 1] / near.sum(axis=1))
    assert told["targets"] == 3
    np.testing.assert_allclose(loss, np.mean(content - spelled[:, 0]), rtol=1e-4)


@pytest.mark.parametrize("users", ["graph", None])
def test_a_set_has_no_order_and_a_stranger_is_the_mean_of_it(users):
    recommender, params, catalogue, _ = made("mmgrec", **({"users": users} if users else {}))
    index = jax.jit(recommender.index)(params, catalogue)
    listed = jax.jit(recommender.recommend, static_argnums=3)
    batch = asked()
    items, scores = listed(params, index, batch, 6)
    turned = dict(batch, items=batch["items"].copy())
    for row in turned["items"]:
        kept = np.count_nonzero(row)
        row[:kept] = row[:kept][::-1]
    again, same = listed(params, index, turned, 6)
    assert np.array_equal(items, again)
    np.testing.assert_allclose(scores, same, atol=1e-5)
    _, strange = listed(params, index, dict(batch, users=0 * batch["users"]), 6)
    assert np.isfinite(strange).all()
    assert (np.abs(strange - scores).max() > 1e-6) == (users == "graph")
    with pytest.raises(ValueError, match="vectors of a trained graph model"):
        bare = {k: v for k, v in catalogue.items() if k != "vectors"}
        recommender.init(jax.random.key(0), bare, pack(world()[1], LENGTH, scheme="rest"))


def test_a_free_search_loses_what_it_spells_in_vain():
    recommender, params, catalogue, _ = made("mmgrec_official", beam=8)
    index = jax.jit(recommender.index)(params, catalogue)
    batch = asked()
    batch["exclude"] = batch["exclude"] * 0
    listed = jax.jit(recommender.recommend, static_argnums=3)
    every = jnp.broadcast_to(jnp.arange(64)[None], (6, 64))
    exact = np.array(jax.jit(recommender.score)(params, index, batch, every))
    exact[:, ~np.asarray(catalogue["valid"])] = -np.inf
    items, scores = listed(params, index, batch, 8)
    assert (np.asarray(items) == 0).any()  # 8^3 words for 40 items
    kept = np.asarray(items) > 0
    own = np.take_along_axis(exact, np.asarray(items), 1)
    np.testing.assert_allclose(np.asarray(scores)[kept], own[kept], atol=1e-4)
    assert np.isneginf(np.asarray(scores)[~kept]).all()
    items, scores = listed(params, index, batch, 12)  # beyond the beam there is nothing
    assert (np.asarray(items)[:, 8:] == 0).all()
    recommender = made("mmgrec_official", beam=512)[0]  # every word there is
    listed = jax.jit(recommender.recommend, static_argnums=3)
    items, scores = listed(params, index, batch, 512)
    order = np.argsort(-exact, axis=1, kind="stable")[:, : N - 1]
    np.testing.assert_allclose(
        np.asarray(scores)[:, : N - 1], np.take_along_axis(exact, order, 1), atol=1e-4
    )
    assert (np.asarray(items)[:, N - 1 :] == 0).all()
    for wrong in ({"shared": True}, {"held": False}):
        with pytest.raises(ValueError, match="among='all'"):
            build("mmgrec", **wrong)


def test_the_share_of_words_that_nobody_has_is_told():
    words = 8**3
    for name, beam, share in (("mmgrec_official", words, 1 - (N - 1) / words), ("mmgrec", 8, 0)):
        recommender, params, catalogue, _ = made(name, beam=beam)
        assert invalid_share(recommender, params, catalogue, [asked()], beam) == share
    recommender, params, catalogue, _ = made("mmgrec_official", beam=256)
    batch = asked() | {"weight": np.float32([0, 0, 0, 1, 1, 1])}
    index, free = jax.jit(recommender.index)(params, catalogue), {**batch}
    free["exclude"] = batch["exclude"] * 0
    items = jax.jit(recommender.recommend, static_argnums=3)(params, index, free, 256)[0]
    told = invalid_share(recommender, params, catalogue, [batch], 256)
    assert 0 < told < 1 and told == np.mean(np.asarray(items)[3:] == 0)


def drawn(name: str, seed: int) -> dict[str, np.ndarray]:
    """Histories of six items that nobody chose: the others say nothing of the one left out."""
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(N)[:6] + 1 for _ in range(20)]
    return pack(Ragged.of([[], *histories]), LENGTH, scheme=MODELS[name].targets)


@pytest.mark.slow
def test_the_official_form_learns_to_copy_and_the_sound_one_cannot():
    chance, reached = np.log(N - 6), {}
    for name in ("mmgrec", "mmgrec_official"):
        recommender, _, catalogue, _ = made(name)
        chain = optimizer(rate=1e-2)
        state = create(recommender, chain, catalogue, drawn(name, 0), 0)
        step = jax.jit(make_step(recommender, chain, 0))
        told = []
        for seed in range(300):  # never the same histories twice
            state, metrics = step(state, catalogue, drawn(name, seed))
            told.append(float(metrics["loss"]))
        reached[name] = np.mean(told[-20:])
    assert reached["mmgrec"] > chance - 0.2, "there is nothing to know"
    assert reached["mmgrec_official"] < chance - 0.4, "it is shown the answer"


@pytest.mark.slow
def test_a_few_sequences_are_learned_by_heart():
    recommender, params, catalogue, batch = made("tiger")
    chain = optimizer(rate=1e-2)
    state = create(recommender, chain, catalogue, batch, 0)
    step = jax.jit(make_step(recommender, chain, 0))
    for _ in range(150):
        state, told = step(state, catalogue, batch)
    index = jax.jit(recommender.index)(state.params, catalogue)
    histories = world()[1]
    past = Ragged.of([h[:-1] for h in (histories[u] for u in range(1, 21))])
    last = [histories[u][-1] for u in range(1, 21)]
    ask = requests(past, np.zeros(20, np.int32), LENGTH, LENGTH)
    items = jax.jit(recommender.recommend, static_argnums=3)(state.params, index, ask, 2)[0]
    known = [i for i, t in enumerate(last) if t != 9]
    hits = [last[i] in np.asarray(items)[i] for i in known]
    assert np.mean(hits) >= 0.9


def test_new_items_are_recommended_by_a_trained_model_as_it_is():
    recommender, params, catalogue, _ = made("tiger", among="all")  # old scores stay the same, too
    grown = jax.tree.map(jnp.asarray, recommender.prepare({**world(N + 10)[0]}, 1))
    old, new = (jax.jit(recommender.index)(params, c) for c in (catalogue, grown))
    assert np.array_equal(old["codes"][: N + 1], new["codes"][: N + 1])
    listed = jax.jit(recommender.recommend, static_argnums=3)
    items, scores = listed(params, new, asked(), 45)
    assert (np.asarray(items) > N).any()
    before, likely = listed(params, old, asked(), 30)
    for row, past in enumerate(np.asarray(before)):
        kept = [i for i in np.asarray(items)[row] if 0 < i <= N]
        assert [i for i in kept if i in past][:10] == past[:10].tolist()


def test_the_log_counts_the_items_that_share_their_codes():
    """Rows without codes are zeros, which are the codes of item 1: it shares them with nobody."""
    found = coding_files.from_array([[0, 0], [1, 0], [1, 0], [2, 1], [0, 0]])
    found.present[5] = False
    told = coding.told("own", found, np.array([1, 2, 4, 5]))
    assert "1 items have none" in told and "2 share theirs, 25.00% of test targets" in told


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rpg"])
def test_a_beam_that_keeps_nothing_is_refused(name):
    with pytest.raises(ValueError, match="beam is 0; expected a whole number of at least 1"):
        build(name, beam=0)


WORDS = {"x": ["<a_1>", "<b_2>"], "y": ["<a_3>", "<b_4>"]}


@pytest.mark.parametrize(
    "index, message",
    [
        ({"z": WORDS["x"], "y": WORDS["y"]}, "another catalogue"),
        (WORDS | {"y": ["<a_1>", "b?"]}, "item 'y': 'b\\?' is no token"),
        (WORDS | {"y": ["<a_1>"]}, "item 'y'.*levels a; the first item's are a-b"),
        (WORDS | {"y": ["<a_1>", "<b_65536>"]}, "code 65536 does not exist"),
    ],
)
def test_codes_of_a_file_that_cannot_be_are_refused(index, message, tmp_path):
    """Through what `--codes FILE` does; items that share their codes are told, and go on."""
    rows = {"users": ["u", "u"], "items": ["x", "y"], "times": [1, 2]}
    data, path = from_arrays(**rows), tmp_path / "own.json"
    path.write_text(json.dumps(WORDS | {"y": WORDS["x"]}))
    assert coding.coded(data, str(path))["own"][0].codes[1:].tolist() == [[1, 2], [1, 2]]
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"own.json.*{message}"):
        coding.coded(data, str(path))


def test_a_digit_has_room_for_new_items(tmp_path):
    """Codes of a file, grown by one more item of its fullest group, fit the sizes that a model was
    built with; codes that are no digit get no more than the next power of two."""
    rng = np.random.default_rng(0)
    plain = with_digit(rng.integers(0, 4, (60, 2)))
    most = int(plain[:, -1].max())
    assert coding.counts_up(plain) and not coding.counts_up(rng.permutation(256)[:60, None] % 9)
    room = coding.sizes(coding_files.from_array(plain))
    fullest = plain[plain[:, -1] == most][:1, :-1]
    for _ in range(most + 1):  # as many again
        plain = append(plain, fullest, reserved=int(room[-1]))
    assert plain[-1, -1] == 2 * most + 1 < room[-1]


def test_codes_of_a_data_set_and_their_errors(tmp_path):
    data = made_world(n_items=300, n_users=40).dataset
    found, room = coding.coded(data, "rkmeans")["rkmeans"]
    assert room.tolist()[:3] == [256] * 3 and found.present[1:].all()
    assert len({tuple(c) for c in found.codes[1:]}) == 300
    coding_files.write_index(tmp_path / "own.json", found, data.item_ids)
    again, _ = coding.coded(data, str(tmp_path / "own.json"))["own"]
    assert np.array_equal(again.codes, found.codes)
    with pytest.raises(DataError, match="no such column"):
        coding.coded(data, "letter_sid")
    with pytest.raises(DataError, match="cannot fill 256 codes"):
        coding.coded(made_world(n_items=60, n_users=20).dataset, "rkmeans")
    with pytest.raises(DataError, match="codes need content"):
        coding.coded(data, "rkmeans:smell")
    other = replace(data, item_ids=np.array(["", *[f"x{i}" for i in range(300)]], object))
    with pytest.raises(DataError, match="another catalogue"):
        coding.coded(other, str(tmp_path / "own.json"))
    with pytest.raises(ValueError, match="one vocabulary"):
        build("tiger").prepare({"codes": {}, "valid": np.ones(4, bool)}, 1)


def test_trained_saved_and_loaded_back_it_gives_the_same_lists(tmp_path):
    data = api.load_data(
        made_world(n_items=300, n_users=60, length=(4, 6)).dataset, api.DataOptions(codes="random")
    )
    settings = api.settings_for("tiger", steps=4, batch=4, evaluate_every=4)
    fitted, seen = api.fit("tiger", data, tmp_path, settings, **SMALL)
    assert fitted.max_len == LENGTH
    bundle = api.from_pretrained(tmp_path)
    theirs = api.evaluate(bundle, seen, "valid", batch=512).metrics
    assert {k: fitted.best[k] for k in theirs} == theirs
    lines = bundle.recommend(bundle.item_ids[1:4], k=5)
    assert len({line.item for line in lines}) == 5
    other = replace(data, options=api.DataOptions(codes="rkmeans"))
    with pytest.raises(ValueError, match="codes is 'random' there, 'rkmeans' here"):
        api.fit("tiger", other, tmp_path, settings, **SMALL)
    with pytest.raises(ValueError, match="in other codes"):
        api.fit("tiger", other, None, settings, graft=tmp_path, **SMALL)
    session = bundle.session()
    for item in bundle.item_ids[1:4]:
        session.append(item)
    assert [line.item for line in session.recommend(5)] == [line.item for line in lines]
    likely = bundle.score(bundle.item_ids[1:4], bundle.item_ids[1:])
    assert np.exp(likely).sum() == pytest.approx(1, abs=1e-3)  # of items that exist
    at = [bundle.item_ids.index(line.item) - 1 for line in lines]
    assert [likely[i] for i in at] == pytest.approx([line.score for line in lines], abs=1e-3)


def test_an_item_without_codes_is_never_promised(tmp_path):
    made = made_world(n_items=60, n_users=40, length=(4, 6)).dataset
    words = np.stack([np.arange(60) // 8, np.arange(60) % 8], axis=1)
    found = coding_files.from_array(words)
    found.present[51:] = False
    coding_files.write_index(tmp_path / "own.json", found, made.item_ids)
    data = api.load_data(made, api.DataOptions(codes=f"{tmp_path}/own.json"))
    given = {"settings": api.settings_for("tiger", steps=0), **SMALL}
    api.fit("tiger", data, tmp_path / "run", **given)
    bundle = api.from_pretrained(tmp_path / "run")
    history = bundle.item_ids[1:4]
    assert len(bundle.recommend(history, k=47)) == 47
    with pytest.raises(ValueError, match="k is 48; expected 1 to 47"):
        bundle.recommend(history, k=48)
    assert np.isneginf(bundle.score(history, [bundle.item_ids[55]])[0])


def alike_by_hand(codes: np.ndarray) -> np.ndarray:
    """int[n]: the first item that each is tied to by shared codes int[n,v,c], pair after pair."""
    same = np.all(codes[:, None] == codes[None], axis=-1).any(axis=-1)
    for _ in codes:
        same = (same.astype(int) @ same) > 0
    return same.argmax(axis=1)


@pytest.mark.parametrize("languages", [1, 2])
def test_items_of_one_string_of_codes_are_alike(languages):
    from reach import alike

    chain = np.array([[[0, 1], [5, 5]], [[2, 2], [6, 6]], [[2, 2], [5, 5]], [[2, 1], [5, 6]]])
    assert alike(chain[:, 0]).tolist() == [0, 1, 1, 3]
    assert alike(chain).tolist() == [0, 0, 0, 3]
    codes = np.random.default_rng(0).integers(0, 8, (60, languages, 2))
    wanted = alike_by_hand(codes)
    assert 5 < len(np.unique(wanted)) < 50
    np.testing.assert_array_equal(alike(codes if languages == 2 else codes[:, 0]), wanted)


@pytest.mark.parametrize("languages", [1, 2])
def test_by_string_any_item_of_the_target_s_codes_is_a_hit(languages):
    """Lists of a table of scores; a third of the items has no codes in a language."""
    from reach import by_string

    rng, n = np.random.default_rng(0), 30
    items = np.concatenate([rng.permutation(n)[:5] for _ in range(40)])
    data = api.load_data(from_arrays(np.repeat(np.arange(40), 5), items, np.tile(range(5), 40)))
    codes = rng.integers(0, 2 + 2 * languages, (n + 1, languages, 2))
    codes[0] = codes[rng.random((n + 1, languages)) < 1 / 3] = -1
    table = rng.normal(size=(n + 1, n + 1)).astype(np.float32)
    table[:, 0] = -np.inf

    def recommend(params, index, batch, k):
        last = jnp.take_along_axis(batch["items"], batch["query"][:, None], axis=1)[:, 0]
        scores, found = jax.lax.top_k(params[last], k)
        return found, scores

    catalogue = data.catalogue() | {"codes": codes if languages == 2 else codes[:, 0]}
    table = np.pad(table, ((0, 0), (0, len(catalogue["valid"]) - n - 1)), constant_values=-np.inf)
    listed = Recommender(None, None, lambda _, x: x, recommend, None, None, None)
    found = by_string(Fitted(listed, table, catalogue, 0, 0.0, 0.0, {}, [], "", 8), data)

    alone = np.where(codes < 0, -1 - np.arange(n + 1)[:, None, None], codes)
    same, test, hits = alike_by_hand(alone), data.split.test, {5: [], 10: []}
    for event, target in enumerate(test.positives.values):
        order = np.argsort(-table[test.history[event][-1]])[:20]
        strings = list(dict.fromkeys(same[order]))
        for k, own in hits.items():
            own.append(same[target] in strings[:k])
    for k, own in hits.items():
        assert found[f"recall@{k}"] == pytest.approx(np.mean(own))
    plain = api.evaluate((listed, table), data, mask=False, max_len=8, catalogue=catalogue)
    assert found["recall@5"] > plain.metrics["recall@5"]


@pytest.mark.parametrize("name", _timed(NAMES, (*SLOW, "mmgrec")))  # with its graphsage
def test_a_bundle_of_every_model_gives_the_lists_of_the_fitted_one(name, tmp_path):
    made = made_world(n_items=60, n_users=40, length=(4, 6)).dataset
    words, files = np.stack([np.arange(60) // 8, np.arange(60) % 8], axis=1), []
    for spelling in (words, words[::-1])[: 1 + (name == "mql4grec")]:
        files.append(f"{tmp_path}/codes{len(files)}.json")
        coding_files.write_index(files[-1], coding_files.from_array(spelling), made.item_ids)
    data, vectors = api.load_data(made, api.DataOptions(codes=",".join(files))), None
    if name.startswith("mmgrec"):
        vectors, plain = tmp_path / "sage", api.load_data(made)
        untrained = api.settings_for("graphsage", steps=0)
        api.fit("graphsage", plain, vectors, untrained, width=8, hidden=8)
    fields = {**PARALLEL, "size": 16} if name == "rpg" else SMALL
    given = {"settings": api.settings_for(name, steps=0), "vectors": vectors, **fields}
    fitted, seen = api.fit(name, data, tmp_path / "run", **given)
    bundle = api.from_pretrained(tmp_path / "run")
    batches = list(event_batches(seen.split.test, LENGTH, 64))
    ours, theirs = (
        top_lists(x.recommender, x.params, x.catalogue, batches, 5) for x in (fitted, bundle)
    )
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours)) > 5


def test_on_a_mesh_the_lists_are_the_same():
    recommender, params, catalogue, _ = made("tiger")
    mesh = meshes.make_mesh(4, 2)
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "model")))
    prepared = recommender.prepare({**world()[0]}, 8)
    with jax.set_mesh(mesh):
        far = jax.device_put(prepared, spread)
        index = jax.jit(recommender.index)(params, far)
        there = jax.jit(recommender.recommend, static_argnums=3)(params, index, asked(), 6)
    index = jax.jit(recommender.index)(params, catalogue)
    here = jax.jit(recommender.recommend, static_argnums=3)(params, index, asked(), 6)
    assert np.array_equal(here[0], there[0])
    np.testing.assert_allclose(here[1], there[1], atol=1e-5)
    events = requests(world()[1].take(np.arange(1, 9)), np.zeros(8, np.int32), LENGTH, LENGTH)
    events |= {"positives": np.arange(11, 19, dtype=np.int32)[:, None], "event": np.arange(8)}
    events["exclude"] = events["exclude"] * 0
    want = evaluate(recommender, params, catalogue, [events])
    with jax.set_mesh(mesh):
        got = evaluate(recommender, params, far, [events], mesh=mesh)
    assert got.metrics == pytest.approx(want.metrics)
