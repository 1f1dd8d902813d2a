"""HSTU and BSARec give the numbers of the authors' code; gradients those of float64 twins."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.models.bsarec import Block, BSARecTrunk, lowpass, windows
from zoo.models.hstu import HSTUTrunk, bucket

FIXTURES = Path(__file__).parent / "fixtures"
C, ALPHA = 5, 0.7


@pytest.fixture(scope="module")
def hstu():
    return dict(np.load(FIXTURES / "hstu_tiny.npz"))


@pytest.fixture(scope="module")
def bsarec():
    return dict(np.load(FIXTURES / "bsarec_tiny.npz"))


def hstu_params(d: dict) -> dict:
    def layer(i: int) -> dict:
        w = {k.split(f"layers_{i}__")[1]: x for k, x in d.items() if f"layers_{i}__" in k}
        return {
            "uvqk": {"kernel": w["uvqk"]},
            "by_position": w["rel_attn_bias__pos_w"][7::-1],  # stored by n-1+j-i, ours by i-j
            "by_time": w["rel_attn_bias__ts_w"],
            "out": {"kernel": w["o_weight"].T, "bias": w["o_bias"]},
        }

    positions = {"table": d["w__input_features_preproc__pos_emb_weight"]}
    return {"positions": positions, "layer_0": layer(0), "layer_1": layer(1)}


def hstu_batch(d: dict) -> dict:
    times = d["timestamps"].astype(np.int32)
    return {
        "segments": (d["past_ids"] > 0).astype(np.int32),
        "positions": np.broadcast_to(np.arange(8, dtype=np.int32), (3, 8)),
        "times": times,
        "target_times": np.concatenate([times[:, 1:], times[:, -1:]], axis=1),
    }


HSTU = HSTUTrunk(8, 2, 2, 8, 8, 0.0, 0.0, "target")


def test_hstu_states_and_scores(hstu):
    batch, table = hstu_batch(hstu), hstu["w__embedding_module__item_emb_weight"]
    x = jnp.asarray(table[hstu["past_ids"]])
    h = HSTU.apply({"params": hstu_params(hstu)}, x, batch)
    filled = batch["segments"][:, :, None] > 0
    np.testing.assert_allclose(np.where(filled, h, 0), hstu["out_block1"], atol=1e-5)
    unit = lambda z: z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-6)  # noqa: E731
    last = unit(np.asarray(h))[np.arange(3), hstu["past_lengths"] - 1]
    np.testing.assert_allclose(last, hstu["out_current"], atol=1e-5)
    np.testing.assert_allclose(last @ table[1:].T, hstu["out_scores"], atol=1e-5)


def test_hstu_time_buckets(hstu):
    known = {0: 0, 1: 0, 60: 13, 3600: 27, 86400: 37, 10**9: 68, -60: 13}
    found = bucket(jnp.array(list(known), jnp.int32))
    assert found.tolist() == list(known.values())
    b = hstu_batch(hstu)
    times = bucket(jnp.asarray(b["target_times"][:, :, None] - b["times"][:, None, :]))
    np.testing.assert_array_equal(times, hstu["time_bucket_block0"])


def hstu_twin(params: dict, x: np.ndarray, batch: dict) -> np.ndarray:
    """The equations in float64 numpy; states [b,l,d]."""
    silu = lambda z: z / (1 + np.exp(-z))  # noqa: E731

    def norm(z):
        return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)

    x = 4.0 * x + params["positions"]["table"][batch["positions"]]
    x = x * (batch["segments"] > 0)[:, :, None]
    i, j = np.indices((8, 8))
    same = batch["segments"][:, :, None] == batch["segments"][:, None, :]
    gaps = batch["target_times"][:, :, None] - batch["times"][:, None, :]
    times = np.asarray(bucket(jnp.asarray(gaps)))
    for name in ("layer_0", "layer_1"):
        p = params[name]
        u, v, q, k = np.split(silu(norm(x) @ p["uvqk"]["kernel"]), 4, axis=-1)
        bias = p["by_position"][np.clip(i - j, 0, 7)][None] + p["by_time"][times]
        q, k, v = (z.reshape(3, 8, 2, 8) for z in (q, k, v))
        a = silu(np.einsum("bihd,bjhd->bhij", q, k) + bias[:, None]) / 8
        a = np.where((same & (j <= i))[:, None], a, 0)
        y = np.einsum("bhij,bjhd->bihd", a, v).reshape(3, 8, 16)
        x = x + (u * norm(y)) @ p["out"]["kernel"] + p["out"]["bias"]
    return x


def slope(f, params: dict, way: dict, size: float = 1e-5) -> float:
    """Central difference of f along `way`, in float64."""
    there, back = (jax.tree.map(lambda p, w, s=s: p + s * size * w, params, way) for s in (1, -1))
    return (f(there) - f(back)) / (2 * size)


def along(grads: dict, way: dict) -> float:
    """The derivative along `way` that the gradient says."""
    return sum(np.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (grads, way)), strict=True))


def directions(params: dict, n: int = 4) -> list[dict]:
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(n)]


def each_leaf(params: dict) -> Iterator[tuple[str, dict]]:
    """(name, way) of each leaf: a random way in which that leaf alone moves."""
    rng, still = np.random.default_rng(0), jax.tree.map(np.zeros_like, params)
    named, structure = jax.tree_util.tree_flatten_with_path(still)
    leaves = [leaf for _, leaf in named]
    for n, (path, leaf) in enumerate(named):
        own = [*leaves[:n], rng.normal(size=leaf.shape), *leaves[n + 1 :]]
        yield jax.tree_util.keystr(path), jax.tree.unflatten(structure, own)


def check_gradients(grads: dict, twin: Callable[[dict], float], params: dict) -> None:
    """Leaf by leaf beside the float64 twin: a small table does not hide behind a large kernel."""
    for name, way in each_leaf(params):
        exact = slope(twin, params, way)
        told = f"{name}: {exact}"
        blind = "['key']['bias']" in name  # which a softmax over the keys does not see
        assert blind or abs(exact) > 1e-4, f"{told}: a test that cannot fail"
        np.testing.assert_allclose(along(grads, way), exact, rtol=1e-4, atol=1e-5, err_msg=told)


def test_hstu_gradients(hstu):
    batch, params = hstu_batch(hstu), hstu_params(hstu)
    x = hstu["w__embedding_module__item_emb_weight"][hstu["past_ids"]]
    weight = np.random.default_rng(1).normal(size=(3, 8, 16)) * (batch["segments"] > 0)[:, :, None]
    loss = lambda p: jnp.sum(HSTU.apply({"params": p}, jnp.asarray(x), batch) * weight)  # noqa: E731
    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    exact = jax.tree.map(lambda p: p.astype(np.float64), params)
    twin = lambda p: np.sum(hstu_twin(p, x.astype(np.float64), batch) * weight)  # noqa: E731
    for way in directions(exact):
        np.testing.assert_allclose(along(grads, way), slope(twin, exact, way), rtol=1e-4, atol=1e-3)
    check_gradients(grads, twin, exact)


def bsarec_block(d: dict, i: int) -> dict:
    w = {k.split(f"blocks_{i}_")[1]: x for k, x in d.items() if k.startswith(f"w_blocks_{i}_")}
    dense = lambda name: {"kernel": w[f"{name}_weight"].T, "bias": w[f"{name}_bias"]}  # noqa: E731
    norm = lambda name: {"scale": w[f"{name}_weight"], "bias": w[f"{name}_bias"]}  # noqa: E731
    attention, feed = "layer_attention_layer", "feed_forward"
    return {
        "attention": {
            "query": dense(f"{attention}_query"),
            "key": dense(f"{attention}_key"),
            "value": dense(f"{attention}_value"),
            "out": dense(f"{attention}_dense"),
        },
        "attention_norm": norm(f"{attention}_LayerNorm"),
        "filter": {
            "beta": w["layer_filter_layer_sqrt_beta"][0, 0],
            "norm": norm("layer_filter_layer_LayerNorm"),
        },
        "ffn": {"in": dense(f"{feed}_dense_1"), "out": dense(f"{feed}_dense_2")},
        "ffn_norm": norm(f"{feed}_LayerNorm"),
    }


@pytest.mark.parametrize("length,c", [(3, 5), (6, 9), (6, 7), (5, 0), (50, 5)])
def test_lowpass_keeps_the_bins_that_there_are(length, c):
    kept = np.fft.rfft(np.eye(length), axis=0)
    kept[c // 2 + 1 :] = 0
    i, j = np.indices((length, length))
    low = np.fft.irfft(kept, length, axis=0)
    np.testing.assert_allclose(lowpass(length, c)[np.abs(i - j)], low, atol=1e-6)


def test_bsarec_blocks_with_padding_in_the_filter(bsarec):
    """The published preset: padding enters the transform, attention does not see it.

    Compared where items stand. What attention gives at padding, where everything is masked, is
    the published code's constant of -1e4; ours never reads it, so each block starts from theirs.
    """
    i, j = np.indices((10, 10))
    mixing = lowpass(10, C)[np.abs(i - j)]
    np.testing.assert_allclose(mixing, bsarec["lowpass_matrix"], atol=1e-6)
    mixing = jnp.broadcast_to(mixing, (3, 10, 10))
    mask = jnp.asarray(bsarec["attention_mask"] > -1)
    block, real = Block(2, ALPHA, 4, 0.0), bsarec["seq"][:, :, None] > 0
    for n, entering in enumerate(("out_input", "out_block0")):
        x = jnp.asarray(bsarec[entering])
        x = block.apply({"params": bsarec_block(bsarec, n)}, x, mask, mixing)
        expected = bsarec[f"out_block{n}"]
        np.testing.assert_allclose(np.where(real, x, 0), np.where(real, expected, 0), atol=1e-4)
    scores = x[:, -1] @ bsarec["w_item_weight"][1:].T
    np.testing.assert_allclose(scores, bsarec["out_scores"], atol=1e-4)


def bsarec_trunk(d: dict) -> dict:
    norm = {"scale": d["w_norm_weight"], "bias": d["w_norm_bias"]}
    blocks = {f"block_{n}": bsarec_block(d, n) for n in range(2)}
    return {"positions": {"table": d["w_position_weight"]}, "norm": norm, **blocks}


TRUNK = BSARecTrunk(10, 2, 2, C, ALPHA, 4, 0.0)
OFFICIAL = BSARecTrunk(10, 2, 2, C, ALPHA, 4, 0.0, official=True)


def test_official_bsarec_from_histories_to_the_published_scores(bsarec):
    """All of it on padded rows, given as requests give them: the items first, padding behind."""
    params, seq = {"params": bsarec_trunk(bsarec)}, bsarec["seq"]
    count = (seq > 0).sum(1)
    ids = np.stack([np.roll(row, n - 10) for row, n in zip(seq, count, strict=True)])
    x = jnp.asarray(bsarec["w_item_weight"][ids]) + (ids == 0)[:, :, None]  # which none may read
    batch = {"segments": (ids > 0).astype(np.int32), "query": count - 1}
    x, rows, column = windows(10).ask({}, x, batch)
    np.testing.assert_array_equal(x, bsarec["w_item_weight"][seq])
    h = OFFICIAL.apply(params, x, rows)
    np.testing.assert_allclose(h, bsarec["out_block1"], atol=2e-3)  # -1e4 costs them digits
    real = seq[:, :, None] > 0
    np.testing.assert_allclose(
        np.where(real, h, 0), np.where(real, bsarec["out_block1"], 0), atol=1e-4
    )
    scores = h[np.arange(3), column] @ bsarec["w_item_weight"][1:].T
    np.testing.assert_allclose(scores, bsarec["out_scores"], atol=1e-4)
    packed = TRUNK.apply(params, x, rows)
    assert np.abs(packed[1, -1] - h[1, -1]).max() > 1e-2, "padding makes a difference"
    np.testing.assert_allclose(packed[0], h[0], atol=1e-5)


def test_official_bsarec_cuts_packed_rows_into_windows():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0]], np.int32)
    x = jnp.arange(1, 8, dtype=jnp.float32)[None, :, None]
    batch = {"segments": segments, "ends": np.array([[2, 4, 0]]), "targets": np.array([[7, 8, 0]])}
    rows, places, columns, targets = windows(4).learn({}, x, batch, None)
    np.testing.assert_array_equal(rows[:2, :, 0], [[0, 1, 2, 3], [0, 0, 4, 5]])
    np.testing.assert_array_equal(places["segments"][:2], [[0, 1, 1, 1], [0, 0, 1, 1]])
    assert columns.tolist() == [[3]] * 3 and targets.tolist() == [[7], [8], [0]]
    with pytest.raises(ValueError, match="histories of up to 7 events for a model of 4"):
        windows(4).ask({}, x, {"segments": segments, "query": np.array([6])})


def norm(z: np.ndarray, q: dict) -> np.ndarray:
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-12)
    return z * q["scale"] + q["bias"]


def bsarec_twin(p: dict, x: np.ndarray) -> np.ndarray:
    """One block on full rows in float64 numpy."""
    from scipy.special import erf

    def dense(z, q):
        return z @ q["kernel"] + q["bias"]

    b, n, d = x.shape
    freq = np.fft.rfft(x, axis=1, norm="ortho")
    freq[:, C // 2 + 1 :] = 0
    low = np.fft.irfft(freq, n, axis=1, norm="ortho")
    filtered = norm(x + low + p["filter"]["beta"] ** 2 * (x - low), p["filter"]["norm"])
    a = p["attention"]
    q, k, v = (dense(x, a[m]).reshape(b, n, 2, d // 2) for m in ("query", "key", "value"))
    logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(d // 2)
    logits = np.where(np.tri(n, dtype=bool), logits, -1e9)
    w = np.exp(logits - logits.max(-1, keepdims=True))
    y = np.einsum("bhij,bjhd->bihd", w / w.sum(-1, keepdims=True), v).reshape(b, n, d)
    y = ALPHA * filtered + (1 - ALPHA) * norm(x + dense(y, a["out"]), p["attention_norm"])
    z = dense(y, p["ffn"]["in"])
    z = dense(z * 0.5 * (1 + erf(z / np.sqrt(2))), p["ffn"]["out"])
    return norm(y + z, p["ffn_norm"])


def test_bsarec_gradients(bsarec):
    rng, params = np.random.default_rng(1), bsarec_block(bsarec, 0)
    x, weight = rng.normal(size=(3, 10, 16)), rng.normal(size=(3, 10, 16))
    i, j = np.indices((10, 10))
    mixing = jnp.broadcast_to(lowpass(10, C)[np.abs(i - j)], (3, 10, 10))
    mask = jnp.broadcast_to(np.tri(10, dtype=bool), (3, 1, 10, 10))
    block, x32 = Block(2, ALPHA, 4, 0.0), jnp.asarray(x, jnp.float32)
    loss = lambda p: jnp.sum(block.apply({"params": p}, x32, mask, mixing) * weight)  # noqa: E731
    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    exact = jax.tree.map(lambda p: p.astype(np.float64), params)
    twin = lambda p: np.sum(bsarec_twin(p, x) * weight)  # noqa: E731
    for way in directions(exact):
        np.testing.assert_allclose(along(grads, way), slope(twin, exact, way), rtol=1e-4, atol=1e-3)
    check_gradients(grads, twin, exact)


def test_bsarec_trunk_gradients(bsarec):
    """Of the places, their norm and both blocks, leaf by leaf."""
    rng, params = np.random.default_rng(1), bsarec_trunk(bsarec)
    x, weight = rng.normal(size=(3, 10, 16)), rng.normal(size=(3, 10, 16))
    ones, x32 = {"segments": np.ones((3, 10), np.int32)}, jnp.asarray(x, jnp.float32)
    loss = lambda p: jnp.sum(TRUNK.apply({"params": p}, x32, ones) * weight)  # noqa: E731
    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, params))
    exact = jax.tree.map(lambda p: p.astype(np.float64), params)

    def twin(p):
        h = norm(x + p["positions"]["table"], p["norm"])
        for n in range(2):
            h = bsarec_twin(p[f"block_{n}"], h)
        return np.sum(h * weight)

    check_gradients(grads, twin, exact)


def test_bsarec_trunk_on_a_full_row_and_packed(bsarec):
    """A history without padding: the trunk alone gives the fixture's states, also beside others."""
    full = np.flatnonzero((bsarec["seq"] > 0).all(1))
    assert len(full)
    params, row = {"params": bsarec_trunk(bsarec)}, bsarec["seq"][full]
    x = bsarec["w_item_weight"][row]
    ones = {"segments": np.ones(row.shape, np.int32)}
    h = TRUNK.apply(params, jnp.asarray(x), ones)
    np.testing.assert_allclose(h, bsarec["out_block1"][full], atol=1e-4)
    short = x[:, :4]
    alone = TRUNK.apply(
        params, jnp.asarray(short), {"segments": np.ones(short.shape[:2], np.int32)}
    )
    packed = np.concatenate([short, x[:, 5:8], np.zeros_like(short)], axis=1)
    segments = np.repeat(np.array([[1] * 4 + [2] * 3 + [0] * 4], np.int32), len(full), 0)
    beside = TRUNK.apply(params, jnp.asarray(packed), {"segments": segments})
    np.testing.assert_allclose(beside[:, :4], alone, atol=1e-5)
