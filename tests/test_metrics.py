"""Metrics against reference libraries' numbers, hand computations and their own laws."""

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import metrics
from zoo.metrics import ranking_metrics

KS = (1, 5, 10, 20)
# name here -> name in the fixtures
NAMES = {"recall": "R", "ndcg": "nDCG", "precision": "P", "map": "APmin", "mrr": "RR"}


def counts(scores, allowed, relevant):
    """g, e, mask [u,p] by plain loops over users and positives."""
    p = int(relevant.sum(axis=1).max())
    g, e, mask = (np.zeros((len(scores), p), int) for _ in range(3))
    for u, (s, ok, wanted) in enumerate(zip(scores, allowed, relevant, strict=True)):
        for i, item in enumerate(np.flatnonzero(wanted)):
            g[u, i] = np.sum(ok & (s > s[item]))
            e[u, i] = np.sum(ok & (s == s[item])) - 1
            mask[u, i] = 1
    return g, e, mask.astype(bool)


def fixture(name):
    z = np.load(FIXTURES / f"{name}.npz")
    users = z["eval_users"]
    inputs = (z["scores"][users], ~z["history_mask"][users], z["relevant"][users])
    return z, counts(*inputs)


def check(found, z, convention, names):
    for ours in names:
        for k in KS:
            expected = z[f"out_{convention}_{NAMES[ours]}_at_{k}"]
            np.testing.assert_allclose(found[f"{ours}@{k}"], expected, atol=1e-6)


@pytest.mark.parametrize("ties", metrics.TIES)
def test_strict_scores_equal_the_reference(ties):
    z, (g, e, mask) = fixture("fullrank_metrics")
    assert not e[mask].any()
    found = ranking_metrics(g, e, mask, KS, ties=ties)
    check(found, z, "first_index", NAMES)
    for k in KS:
        np.testing.assert_array_equal(found[f"hit@{k}"], found[f"recall@{k}"] > 0)


@pytest.mark.parametrize("ties", ["optimistic", "pessimistic"])
def test_ties_at_their_best_and_worst_equal_the_reference(ties):
    z, ranks = fixture("fullrank_metrics_ties")
    check(ranking_metrics(*ranks, KS, ties=ties), z, ties, NAMES)


def test_expected_ties_equal_the_exact_expectation():
    z, ranks = fixture("fullrank_metrics_ties")
    assert ranks[1].any()
    check(ranking_metrics(*ranks, KS), z, "expected", ("recall", "ndcg", "precision"))


def test_sampled_ties_average_to_the_expectation():
    z, ranks = fixture("fullrank_metrics_ties")
    users, draws = len(z["eval_users"]), 3000
    found = ranking_metrics(*(np.tile(x, (draws, 1)) for x in ranks), KS, ties="sampled")
    mean = {name: x.reshape(draws, users).mean(axis=0) for name, x in found.items()}
    np.testing.assert_allclose(mean["mrr@10"], z["mc_expected_RR_at_10"], atol=0.02)
    np.testing.assert_allclose(mean["recall@10"], z["out_expected_R_at_10"], atol=0.04)
    np.testing.assert_allclose(mean["ndcg@5"], z["out_expected_nDCG_at_5"], atol=0.04)


def test_mmrec_curves():
    """hits [users, 50] of strict lists; a positive that is not listed stands behind them all."""
    z = np.load(FIXTURES / "mmrec_metrics_tiny.npz")
    n, p = len(z["hits"]), int(z["n_pos"].max())
    g, mask = np.full((n, p), 10**6), np.arange(p)[None, :] < z["n_pos"][:, None]
    for u, row in enumerate(z["hits"]):
        places = np.flatnonzero(row)
        g[u, : len(places)] = places
    g += np.where(g == 10**6, np.arange(p)[None, :], 0)
    found = ranking_metrics(g, np.zeros_like(g), mask, range(1, 51))
    for name in ("recall", "ndcg", "map", "precision"):
        curve = [found[f"{name}@{k}"].mean() for k in range(1, 51)]
        np.testing.assert_allclose(curve, z[name], atol=1e-12)


def test_vector_a():
    """Scores of items 1..5 = 3, 2, 2, 1, 0; positives 2 and 4."""
    found = ranking_metrics([[1, 3]], [[1, 0]], ks=(2,))
    gain = metrics.expected_discount(np.array([1, 3]), np.array([1, 0]), 2).sum()
    assert found["recall@2"][0] == 0.25
    assert gain == pytest.approx(0.31546, abs=5e-6)
    assert metrics.ideal_discount(2, np.array([2]))[0] == pytest.approx(1.63093, abs=5e-6)
    assert found["ndcg@2"][0] == pytest.approx(0.31546 / 1.63093, abs=5e-6)  # 0.19342


def test_vector_b_constant_scorer():
    found = ranking_metrics([[0]], [[39]], ks=(1, 10, 40))
    assert [found[f"recall@{k}"][0] for k in (1, 10, 40)] == pytest.approx([1 / 40, 1 / 4, 1])


ranks = st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(1, 25))


@given(ranks)
@settings(max_examples=40, deadline=None)
def test_expectations_are_means_over_places(case):
    g, e, k = case
    places = np.arange(g, g + e + 1)
    inside = places < k
    one = (np.array([g]), np.array([e]), k)
    assert metrics.expected_hit(*one)[0] == pytest.approx(inside.mean())
    gains = inside / np.log2(places + 2)
    assert metrics.expected_discount(*one)[0] == pytest.approx(gains.mean())
    assert metrics.expected_reciprocal(*one)[0] == pytest.approx((inside / (places + 1)).mean())


@given(st.lists(st.integers(0, 4), min_size=3, max_size=12), st.data())
@settings(max_examples=40, deadline=None)
def test_laws_of_every_metric(scores, data):
    """In [0, 1]; recall and hit grow with k; best case >= worst case; order of ids is nothing."""
    scores = np.array([scores], float)
    n = scores.shape[1]
    wanted = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True))
    relevant = np.zeros((1, n), bool)
    relevant[0, wanted] = True
    order = np.array(data.draw(st.permutations(range(n))))
    allowed = np.ones((1, n), bool)
    g, e, mask = counts(scores, allowed, relevant)
    found = ranking_metrics(g, e, mask, (1, 3, 5))
    best = ranking_metrics(g, e, mask, (1, 3, 5), ties="optimistic")
    worst = ranking_metrics(g, e, mask, (1, 3, 5), ties="pessimistic")
    for name, value in found.items():
        assert worst[name][0] >= 0
        assert worst[name][0] - 1e-9 <= value[0] <= best[name][0] + 1e-9 <= 1 + 1e-8
    for name in ("recall", "hit"):
        steps = [found[f"{name}@{k}"][0] for k in (1, 3, 5)]
        assert np.all(np.diff(steps) >= -1e-12)
    moved = counts(scores[:, order], allowed, relevant[:, order])
    for a, b in zip((np.sort(g), np.sort(e)), (np.sort(moved[0]), np.sort(moved[1])), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_positive_needs_no_sampling():
    """hit, map and mrr of a single positive are exact expectations, whatever the seed."""
    g, e = np.array([[1], [0], [7]]), np.array([[2], [3], [0]])
    one, two = (ranking_metrics(g, e, ks=(3,), seed=s) for s in (0, 1))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_allclose(one["hit@3"], [2 / 3, 3 / 4, 0])
    np.testing.assert_allclose(one["mrr@3"], [(1 / 2 + 1 / 3) / 3, (1 + 1 / 2 + 1 / 3) / 4, 0])
    np.testing.assert_array_equal(one["map@3"], one["mrr@3"])


def test_positives_of_one_tie_take_different_places():
    g, e = np.array([[2, 2, 2]]), np.array([[3, 3, 3]])
    mask = np.ones((1, 3), bool)
    for seed in range(20):
        places = metrics.break_ties(g, e, mask, "sampled", seed)
        assert len(set(places[0])) == 3 and places.min() >= 2 and places.max() <= 5
    assert sorted(metrics.break_ties(g, e, mask, "optimistic")[0]) == [2, 3, 4]
    assert sorted(metrics.break_ties(g, e, mask, "pessimistic")[0]) == [3, 4, 5]


def test_padded_places_change_nothing():
    g, e = np.array([[1, 4]]), np.array([[1, 0]])
    grown = [np.pad(x, ((0, 0), (0, 3))) for x in (g, e)]
    mask = np.array([[True, True, False, False, False]])
    one, two = ranking_metrics(g, e, ks=(2, 5)), ranking_metrics(*grown, mask, ks=(2, 5))
    for name in one:
        np.testing.assert_allclose(one[name], two[name])


def test_errors_teach():
    with pytest.raises(ValueError, match="event 1 has no positive"):
        ranking_metrics([[0], [0]], [[0], [0]], np.array([[True], [False]]))
    with pytest.raises(ValueError, match="expected, sampled"):
        ranking_metrics([[0]], [[0]], ties="lucky")
    with pytest.raises(ValueError, match="both labels"):
        metrics.auc([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="no user"):
        metrics.gauc([1, 2], [1, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="no mean"):
        metrics.summary(np.zeros(3), np.zeros(3))


def test_summary_interval():
    """The bootstrap interval of a share is the binomial one; weights count rows."""
    values = np.repeat([1.0, 0.0], [300, 700])
    mean, low, high = metrics.summary(values)
    assert mean == pytest.approx(0.3)
    sd = np.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((0.3 - 1.96 * sd, 0.3 + 1.96 * sd), abs=3e-3)
    assert metrics.summary(values) == (mean, low, high)
    padded = metrics.summary(np.append(values, 9.0), np.append(np.ones(1000), 0.0))
    assert padded == (mean, low, high)
    assert metrics.summary(np.array([1.0, 4.0]), np.array([3.0, 1.0])).mean == 1.75


def test_list_metrics_by_hand():
    """Ten items, train counts 10..1; two users were shown (1,2) and (1,10)."""
    popularity = np.concatenate([[0], np.arange(10, 0, -1)])
    found = metrics.list_metrics([[1, 2], [1, 10]], popularity, n_users=20, ks=(1, 2))
    assert found["coverage@1"] == 0.1 and found["coverage@2"] == pytest.approx(0.3)
    assert found["gini@1"] == pytest.approx(0.9)  # (n-1)/n: all on one
    x = np.array([0] * 7 + [1, 1, 2])
    expected = np.abs(x[:, None] - x[None, :]).sum() / (2 * 10 * x.sum())
    assert found["gini@2"] == pytest.approx(expected)
    bits = -np.log2(np.array([10, 9, 10, 1]) / 20)
    assert found["novelty@2"] == pytest.approx(bits.mean())
    assert (found["aplt@1"], found["aplt@2"]) == (0.0, 0.25)  # the head is items 1 and 2


def test_list_metrics_ignore_unfilled_places_and_invalid_items():
    popularity = np.array([0, 5, 4, 3, 2, 1, 0, 0])
    valid = np.array([0, 1, 1, 1, 1, 1, 0, 0], bool)
    found = metrics.list_metrics([[1, 0], [5, 0], [0, 0]], popularity, 10, valid, ks=(2,))
    assert found["coverage@2"] == pytest.approx(2 / 5)
    assert found["aplt@2"] == 0.5


def test_auc_is_the_share_of_concordant_pairs():
    r = np.random.default_rng(0)
    labels, scores = r.random(60) < 0.4, r.integers(0, 6, 60).astype(float)
    pairs = scores[labels][:, None] - scores[~labels][None, :]
    assert metrics.auc(labels, scores) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_gauc_weighs_users_by_impressions():
    users = [3, 1, 1, 3, 3, 2, 2]
    labels = [1, 1, 0, 0, 0, 1, 1]
    scores = [0.5, 0.2, 0.9, 0.5, 0.1, 0.3, 0.4]
    assert metrics.gauc(users, labels, scores) == pytest.approx((2 * 0.0 + 3 * 0.75) / 5)


def test_logloss_clips():
    assert metrics.logloss([1, 0], [0.0, 0.0]) == pytest.approx(np.log(2))
    assert metrics.logloss([0], [1e9]) == pytest.approx(30.0)


def test_every_named_metric_exists():
    found = set(ranking_metrics([[0]], [[0]], ks=(5,)))
    found |= set(metrics.list_metrics([[1]], np.array([0, 1]), 1, ks=(5,)))
    assert {name.split("@")[0] for name in found} | set(metrics.CLICKS) == set(metrics.METRICS)
    assert all(callable(getattr(metrics, name)) for name in metrics.CLICKS)
