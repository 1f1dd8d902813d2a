"""The mesh, the table of rules, and batches on it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FIXTURES
from jax.sharding import PartitionSpec as P

from zoo import mesh as meshes
from zoo.encoders.load import encoder
from zoo.mesh import RULES, make_mesh, shard_batch, shardings, table_rows

EVERY = P(("data", "model"), None)


def shapes(rows=256, width=8, hidden=32, layers=None):
    lead = () if layers is None else (layers,)
    block = {
        "attention": {
            "query": {"kernel": (*lead, width, width), "bias": (*lead, width)},
            "out": {"kernel": (*lead, width, width), "bias": (*lead, width)},
        },
        "ffn": {
            "in": {"kernel": (*lead, width, hidden), "bias": (*lead, hidden)},
            "out": {"kernel": (*lead, hidden, width), "bias": (*lead, width)},
        },
        "norm": {"scale": (*lead, width)},
    }
    tree = {
        "items": {"id": {"table": (rows, width)}, "image": {"kernel": (5, width)}},
        "user": {"users": {"table": (rows, width)}},
        "trunk": {"positions": {"table": (50, width)}, "block_0": block},
    }
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=is_shape)


def specs(tree, mesh, rules=RULES):
    return jax.tree.map(lambda s: s.spec, shardings(tree, mesh, rules))


def test_rules_by_name():
    found = specs(shapes(), make_mesh(4, 2))
    assert found["items"]["id"]["table"] == found["user"]["users"]["table"] == EVERY
    block = found["trunk"]["block_0"]
    assert block["attention"]["query"]["kernel"] == block["ffn"]["in"]["kernel"] == P(None, "model")
    assert block["attention"]["query"]["bias"] == block["ffn"]["in"]["bias"] == P("model")
    assert block["attention"]["out"]["kernel"] == block["ffn"]["out"]["kernel"] == P("model", None)
    copies = (block["norm"]["scale"], block["ffn"]["out"]["bias"])
    copies += (found["items"]["image"]["kernel"], found["trunk"]["positions"]["table"])
    assert set(copies) == {P()}


@pytest.mark.parametrize("name", ["hf_bert", "hf_vit", "hf_siglip", "hf_whisper", "hf_t5"])
def test_published_encoders_are_spread_by_the_same_rules(name):
    """Every kernel of attention and of the feed-forward part lies over the model axis."""
    found = encoder(FIXTURES / name)
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found.params)
    flat = jax.tree_util.tree_leaves_with_path(specs(tree, make_mesh(4, 2)))
    placed = {meshes.path_name(path): spec for path, spec in flat}
    inside = [path for path in placed if "stack/" in path and path.endswith("/kernel")]
    assert len(inside) >= 12
    for path in inside:
        out = path.endswith("out/kernel")
        assert placed[path] == (P("model", None) if out else P(None, "model")), path


def test_a_decoder_that_reads_a_memory_is_spread(name="tiger"):
    from zoo.models import build

    recommender = build(name, layers=1, decoder_layers=1)
    codes = np.zeros((8, 3), np.int32)
    catalogue = {"valid": np.arange(8) > 0, "codes": {"own": codes}, "sizes": {"own": (4, 4, 4)}}
    row = np.ones((1, 4), np.int32)
    batch = {"items": row, "segments": row, "positions": row, "targets": row}
    catalogue = recommender.prepare(catalogue | {"popularity": np.ones(8, np.float32)}, 1)
    params = jax.eval_shape(recommender.init, jax.random.key(0), catalogue, batch)
    flat = jax.tree_util.tree_leaves_with_path(specs(params, make_mesh(4, 2)))
    kernels = {meshes.path_name(p): s for p, s in flat if p[-1].key == "kernel"}
    assert any("/memory/" in path for path in kernels)
    assert all("model" in spec for spec in kernels.values()), kernels


def test_moments_inherit_and_the_state_lands_where_it_should():
    mesh = make_mesh(4, 2)
    optimizer = optax.adamw(1e-3)

    def create():
        params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes())
        return {"step": jnp.zeros((), int), "params": params, "opt": optimizer.init(params)}

    tree = jax.eval_shape(create)
    placed = jax.jit(create, out_shardings=shardings(tree, mesh))()
    table, moment = placed["params"]["items"]["id"]["table"], placed["opt"][0].nu
    assert moment["items"]["id"]["table"].sharding.spec == table.sharding.spec == EVERY
    assert {s.data.shape for s in table.addressable_shards} == {(32, 8)}
    assert placed["step"].sharding.spec == P()


def test_scanned_blocks_keep_their_layer_axis_whole():
    block = specs(shapes(layers=3), make_mesh(4, 2))["trunk"]["block_0"]
    assert block["ffn"]["in"]["kernel"] == P(None, None, "model")
    assert block["ffn"]["in"]["bias"] == P(None, "model")


def test_small_dimensions_that_do_not_divide_stay_whole():
    found = specs(shapes(hidden=30), make_mesh(2, 4))["trunk"]["block_0"]["ffn"]
    assert found["in"]["kernel"] == found["in"]["bias"] == P()


def test_factored_moments_stay_whole():
    tree = {"items": {"id": {"table": jax.ShapeDtypeStruct((7,), jnp.float32)}}}
    assert specs(tree, make_mesh(4, 2))["items"]["id"]["table"] == P()


def test_big_tables_must_divide():
    with pytest.raises(ValueError, match="'items/id/table' has 250 rows.*pad it to 1024"):
        shardings(shapes(rows=250), make_mesh(4, 2))


def test_an_uncovered_name_is_an_error():
    with pytest.raises(ValueError, match="covers 'items/image/kernel'"):
        shardings(shapes(), make_mesh(4, 2), RULES[:-1])


@pytest.mark.parametrize("model", ["sasrec", "two_tower"])
def test_real_models_split_as_meant(model):
    """Names are the contract: a renamed layer must not fall through to a copy unseen."""
    models = pytest.importorskip("zoo.models", reason="models are built on this file")
    fields = {"user": "trunk", "items": "id"} if model == "two_tower" else {}
    b, l, n = 2, 4, 256
    ints = jax.ShapeDtypeStruct((b, l), jnp.int32)
    batch = {k: ints for k in ("items", "segments", "positions", "users", "targets")}
    catalogue = {
        "valid": jax.ShapeDtypeStruct((n,), bool),
        "popularity": jax.ShapeDtypeStruct((n,), jnp.float32),
    }
    recommender = models.build(model, width=8, **fields)
    params = jax.eval_shape(recommender.init, jax.random.key(0), catalogue, batch)
    found = shardings(params, make_mesh(4, 2))
    by_name = {meshes.path_name(path): leaf.spec for path, leaf in jax.tree.leaves_with_path(found)}
    split = {name for name, spec in by_name.items() if any(spec)}
    assert "items/id/table" in split
    assert {n for n in by_name if "/query/kernel" in n or "/ffn/in/kernel" in n} <= split
    assert any("/ffn/out/kernel" in name for name in split)
    assert not any("positions" in name or "norm" in name for name in split)


def test_make_mesh():
    assert dict(make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(make_mesh(model=4).shape) == {"data": 2, "model": 4}
    assert dict(make_mesh(1).shape) == {"data": 1, "model": 1}
    mesh = make_mesh(2, 1, jax.devices()[4:])
    assert list(mesh.devices.flat) == jax.devices()[4:6]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(model=3), "divisor of 8"),
        (dict(data=4, model=4), "needs 16 devices; there are 8"),
        (dict(data=0), "at least 1"),
        (dict(model=0), "at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**given)


def test_batches_go_by_rows():
    mesh = make_mesh(4, 2)
    batch = {"items": np.arange(24, dtype=np.int32).reshape(8, 3), "query": np.arange(8)}
    placed = shard_batch(batch, mesh)
    assert placed["items"].sharding.spec == placed["query"].sharding.spec == P("data")
    assert {s.data.shape for s in placed["items"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(placed["items"], batch["items"])


@pytest.mark.parametrize(("rows", "advice"), [(6, "4 or 8"), (3, "use a batch of 4,")])
def test_batches_that_do_not_fit_are_told(rows, advice):
    mesh = make_mesh(4, 2)
    with pytest.raises(ValueError, match=advice):
        meshes.check_batch_fits(rows, mesh)
    with pytest.raises(ValueError, match="does not divide over data=4"):
        shard_batch({"items": np.zeros((rows, 2), np.int32)}, mesh)
    meshes.check_batch_fits(8, mesh)


def test_table_rows():
    assert [table_rows(n) for n in (1, 127, 128, 12101)] == [128, 128, 256, 12160]
    assert table_rows(12101, make_mesh(4, 2)) == 12288
    assert meshes.round_up(0, 8) == 0
