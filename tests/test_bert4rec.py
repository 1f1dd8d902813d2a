"""What BERT4Rec hides, what it is asked to guess, and where its guess stands."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import zoo
from checkpoints.bundle import load_bundle
from pipelines.sources import from_arrays
from zoo.models import build
from zoo.models.bert4rec import cloze, hidden_columns
from zoo.serve import Pretrained

RATE, LAST, LENGTH = 0.2, 0.3, 50
SEGMENTS = np.repeat(np.array([[1] * 20 + [2] * 15 + [3] * 9 + [0] * 6], np.int32), 2000, 0)
NEWEST = (19, 34, 43)


def hidden(rate: float, last: float, seed: int = 0, segments: np.ndarray = SEGMENTS) -> np.ndarray:
    """bool[b,l]: which columns are hidden; none twice."""
    columns = np.asarray(hidden_columns(jax.random.key(seed), segments, rate, last))
    found = np.zeros(segments.shape, int)
    rows, nth = np.nonzero(columns >= 0)
    np.add.at(found, (rows, columns[rows, nth]), 1)
    assert found.max() <= 1
    return found > 0


def only_newest(found: np.ndarray) -> np.ndarray:
    """bool[b]: rows in which the newest items are hidden and no others."""
    want = np.zeros(LENGTH, bool)
    want[list(NEWEST)] = True
    return (found == want).all(1)


def test_items_are_hidden_at_the_rate_and_padding_never():
    found = hidden(RATE, 0.0)
    real = SEGMENTS > 0
    assert not found[~real].any()
    deviation = np.sqrt(RATE * (1 - RATE) / real.sum())
    assert abs(found[real].mean() - RATE) < 4 * deviation
    each = found[:, real[0]].mean(0)  # every column alike: none is favoured by its place
    assert np.abs(each - RATE).max() < 5 * np.sqrt(RATE * (1 - RATE) / len(found))
    assert (hidden(RATE, 0.0, seed=1) != found).any()


def test_a_share_of_the_rows_hides_the_newest_items_alone():
    share = only_newest(hidden(RATE, LAST)).mean()
    assert abs(share - LAST) < 4 * np.sqrt(LAST * (1 - LAST) / len(SEGMENTS))
    assert only_newest(hidden(RATE, 1.0)).all()
    assert not only_newest(hidden(RATE, 0.0)).any()
    full = np.repeat(np.arange(1, 11, dtype=np.int32), 5)[None]  # the last column is newest, too
    np.testing.assert_array_equal(hidden(RATE, 1.0, segments=full)[0], np.arange(1, 51) % 5 == 0)


def test_what_is_guessed_is_what_was_hidden():
    rng = np.random.default_rng(0)
    items = np.where(SEGMENTS[:8] > 0, rng.integers(1, 1000, (8, LENGTH)), 0).astype(np.int32)
    x = jnp.asarray(items[:, :, None] + np.zeros(4), jnp.float32)
    reading = cloze(RATE, LAST)
    params = {"hidden": {"table": jnp.full((1, 4), -1.0)}}
    batch = {"items": items, "segments": SEGMENTS[:8], "targets": items}
    seen, _, columns, targets = reading.learn(params, x, batch, jax.random.key(0))
    covered = np.asarray(seen[:, :, 0]) == -1
    np.testing.assert_array_equal(np.where(covered, items, seen[:, :, 0]), items)
    for row in range(8):
        asked = np.asarray(columns)[row][np.asarray(targets)[row] > 0]
        assert sorted(asked) == np.flatnonzero(covered[row]).tolist()
        np.testing.assert_array_equal(items[row, asked], targets[row][targets[row] > 0])
    assert covered.any()


@pytest.mark.parametrize("end", [0, 3, 7])
def test_the_guess_stands_behind_the_newest_item_and_sees_nothing_later(end):
    x = jnp.arange(1.0, 9.0)[None, :, None] * jnp.ones(2)[None, None]
    batch = {"segments": np.ones((1, 8), np.int32), "query": np.array([end], np.int32)}
    params = {"hidden": {"table": jnp.full((1, 2), -1.0)}}
    seen, rows, column = cloze(RATE, LAST).ask(params, x, batch)
    assert column.tolist() == [end + 1]
    assert seen[0, : end + 2, 0].tolist() == [*range(1, end + 2), -1]
    assert rows["segments"].tolist() == [[1] * (end + 2) + [0] * (7 - end)]
    assert rows["positions"][0, end + 1] == end + 1


def test_aligned_right_the_guess_always_stands_at_the_last_position():
    """In training the newest item of every segment, when asked what hides behind the history."""
    reading = cloze(RATE, LAST, newest=9)
    params = {"hidden": {"table": jnp.ones((1, 2))}}
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    batch = {"segments": segments, "targets": segments, "items": segments}
    _, rows, _, _ = reading.learn(params, jnp.ones((1, 6, 2)), batch, jax.random.key(0))
    assert rows["positions"][0, :5].tolist() == [7, 8, 9, 8, 9]
    asked = {"segments": np.array([[1, 1, 1, 0]], np.int32), "query": np.array([2], np.int32)}
    _, rows, column = reading.ask(params, jnp.ones((1, 4, 2)), asked)
    assert rows["positions"][0, :4].tolist() == [6, 7, 8, 9] and column.tolist() == [3]
    with pytest.raises(ValueError, match="unknown head 'free'"):
        build("bert4rec", head="free")
    with pytest.raises(ValueError, match="unknown align 'middle'"):
        build("bert4rec", align="middle")


def test_a_bundle_of_before_there_was_a_choice_counts_from_the_left(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"users": np.repeat(np.arange(20), 5), "items": rng.integers(0, 12, 100)}
    data = zoo.load_data(from_arrays(**rows, times=np.tile(np.arange(5), 20), name="few"))
    settings, small = zoo.settings_for("bert4rec", steps=1, batch=8), {"width": 8, "max_len": 8}
    zoo.fit("bert4rec", data, tmp_path / "run", settings, **small)
    bundle = load_bundle(tmp_path / "run" / "bundle")
    found = Pretrained(bundle).recommend(["1", "2"], k=5)
    config = {**bundle.config, "fields": {**bundle.config["fields"]}}
    config["fields"].pop("align")
    old = Pretrained(replace(bundle, config=config))
    history = old.recommend(["1", "2"], k=5)
    left = Pretrained(
        replace(bundle, config={**config, "fields": {**config["fields"], "align": "left"}})
    )
    assert history == left.recommend(["1", "2"], k=5) != found


def test_a_projected_bundle_gives_the_lists_of_the_fitted_one(tmp_path):
    rng = np.random.default_rng(0)
    rows = {"users": np.repeat(np.arange(20), 5), "items": rng.integers(0, 12, 100)}
    data = zoo.load_data(from_arrays(**rows, times=np.tile(np.arange(5), 20), name="few"))
    settings, small = zoo.settings_for("bert4rec", steps=4, batch=8), {"width": 8, "max_len": 8}
    fitted, seen = zoo.fit("bert4rec", data, tmp_path, settings, head="projected", **small)
    bundle = zoo.from_pretrained(tmp_path)
    assert np.abs(bundle.params["head"]["items"]["table"]).max() > 0
    assert zoo.evaluate(bundle, seen).metrics == zoo.evaluate(fitted, seen).metrics


def one_row() -> tuple[dict, dict]:
    """A catalogue of 15 items, and a request of a row of six that asks after its fourth."""
    catalogue = {"valid": np.arange(16) > 0, "popularity": np.ones(16, np.float32)}
    batch = {"items": np.arange(1, 7, dtype=np.int32)[None], "query": np.array([3], np.int32)}
    batch |= {"segments": np.ones((1, 6), np.int32), "targets": batch["items"]}
    batch |= {"positions": np.arange(6, dtype=np.int32)[None]}
    return catalogue, batch


def test_a_guess_is_projected_and_items_have_a_bias():
    """softmax(GELU(h W + b) E^T + o): scores by hand, from the states of the tied model."""
    catalogue, batch = one_row()
    small = {"width": 8, "layers": 1, "max_len": 6, "dropout": 0.0}
    head, plain = build("bert4rec", head="projected", **small), build("bert4rec", **small)
    params = jax.jit(head.init)(jax.random.key(0), catalogue, batch)
    rng = np.random.default_rng(0)
    drawn = lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    params["head"] = own = jax.tree.map(drawn, params["head"])
    every, bare = np.arange(16, dtype=np.int32)[None], {k: params[k] for k in params if k != "head"}
    h = plain.encode(bare, plain.index(bare, catalogue), batch)
    y = np.asarray(h @ own["kernel"] + own["bias"][None], np.float64)
    y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
    expected = y @ np.asarray(params["items"]["id"]["table"]).T
    expected = expected + np.asarray(own["items"]["table"]).T
    scores = head.score(params, head.index(params, catalogue), batch, every)
    np.testing.assert_allclose(scores[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-5)
    slopes = jax.jit(jax.grad(lambda p: head.loss(p, catalogue, batch, jax.random.key(1))[0]))
    for leaf in jax.tree.leaves(slopes(params)["head"]):
        assert np.abs(leaf).max() > 0
    with pytest.raises(ValueError, match="similarity is 'cosine' with head='projected'"):
        build("bert4rec", head="projected", similarity="cosine")


@pytest.mark.parametrize("shares", [{"rate": 0.0}, {"rate": 1.1}, {"last": -0.1}, {"last": 2.0}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="expected a share of items to hide above 0"):
        build("bert4rec", **shares)


def test_by_gradient_the_guess_reads_all_of_the_history_and_not_the_future():
    recommender = build("bert4rec", width=8, layers=1, max_len=6, dropout=0.0)
    catalogue, batch = one_row()
    params = recommender.init(jax.random.key(0), catalogue, batch)
    index = recommender.index(params, catalogue)
    guess = lambda table: recommender.encode(params, {**index, "table": table}, batch)[0, 0]  # noqa: E731
    reach = np.abs(jax.jit(jax.grad(guess))(index["table"])).max(1) > 0
    assert np.flatnonzero(reach).tolist() == [1, 2, 3, 4]
