"""Blocks against reference implementations; masks, scan and remat mean what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FIXTURES

from zoo.flops import matmul_flops
from zoo.items import Items
from zoo.layers import Dropout, Stack, Trunk
from zoo.models.bsarec import BSARecTrunk
from zoo.models.hstu import HSTUTrunk
from zoo.places import segment_mask

HIGHEST = jax.default_matmul_precision("highest")


def dense(weight, bias) -> dict:
    """A torch Linear ([out, in]) as a Flax Dense."""
    return {"kernel": np.asarray(weight).reshape(weight.shape[0], -1).T, "bias": bias}


def norm(z, name: str) -> dict:
    return {"scale": z[f"{name}_weight"], "bias": z[f"{name}_bias"]}


def sasrec_params(z) -> dict:
    """The published SASRec's weights under our names."""
    stack = {"norm": norm(z, "w_last_layernorm")}
    for i in range(int(z["cfg_blocks"])):
        packed = zip(
            np.split(z[f"w_attention_layers_{i}_in_proj_weight"], 3),
            np.split(z[f"w_attention_layers_{i}_in_proj_bias"], 3),
            strict=True,
        )
        query, key, value = (dense(w, b) for w, b in packed)
        out, ffn = f"w_attention_layers_{i}_out_proj", f"w_forward_layers_{i}_conv"
        stack[f"block_{i}"] = {
            "attention": {
                "query": query,
                "key": key,
                "value": value,
                "out": dense(z[f"{out}_weight"], z[f"{out}_bias"]),
            },
            "ffn": {
                "in": dense(z[f"{ffn}1_weight"], z[f"{ffn}1_bias"]),
                "out": dense(z[f"{ffn}2_weight"], z[f"{ffn}2_bias"]),
            },
            "attention_norm": norm(z, f"w_attention_layernorms_{i}"),
            "ffn_norm": norm(z, f"w_forward_layernorms_{i}"),
        }
    return {"positions": {"table": z["w_pos_emb_weight"]}, "stack": stack}


@pytest.mark.parametrize("name,kind", [("prenorm", "pre"), ("postnorm", "post")])
def test_sasrec_equals_the_reference(name, kind):
    z = np.load(FIXTURES / f"sasrec_{name}_tiny.npz", allow_pickle=False)
    seq, table = z["seq"], z["w_item_emb_weight"]
    stack = Stack(int(z["cfg_blocks"]), kind, int(z["cfg_heads"]), epsilon=1e-8, final_norm=True)
    trunk = Trunk(len(z["w_pos_emb_weight"]), stack=stack)
    batch = {  # the reference attends to its padding, which stands at position 0
        "segments": jnp.ones(seq.shape, jnp.int32),
        "positions": jnp.where(seq > 0, jnp.arange(1, seq.shape[1] + 1)[None, :], 0),
    }
    with HIGHEST:
        h = trunk.apply({"params": sasrec_params(z)}, jnp.asarray(table[seq]), batch)
    np.testing.assert_allclose(h, z["out_feats"], atol=1e-5)
    scores = np.asarray(h)[:, -1] @ table[1:].T
    np.testing.assert_allclose(scores, z["out_scores"], atol=1e-5)


def gsasrec_params(z) -> dict:
    width = z["w_item_embedding_weight"].shape[1]
    stack = {"norm": norm(z, "w_seq_norm")}
    for i in range(int(z["cfg_blocks"])):
        at = f"w_transformer_blocks_{i}"

        def linear(name, at=at):
            return dense(z[f"{at}_{name}_weight"], z[f"{at}_{name}_bias"])

        stack[f"block_{i}"] = {
            "attention": {
                "query": linear("multihead_attention_query_proj"),
                "key": linear("multihead_attention_key_proj"),
                "value": linear("multihead_attention_val_proj"),
                "out": dense(np.eye(width, dtype=np.float32), np.zeros(width, np.float32)),
            },
            "ffn": {"in": linear("dense1"), "out": linear("dense2")},
            "attention_norm": norm(z, f"{at}_first_norm"),
            "ffn_norm": norm(z, f"{at}_second_norm"),
        }
    return {"positions": {"table": z["w_position_embedding_weight"]}, "stack": stack}


def test_gsasrec_equals_the_reference():
    z = np.load(FIXTURES / "gsasrec_gbce_tiny.npz", allow_pickle=False)
    seq, pad = z["positives"][:, :-1], int(z["cfg_num_items"]) + 1
    stack = Stack(int(z["cfg_blocks"]), "original", int(z["cfg_heads"]), epsilon=1e-5)
    trunk = Trunk(len(z["w_position_embedding_weight"]), scale=False, stack=stack)
    batch = {
        "segments": jnp.asarray(seq != pad, jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(seq.shape[1]), seq.shape),
    }
    x = jnp.asarray(z["w_item_embedding_weight"][seq])
    with HIGHEST:
        h = trunk.apply({"params": gsasrec_params(z)}, x, batch)
    valid = seq != pad  # ours lets padding see padding; the reference zeroes it
    np.testing.assert_allclose(np.asarray(h)[valid], z["out_hidden"][valid], atol=2e-5)


def trunk_and_input(**fields):
    rng = np.random.default_rng(0)
    trunk = Trunk(12, stack=Stack(2, **fields))
    batch = {
        "segments": jnp.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]),
        "positions": jnp.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 0, 0, 0, 0, 0, 0]]),
    }
    x = jnp.asarray(rng.normal(size=(2, 8, 16)), jnp.float32)
    params = jax.jit(trunk.init)(jax.random.key(0), x, batch)
    return trunk, params, x, batch


KINDS = [
    {"kind": "pre"},
    {"kind": "post", "ffn": "gelu", "multiplier": 4},
    {"kind": "ligr", "ffn": "swiglu", "heads": 2},
    {"kind": "original"},
]


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f["kind"])
def test_causal_and_segmented_by_gradient(fields):
    trunk, params, x, batch = trunk_and_input(**fields)
    reach = jax.jit(jax.jacobian(lambda x: trunk.apply(params, x, batch)[0].sum(-1)))(x)[:, 0]
    touched = np.abs(np.asarray(reach)).max(-1) > 0  # state l, input l
    s = np.asarray(batch["segments"][0])
    allowed = (s[:, None] == s[None, :]) & np.tril(np.ones((8, 8), bool)) & (s > 0)[None, :]
    assert not (touched & ~allowed).any()
    assert (touched == allowed)[s > 0].all()  # and all of the own past is seen


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f["kind"])
def test_packed_equals_alone(fields):
    trunk, params, x, batch = trunk_and_input(**fields)
    packed = trunk.apply(params, x, batch)
    alone = {k: v[:1, 3:7] for k, v in batch.items()}
    np.testing.assert_allclose(trunk.apply(params, x[:1, 3:7], alone)[0], packed[0, 3:7], atol=2e-6)


TRUNKS = {
    **{f["kind"]: Trunk(12, stack=Stack(2, **f)) for f in KINDS},
    "remat": Trunk(12, stack=Stack(2, remat=True)),
    "scan": Trunk(12, stack=Stack(2, scan=True)),
    "no layers": Trunk(12, stack=Stack(0)),
    "both ways": Trunk(12, stack=Stack(1, "post"), causal=False),
    "bsarec": BSARecTrunk(12, dropout=0.0),
    "bsarec official": BSARecTrunk(12, dropout=0.0, official=True),
    "hstu": HSTUTrunk(12, time_bias="none"),
}


@pytest.mark.parametrize("name", TRUNKS)
def test_columns_are_those_of_the_whole_and_cost_less(name):
    """Values and gradients, a column asked for twice among them."""
    trunk, (*_, x, batch) = TRUNKS[name], trunk_and_input(kind="pre")
    params = jax.jit(trunk.init)(jax.random.key(0), x, batch)
    columns = jnp.array([[2, 6, 6], [1, 0, 0]])

    def whole(params, x):
        h = trunk.apply(params, x, batch)
        return jnp.take_along_axis(h, columns[:, :, None], axis=1)

    def own(params, x):
        return trunk.apply(params, x, batch, columns=columns)

    def summed(states):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(states(*a))), (0, 1)))

    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)  # noqa: E731
    same(own(params, x), whole(params, x))
    jax.tree.map(same, summed(own)(params, x), summed(whole)(params, x))
    cost = [matmul_flops(jax.make_jaxpr(f)(params, x)) for f in (own, whole)]
    assert cost[0] <= cost[1] if name in ("scan", "no layers", "hstu") else cost[0] < 0.9 * cost[1]


def test_remat_and_scan_change_nothing():
    trunk, params, x, batch = trunk_and_input(kind="ligr", ffn="swiglu")

    def value(p, **fields):
        stack = Stack(2, kind="ligr", ffn="swiglu", **fields)
        return jnp.sum(Trunk(12, stack=stack).apply({"params": p}, x, batch) ** 2)

    plain, remat = (jax.grad(value)(params["params"], remat=r) for r in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), plain, remat)
    stack = dict(params["params"]["stack"])
    blocks = [stack.pop("block_0"), stack.pop("block_1")]
    stack["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    scanned = {**params["params"], "stack": stack}
    np.testing.assert_allclose(value(scanned, scan=True), value(params["params"]), rtol=1e-6)
    np.testing.assert_allclose(
        value(scanned, scan=True, remat=True), value(params["params"]), rtol=1e-6
    )


def test_padding_sees_nothing_but_padding():
    mask = np.asarray(segment_mask(jnp.array([[1, 1, 2, 0]])))[0, 0]
    assert mask.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]


def catalogue(n=6):
    rng = np.random.default_rng(1)
    return {
        "valid": jnp.arange(n) > 0,
        "popularity": jnp.array([0, 3, 2, 1, 0, 0], jnp.float32),
        "features": {
            "image": jnp.asarray(rng.normal(size=(n, 5)), jnp.float32),
            "text": jnp.asarray(rng.normal(size=(n, 7)), jnp.float32),
        },
        "present": {
            "image": jnp.array([False, True, True, False, True, False]),
            "text": jnp.array([False, True, False, False, True, False]),
        },
    }


@pytest.mark.parametrize("fuse", ["sum", "gate"])
def test_missing_modalities_carry_nothing(fuse):
    c = catalogue()
    items = Items(8, "both", fuse=fuse, hidden=4)
    params = items.init(jax.random.key(0), c)
    full = items.apply(params, c)
    loud = {
        **c,
        "features": {
            m: jnp.where(c["present"][m][:, None], x, 1e6) for m, x in c["features"].items()
        },
    }
    np.testing.assert_array_equal(items.apply(params, loud), full)
    assert not np.asarray(full[0]).any(), "the padding item is zero"
    assert not np.asarray(full[5]).any(), "an item without ID and content is zero"
    assert np.asarray(full[4]).any(), "a cold item lives by its content"
    some = items.apply(params, c, jnp.array([4, 1]))
    np.testing.assert_allclose(some, full[jnp.array([4, 1])], atol=1e-6)


def test_modality_dropout_keeps_one():
    c = catalogue()
    items = Items(8, "both", modality_dropout=0.95)
    params = items.init(jax.random.key(0), c)
    for seed in range(5):
        x = items.apply(params, c, None, True, rngs={"dropout": jax.random.key(seed)})
        assert np.asarray(jnp.abs(x).sum(-1) > 0)[[1, 2, 3, 4]].all()


def test_content_without_features_is_told():
    with pytest.raises(ValueError, match="needs content features"):
        Items(8, "content").init(jax.random.key(0), {**catalogue(), "features": {}})
    with pytest.raises(ValueError, match="smell"):
        Items(8, "both", ("smell",)).init(jax.random.key(0), catalogue())


def test_dropout_keeps_its_share_and_the_mean():
    x = jnp.ones((64, 50, 30))
    for rate in (0.1, 0.2, 0.5):
        drop = lambda seed, r=rate: Dropout(r).apply(  # noqa: E731
            {}, x, deterministic=False, rngs={"dropout": jax.random.key(seed)}
        )
        y, other = np.asarray(drop(0)), np.asarray(drop(1))
        share = np.mean(y > 0)
        assert abs(share - (1 - rate)) < 0.005
        np.testing.assert_allclose(y[y > 0], 256 / round(256 * (1 - rate)), rtol=1e-6)
        assert abs(y.mean() - 1) < 0.01 and (y != other).any()
        for axis in range(3):  # no column, row or place is treated otherwise than the others
            rest = tuple(a for a in range(3) if a != axis)
            assert np.abs(np.mean(y > 0, axis=rest) - share).max() < 0.06
        near = np.mean((y[..., 1:] > 0) == (y[..., :-1] > 0))
        assert abs(near - (share**2 + (1 - share) ** 2)) < 0.01, "bytes of a word are independent"
    assert Dropout(0.5).apply({}, x, deterministic=True) is x
    still = Dropout(0.0).apply({}, x, deterministic=False)
    gone = Dropout(1.0).apply({}, x, deterministic=False)
    assert still is x and not np.asarray(gone).any()
    half = Dropout(0.5, deterministic=False)
    y = half.apply({}, x.astype(jnp.bfloat16), rngs={"dropout": jax.random.key(0)})
    assert y.dtype == jnp.bfloat16
