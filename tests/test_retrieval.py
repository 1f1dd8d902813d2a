"""Exact search and exact counting against plain numpy, for any chunk and any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import retrieval
from zoo.mesh import make_mesh
from zoo.recommender import Recommender
from zoo.scorer import scorer

N, D, B, K = 333, 8, 6, 12
CHUNKS = (None, 128, 256, 300)


def world(seed=0, whole=True):
    """Queries, table, valid, exclude. Whole numbers: sums are exact and ties plenty."""
    r = np.random.default_rng(seed)
    if whole:
        q, t = r.integers(-2, 3, (B, D)), r.integers(-2, 3, (N, D))
    else:
        q, t = r.normal(size=(B, D)), r.normal(size=(N, D))
    valid = r.random(N) < 0.9
    valid[0] = False
    exclude = r.integers(0, N, (B, 9))
    exclude[:, 0], exclude[1] = exclude[:, 1], 0  # repeats, and a row without any
    return q.astype(np.float32), t.astype(np.float32), valid, exclude.astype(np.int32)


def masked(q, t, valid, exclude):
    """float64 scores [b,n], -inf for what is no candidate."""
    scores = np.where(valid[None, :], q.astype(np.float64) @ t.T.astype(np.float64), -np.inf)
    scores[:, 0] = -np.inf
    if exclude is not None:
        for row, items in zip(scores, exclude, strict=True):
            row[items] = -np.inf
    return scores


def oracle(scores, k):
    """Best k by score, then by smaller id; item 0 at -inf where nothing is left."""
    items = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, items, axis=1)
    return np.where(np.isfinite(found), items, 0), found


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("masks", [True, False])
def test_top_k_is_the_sorted_catalogue(chunk, masks):
    q, t, valid, exclude = world()
    exclude = exclude if masks else None
    items, scores = retrieval.top_k(q, t, K, valid, exclude, chunk)
    expected = oracle(masked(q, t, valid, exclude), K)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    assert items.dtype == jnp.int32 and scores.dtype == jnp.float32


@pytest.mark.parametrize("chunk", CHUNKS)
def test_top_k_of_real_numbers(chunk):
    q, t, valid, exclude = world(whole=False)
    items, scores = retrieval.top_k(q, t, K, valid, exclude, chunk)
    expected = oracle(masked(q, t, valid, exclude), K)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5)


def test_top_k_fills_up_with_item_0():
    q, t, valid, exclude = world()
    valid[20:] = False
    for chunk in (None, 128):
        items, scores = retrieval.top_k(q, t, 30, valid, exclude, chunk)
        expected = oracle(masked(q, t, valid, exclude), 30)
        np.testing.assert_array_equal(items, expected[0])
        assert (np.asarray(items)[~np.isfinite(scores)] == 0).all()
        assert (~np.isfinite(scores)).any()
    short = retrieval.top_k(q, t[:5], 9, valid[:5], None)
    np.testing.assert_array_equal(short[0][:, 4:], 0)
    assert sorted(np.asarray(short[0])[0, :4]) == sorted(
        [0] * (~valid[1:5]).sum() + list(np.flatnonzero(valid[:5]))
    )


def test_item_0_is_never_recommended():
    q, t, _, _ = world()
    items, scores = retrieval.top_k(q, t, N, np.ones(N, bool))
    assert np.isfinite(scores[:, :-1]).all() and (np.asarray(items)[:, :-1] > 0).all()
    np.testing.assert_array_equal(items[:, -1], 0)


def test_bias_is_added():
    q, t, valid, exclude = world()
    bias = np.random.default_rng(5).integers(-9, 9, N).astype(np.float32)
    grown = np.concatenate([t, bias[:, None]], axis=1), np.concatenate([q, np.ones((B, 1))], axis=1)
    expected = oracle(masked(grown[1], grown[0], valid, exclude), K)
    items, scores = retrieval.top_k(q, t, K, valid, exclude, 128, bias)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def test_minus_zero_ties_with_zero():
    t = np.array([[9.0], [0.0], [-0.0], [0.0]], np.float32)
    items, _ = retrieval.top_k(-np.ones((1, 1), np.float32), t, 3, np.ones(4, bool))
    np.testing.assert_array_equal(items, [[1, 2, 3]])


@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_nan_is_an_error(nan):
    q, t, valid, _ = world()
    valid[7] = True
    t[7, 0] = nan
    with pytest.raises(FloatingPointError, match=f"row 0 hold NaN \\({B} of {B}"):
        retrieval.top_k(q, t, K, valid)
    valid[7] = False  # what is no candidate may be anything
    retrieval.top_k(q, t, K, valid)


def test_wrong_shapes_are_told():
    q, t, valid, _ = world()
    with pytest.raises(ValueError, match="332 entries for 333 items"):
        retrieval.top_k(q, t, K, valid[1:])
    with pytest.raises(ValueError, match="k is 0"):
        retrieval.top_k(q, t, 0, valid)


def rank(match, positives, valid, exclude, chunk=None, n=N):
    run = jax.jit(lambda *a: retrieval.count_ranks(match, n, *a, chunk=chunk))
    return run(positives, valid, exclude)


def some_positives(valid, exclude, seed=3):
    """Two allowed positives a row, the second missing in row 0."""
    r, out = np.random.default_rng(seed), np.zeros((B, 2), np.int32)
    for row, banned in enumerate(exclude):
        out[row] = r.choice(np.setdiff1d(np.flatnonzero(valid), banned), 2, replace=False)
    out[0, 1] = 0
    return out


@pytest.mark.parametrize("masks", [True, False])
def test_counts_are_the_counts(masks):
    q, t, valid, exclude = world()
    positives = some_positives(valid, exclude)
    given = exclude if masks else None
    scores = masked(q, t, valid, given)
    own = np.take_along_axis(scores, positives, axis=1)
    above = (scores[:, None, :] > own[:, :, None]).sum(-1)
    level = (scores[:, None, :] == own[:, :, None]).sum(-1) - 1
    real = positives > 0
    assert level[real].any()
    for chunk in CHUNKS:
        ranks = rank(lambda i: retrieval.dot_match(t, q, i), positives, valid, given, chunk)
        np.testing.assert_array_equal(np.asarray(ranks.greater)[real], above[real])
        np.testing.assert_array_equal(np.asarray(ranks.equal)[real], level[real])
        np.testing.assert_array_equal(ranks.scores, own)


@pytest.mark.parametrize("n", [130, 333, 1000])
def test_equal_items_tie_bit_by_bit(n):
    """All items are one vector of real numbers: every score must meet every other."""
    r = np.random.default_rng(n)
    q = r.normal(size=(5, 33)).astype(np.float32)
    t = np.repeat(r.normal(size=(1, 33)).astype(np.float32), n, axis=0)
    positives = r.integers(1, n, (5, 3)).astype(np.int32)
    for chunk in (None, 128, 384):
        ranks = rank(
            lambda i: retrieval.dot_match(t, q, i), positives, np.ones(n, bool), None, chunk, n
        )
        np.testing.assert_array_equal(ranks.greater, 0)
        np.testing.assert_array_equal(ranks.equal, n - 2)


def test_ties_of_a_fused_match_hold():
    """A match that XLA may compute anew in each use (no matmul): still one rounding."""
    r = np.random.default_rng(0)
    q, t = (r.normal(size=(B, 5)).astype(np.float32), r.normal(size=(N, 5)).astype(np.float32))
    t[100:200] = t[1:101]

    def match(items):
        rows = jnp.take(jnp.asarray(t), items, axis=0)
        return jnp.sum(jnp.tanh(q[:, None, :] * rows[None]) / 3, axis=-1)

    positives = np.full((B, 1), 57, np.int32)
    for chunk in CHUNKS:
        ranks = rank(match, positives, np.ones(N, bool), None, chunk)
        np.testing.assert_array_equal(ranks.equal, 1)


def test_counts_of_real_numbers_do_not_depend_on_the_chunk():
    q, t, valid, exclude = world(whole=False)
    positives = some_positives(valid, exclude)
    found = [
        rank(lambda i: retrieval.dot_match(t, q, i), positives, valid, exclude, chunk)
        for chunk in CHUNKS
    ]
    real = positives > 0
    for other in found[1:]:
        np.testing.assert_array_equal(other.greater[real], found[0].greater[real])
        np.testing.assert_array_equal(other.equal[real], found[0].equal[real])


def test_a_positive_that_is_no_candidate_is_flagged():
    q, t, valid, exclude = world()
    valid[50], exclude[1, 0] = False, 60
    positives = np.array([[50], [60], [N + 4]] + [[61]] * (B - 3), np.int32)
    valid[61], exclude[3:] = True, 0
    for chunk in (None, 128):
        ranks = rank(lambda i: retrieval.dot_match(t, q, i), positives, valid, exclude, chunk)
        finite = np.isfinite(ranks.scores)[:, 0]
        np.testing.assert_array_equal(finite, [False, False, False] + [True] * (B - 3))


def test_nan_candidates_never_flatter():
    q, t, valid, exclude = world()
    positives = some_positives(valid, exclude)
    before = rank(lambda i: retrieval.dot_match(t, q, i), positives, valid, exclude)
    free = np.setdiff1d(np.flatnonzero(valid), np.concatenate([exclude, positives], axis=1))[:4]
    t[free] = np.nan
    after = rank(lambda i: retrieval.dot_match(t, q, i), positives, valid, exclude)
    real = positives > 0
    assert (np.asarray(after.greater) >= np.asarray(before.greater))[real].all()
    assert (np.asarray(after.greater)[real] >= 4).all()


def test_blocks_cover_every_item_once():
    for n, b, chunk in ((333, 6, 300), (12160, 512, None), (1_000_000, 128, None), (130, 1, 1)):
        blocks = np.asarray(retrieval._blocks(n, b, chunk))
        np.testing.assert_array_equal(blocks.ravel(), np.arange(blocks.size))
        assert n <= blocks.size < n + blocks.shape[1] and blocks.shape[1] % 128 == 0


def test_row_tiles():
    assert retrieval.row_tiles(512, 12160) == 2
    assert retrieval.row_tiles(8, 12160) == retrieval.row_tiles(500, 100) == 1
    assert retrieval.row_tiles(512, 1_000_000) == 1  # two passes over blocks of items instead


def tiny():
    """A user is the mean of the items seen."""

    def init(key, catalogue, batch):
        return {"table": jax.random.normal(key, (N, D))}

    def loss(params, catalogue, batch, key):
        return jnp.sum(params["table"] ** 2), {}

    def index(params, catalogue):
        return {"table": params["table"], "valid": catalogue["valid"]}

    def encode(params, index, batch):
        seen = jnp.take(index["table"], batch["items"], axis=0)
        return jnp.sum(seen * (batch["items"] > 0)[..., None], axis=1)

    def match(params, index, query, items):
        return retrieval.dot_match(index["table"], query, items)

    return scorer(init, loss, index, encode, match)


def test_scorer_makes_a_recommender():
    _, t, valid, exclude = world()
    model = tiny()
    assert isinstance(model, Recommender)
    params, batch = {"table": jnp.asarray(t)}, {"items": exclude, "exclude": exclude}
    index = model.index(params, {"valid": valid})
    items, scores = jax.jit(model.recommend, static_argnums=3)(params, index, batch, K)
    q = (t[exclude] * (exclude > 0)[..., None]).sum(1)
    expected = oracle(masked(q, t, valid, exclude), K)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(model.score(params, index, batch, items), scores)
    unmasked = model.recommend(params, index, {"items": exclude}, K)
    np.testing.assert_array_equal(unmasked[0], oracle(masked(q, t, valid, None), K)[0])


def test_dot_match_of_blocks_and_of_own_candidates():
    q, t, _, _ = world()
    block = np.array([3, 5, 300])
    shared = retrieval.dot_match(t, q, block)
    own = retrieval.dot_match(t, q, np.tile(block, (B, 1)))
    np.testing.assert_array_equal(shared, q @ t[block].T)
    np.testing.assert_array_equal(own, shared)
    half = retrieval.dot_match(jnp.asarray(t, jnp.bfloat16), jnp.asarray(q, jnp.bfloat16), block)
    assert half.dtype == jnp.float32
    assert np.isnan(retrieval.dot_match(t, q, np.full((B, 1), N))).all()


SHAPES = [(8, 1), (4, 2), (2, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sharded_top_k_equals_top_k(shape):
    q, t, valid, exclude = world()
    mesh = make_mesh(*shape)
    for chunk, n in ((None, N), (128, 320)):  # 333 rows do not divide over 8 devices
        banned = np.where(exclude < n, exclude, 0)
        one = retrieval.top_k(q, t[:n], K, valid[:n], banned)
        many = retrieval.sharded_top_k(q, t[:n], K, valid[:n], banned, mesh, chunk)
        np.testing.assert_array_equal(many[0], one[0])
        np.testing.assert_array_equal(many[1], one[1])


def test_sharded_top_k_of_more_than_a_shard_holds():
    q, t, valid, exclude = world()
    mesh, n = make_mesh(4, 2), 24
    banned = np.where(exclude < n, exclude, 0)
    one = retrieval.top_k(q, t[:n], 30, valid[:n], banned)
    many = retrieval.sharded_top_k(q, t[:n], 30, valid[:n], banned, mesh)
    np.testing.assert_array_equal(many[0], one[0])
    without = retrieval.sharded_top_k(q, t, K, valid, None, mesh)
    np.testing.assert_array_equal(without[0], retrieval.top_k(q, t, K, valid)[0])


def test_sharded_top_k_gathers_candidates_only():
    """What crosses devices: k items and k scores a device, nothing as wide as a shard."""
    mesh, n = make_mesh(4, 2), 1024
    r = np.random.default_rng(0)
    rows = NamedSharding(mesh, P(("data", "model")))
    table = jax.device_put(r.normal(size=(n, D)).astype(np.float32), rows)
    valid = jax.device_put(np.ones(n, bool), rows)
    q, exclude = np.ones((B, D), np.float32), np.zeros((B, 1), np.int32)
    lowered = retrieval._two_stage.lower(q, table, valid, exclude, k=5, mesh=mesh, chunk=None)
    hlo = lowered.compile().as_text()
    crossing = [
        line.split("=", 1)[1].strip()
        for line in hlo.splitlines()
        if " all-" in line and "=" in line and ("all-gather(" in line or "all-reduce(" in line)
    ]
    assert crossing and all(f"[{B},40]" in line for line in crossing), crossing
    assert "all-to-all" not in hlo and "collective-permute" not in hlo


@pytest.mark.slow
def test_a_million_items_in_little_memory():
    """128 queries against 1,000,000 x 64: what counting adds stays below the item matrix."""
    n, b = 1_000_000, 128
    match = lambda table, query, items: retrieval.dot_match(table, query, items)  # noqa: E731

    def run(table, query, positives, valid, exclude):
        one = lambda items: match(table, query, items)  # noqa: E731
        return retrieval.count_ranks(one, n, positives, valid, exclude)

    shapes = [((n, 64), jnp.float32), ((b, 64), jnp.float32), ((b, 1), jnp.int32)]
    shapes += [((n,), bool), ((b, 50), jnp.int32)]
    compiled = jax.jit(run).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * 64 * 4 / 2
