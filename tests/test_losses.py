"""Losses against a float64 oracle, printed test vectors, reference numbers and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo import losses
from zoo.objectives import Objective

RNG = np.random.default_rng(0)
B, K, D = 5, 4, 6
POS, NEG = RNG.normal(size=B), RNG.normal(size=(B, K))
HITS = np.array(RNG.random((B, K)) < 0.3)
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.5])
LOG_Q_NEG, LOG_Q_POS = np.log(RNG.uniform(0.01, 0.3, (B, K))), np.log(RNG.uniform(0.01, 0.3, B))
X, Y = RNG.normal(size=(B, D)), RNG.normal(size=(B, D))
EXTRA = RNG.normal(size=(3, D))
IDS, EXTRA_IDS = np.array([3, 7, 3, 9, 2]), np.array([7, 5, 0])
MASK = RNG.random((B, B)) < 0.7


# The oracle: float64, one position at a time, written from the equations.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def average(values, weights=WEIGHTS):
    return float(np.sum(np.array(values) * weights) / np.sum(weights))


def cross_entropy(logits, target):
    return float(np.log(np.sum(np.exp(logits))) - logits[target])


def oracle_bpr(pos, neg):
    return average(
        [np.mean([-np.log(sigmoid(p - n)) for n in row]) for p, row in zip(pos, neg, strict=True)]
    )


def oracle_gbce(pos, neg, n_items, t):
    alpha = neg.shape[1] / (n_items - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    return average(
        [
            -beta * np.log(sigmoid(p)) - sum(np.log(sigmoid(-n)) for n in row)
            for p, row in zip(pos, neg, strict=True)
        ]
    )


def oracle_sampled(pos, neg, hits, log_q_neg, log_q_pos):
    rows = []
    for i in range(B):
        kept = (neg[i] - log_q_neg[i])[~hits[i]]
        rows.append(cross_entropy(np.append(pos[i] - log_q_pos[i], kept), 0))
    return average(rows)


def fixed_logq_parts(pos, neg, q_pos, q_neg):
    """1 - p_p and the bracket of one position; `neg` without hits."""
    logits = neg - np.log(q_neg / (1 - q_pos))
    p = np.exp(pos) / (np.exp(pos) + np.mean(np.exp(logits)))
    return 1 - p, -pos + np.log(np.sum(np.exp(logits)))


def oracle_fixed(pos, neg, hits, log_q_neg, log_q_pos):
    rows = []
    for i in range(B):
        kept = ~hits[i]
        parts = fixed_logq_parts(
            pos[i], neg[i][kept], np.exp(log_q_pos[i]), np.exp(log_q_neg[i][kept])
        )
        rows.append(np.prod(parts))
    return average(rows)


def oracle_columns(x, columns, ids, log_q, temperature):
    rows = []
    for i in range(B):
        kept = [j for j in range(len(ids)) if j == i or (ids[j] > 0 and ids[j] != ids[i])]
        logits = np.array([x[i] @ columns[j] / temperature - log_q[j] for j in kept])
        rows.append(cross_entropy(logits, kept.index(i)))
    return average(rows)


def oracle_info_nce(a, b, mask, temperature):
    rows = []
    for i in range(B):
        kept = [j for j in range(B) if j == i or mask[i, j]]
        rows.append(
            cross_entropy(np.array([a[i] @ b[j] for j in kept]) / temperature, kept.index(i))
        )
    return average(rows)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def oracle_clip(x, y, log_scale, weights):
    kept = weights > 0
    logits = np.exp(log_scale) * x[kept] @ y[kept].T
    rows = [cross_entropy(row, i) for i, row in enumerate(logits)]
    columns = [cross_entropy(row, i) for i, row in enumerate(logits.T)]
    return average((np.array(rows) + columns) / 2, weights[kept])


def oracle_siglip(x, y, log_scale, bias, weights):
    kept = np.flatnonzero(weights)
    total = 0.0
    for i in kept:
        for j in kept:
            z = 1 if i == j else -1
            total -= weights[i] * np.log(sigmoid(z * (np.exp(log_scale) * x[i] @ y[j] + bias)))
    return total / np.sum(weights)


LOG_POP = np.log(RNG.uniform(0.01, 0.2, B + 3))
MIXTURE = np.log((5 * np.exp(LOG_POP) + 2 / 100) / 7)  # one of the three uniform ids is padding
BOTH, BOTH_IDS = np.concatenate([Y, EXTRA]), np.concatenate([IDS, EXTRA_IDS])

# name: (function of float arrays only, those arrays, value by the oracle)
CASES = {
    "bpr": (lambda p, n: losses.bpr(p, n, WEIGHTS), (POS, NEG), oracle_bpr(POS, NEG)),
    "bce": (lambda p, n: losses.bce(p, n, WEIGHTS), (POS, NEG), oracle_gbce(POS, NEG, 1e4, 0)),
    "gbce": (
        lambda p, n: losses.gbce(p, n, WEIGHTS, 101, 0.75),
        (POS, NEG),
        oracle_gbce(POS, NEG, 101, 0.75),
    ),
    "sampled": (
        lambda p, n: losses.sampled_softmax(p, n, WEIGHTS, HITS),
        (POS, NEG),
        oracle_sampled(POS, NEG, HITS, NEG * 0, POS * 0),
    ),
    "sampled logq": (
        lambda p, n, q: losses.sampled_softmax(p, n, WEIGHTS, HITS, q),
        (POS, NEG, LOG_Q_NEG),
        oracle_sampled(POS, NEG, HITS, LOG_Q_NEG, POS * 0),
    ),
    "sampled logq, positive too": (
        lambda p, n, q, r: losses.sampled_softmax(p, n, WEIGHTS, HITS, q, r),
        (POS, NEG, LOG_Q_NEG, LOG_Q_POS),
        oracle_sampled(POS, NEG, HITS, LOG_Q_NEG, LOG_Q_POS),
    ),
    "fixed logq": (
        lambda p, n, r, q: losses.fixed_logq(p, n, r, q, WEIGHTS, HITS),
        (POS, NEG, LOG_Q_POS, LOG_Q_NEG),
        oracle_fixed(POS, NEG, HITS, LOG_Q_NEG, LOG_Q_POS),
    ),
    "in batch": (
        lambda x, y, q: losses.in_batch_softmax(x, y, IDS, q, WEIGHTS, 0.7),
        (X, Y, LOG_POP[:B]),
        oracle_columns(X, Y, IDS, LOG_POP, 0.7),
    ),
    "mixed": (
        lambda x, y, u: losses.mixed_negatives(
            x, y, IDS, u, EXTRA_IDS, jnp.asarray(LOG_POP), 100, WEIGHTS, 0.7
        ),
        (X, Y, EXTRA),
        oracle_columns(X, BOTH, BOTH_IDS, MIXTURE, 0.7),
    ),
    "info nce": (
        lambda x, y: losses.info_nce(x, y, MASK, 0.5, WEIGHTS),
        (X, Y),
        oracle_info_nce(X, Y, MASK, 0.5),
    ),
    "clip": (
        lambda x, y, s: losses.clip(x, y, s, WEIGHTS),
        (unit(X), unit(Y), np.array(1.5)),
        oracle_clip(unit(X), unit(Y), 1.5, WEIGHTS),
    ),
    "siglip": (
        lambda x, y, s, b: losses.siglip(x, y, s, b, WEIGHTS),
        (unit(X), unit(Y), np.array(2.3), np.array(-3.0)),
        oracle_siglip(unit(X), unit(Y), 2.3, -3.0, WEIGHTS),
    ),
    "bootstrap": (
        lambda x: losses.bootstrap(x, Y, WEIGHTS),
        (X,),
        average([1 - x @ y for x, y in zip(unit(X), unit(Y), strict=True)]),
    ),
}
CASES = {  # jnp arrays for what the functions close over
    name: (function, [jnp.asarray(x, jnp.float32) for x in arrays], value)
    for name, (function, arrays, value) in CASES.items()
}
every_loss = pytest.mark.parametrize("name", CASES)


@every_loss
def test_value_matches_oracle_and_gradients_are_finite(name):
    function, arrays, value = CASES[name]
    every = tuple(range(len(arrays)))
    loss, gradients = jax.jit(jax.value_and_grad(function, every))(*arrays)
    assert loss.dtype == jnp.float32 and loss.shape == ()
    np.testing.assert_allclose(loss, value, rtol=2e-6)
    np.testing.assert_allclose(loss, function(*arrays), rtol=1e-6)  # eager
    for gradient in gradients:
        assert np.all(np.isfinite(gradient)) and np.any(np.abs(gradient) > 1e-6)


@every_loss
def test_bfloat16_gives_float32_near_the_value(name):
    function, arrays, value = CASES[name]
    loss = jax.jit(function)(*[x.astype(jnp.bfloat16) for x in arrays])
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, value, rtol=0.03)


@pytest.mark.parametrize("name", ["bpr", "bce", "gbce", "sampled logq", "fixed logq", "mixed"])
def test_no_weight_at_all_is_zero_with_zero_gradients(name, monkeypatch):
    function, arrays, _ = CASES[name]
    monkeypatch.setitem(globals(), "WEIGHTS", jnp.zeros(B))
    gradient = jax.value_and_grad(function, tuple(range(len(arrays))))
    loss, gradients = jax.jit(gradient)(*arrays)
    assert loss == 0
    assert all(np.all(np.array(g) == 0) for g in gradients)


# The test vectors of the equations: f_p 1, f_n (.5, -.2).

ONE, TWO = jnp.array([1.0]), jnp.array([[0.5, -0.2]])


@jax.jit
def printed():
    log_p, log_n = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.3, 0.2]))
    x, y = jnp.array([[0.9, 0.1], [0.2, 0.7]]), jnp.eye(2)
    slope = jax.grad(lambda p: losses.fixed_logq(p, TWO, log_p, log_n))(ONE)
    return {
        "bpr": (losses.bpr(ONE, TWO), 0.368680),
        "bce": (losses.bce(ONE, TWO[:, :1]), 1.287339),
        "softmax": (losses.sampled_softmax(ONE, TWO), 0.645911),
        "gbce": (losses.gbce(ONE, TWO, None, 101, 0.75), 1.655230),
        "logq": (losses.sampled_softmax(ONE, TWO, None, None, log_n, log_p), 1.016632),
        "fixed logq": (losses.fixed_logq(ONE, TWO, log_p, log_n), 0.265953),
        "fixed logq, p_p": (1 + slope[0], 0.531368),  # the bracket has slope -1
        "siglip": (losses.siglip(x, y, jnp.log(10.0), -10.0), 2.181154),
    }


def test_printed_vectors():
    for name, (value, expected) in printed().items():
        np.testing.assert_allclose(value, expected, atol=2e-6, rtol=0, err_msg=name)


def test_gbce_of_beauty_weighs_the_positive_by_beta():
    zero = losses.gbce(jnp.zeros(1), np.full((1, 256), -1e9, np.float32), None, 12_101, 0.75)
    np.testing.assert_allclose(zero, 0.265868 * np.log(2), atol=1e-6)
    np.testing.assert_allclose(
        losses.gbce(jnp.zeros(1), TWO, None, 101, 0.0), losses.bce(jnp.zeros(1), TWO), atol=1e-7
    )


# Reference numbers.


def load(name):
    return np.load(FIXTURES / f"{name}.npz", allow_pickle=False)


@pytest.mark.parametrize("name", ["logq_inbatch_new", "logq_inbatch_old", "logq_mns_old"])
def test_logq_matches_reference(name):
    data = load(f"{name}_tiny")
    labels, negatives, hits = (
        data["labels"],
        data["negative_ids"],
        jnp.asarray(data["false_negative"]),
    )
    log_q = losses.log_probability(jnp.asarray(data["item_counts"]))
    assert data["item_counts"][0] == 0

    def each(hidden, table):
        pos = jnp.sum(hidden * table[labels], axis=-1)
        neg = jnp.einsum("bd,bkd->bk", hidden, table[negatives])
        if name == "logq_inbatch_new":
            return losses.fixed_logq_each(pos, neg, log_q[labels], log_q[negatives], hits)
        return losses.sampled_softmax_each(pos, neg, hits, log_q[negatives])

    arrays = jnp.asarray(data["hidden"]), jnp.asarray(data["item_embedding"])

    def loss(*x):
        return jnp.mean(each(*x)), each(*x)

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (loss, values), gradients = gradient(*arrays)
    np.testing.assert_allclose(values, data["out_per_example"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(loss, data["out_loss"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(gradients[0], data["out_grad_hidden"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(gradients[1], data["out_grad_item_embedding"], atol=1e-5, rtol=0)


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_in_batch_softmax_matches_reference_in_float64(float64):
    data = load("inbatch_softmax_logq_tiny")
    log_q = np.log(data["candidate_prob"])

    @jax.jit
    def loss(ids):
        tau = float(data["tau"])
        return losses.in_batch_softmax(data["query"], data["candidate"], ids, log_q, None, tau)

    plain, removed = loss(np.arange(1, 8)), loss(data["candidate_id"] + 1)  # 0 is padding here
    np.testing.assert_allclose(plain, data["out_loss"], atol=1e-10, rtol=0)
    np.testing.assert_allclose(removed, data["out_loss_remove_accidental_hits"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_clip_and_siglip_match_reference(name):
    data = load("siglip_clip_loss_tiny")
    keys = ["image", "text", "log_scale", "bias"][: 4 if name == "siglip" else 3]
    arrays = [jnp.asarray(data[key], jnp.float32) for key in keys]
    gradient = jax.value_and_grad(getattr(losses, name), tuple(range(len(keys))))
    loss, gradients = jax.jit(gradient)(*arrays)
    np.testing.assert_allclose(loss, data[f"out_{name}_loss"], atol=1e-5, rtol=0)
    for key, gradient in zip(keys, gradients, strict=True):
        np.testing.assert_allclose(gradient, data[f"out_{name}_grad_{key}"], atol=1e-5, rtol=0)


def test_gbce_matches_reference():
    data = load("gsasrec_gbce_tiny")
    scores, k = jnp.asarray(data["out_raw_logits"]), data["negatives"].shape[-1]
    each = losses.gbce_each(scores[..., 0], scores[..., 1:], 40, float(data["cfg_t"])) / (k + 1)
    weights = jnp.asarray(data["positives"][:, :-1] != 41, jnp.float32)
    expected = data["out_loss_per_element"]
    np.testing.assert_allclose(each * weights, expected * weights, atol=2e-5, rtol=0)
    np.testing.assert_allclose(losses.mean(each, weights), data["out_loss"], atol=2e-5, rtol=0)


# Limits and corners.


@jax.jit
def far_above():
    far, eye = (jnp.array([60.0]), jnp.array([[-60.0, -60.0]])), jnp.eye(4)
    return {
        "bpr": losses.bpr(*far),
        "bce": losses.bce(*far),
        "gbce": losses.gbce(*far, None, 101),
        "sampled": losses.sampled_softmax(*far),
        "info nce": losses.info_nce(eye, eye, None, 0.01),
        "clip": losses.clip(eye, eye, 10.0),
        "siglip": losses.siglip(eye, eye, jnp.log(200.0), -100.0),
    }, losses.bootstrap(eye, 3 * eye)


def test_losses_vanish_where_the_target_stands_far_above():
    values, alignment = far_above()
    assert all(0 <= x < 1e-20 for x in values.values()), values
    assert abs(alignment) < 1e-6


@pytest.mark.parametrize("each", [losses.sampled_softmax_each, losses.fixed_logq_each])
def test_row_of_hits_only_has_no_loss_and_finite_gradients(each):
    hits, log_q = jnp.ones((1, 2), bool), jnp.log(jnp.array([0.3, 0.2]))

    def loss(pos, neg):
        if each is losses.fixed_logq_each:
            return each(pos, neg, jnp.log(jnp.array([0.5])), log_q, hits)[0]
        return each(pos, neg, hits, log_q)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(ONE, TWO)
    assert value == 0 and all(np.all(np.array(g) == 0) for g in gradients)


def test_item_never_seen_gets_no_infinite_logit():
    log_q = jnp.array([[-jnp.inf, -1.0]])
    value, gradient = jax.value_and_grad(lambda n: losses.sampled_softmax(ONE, n, log_q_neg=log_q))(
        TWO
    )
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert np.isfinite(losses.fixed_logq(ONE, TWO, jnp.array([-jnp.inf]), log_q))


def test_padding_columns_and_excluded_columns_carry_nothing():
    ids, weights = np.array([3, 7, 0, 9, 0]), np.array([1.0, 1, 0, 1, 0], np.float32)
    log_q = np.where(ids > 0, -2.0, -np.inf).astype(np.float32)
    x, y = X.astype(np.float32), Y.astype(np.float32)

    def loss(y, weights, exclude):
        return losses.in_batch_softmax(x, y, ids, log_q, weights, exclude=exclude)

    gradient = jax.jit(jax.value_and_grad(loss))
    full, dy = gradient(y, weights, np.zeros((5, 5), bool))
    expected = oracle_kept(x, y, [0, 1, 3])
    np.testing.assert_allclose(full, expected, rtol=2e-6)
    assert np.all(np.array(dy)[[2, 4]] == 0) and np.all(np.isfinite(dy))
    exclude = np.zeros((5, 5), bool)
    exclude[:, 3] = True
    gone, _ = gradient(y, np.array([1.0, 1, 0, 0, 0], np.float32), exclude)
    np.testing.assert_allclose(gone, oracle_kept(x, y, [0, 1]), rtol=2e-6)


def oracle_kept(x, y, kept):
    """In-batch softmax where only these rows and columns exist; equal Q cancels."""
    logits = (x[kept] @ y[kept].T).astype(np.float64)
    return np.mean([cross_entropy(row, i) for i, row in enumerate(logits)])


def test_fixed_logq_gradient_is_that_of_the_full_softmax_when_all_items_are_sampled():
    """With every other item drawn once and Q uniform, E[gradient] is exact without noise."""
    scores = jnp.asarray(NEG[0], jnp.float32)

    def full(s):
        return jax.nn.logsumexp(s) - s[0]

    def sampled(s):
        log_q = jnp.full((1, K - 1), -jnp.log(1.0 * K))
        return losses.fixed_logq(s[:1], s[None, 1:], log_q[:, 0], log_q)

    # Q' = 1 / (K - 1), so (1/k) sum e^(f - ln Q') is the sum over all others
    found, exact = jax.jit(lambda s: (jax.grad(sampled)(s), jax.grad(full)(s)))(scores)
    np.testing.assert_allclose(found, exact, atol=1e-6)


def test_normalise_has_unit_length_and_no_nan_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(losses.normalise(x), [[0.6, 0.8], [0, 0]], atol=1e-7)
    gradient = jax.grad(lambda x: losses.normalise(x)[:, 0].sum())(x)
    np.testing.assert_allclose(gradient, [[0.128, -0.096], [0, 0]], atol=1e-6)
    assert losses.normalise(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_allclose(losses.cosine(x, x[:, ::-1]), [0.96, 0], atol=1e-6)


def test_bootstrap_sends_nothing_to_the_target():
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    assert np.all(np.array(jax.grad(losses.bootstrap, 1)(x, y)) == 0)


def test_clip_scale_stops_at_100():
    x, y = jnp.asarray(unit(X), jnp.float32), jnp.asarray(unit(Y), jnp.float32)
    np.testing.assert_allclose(losses.clip(x, y, 9.0), losses.clip(x, y, np.log(100.0)), rtol=1e-5)


# Negatives.


def test_uniform_negatives_cover_exactly_the_items():
    draw = jax.jit(losses.sample_uniform, static_argnums=1)
    ids = np.array(draw(jax.random.key(0), (100, 200), jnp.int32(10)))
    assert ids.dtype == np.int32 and ids.shape == (100, 200)
    counts = np.bincount(ids.ravel(), minlength=12)
    assert counts[0] == 0 and counts[11] == 0
    assert np.all(np.abs(counts[1:11] - 2000) < 5 * np.sqrt(2000 * 0.9))


def test_negatives_among_some_cover_exactly_those():
    draw = jax.jit(losses.sample_among, static_argnums=1)
    among = np.array([False, True, False, False, True, True, False])
    ids = np.array(draw(jax.random.key(0), (100, 90), among))
    counts = np.bincount(ids.ravel(), minlength=7)
    assert ids.dtype == np.int32 and np.all((counts > 0) == among)
    assert np.all(np.abs(counts[among] - 3000) < 5 * np.sqrt(3000 * 2 / 3))
    assert np.all(np.array(draw(jax.random.key(0), (9,), np.zeros(7, bool))) == 0)


def test_negatives_by_counts_follow_the_counts():
    counts = jnp.array([50.0, 0, 1, 3, 0, 6, 0])  # row 0 is padding, whatever it holds
    draw = jax.jit(losses.sample_by_counts, static_argnums=1)
    ids = np.array(draw(jax.random.key(1), (20_000,), counts))
    share = np.array([0, 0, 0.1, 0.3, 0, 0.6, 0])
    found = np.bincount(ids, minlength=7) / 20_000
    assert ids.dtype == np.int32 and np.all(found[share == 0] == 0)
    assert np.all(np.abs(found - share) <= 5 * np.sqrt(share / 20_000))
    np.testing.assert_allclose(np.exp(losses.log_probability(counts)), share, atol=1e-6)
    assert np.all(np.array(draw(jax.random.key(1), (9,), jnp.zeros(7))) == 0)


def test_negatives_by_counts_reach_rare_items_of_a_long_table():
    counts = np.ones(100_001, np.float32)
    counts[1] = 1e6
    draw = jax.jit(losses.sample_by_counts, static_argnums=1)
    ids = np.array(draw(jax.random.key(2), (50_000,), counts))
    rare = ids[ids > 1]
    assert abs(len(rare) / 50_000 - 1e5 / 1.1e6) < 0.007
    assert rare.max() <= 100_000 and abs(np.median(rare) - 50_000) < 2_500


def test_rows_that_are_the_same_are_no_negatives():
    x, y = unit(X)[:4], unit(Y)[:4]
    same = np.eye(4, dtype=bool)
    same[0, 2] = same[2, 0] = True
    logits = np.exp(1.5) * x @ y.T
    kept = [[j for j in range(4) if j == i or not same[i, j]] for i in range(4)]
    rows = [cross_entropy(logits[i, k], k.index(i)) for i, k in enumerate(kept)]
    columns = [cross_entropy(logits[k, i], k.index(i)) for i, k in enumerate(kept)]
    want = np.mean((np.array(rows) + columns) / 2)
    np.testing.assert_allclose(losses.clip(x, y, 1.5, same=same), want, rtol=1e-5)
    z = np.where(np.eye(4, dtype=bool), 1, -1) * (logits - 3.0)
    total = sum(-np.log(sigmoid(z[i, j])) for i, k in enumerate(kept) for j in k) / 4
    np.testing.assert_allclose(losses.siglip(x, y, 1.5, -3.0, same=same), total, rtol=1e-5)


@pytest.mark.parametrize("name", ["bce", "gbce", "sampled"])
def test_every_negative_is_an_item_that_training_has_seen(name):
    """Among many items that it has not, a draw finds another seen one as often as without them."""
    popularity = np.zeros(400, np.float32)
    popularity[[7, 300]] = 2.0
    catalogue = {"valid": np.arange(400) > 0, "popularity": popularity}
    taken = []

    def take(ids, role):
        taken.append(np.asarray(ids))
        return jnp.zeros((*ids.shape, 2))

    positions = 50
    asked = (jnp.ones((positions, 2)), jnp.full(positions, 7), jnp.ones(positions), take, None)
    Objective(name, negatives=50)(*asked, catalogue, jax.random.key(0))
    assert any(set(ids.tolist()) == {7, 300} for ids in taken)
    assert set(np.concatenate(taken).tolist()) == {7, 300}


@pytest.mark.parametrize("name", ["bce", "sampled", "mixed"])
def test_a_target_is_never_its_own_negative(name):
    """Of a catalogue of one item every draw is the target, and there is nothing to lose against."""
    catalogue = {"valid": np.array([False, True]), "popularity": np.array([0.0, 3.0], np.float32)}
    table = jnp.array([[0.0, 0.0], [6.0, 8.0]])
    take = lambda ids, role: table[ids]  # noqa: E731
    objective = Objective(name, negatives=5)
    asked = (jnp.array([[3.0, 4.0]]), jnp.array([1]), jnp.ones(1), take, lambda: table)
    assert abs(objective(*asked, catalogue, jax.random.key(0))) < 1e-6
