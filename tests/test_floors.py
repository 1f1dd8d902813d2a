"""Floors: hand-counted matrices, the recommender face against exact scores, real-data rows."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pipelines import sources, splits
from pipelines.schema import Events, Ragged, Split
from pipelines.words import words
from zoo.exact import expected_metrics, tie_counts
from zoo.floor_table import floor_table
from zoo.models import counting, floors

N = 24  # catalogue rows: 20 items, padding item 0, padding rows 21..23


def world(seed: int = 0, users: int = 30, items: int = 20) -> tuple[Ragged, Ragged]:
    """Train histories (row 0 empty) without repeats, and word sets of the items."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(items)[: rng.integers(2, 9)] + 1 for _ in range(users)]
    text = [rng.choice(12, rng.integers(1, 5), replace=False) for _ in range(items)]
    return Ragged.of([[], *rows]), Ragged.of([[], *text])


def catalogue(train: Ragged, text: Ragged, n: int = N) -> dict:
    items = len(text)
    return {
        "valid": (np.arange(n) > 0) & (np.arange(n) < items),
        "popularity": np.bincount(train.values, minlength=n).astype(np.float32),
        "train": {
            "users": np.repeat(np.arange(len(train)), train.lengths).astype(np.int32),
            "items": train.values,
        },
        "words": {
            "items": np.repeat(np.arange(items), text.lengths).astype(np.int32),
            "words": text.values,
        },
    }


def requests(histories: Ragged, width: int) -> dict:
    kept = np.minimum(histories.lengths, width)
    return {
        "items": histories.padded(width),
        "segments": (np.arange(width) < kept[:, None]).astype(np.int32),
        "query": np.maximum(kept - 1, 0).astype(np.int32),
        "exclude": histories.padded(int(histories.lengths.max())),
    }


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if hasattr(matrix, "toarray") else matrix


def test_sr_graph_vector():
    values, offsets = np.array([1, 2, 3, 2, 3]), np.array([0, 3, 5])
    counts = counting.sequence_counts(values, offsets, 4, window=2)
    matrix = counting.sr_matrix(counts, alpha=(0.5, 0.25), symmetry=0.5)
    expected = [[0, 0.6866, 0.3247], [0.3398, 0, 1.0059], [0.2403, 0.7521, 0]]
    np.testing.assert_allclose(dense(matrix)[1:, 1:], expected, atol=5e-5)
    h = counting.history_weights(np.array([1, 2]), np.array([0, 2]), 4, depth=30, decay=1.0)
    ((_, (scores,)),) = counting.history_scores([matrix], h)
    np.testing.assert_allclose(scores[0, 1:], [0.3398, 0.3433, 1.1683], atol=5e-5)


def test_ease_vector():
    x = counting.user_items(np.array([0, 1, 1, 2]), np.array([0, 2, 4]), 3)
    expected = [[0, 0.5, -0.2], [0.4, 0, 0.4], [-0.2, 0.5, 0]]
    np.testing.assert_allclose(counting.ease_matrix(x, 1.0), expected, atol=1e-6)


def test_ease_equals_the_float64_inverse_over_block_borders():
    rng = np.random.default_rng(3)
    x = rng.random((400, 1100)) < 0.05
    gram = x.T.astype(np.float64) @ x + 20.0 * np.eye(1100)
    p = np.linalg.inv(gram)
    expected = -p / np.diag(p)[None, :]
    np.fill_diagonal(expected, 0.0)
    found = counting.ease_matrix(counting.sp.csr_array(x.astype(np.float64)), 20.0)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_ease_refuses_a_singular_gram():
    x = counting.user_items(np.array([1, 1]), np.array([0, 1, 2]), 3)
    with pytest.raises(ValueError, match="lam=-5.*take a larger one"):
        counting.ease_matrix(x, -5.0)


def test_markov_and_cosine_by_hand():
    values, offsets = np.array([1, 2, 1, 3, 2, 3]), np.array([0, 2, 4, 6])
    np.testing.assert_allclose(
        dense(counting.markov_matrix(values, offsets, 4))[1:, 1:],
        [[0, 0.5, 0.5], [0, 0, 1], [0, 0, 0]],
    )
    x = counting.user_items(values, offsets, 4)
    np.testing.assert_allclose(dense(counting.cosine_knn(x))[1:, 1:], 0.5 * (1 - np.eye(3)))


def test_cf_graph_is_the_dense_formula():
    train, _ = world()
    x = dense(counting.user_items(train.values, train.offsets, 21))
    degree = x.sum(0)
    left = x.T @ np.diag((x.sum(1) + 1e-9) ** -0.5) @ x
    np.fill_diagonal(left, 0.0)
    expected = (degree + 1e-9)[:, None] ** -0.4 * left * (degree + 1e-9)[None, :] ** -0.1
    counts = counting.cf_counts(counting.user_items(train.values, train.offsets, 21))
    found = counting.cf_matrix(counts, degree, (0.4, 0.1))
    np.testing.assert_allclose(dense(found), expected, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_content_neighbours_in_any_blocks_with_ties_to_the_smaller_id(block):
    rows = np.zeros((7, 3), np.float32)
    rows[[1, 2, 4, 5]] = [1, 0, 0]  # four equal items
    rows[3] = [0.6, 0.8, 0]
    found = dense(counting.content_neighbours(rows, k=2, block=block))
    assert np.flatnonzero(found[1]).tolist() == [2, 4]
    assert np.flatnonzero(found[5]).tolist() == [1, 2]
    assert np.flatnonzero(found[3]).tolist() == [1, 2]
    assert not found[6].any() and not found[0].any()
    np.testing.assert_allclose(found[3, 1], 0.6, atol=1e-7)


def test_tfidf_rows_are_unit_and_rare_words_weigh_more():
    rows = dense(counting.tfidf(np.array([1, 1, 2, 3]), np.array([0, 1, 0, 0]), 4, 3))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1)[1:], 1.0, atol=1e-8)
    np.testing.assert_allclose(rows[1, 1] / rows[1, 0], np.log(4 / 1) / np.log(4 / 3))


def test_ell_keeps_the_largest_of_each_row():
    matrix = counting.sp.csr_array(np.array([[0, 0, 0], [0.1, 0.4, 0.3], [0, 0, 0.2]]))
    ids, weights = counting.ell(matrix, 2)
    assert ids.tolist() == [[0, 0], [1, 2], [2, 0]]
    np.testing.assert_allclose(weights, [[0, 0], [0.4, 0.3], [0.2, 0]])


def test_fused_matrix_equals_its_mixed_parts():
    train, text = world()
    items = np.repeat(np.arange(21), text.lengths)
    t = counting.content_neighbours(counting.tfidf(items, text.values, 21, 20), k=3)
    m = counting.markov_matrix(train.values, train.offsets, 21)
    whole = dense(m) + 0.3 * dense(t) * m.sum() / t.sum() + 0.1 * dense(t @ m + m @ t)
    np.testing.assert_allclose(dense(counting.fuse_content(m, t, 0.3, 0.1)), whole, atol=1e-12)


def test_expected_ties_vector_of_the_protocol():
    scores = np.array([[-np.inf, 3, 2, 2, 1, 0]], np.float32)
    above, equal = tie_counts(scores, Ragged.of([[2, 4]]))
    assert (above.tolist(), equal.tolist()) == ([1, 3], [1, 0])
    found = expected_metrics(above, equal, np.array([0, 0]), (2,))
    assert found["recall@2"] == pytest.approx(0.25)
    assert found["ndcg@2"] == pytest.approx(0.19342, abs=1e-5)
    assert "hit@2" not in found


def test_constant_scores_give_chance():
    above, equal = tie_counts(np.ones((3, 40), np.float32), Ragged.of([[1], [2], [39]]))
    found = expected_metrics(above, equal, np.arange(3), (10,))
    assert found["hit@10"] == pytest.approx(10 / 40)


def test_a_masked_positive_is_an_error():
    with pytest.raises(ValueError, match="item 1 of event 0.*masked"):
        tie_counts(np.array([[0, -np.inf]], np.float32), Ragged.of([[1]]))


MATRICES = {
    "markov": (floors.markov(keep=N), 1, 0.0),
    "item_knn": (floors.item_knn(keep=N), 20, 1.0),
    "sr_graph": (floors.sr_graph(window=3, keep=N), 30, 1.5),
    "sr_graph_text": (floors.sr_graph_text(window=3, keep=N), 30, 1.5),
    "text_knn": (floors.text_knn(decay=0.5, keep=N), 30, 0.5),
    "cf_graph": (floors.cf_graph(keep=N), None, 0.0),
    "cf_graph_text": (floors.cf_graph_text(keep=N), None, 0.0),
    "ease": (floors.ease(lam=5.0), None, 0.0),
}


def exact_matrix(name: str, train: Ragged, text: Ragged):
    """The same floors on exactly n_items + 1 rows, straight from counting.py."""
    args = train.values, train.offsets, 21
    x = counting.user_items(*args)
    sr = counting.sr_matrix(counting.sequence_counts(*args, 3), (0.5, 0.25), 0.3)
    cf = counting.cf_matrix(counting.cf_counts(x), x.sum(axis=0), (0.25, 0.1))
    items = np.repeat(np.arange(21), text.lengths)

    def t(smooth):
        return counting.content_neighbours(counting.tfidf(items, text.values, 21, 20, smooth))

    return {
        "markov": lambda: counting.markov_matrix(*args),
        "item_knn": lambda: counting.cosine_knn(x),
        "sr_graph": lambda: sr,
        "sr_graph_text": lambda: counting.fuse_content(sr, t(True), 0.3, 0.3),
        "text_knn": lambda: t(True),
        "cf_graph": lambda: cf,
        "cf_graph_text": lambda: counting.fuse_content(cf, t(False), 0.1, 0.3),
        "ease": lambda: counting.ease_matrix(x, 5.0),
    }[name]()


@pytest.mark.parametrize("name", MATRICES)
def test_recommender_face_equals_exact_scores(name):
    recommender, depth, decay = MATRICES[name]
    train, text = world()
    cat, batch = catalogue(train, text), requests(train.take(np.arange(1, 9)), 9)
    params = recommender.init(jax.random.key(0), cat, batch)
    index = recommender.index(params, jax.tree.map(jnp.asarray, cat))
    asked = train.take(np.arange(1, 9))
    h = counting.history_weights(asked.values, asked.offsets, 21, depth, decay)
    ((_, (exact,)),) = counting.history_scores([exact_matrix(name, train, text)], h)
    pop = cat["popularity"][None, :21]
    prior = 1e-7 * pop if depth is None else 1e-6 * pop / pop.max()
    exact = exact + (0 if name == "ease" else prior)
    eager = recommender.encode(params, index, batch)
    np.testing.assert_allclose(eager[:, 1:21], exact[:, 1:], rtol=2e-5, atol=2e-6)
    jitted = jax.jit(recommender.encode)(params, index, batch)
    np.testing.assert_allclose(jitted, eager, rtol=1e-6, atol=1e-7)
    candidates = np.tile(np.array([3, 7, 20], np.int32), (8, 1))
    picked = recommender.score(params, index, batch, candidates)
    np.testing.assert_allclose(picked, eager[:, [3, 7, 20]], rtol=1e-6, atol=1e-7)


def test_recommend_gives_the_best_unseen_items():
    train, text = world()
    cat, batch = catalogue(train, text), requests(train.take(np.arange(1, 5)), 9)
    recommender = floors.sr_graph(keep=N)
    params = recommender.init(jax.random.key(0), cat, batch)
    index = recommender.index(params, jax.tree.map(jnp.asarray, cat))
    items, scores = recommender.recommend(params, index, batch, 5)
    everything = np.array(recommender.encode(params, index, batch))
    everything[:, ~cat["valid"]] = -np.inf
    np.put_along_axis(everything, batch["exclude"], -np.inf, axis=1)
    np.testing.assert_allclose(scores, -np.sort(-everything, axis=1)[:, :5], rtol=1e-6)
    assert not (np.asarray(items)[:, :, None] == batch["exclude"][:, None, :]).any()


def test_init_runs_under_jit_and_eval_shape():
    train, text = world()
    cat, batch = catalogue(train, text), requests(train.take(np.arange(1, 5)), 9)
    recommender = floors.sr_graph_text(keep=6)
    key = jax.random.key(0)
    eager = recommender.init(key, cat, batch)
    shapes = jax.eval_shape(recommender.init, key, cat, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), eager) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    jitted = jax.jit(recommender.init)(key, cat, batch)
    jax.tree.map(np.testing.assert_array_equal, jitted, eager)


def test_only_the_query_segment_counts():
    train, text = world()
    cat, alone = catalogue(train, text), requests(train.take(np.arange(1, 3)), 12)
    packed = {k: np.array(v) for k, v in alone.items()}
    for row in range(2):
        kept = int(alone["query"][row]) + 1
        packed["items"][row] = np.concatenate([[4, 5], alone["items"][row, :-2]])
        packed["segments"][row] = [1, 1] + [2] * kept + [0] * (10 - kept)
    packed["query"] = alone["query"] + 2
    for recommender in (floors.sr_graph(keep=N), floors.ease(lam=5.0)):
        params = recommender.init(jax.random.key(0), cat, alone)
        index = recommender.index(params, jax.tree.map(jnp.asarray, cat))
        one, other = (recommender.encode(params, index, b) for b in (alone, packed))
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_missing_inputs_are_named():
    train, text = world()
    cat, batch = catalogue(train, text), requests(train.take(np.arange(1, 3)), 9)
    key = jax.random.key(0)
    without = {k: v for k, v in cat.items() if k != "train"}
    with pytest.raises(ValueError, match=r"catalogue\['train'\].*popularity"):
        floors.markov().init(key, without, batch)
    without = {k: v for k, v in cat.items() if k != "words"}
    with pytest.raises(ValueError, match=r"catalogue\['words'\].*sr_graph"):
        floors.sr_graph_text().init(key, without, batch)


def loo(rows: Ragged, ordered: bool = True) -> Split:
    """Last item test, last but one validation; as sets the history is the train row."""
    full = [list(rows[u]) for u in range(1, len(rows))]
    users = np.arange(1, len(rows), dtype=np.int32)

    def events(end: int) -> Events:
        history = [row[: end if ordered else -2] for row in full]
        return Events(users, Ragged.of(history), Ragged.of([[row[end]] for row in full]))

    train = Ragged.of([[], *(row[:-2] for row in full)])
    return Split("leave-one-out", "loo-full-v1", train, events(-2), events(-1), "", ordered)


def long_world() -> tuple[Ragged, Ragged]:
    train, text = world(users=60)
    keep = np.flatnonzero(train.lengths >= 4)
    return Ragged.of([[], *(train[u] for u in keep)]), text


def test_table_has_every_floor_and_says_what_is_missing():
    rows, text = long_world()
    table = floor_table(loo(rows), 20, words=text)
    names = "popularity markov item-knn knn+markov sr-graph text-knn sr-graph+text ease"
    assert list(table) == names.split()
    for entry in table.values():
        assert 0 < entry["metrics"]["hit@10"] == entry["metrics"]["recall@10"] <= 1
        assert entry["seconds"] > 0 and "ndcg@20" in entry["validation"]
    without = floor_table(loo(rows), 20, floors=("popularity", "sr-graph+text"))
    assert list(without) == ["popularity", "missing"]
    assert without["missing"]["sr-graph+text"] == "the data has no item text"


def test_sets_have_their_own_floors_and_modalities():
    rows, text = long_world()
    image = np.random.default_rng(0).normal(size=(21, 5)).astype(np.float32)
    split = loo(rows, ordered=False)
    table = floor_table(split, 20, words=text, features={"image": image, "text": image})
    assert set(table) == {
        *("popularity", "cf-graph", "ease", "text-knn", "cf-graph+text"),
        *("image-knn", "cf-graph+image", "text-features-knn", "cf-graph+text-features"),
    }
    assert table["cf-graph+text"]["chosen"]["g"] in (0.1, 0.3, 1.0)


def test_choice_never_sees_the_test_events():
    rows, text = long_world()
    split = loo(rows)
    other = SimpleNamespace(**{**vars(split), "test": split.valid})
    one, two = (floor_table(s, 20, words=text, floors=("sr-graph+text",)) for s in (split, other))
    assert one["sr-graph+text"]["chosen"] == two["sr-graph+text"]["chosen"]
    assert one["sr-graph+text"]["metrics"] != two["sr-graph+text"]["metrics"]


def test_a_visible_history_makes_the_ranking_harder():
    split = loo(long_world()[0])
    masked, plain = (floor_table(split, 20, floors=("popularity",), mask=m) for m in (True, False))
    assert masked["popularity"]["metrics"]["hit@5"] > plain["popularity"]["metrics"]["hit@5"]


def test_fewer_candidates_leave_fewer_rivals():
    split = loo(long_world()[0].take(np.arange(7)))
    asked = np.isin(np.arange(21), split.test.positives.values)
    both = asked | np.isin(np.arange(21), split.valid.positives.values)
    narrow = SimpleNamespace(**{**vars(split), "candidates": both})
    everything, some, fewest = (
        floor_table(s, 20, floors=("popularity",), mask=False, test_candidates=c)["popularity"]
        for s, c in ((split, None), (narrow, None), (split, asked))
    )
    assert everything["metrics"]["ndcg@10"] < some["metrics"]["ndcg@10"]
    assert some["metrics"]["ndcg@10"] < fewest["metrics"]["ndcg@10"]
    assert everything["validation"] == fewest["validation"]


def test_fixed_parameters_are_taken_and_give_the_same_figures():
    rows, text = long_world()
    names = ("sr-graph", "text-knn", "sr-graph+text", "ease")
    one = floor_table(loo(rows), 20, words=text, floors=names)
    fixed = {name: entry["chosen"] for name, entry in one.items()}
    two = floor_table(loo(rows), 20, words=text, floors=names, fixed=fixed)
    for name in names:
        assert two[name]["chosen"] == fixed[name]
        assert two[name]["metrics"] == one[name]["metrics"]
    assert [one[name]["grid_points"] for name in names] == [36, 1, 9, 6]
    assert [two[name]["grid_points"] for name in names] == [1, 1, 1, 1]
    fixed["sr-graph+text"] = fixed["sr-graph+text"] | {"g": 3.0}
    other = floor_table(loo(rows), 20, words=text, floors=names[2:3], fixed=fixed)
    assert other["sr-graph+text"]["chosen"]["g"] == 3.0


def test_leaky_popularity_is_off_by_default_and_knows_the_answers():
    rows, _ = long_world()
    split = loo(rows)
    assert "popularity-leaky" not in floor_table(split, 20, floors=("popularity", "markov"))
    table = floor_table(split, 20, floors=("popularity", "popularity-leaky"))
    leaky, honest = table["popularity-leaky"]["metrics"], table["popularity"]["metrics"]
    assert leaky["ndcg@10"] > honest["ndcg@10"]


def test_unknown_floor_names_the_known():
    rows, _ = long_world()
    with pytest.raises(ValueError, match="'cf-graph' for ordered data; there are.*sr-graph"):
        floor_table(loo(rows), 20, floors=("cf-graph",))


def close_to(found: dict, expected: str) -> None:
    """Metrics within .0002 of `H5/N5/H10/N10`."""
    keys = ("hit@5", "ndcg@5", "hit@10", "ndcg@10")
    values = [float(x) for x in expected.split("/")]
    np.testing.assert_allclose([found[k] for k in keys], values, atol=2.5e-4)


def beauty(real_data, *names: str) -> dict:
    data = sources.load(real_data / "amazon-beauty")
    split = splits.make_split(data, "leave-one-out")
    table = floor_table(split, data.n_items, words(data), floors=names)
    return {name: entry["metrics"] for name, entry in table.items()}


def test_beauty_popularity_and_markov(real_data):
    found = beauty(real_data, "popularity", "popularity-leaky", "markov")
    close_to(found["popularity"], ".0074/.0041/.0115/.0054")
    close_to(found["popularity-leaky"], ".0080/.0044/.0152/.0068")
    close_to(found["markov"], ".0515/.0391/.0668/.0440")


@pytest.mark.slow
def test_beauty_graphs(real_data):
    found = beauty(real_data, "item-knn", "knn+markov", "sr-graph", "text-knn", "sr-graph+text")
    close_to(found["item-knn"], ".0461/.0334/.0644/.0393")
    close_to(found["knn+markov"], ".0579/.0427/.0753/.0483")
    close_to(found["sr-graph"], ".0609/.0456/.0825/.0525")
    close_to(found["text-knn"], ".0518/.0377/.0704/.0437")
    close_to(found["sr-graph+text"], ".0736/.0525/.1037/.0621")


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder, part, floor, expected",
    [
        ("tiktok", None, "cf-graph", (0.0593, 0.0869, 0.0317, 0.0387)),
        ("tiktok", None, "ease", (0.0606, 0.0887, 0.0329, 0.0400)),
        ("amazon-graph", "baby", "cf-graph", (0.0566, 0.0858, 0.0318, 0.0392)),
        ("ml-100k", "ml100k_logs_33_33_33", "cf-graph", (0.1240, 0.2115, 0.3005, 0.3047)),
    ],
)
def test_set_data_rows(real_data, folder, part, floor, expected):
    data = sources.load(real_data / folder, part)
    split = splits.make_split(data, "labels")
    found = floor_table(split, data.n_items, floors=(floor,))[floor]["metrics"]
    keys = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
    np.testing.assert_allclose([found[k] for k in keys], expected, atol=2.5e-4)
