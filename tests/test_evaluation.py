"""The protocol against a plain float64 evaluation, event by event."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import evaluation as ev
from zoo import knockout, metrics
from zoo.mesh import make_mesh, shardings
from zoo.retrieval import dot_match
from zoo.scorer import scorer

N, D, E = 60, 5, 37  # rows of the catalogue, width, events
TRACES = []


def recommender():
    """A user is the sum of the items seen; features, where present, are added to the table."""

    def init(key, catalogue, batch):
        return {"items": {"id": {"table": jax.random.normal(key, (N, D))}}}

    def loss(params, catalogue, batch, key):
        return jnp.sum(params["items"]["id"]["table"] ** 2), {}

    def index(params, catalogue):
        x = params["items"]["id"]["table"]
        if "features" in catalogue:
            x = x + catalogue["features"]["image"] * catalogue["present"]["image"][:, None]
        return {"table": x, "valid": catalogue["valid"]}

    def encode(params, index, batch):
        TRACES.append(sorted(batch))
        seen = jnp.take(index["table"], batch["items"], axis=0)
        return jnp.sum(seen * (batch["items"] > 0)[..., None], axis=1)

    def match(params, index, query, items):
        return dot_match(index["table"], query, items)

    return scorer(init, loss, index, encode, match)


MODEL = recommender()


def world(seed=0, p=1, whole=True):
    """params, catalogue, events: histories of 1..12 items and p positives outside them."""
    r = np.random.default_rng(seed)
    table = r.integers(-2, 3, (N, D)) if whole else r.normal(size=(N, D))
    valid = np.arange(N) > 0
    valid[55:] = False
    catalogue = {
        "valid": valid,
        "popularity": np.where(valid, r.integers(0, 30, N) * (r.random(N) < 0.8), 0).astype(
            np.float32
        ),
    }
    histories, positives = [], np.zeros((E, p), np.int32)
    for i in range(E):
        ids = r.permutation(np.arange(1, 55))
        positives[i] = ids[:p]
        if i % 3 == 0:
            positives[i, 1:] = 0
        histories.append(ids[p : p + 1 + i % 12])
    params = {"items": {"id": {"table": jnp.asarray(table, jnp.float32)}}}
    return params, catalogue, (histories, positives)


def batches(events, size=8, order=None):
    """Batches of 8 in two widths, the last of each filled with weight 0, out of order."""
    histories, positives = events
    lengths = np.array([len(h) for h in histories])
    for low, width in ((0, 6), (6, 12)):
        rows = np.flatnonzero((lengths > low) & (lengths <= width))[::-1]
        for i in range(0, len(rows), size):
            some = rows[i : i + size]
            items = np.zeros((size, width), np.int32)
            for j, row in enumerate(some):
                items[j, : lengths[row]] = histories[row]
            fill = size - len(some)
            yield {
                "items": items,
                "exclude": items.copy(),
                "positives": np.pad(positives[some], ((0, fill), (0, 0))),
                "event": np.pad(some, (0, fill)).astype(np.int32),
                "weight": np.pad(np.ones(len(some), np.float32), (0, fill)),
            }


def oracle(params, catalogue, events, mask=True, ks=(2, 5), candidates=None):
    """Per-event metrics by loops in float64."""
    table = np.asarray(params["items"]["id"]["table"], np.float64)
    valid = catalogue["valid"] if candidates is None else catalogue["valid"] & candidates
    g, e = np.zeros((2, *events[1].shape), int)
    for i, (history, positives) in enumerate(zip(*events, strict=True)):
        scores = np.where(valid, table @ table[history].sum(0), -np.inf)
        if mask:
            scores[history] = -np.inf
        for j, item in enumerate(positives):
            g[i, j] = np.sum(scores > scores[item])
            e[i, j] = np.sum(scores == scores[item]) - 1
    return metrics.ranking_metrics(g, e, events[1] > 0, ks)


@pytest.mark.parametrize("p", [1, 3])
@pytest.mark.parametrize("mask", [True, False])
def test_equals_the_plain_evaluation(p, mask):
    params, catalogue, events = world(p=p)
    result = ev.evaluate(MODEL, params, catalogue, batches(events), ks=(2, 5), mask=mask)
    expected = oracle(params, catalogue, events, mask)
    assert result.n_events == E
    np.testing.assert_array_equal(result.asked.event, np.arange(E))
    for name, values in expected.items():
        np.testing.assert_allclose(result.per_event[name], values, atol=1e-12)
        assert result.metrics[name] == pytest.approx(values.mean(), abs=1e-12)
    assert result.asked.equal.any()


def test_chunks_batches_and_meshes_change_nothing():
    params, catalogue, events = world(p=2, whole=False)
    one = ev.evaluate(MODEL, params, catalogue, batches(events))
    others = {
        "batch": ev.evaluate(MODEL, params, catalogue, batches(events, 16)),
        "mesh": ev.evaluate(MODEL, params, catalogue, batches(events), mesh=make_mesh(4, 2)),
        "index": ev.evaluate(
            MODEL, params, catalogue, batches(events), index=MODEL.index(params, catalogue)
        ),
    }
    for other in others.values():
        assert other.metrics == one.metrics and other.strata == one.strata


def test_several_blocks_on_a_sharded_table():
    """The table in rows over 8 devices, blocks of 128 of 200 rows: the counts of one device."""
    r = np.random.default_rng(0)
    table = r.integers(-2, 3, (200, D)).astype(np.float32)
    catalogue = {"valid": np.arange(200) > 0, "popularity": np.ones(200, np.float32)}
    _, _, events = world(p=2)
    params = {"items": {"id": {"table": table}}}
    one = ev.evaluate(MODEL, params, catalogue, batches(events))
    mesh = make_mesh(4, 2)
    spread = jax.device_put(params, shardings(params, mesh))
    for chunk in (None, 128):
        other = ev.evaluate(MODEL, spread, catalogue, batches(events), mesh=mesh, chunk=chunk)
        assert other.metrics == one.metrics


def test_rows_cut_in_tiles_change_nothing(monkeypatch):
    params, catalogue, events = world(p=2)
    one = ev.evaluate(MODEL, params, catalogue, batches(events))
    monkeypatch.setattr(ev, "row_tiles", lambda b, n: 4)
    assert ev.evaluate(MODEL, params, catalogue, batches(events)).metrics == one.metrics


def test_one_compile_a_width_and_no_sight_of_the_positives():
    params, catalogue, events = world(seed=7)
    fresh = recommender()
    TRACES.clear()
    for _ in range(2):
        ev.evaluate(fresh, params, catalogue, batches(events))
    assert TRACES == [["exclude", "items"]] * 2  # two widths


def test_adding_a_constant_or_renaming_items_changes_nothing():
    params, catalogue, (histories, positives) = world()
    one = ev.evaluate(MODEL, params, catalogue, batches((histories, positives)))
    new = np.concatenate([[0], 1 + np.random.default_rng(1).permutation(N - 1)])
    old = np.argsort(new)
    moved = {"items": {"id": {"table": params["items"]["id"]["table"][old]}}}
    renamed = {name: x[old] for name, x in catalogue.items()}
    events = ([new[h] for h in histories], new[positives].astype(np.int32))
    other = ev.evaluate(MODEL, moved, renamed, batches(events))
    assert other.metrics == pytest.approx(one.metrics)


def test_candidates_restrict_who_competes_and_nothing_else():
    params, catalogue, events = world()
    some = np.zeros(N, bool)
    some[np.unique(events[1])] = True
    result = ev.evaluate(MODEL, params, catalogue, batches(events), ks=(2, 5), candidates=some)
    expected = oracle(params, catalogue, events, candidates=some)
    np.testing.assert_allclose(result.per_event["ndcg@5"], expected["ndcg@5"])
    everyone = ev.evaluate(MODEL, params, catalogue, batches(events), ks=(2, 5))
    assert result.metrics["recall@5"] > everyone.metrics["recall@5"]


def test_built_in_strata():
    params, catalogue, events = world()
    result = ev.evaluate(MODEL, params, catalogue, batches(events), ks=(2, 5))
    count = catalogue["popularity"][events[1][:, 0]]
    length = np.array([len(h) for h in events[0]])
    values = oracle(params, catalogue, events)["recall@5"]
    expected = {
        "target count 0": count == 0,
        "target count 1-5": (count >= 1) & (count <= 5),
        "target count 6-20": (count >= 6) & (count <= 20),
        "target count >20": count >= 21,
        "history <=5": length <= 5,
        "history 6-9": (length >= 6) & (length <= 9),
        "history >=10": length >= 10,
    }
    assert list(result.strata) == list(expected)
    for name, which in expected.items():
        assert result.strata[name]["events"] == which.sum() > 0
        assert result.strata[name]["recall@5"] == pytest.approx(values[which].mean())


def test_strata_of_several_positives_keep_their_own():
    params, catalogue, events = world(p=3)
    result = ev.evaluate(MODEL, params, catalogue, batches(events), ks=(5,))
    a = result.asked
    cold = a.mask & (a.count == 0)
    rows = cold.any(axis=1)
    hits = metrics.expected_hit(a.greater, a.equal, 5)
    expected = (hits * cold).sum(1)[rows] / cold.sum(1)[rows]
    assert result.strata["target count 0"]["events"] == rows.sum() < E
    assert result.strata["target count 0"]["recall@5"] == pytest.approx(expected.mean())


def test_own_strata_and_empty_ones():
    params, catalogue, events = world()
    even = np.arange(E) % 2 == 0
    strata = {"even": even, "nobody": np.zeros(E, bool)}
    result = ev.evaluate(MODEL, params, catalogue, batches(events), strata=strata)
    assert result.strata["nobody"] == {"events": 0}
    assert result.strata["even"]["ndcg@10"] == result.per_event["ndcg@10"][even].mean()
    by_call = ev.evaluate(
        MODEL, params, catalogue, batches(events), strata=lambda a: {"even": a.event % 2 == 0}
    )
    assert by_call.strata["even"] == result.strata["even"]
    assert ev.evaluate(MODEL, params, catalogue, batches(events), strata=None).strata == {}


def test_interval_holds_the_mean():
    params, catalogue, events = world()
    result = ev.evaluate(MODEL, params, catalogue, batches(events))
    mean, low, high = result.interval("ndcg@10")
    assert low < mean < high and mean == pytest.approx(result.metrics["ndcg@10"])
    with pytest.raises(ValueError, match="recall@5"):
        result.interval("ndcg@7")


def one_event(**changed):
    row = {"items": [[1, 2]], "exclude": [[1, 2]], "positives": [[3]], "event": [41]}
    row |= changed
    return [{k: np.array(v, np.int32) for k, v in row.items()}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(positives=[[57]]), "event 41 asks for item 57, which is no candidate"),
        (dict(positives=[[5000]]), "event 41 asks for item 5000, which is no candidate"),
        (dict(positives=[[2]]), "event 41 asks for item 2, which its own history masks"),
        (dict(positives=[[0]]), "event 41 has no positive"),
        (dict(weight=[0]), "no event to evaluate"),
    ],
)
def test_bad_events_are_named(changed, message):
    params, catalogue, _ = world()
    with pytest.raises(ValueError, match=message):
        ev.evaluate(MODEL, params, catalogue, one_event(**changed))


def test_a_repeated_item_is_ranked_without_the_mask():
    params, catalogue, _ = world()
    result = ev.evaluate(MODEL, params, catalogue, one_event(positives=[[2]]), mask=False)
    assert result.n_events == 1


def test_broken_numbers_are_errors():
    params, catalogue, events = world()
    broken = jax.tree.map(lambda x: x.at[9, 0].set(jnp.nan), params)
    with pytest.raises(FloatingPointError, match="index holds NaN in 'table'"):
        ev.evaluate(MODEL, broken, catalogue, batches(events))
    huge = jax.tree.map(lambda x: x.at[3].set(jnp.inf), params)
    with pytest.raises(FloatingPointError, match="event 41: its positive, item 3, scores"):
        ev.evaluate(MODEL, huge, catalogue, one_event())


def test_top_lists():
    params, catalogue, events = world()
    lists = ev.top_lists(MODEL, params, catalogue, batches(events), k=6)
    assert lists.shape == (E, 6) and catalogue["valid"][lists].all()
    found = metrics.list_metrics(lists, catalogue["popularity"], E, catalogue["valid"], (5,))
    assert 0 < found["coverage@5"] <= 1


def with_image(catalogue):
    r = np.random.default_rng(3)
    here = catalogue["valid"] & (r.random(N) < 0.7)
    x = np.where(here[:, None], r.normal(size=(N, D)), 0).astype(np.float32)
    return catalogue | {"features": {"image": x}, "present": {"image": here}}


def test_knock_out():
    params, catalogue, events = world(whole=False)
    catalogue = with_image(catalogue)
    x, here, valid = (
        catalogue["features"]["image"],
        catalogue["present"]["image"],
        catalogue["valid"],
    )
    zero = knockout.knock_out(catalogue, "image")
    assert not zero["features"]["image"].any() and not zero["present"]["image"].any()
    dealt = knockout.knock_out(catalogue, "image", "permute", seed=1)
    moved, moved_here = dealt["features"]["image"], dealt["present"]["image"]
    assert (moved[valid] != x[valid]).any() and not moved[~valid].any()
    np.testing.assert_array_equal(np.sort(moved, axis=0), np.sort(x, axis=0))
    np.testing.assert_array_equal(moved_here, moved.any(axis=1))
    assert x.any() and here.sum() == moved_here.sum()  # the catalogue itself is untouched
    same = ev.evaluate(MODEL, params, zero, batches(events))
    without = {k: v for k, v in catalogue.items() if k not in ("features", "present")}
    assert same.metrics == ev.evaluate(MODEL, params, without, batches(events)).metrics
    assert same.metrics != ev.evaluate(MODEL, params, catalogue, batches(events)).metrics


def test_permuted_items_keep_the_mask_of_their_rows():
    """Several rows an item, fewer in some: the mask goes where the features go."""
    catalogue = with_image(world()[1])
    rows = np.random.default_rng(4).random((N, 3)) < 0.5
    several = np.where(rows[:, :, None], catalogue["features"]["image"][:, None], 0)
    sound = {"sound": np.ones((N, 2), bool)}
    catalogue |= {"features": {"image": several}, "rows": {"image": rows, **sound}}
    dealt = knockout.knock_out(catalogue, "image", "permute", seed=1)
    assert (dealt["rows"]["image"] != rows).any() and dealt["rows"]["sound"] is sound["sound"]
    there = dealt["present"]["image"]
    said = dealt["features"]["image"].any(axis=2)
    np.testing.assert_array_equal(said[there], dealt["rows"]["image"][there])
    np.testing.assert_array_equal(catalogue["rows"]["image"], rows)


@pytest.mark.parametrize(
    ("given", "message"), [(("sound",), r"there are \['image'\]"), (("image", "burn"), "'burn'")]
)
def test_knock_out_errors_teach(given, message):
    with pytest.raises(ValueError, match=message):
        knockout.knock_out(with_image(world()[1]), *given)


def test_knock_out_parameters():
    params = {"items": {"id": {"table": jnp.ones(3)}}, "trunk": {"table": jnp.ones(2)}}
    found = knockout.knock_out_parameters(params, "items/id/table")
    assert not found["items"]["id"]["table"].any() and found["trunk"]["table"].all()
    with pytest.raises(ValueError, match="there are items/id/table, trunk/table"):
        knockout.knock_out_parameters(params, "table")


def test_inside_a_training_run_on_a_mesh():
    """As training calls it: a mesh in force, parameters and catalogue spread, batches not."""
    params, catalogue, events = world(p=2)
    params = {"items": {"id": {"table": jnp.pad(params["items"]["id"]["table"], ((0, 4), (0, 0)))}}}
    catalogue = {name: np.pad(x, (0, 4)) for name, x in catalogue.items()}
    one = ev.evaluate(MODEL, params, catalogue, batches(events))
    mesh = make_mesh(4, 2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, shardings(params, mesh))
        rows = jax.device_put(catalogue, NamedSharding(mesh, P(("data", "model"))))
        assert ev.evaluate(MODEL, spread, rows, batches(events)).metrics == one.metrics


def popularity():
    """Everybody gets the train counts."""
    return scorer(
        init=lambda key, catalogue, batch: {},
        loss=lambda params, catalogue, batch, key: (jnp.zeros(()), {}),
        index=lambda params, catalogue: {k: catalogue[k] for k in ("valid", "popularity")},
        encode=lambda params, index, batch: jnp.ones((len(batch["items"]), 1)),
        match=lambda params, index, query, items: query * index["popularity"][items][None, :],
    )


def test_popularity_of_amazon_beauty(real_data):
    """Published and independently measured: H5/N5/H10/N10/H20/N20, and the size of each stratum."""
    from pipelines.loader import event_batches
    from zoo import api

    data = api.load_data(real_data / "amazon-beauty")
    test = event_batches(data.split.test, 50)
    result = ev.evaluate(popularity(), {}, data.catalogue(), test)
    found = [result.metrics[f"{name}@{k}"] for k in (5, 10, 20) for name in ("recall", "ndcg")]
    assert found == pytest.approx([0.0074, 0.0041, 0.0115, 0.0054, 0.0201, 0.0075], abs=6e-5)
    events = [row["events"] for row in result.strata.values()]
    assert events == [138, 6059, 8328, 7838, 11383, 6738, 4242]
