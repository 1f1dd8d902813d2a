"""Graphs: products equal dense matrices on every mesh, samples have the right law, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import edges
from zoo import graph as graphs
from zoo.mesh import make_mesh
from zoo.models import build
from zoo.negatives import sample_unseen

U, N, D = 24, 40, 5  # both divide into 8 parts
RNG = np.random.default_rng(0)
LINKS = RNG.random((U, N)) < 0.15
LINKS[[0, 7, 21, 22, 23]] = False  # isolated users, one part of 8 without any edge
LINKS[:, [0, 39]] = False
LINKS[3, 1:39] = True  # one user with nearly everything
ROWS, COLUMNS = (x.astype(np.int32) for x in np.nonzero(LINKS))
SHUFFLED = RNG.permutation(len(ROWS))
WEIGHTS = RNG.normal(size=len(ROWS)).astype(np.float32)
PARTS = (1, 2, 4, 8)


def weighted(parts=1):
    """A graph of arbitrary weights, its edges given in any order."""
    s = SHUFFLED
    graph = edges.from_edges(ROWS[s], COLUMNS[s], WEIGHTS[s], (U, N), parts)
    dense = np.zeros((U, N), np.float32)
    dense[ROWS, COLUMNS] = WEIGHTS
    return graph, dense


def dense_of(side, shape):
    out = np.zeros(shape)
    np.add.at(out, (np.asarray(side.rows), np.asarray(side.columns)), np.asarray(side.weights))
    return out


def normalised(links):
    """D_u^-1/2 R D_i^-1/2 in float64, 0 for isolated nodes."""
    u, i = links.sum(1) + 1e-7, links.sum(0) + 1e-7
    return links / np.sqrt(u[:, None] * i[None, :])


@pytest.mark.parametrize("parts", PARTS)
def test_product_equals_dense_matmul_with_gradients(parts):
    graph, dense = weighted(parts)
    for a, matrix in ((graph, dense), (graphs.transpose(graph), dense.T)):
        x = RNG.normal(size=(matrix.shape[1], D)).astype(np.float32)
        g = RNG.normal(size=(matrix.shape[0], D)).astype(np.float32)
        y, back = jax.vjp(jax.jit(lambda x, a=a: graphs.product(a, x)), x)
        np.testing.assert_allclose(y, matrix @ x, atol=1e-5)
        np.testing.assert_allclose(back(g)[0], matrix.T @ g, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
def test_both_backends_agree(parts):
    graph, dense = weighted(parts)
    for side, matrix in zip(graph, (dense, dense.T), strict=True):
        x = RNG.normal(size=(matrix.shape[1], D)).astype(np.float32)
        side = jax.tree.map(jnp.asarray, side)
        np.testing.assert_allclose(graphs._compressed(side, x), matrix @ x, atol=1e-5)
        np.testing.assert_allclose(graphs._segments(side, x), matrix @ x, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
def test_both_sides_hold_the_same_edges_and_point_at_each_other(parts):
    graph, dense = weighted(parts)
    for side, other, matrix in ((*graph, dense), (*graph[::-1], dense.T)):
        assert dense_of(side, matrix.shape).astype(np.float32) == pytest.approx(matrix)
        assert {len(x) % parts for x in side} == {0}, "every array divides into the parts"
        assert {x.dtype for x in side} == {np.dtype(np.int32), np.dtype(np.float32)}
        real = side.edges >= 0
        assert real.sum() == len(ROWS) and not side.weights[~real].any()
        mate = side.edges[real]
        np.testing.assert_array_equal(other.rows[mate], side.columns[real])
        np.testing.assert_array_equal(other.edges[mate], np.flatnonzero(real))
        assert (np.diff(side.rows) >= 0).all()
        for row, (a, b) in enumerate(zip(side.starts, side.ends, strict=True)):
            np.testing.assert_array_equal(side.columns[a:b], np.flatnonzero(matrix[row]))


def test_graph_without_edges():
    none = np.zeros(0, np.int32)
    graph = edges.from_edges(none, none, np.zeros(0), (4, 8), 2)
    assert not jax.jit(graphs.product)(graph, np.ones((8, 3), np.float32)).any()
    assert not edges.interaction_graph(none, none, 4, 8).forward.weights.any()


@pytest.mark.parametrize("make", [edges.from_edges, edges.interaction_graph])
def test_errors_name_the_edge(make):
    def graph(rows, columns, parts=1):
        rows, columns = np.array(rows), np.array(columns)
        if make is edges.interaction_graph:
            return make(rows, columns, 4, 6, parts)
        return make(rows, columns, np.ones(len(rows)), (4, 6), parts)

    with pytest.raises(ValueError, match="edge 1 has row 4; the graph is 4 x 6"):
        graph([0, 4, 5], [0, 0, 0])
    with pytest.raises(ValueError, match="edge 2 has column 6; the graph is 4 x 6"):
        graph([0, 1, 2], [0, 5, 6])
    with pytest.raises(ValueError, match="edge 0 has column -1"):
        graph([0, 1], [-1, 0])
    with pytest.raises(ValueError, match="6 columns do not divide into 4 parts"):
        graph([0], [0], 4)


def test_repeated_edges():
    rows, columns = np.array([2, 1, 2, 2]), np.array([3, 1, 0, 3])
    with pytest.raises(ValueError, match=r"the edge \(2, 3\) occurs twice"):
        edges.from_edges(rows, columns, np.ones(4), (4, 6))
    once = np.zeros((4, 6))
    once[rows, columns] = 1
    graph = edges.interaction_graph(rows, columns, 4, 6)
    np.testing.assert_allclose(dense_of(graph.forward, (4, 6)), normalised(once), atol=1e-6)


@pytest.mark.parametrize("parts", (1, 8))
def test_interaction_graph_and_layers(parts):
    graph = edges.interaction_graph(ROWS[SHUFFLED], COLUMNS[SHUFFLED], U, N, parts)
    r = normalised(LINKS)
    np.testing.assert_allclose(dense_of(graph.forward, (U, N)), r, atol=1e-6)
    both = np.block([[np.zeros((U, U)), r], [r.T, np.zeros((N, N))]])
    e = RNG.normal(size=(U + N, D)).astype(np.float32)
    powers = [np.linalg.matrix_power(both, k) @ e for k in range(4)]
    layers = graphs.propagate(graph, e[:U], e[U:], 3)
    for found, wanted in zip(layers, powers, strict=True):
        np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-5)
    mean = graphs.light_mean(graph, e[:U], e[U:], 3)
    np.testing.assert_allclose(np.concatenate(mean), np.mean(powers, axis=0), atol=1e-5)
    isolated = ~LINKS.any(1)
    assert isolated.sum() == 5
    np.testing.assert_allclose(mean[0][isolated], e[:U][isolated] / 4, atol=1e-6)


def test_weights_binary_and_degrees():
    graph, dense = weighted(8)
    fresh = RNG.normal(size=len(graph.forward.weights)).astype(np.float32)  # padding too
    changed = graphs.with_weights(graph, fresh)
    wanted = np.zeros((U, N))
    real = graph.forward.edges >= 0
    wanted[graph.forward.rows[real], graph.forward.columns[real]] = fresh[real]
    np.testing.assert_allclose(dense_of(changed.forward, (U, N)), wanted, atol=1e-6)
    np.testing.assert_allclose(dense_of(changed.backward, (N, U)), wanted.T, atol=1e-6)
    again = graphs.with_weights(graphs.with_weights(graph, 0 * fresh), graph.forward.weights)
    np.testing.assert_array_equal(again.backward.weights, graph.backward.weights)
    for side, links in zip(graphs.binary(graph), (LINKS, LINKS.T), strict=True):
        np.testing.assert_array_equal(dense_of(side, links.shape), links)
        np.testing.assert_array_equal(graphs.degrees(side, len(links)), links.sum(1))


@pytest.mark.parametrize("parts", (1, 8))
def test_has_edge_by_brute_force(parts):
    graph, _ = weighted(parts)
    side = jax.tree.map(jnp.asarray, graph)
    rows, columns = (x.reshape(-1) for x in np.meshgrid(np.arange(U), np.arange(N), indexing="ij"))
    has = jax.jit(graphs.has_edge)
    np.testing.assert_array_equal(has(side.forward, rows, columns), LINKS[rows, columns])
    np.testing.assert_array_equal(has(side.backward, columns, rows), LINKS[rows, columns])


def test_sampled_edges_are_exactly_as_many_with_the_right_law():
    """Inclusion of edge i in the first two draws: p_i + sum_{j != i} p_j p_i / (1 - p_j)."""
    weights = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.5])
    draws = 10_000
    keys = jax.random.split(jax.random.key(1), draws)
    kept = jax.jit(jax.vmap(lambda key: graphs.sample_edges(key, weights, 2)))(keys)
    kept = np.asarray(kept)
    assert (kept.sum(1) == 2).all() and not kept[:, [0, 5]].any()
    p = np.asarray(weights, np.float64) / float(weights.sum())
    second = p[:, None] * p[None, :] / (1 - p[None, :])  # i after j
    wanted = p + second.sum(1) - np.diagonal(second)
    assert wanted.sum() == pytest.approx(2)
    sigma = np.sqrt(wanted * (1 - wanted) / draws)
    assert (np.abs(kept.mean(0) - wanted) <= 4 * sigma).all()


def test_fewer_edges_with_weight_than_asked_for():
    weights = jnp.array([0.0, 1.0, 0.0, 2.0, 0.0])
    kept = graphs.sample_edges(jax.random.key(0), weights, 4)
    np.testing.assert_array_equal(kept, np.asarray(weights) > 0)


@pytest.mark.parametrize("parts", (1, 8))
def test_renormalised_equals_the_graph_of_the_kept_edges(parts):
    graph = edges.interaction_graph(ROWS, COLUMNS, U, N, parts)
    m = int(0.6 * len(ROWS))

    @jax.jit
    def draw(graph, key):
        kept = graphs.sample_edges(key, graph.forward.weights, m)
        return kept, graphs.renormalised(graph, kept, U, N)

    kept, pruned = draw(graph, jax.random.key(3))
    assert kept.sum() == m
    links = np.zeros((U, N), bool)
    links[graph.forward.rows[kept], graph.forward.columns[kept]] = True
    assert links.sum() == m and not (links & ~LINKS).any()
    np.testing.assert_allclose(dense_of(pruned.forward, (U, N)), normalised(links), atol=1e-6)
    np.testing.assert_allclose(dense_of(pruned.backward, (N, U)), normalised(links).T, atol=1e-6)
    np.testing.assert_array_equal(graphs.degrees(pruned.forward, U), links.sum(1))


def features(n=23):
    """Rows whose cosines are exact in float32, with many ties: 16 entries of -1 or 1, thrice."""
    signs = np.where(RNG.random((8, 16)) < 0.5, -1.0, 1.0).astype(np.float32)
    x = signs[RNG.integers(0, 8, n)] * 2.0 ** RNG.integers(-2, 3, n)[:, None]
    return x.astype(np.float32), RNG.random(n) < 0.8


@pytest.mark.parametrize("chunk", (None, 1, 5, 8, 23, 64))
def test_nearest_equals_brute_force_with_ties_by_index(chunk):
    x, present = features()
    items, cosines = edges.nearest(x, 4, present, chunk)
    signs = np.sign(x)
    exact = (signs @ signs.T) / 16
    for row in range(len(x)):
        if not present[row]:
            assert (cosines[row] == -np.inf).all()
            continue
        order = sorted(np.flatnonzero(present), key=lambda j: (-exact[row, j], j))[:4]
        np.testing.assert_array_equal(items[row], order)
        np.testing.assert_array_equal(cosines[row], exact[row, order].astype(np.float32))
    assert items.dtype == np.int32 and cosines.dtype == np.float32


def test_nearest_of_any_vectors():
    x = RNG.normal(size=(37, 6)).astype(np.float32)
    items, cosines = edges.nearest(x, 5, np.ones(37, bool), 10)
    wide = x.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    exact = wide @ wide.T
    np.testing.assert_array_equal(items, np.argsort(-exact, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(cosines, np.sort(exact, axis=1)[:, :-6:-1], atol=1e-6)


def test_fewer_rows_with_the_modality_than_neighbours():
    x, _ = features(6)
    present = np.array([True, False, True, False, False, False])
    items, cosines = edges.nearest(x, 9, present)
    assert items.shape == (6, 6)
    assert (np.isfinite(cosines).sum(1) == 2 * present).all()
    assert set(items[np.isfinite(cosines)]) == {0, 2}
    graph = edges.neighbour_graph(items, cosines, weighted=False)
    assert set(graph.forward.rows) == {0, 2} == set(graph.backward.rows)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("parts", (1, 8))
def test_neighbour_graph_by_its_definition(weighted, parts):
    """D^-1/2 S D^-1/2 with the row sums of S on both sides, also where S is not symmetric."""
    x = np.abs(RNG.normal(size=(N, 6))).astype(np.float32)
    present = RNG.random(N) < 0.8
    items, cosines = edges.nearest(x, 4, present)
    s = np.zeros((N, N))
    for row in np.flatnonzero(present):
        s[row, items[row]] = cosines[row] if weighted else 1
    d = np.where(present, s.sum(1), 1)
    wanted = s / np.sqrt(d[:, None] * d[None, :])
    graph = edges.neighbour_graph(items, cosines, weighted, parts)
    np.testing.assert_allclose(dense_of(graph.forward, (N, N)), wanted, atol=1e-5)
    np.testing.assert_allclose(dense_of(graph.backward, (N, N)), wanted.T, atol=1e-5)
    assert not np.allclose(wanted, wanted.T)


@pytest.mark.parametrize("parts", (1, 8))
def test_unseen_items_are_uniform_over_the_rest(parts):
    history = edges.interaction_graph(ROWS, COLUMNS, U, N, parts).forward
    history = jax.tree.map(jnp.asarray, history)
    popularity = LINKS.sum(0).astype(np.float32)
    trained = popularity > 0
    users = np.array([1, 2, 3, 5, 7, 20])
    times = 4000
    draw = jax.jit(sample_unseen)
    asked = np.repeat(users, times)
    items, found = draw(jax.random.key(5), asked, history, popularity)
    items, found = np.asarray(items), np.asarray(found)
    assert (items.dtype, items.shape) == (np.int32, asked.shape)
    for user in users:
        rest = trained & ~LINKS[user]
        assert (found[asked == user] == rest.any()).all()
        if not rest.any():
            continue
        counts = np.bincount(items[asked == user], minlength=N)
        assert not counts[~rest].any(), "a seen, an untrained or the padding item"
        share = 1 / rest.sum()
        sigma = np.sqrt(share * (1 - share) / times)
        assert (np.abs(counts[rest] / times - share) <= 4 * sigma).all()
    assert not found[asked == 3].any(), "user 3 has every trained item"


def test_unseen_items_by_brute_force():
    """Every draw r of every user is that user's r-th item: small worlds, all pairs at once."""
    for seed in range(3):
        links = np.random.default_rng(seed).random((8, 12)) < (0.2, 0.5, 0.9)[seed]
        links[:, 0] = False
        rows, columns = np.nonzero(links)
        history = edges.interaction_graph(rows, columns, 8, 12).forward
        users = np.repeat(np.arange(8), 300)
        items, found = sample_unseen(
            jax.random.key(seed),
            users,
            jax.tree.map(jnp.asarray, history),
            links.sum(0).astype(np.float32),
        )
        trained = links.any(0)
        for user in range(8):
            mine = np.asarray(items)[(users == user) & np.asarray(found)]
            assert set(mine) == set(np.flatnonzero(trained & ~links[user]))


MESHES = ((8, 1), (4, 2), (2, 4))


@pytest.mark.parametrize("shape", MESHES)
def test_sharded_product_equals_one_device(shape):
    mesh = make_mesh(*shape)
    one, _ = weighted()
    x = RNG.normal(size=(N, D)).astype(np.float32)
    y = RNG.normal(size=(U, D)).astype(np.float32)

    def both(graph, x, y):
        value, back = jax.vjp(lambda x: graphs.product(graph, x), x)
        return value, back(y)[0], graphs.product(graphs.transpose(graph), y)

    wanted = jax.jit(both)(one, x, y)
    rows = NamedSharding(mesh, P(("data", "model")))
    with jax.set_mesh(mesh):
        found = jax.jit(both)(*jax.device_put((weighted(8)[0], x, y), rows))
    for a, b in zip(found, wanted, strict=True):
        assert len(a.sharding.device_set) == 8
        np.testing.assert_allclose(a, b, atol=1e-5)


def catalogue():
    popularity = LINKS.sum(0).astype(np.float32)
    return {
        "valid": np.arange(N) > 0,
        "popularity": popularity,
        "users": LINKS.sum(1).astype(np.float32),
        "features": {},
        "present": {},
        "train": {"users": ROWS, "items": COLUMNS},
    }


@pytest.fixture(scope="module")
def lightgcn():
    """A jitted loss with gradients, its arguments and its result on one device."""
    recommender = build("lightgcn", width=D, layers=2)
    pick = np.random.default_rng(2).integers(0, len(ROWS), 16)
    batch = {"users": ROWS[pick, None], "targets": COLUMNS[pick, None]}
    key, single = jax.random.key(7), recommender.prepare(catalogue(), 1)
    params = jax.jit(recommender.init)(key, single, batch)
    step = jax.jit(jax.value_and_grad(recommender.loss, has_aux=True))
    return step, params, recommender, batch, key, step(params, single, batch, key)


@pytest.mark.parametrize("shape", MESHES)
def test_sharded_lightgcn_equals_one_device(lightgcn, shape):
    step, params, recommender, batch, key, ((wanted, _), gradients) = lightgcn
    mesh = make_mesh(*shape)
    rows, data = (NamedSharding(mesh, P(axes)) for axes in (("data", "model"), "data"))
    with jax.set_mesh(mesh):
        shared = jax.device_put((params, recommender.prepare(catalogue(), 8)), rows)
        (loss, _), sharded = step(*shared, jax.device_put(batch, data), key)
    assert float(loss) == pytest.approx(float(wanted), abs=1e-5)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(gradients), strict=True):
        assert np.abs(np.asarray(b)).max() > 1e-4
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_graph_of_other_parts_than_the_mesh_is_refused():
    graph = edges.interaction_graph(np.arange(16), np.arange(16), 16, 16, parts=1)
    with jax.set_mesh(make_mesh(4, 2)):
        with pytest.raises(ValueError, match="1 parts and the mesh 8 devices.*parts=8"):
            graphs.product(graph, jnp.ones((16, 4)))
