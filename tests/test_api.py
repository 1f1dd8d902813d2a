"""The doors: fit, save, load back, recommend and evaluate, from Python and from the shell."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from checkpoints.hub import shipped
from pipelines.datasets.three_tables import builder_class
from pipelines.schema import DataError
from pipelines.sources import from_arrays
from zoo.cli import main
from zoo.models import MODELS, entry, fields
from zoo.models.unisrec import TRAINABLE
from zoo.optim import SCHEDULES
from zoo.prior import prior_of, save_with_prior, with_prior

N_ITEMS = 40


def chain(users: int = 150, seed: int = 0) -> dict:
    """Item i is followed by i+1 nine times in ten: a first-order chain a trunk must learn."""
    rng = np.random.default_rng(seed)
    rows = {"users": [], "items": [], "times": []}
    for user in range(users):
        item = int(rng.integers(N_ITEMS))
        seen = [item]
        for _ in range(rng.integers(5, 12)):
            item = (item + 1) % N_ITEMS if rng.random() < 0.9 else int(rng.integers(N_ITEMS))
            if item not in seen:
                seen.append(item)
        rows["users"] += [f"u{user}"] * len(seen)
        rows["items"] += [f"item-{i:02}" for i in seen]
        rows["times"] += list(range(len(seen)))
    return rows


def data() -> zoo.Data:
    rows = chain()
    rng = np.random.default_rng(1)
    titles = [f"Title {i}" for i in range(N_ITEMS)]
    dataset = from_arrays(
        **rows,
        item_columns={"item_id": [f"item-{i:02}" for i in range(N_ITEMS)], "title": titles},
        features={"image": rng.normal(size=(N_ITEMS, 6)).astype(np.float32)},
    )
    return zoo.load_data(dataset)


SETTINGS = zoo.Settings(steps=80, batch=16, rate=1e-2, evaluate_every=40)
FIELDS = {"width": 16, "layers": 1, "max_len": 16, "dropout": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "chain"
    fitted, seen = zoo.fit("sasrec", data(), out, SETTINGS, **FIELDS)
    return out, fitted, seen


@pytest.fixture(scope="module")
def bundle(run):
    return zoo.from_pretrained(run[0])


def test_learns_the_chain_and_reloads_the_same(run, bundle):
    _, fitted, seen = run
    fresh = zoo.evaluate((fitted.recommender, fitted.params), seen, max_len=16)
    loaded = zoo.evaluate(bundle, seen)
    assert fresh.metrics["recall@5"] > 0.8, "the chain is nine parts in ten predictable"
    assert loaded.metrics == pytest.approx(fresh.metrics)
    assert fitted.best["ndcg@10"] == max(row["ndcg@10"] for row in fitted.history)


@pytest.mark.parametrize("name", ["bert4rec", "bsarec", "hstu"])
def test_other_trunks_learn_the_chain(name):
    settings = zoo.Settings(steps=160, batch=16, rate=1e-2, evaluate_every=80)
    fitted, seen = zoo.fit(name, data(), None, settings, **FIELDS)
    assert zoo.evaluate(fitted, seen).metrics["recall@5"] > 0.8


def test_recommends_in_the_users_ids(bundle):
    first = bundle.recommend(["item-03", "item-04", "item-05"], k=5)
    assert first[0].item == "item-06" and first[0].title == "Title 6"
    assert [x.score for x in first] == sorted((x.score for x in first), reverse=True)
    assert not {x.item for x in first} & {"item-03", "item-04", "item-05"}
    batch = bundle.recommend_batch([["item-03", "item-04", "item-05"], ["item-20"]], k=5)
    assert [x.item for x in batch[0]] == [x.item for x in first]


def test_any_item_is_scored_on_demand(bundle):
    history = ["item-03", "item-04", "item-05"]
    listed = bundle.recommend(history, k=5)
    scores = bundle.score(history, [*(x.item for x in listed), "item-04"])
    assert scores[:5] == pytest.approx([x.score for x in listed], abs=1e-4)
    assert np.isfinite(scores[5]), "an item of the history has a score, too"
    assert bundle.score(history, ["item-04"]) == pytest.approx(scores[5:], abs=1e-4)
    with pytest.raises(DataError, match="items: .*item-99.* not among the 40 items"):
        bundle.score(history, ["item-99"])


def test_history_longer_than_the_positions(bundle):
    history = [f"item-{i:02}" for i in range(25)]
    listed = bundle.recommend(history, k=3)
    assert listed[0].item == "item-25" and not {x.item for x in listed} & set(history)


def test_a_session_reads_each_event_once_and_agrees(bundle):
    session, history = bundle.session(), [f"item-{i:02}" for i in range(3, 25)]
    for n, item in enumerate(history, 1):
        session.append(item)
        assert session.reads_once == (n <= 16), "a history longer than max_len is encoded again"
        if n in (1, 2, 9, 16, 17, 22):
            grown, whole = session.recommend(k=5), bundle.recommend(history[:n], k=5)
            assert [x.item for x in grown] == [x.item for x in whole]
            assert [x.score for x in grown] == pytest.approx([x.score for x in whole], abs=1e-4)
    with pytest.raises(DataError, match="not among the 40 items"):
        session.append("item-99")
    assert session.history == history, "nothing is lost"


def test_k_may_be_all_that_is_left_and_no_more(bundle):
    rest = bundle.recommend(["item-00"], k=N_ITEMS - 1)
    assert len({x.item for x in rest}) == N_ITEMS - 1
    with pytest.raises(ValueError, match="k is 40; expected 1 to 39"):
        bundle.recommend(["item-00"], k=N_ITEMS)
    for k in (0, 2.5):
        with pytest.raises(ValueError, match="expected 1 to 39"):
            bundle.recommend(["item-00"], k=k)


def test_only_the_allowed_compete_and_nothing_is_compiled_anew(bundle):
    few = [f"item-{i:02}" for i in range(0, N_ITEMS, 4)]
    every = bundle.recommend(["item-03"], k=5)
    bundle.recommend(["item-04"], k=N_ITEMS - 1)
    traces = bundle._recommend._cache_size()
    listed = bundle.recommend(["item-04"], k=5, allowed=few)
    assert len(listed) == 5 and {x.item for x in listed} <= set(few) - {"item-04"}
    ranked = [x.item for x in bundle.recommend(["item-04"], k=N_ITEMS - 1) if x.item in few]
    assert [x.item for x in listed] == ranked[:5]
    assert bundle._recommend._cache_size() == traces
    assert bundle.recommend(["item-03"], k=5) == every
    session = bundle.session()
    session.append("item-04")
    assert [x.item for x in session.recommend(5, few)] == [x.item for x in listed]
    with pytest.raises(ValueError, match="k is 10; expected 1 to 9: the items that compete less"):
        bundle.recommend(["item-04"], k=10, allowed=few)
    with pytest.raises(DataError, match="allowed: .'item-99'. not among the 40 items"):
        bundle.recommend(["item-04"], k=1, allowed=["item-99"])


def test_bad_histories_are_told(bundle):
    with pytest.raises(DataError, match="history is empty: give item ids, such as 'item-"):
        bundle.recommend([])
    for wrong in (None, "item-01"):
        with pytest.raises(DataError, match="expected a list of item ids"):
            bundle.recommend(wrong)
    assert bundle.recommend_batch([]) == []
    with pytest.raises(DataError, match=r"\['item-99'\] not among the 40 items.*item-"):
        bundle.recommend(["item-01", "item-99"])


def test_a_bundle_refuses_other_items(bundle):
    rows = chain()
    other = from_arrays(rows["users"], [f"x{i}" for i in rows["items"]], rows["times"])
    with pytest.raises(DataError, match="differ first at item 1"):
        zoo.evaluate(bundle, zoo.load_data(other))


def test_data_show_in_a_line():
    told = repr(data())
    assert "150 users, 40 items" in told and "Split(loo-full-v1 " in told
    assert len(told) < 200


def test_repeats_are_dropped_and_said(caplog):
    rows = chain(users=20)
    for key in rows:
        rows[key] = list(rows[key]) + [rows[key][0]]
    with caplog.at_level("WARNING"):
        found = zoo.load_data(from_arrays(**rows))
    assert len(found.dataset.items) == len(rows["items"]) - 1
    assert "1 repeated" in caplog.text


def sets() -> zoo.Data:
    """The same users and items without an order."""
    named = data().dataset
    return zoo.load_data(named, zoo.DataOptions(split="random"))


ORDERED_FLOORS = ("popularity", "markov", "item-knn", "sr-graph", "sr-graph+text", "text-knn")
SET_FLOORS = ("popularity", "cf-graph", "cf-graph+text", "text-knn", "ease")


@pytest.mark.parametrize(
    "name,make", [(n, data) for n in ORDERED_FLOORS] + [(n, sets) for n in SET_FLOORS]
)
def test_a_floor_is_counted_saved_and_served(name, make, tmp_path):
    fitted, seen = zoo.fit(name, make(), tmp_path)
    told = zoo.floors(seen, [name])[name]
    assert fitted.best["ndcg@10"] == pytest.approx(told["validation"]["ndcg@10"], abs=1e-6)
    served = zoo.from_pretrained(tmp_path)
    reached = zoo.evaluate(served, seen).metrics["recall@10"]
    assert reached == pytest.approx(told["metrics"]["recall@10"], abs=1e-6)
    assert len(served.recommend(["item-03", "item-04"], k=5)) == 5
    assert "counted, not trained" in served.bundle.card
    if name in ("markov", "sr-graph"):
        assert served.recommend(["item-03", "item-04"], k=1)[0].item == "item-05"


def test_a_floor_takes_its_own_fields_and_no_settings(run):
    whole, _ = zoo.fit("sr-graph", data())
    few, _ = zoo.fit("sr-graph", data(), keep=20)  # the others are chosen all the same
    assert few.best == pytest.approx(whole.best, abs=0.02) and few.steps == 0
    assert few.params["weights"].shape[1] == 20
    with pytest.raises(ValueError, match="sr-graph has no field 'widnow'; nearest: window"):
        zoo.fit("sr-graph", data(), widnow=5)
    with pytest.raises(ValueError, match="counts instead of training"):
        zoo.fit("popularity", data(), settings=SETTINGS)
    with pytest.raises(ValueError, match="holds another run"):
        zoo.fit("popularity", data(), run[0])


CODED = {"unisrec": {"stage": "scratch", "item_input": "codes"}, "sasrec": {"items": "codes"}}


@pytest.mark.parametrize("name", CODED)
def test_codes_are_read_from_the_data_or_refused(name, tmp_path):
    coded = zoo.load_data(data().dataset, zoo.DataOptions(codes="random"))
    small = {**CODED[name], "width": 8, "layers": 1, "max_len": 16}
    few = zoo.Settings(steps=2, batch=8, evaluate_every=2)
    fitted, seen = zoo.fit(name, coded, tmp_path, few, **small)
    served = zoo.from_pretrained(tmp_path)
    want = zoo.evaluate(fitted, seen).metrics
    assert zoo.evaluate(served, seen).metrics == pytest.approx(want)
    with pytest.raises(ValueError, match="take --model.codebook 256"):
        zoo.fit(name, coded, settings=few, **small, codebook=16)
    with pytest.raises(ValueError, match="sasrec reads no codes here: leave 'random' out"):
        zoo.fit("sasrec", coded, settings=few)


def test_a_floor_that_the_data_lack_is_told():
    rows = chain()
    with pytest.raises(ValueError, match="text-knn cannot be counted: the data has no item text"):
        zoo.fit("text-knn", from_arrays(**rows))
    with pytest.raises(ValueError, match="no floor is called 'cf-graph' for ordered data"):
        zoo.fit("cf-graph", from_arrays(**rows))


def test_a_prior_is_saved_with_the_model(run, bundle, tmp_path):
    _, fitted, seen = run
    both = prior_of(bundle, seen, "best")
    assert both.floor in ("sr-graph", "sr-graph+text", "markov", "item-knn")
    save_with_prior(tmp_path, bundle, seen, both)
    served = zoo.from_pretrained(tmp_path)
    known = {"catalogue": fitted.catalogue, "max_len": 16}
    want = zoo.evaluate((both.recommender, both.params), seen, **known).metrics
    assert zoo.evaluate(served, seen).metrics == pytest.approx(want)
    session = served.session()
    session.append("item-03")
    assert session.recommend(k=3)[0].item == "item-04"
    assert both.floor in served.bundle.card
    free = zoo.evaluate(served, seen, mask=False).metrics["ndcg@10"]
    assert free < want["ndcg@10"], "without the mask the history is in the way"
    with pytest.raises(ValueError, match="take the run that it was made of"):
        zoo.fit("sasrec", data(), graft=served, settings=SETTINGS, **FIELDS)
    with pytest.raises(ValueError, match="take the run of a trained model"):
        prior_of(served, seen)
    with pytest.raises(ValueError, match="'knn.markov' is no floor that serves"):
        prior_of(bundle, seen, "knn+markov")


@pytest.mark.parametrize("name", shipped())
def test_what_is_shipped_serves_and_is_small(name):
    bundle = zoo.from_pretrained(name)
    assert sum(f.stat().st_size for f in shipped()[name].iterdir()) < 8e6
    known = [str(item) for item in bundle.bundle.item_ids[1:4]]
    found = bundle.recommend(known, k=10)
    assert len({one.item for one in found} - set(known)) == 10
    assert {"valid", "test"} <= bundle.bundle.evaluation.keys()


def test_a_prior_has_the_rows_of_its_model(run):
    """A table over several devices has more rows than one on one."""
    _, fitted, seen = run
    rows = 2 * len(fitted.catalogue["valid"])
    wide = jax.tree.map(lambda x: np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)),
                        {k: fitted.catalogue[k] for k in ("valid", "popularity")})  # fmt: skip
    params = dict(fitted.params)
    params["items"] = jax.tree.map(
        lambda x: np.pad(x, [(0, rows - len(x)), (0, 0)]), dict(fitted.params["items"])
    )
    grid = (("mixture", 1.0),)
    known = {"floor": "markov", "max_len": 16, "grid": grid}
    there = with_prior((fitted.recommender, params), seen, wide, **known)
    here = with_prior((fitted.recommender, fitted.params), seen, fitted.catalogue, **known)
    assert there.grid == pytest.approx(here.grid)
    assert there.metric == "ndcg@10" and there.alone == pytest.approx(here.alone)


def test_a_model_that_its_prior_does_better_without_is_told(run, caplog):
    _, fitted, seen = run
    fresh = jax.tree.map(jnp.zeros_like, fitted.params)
    grid, known = (("mixture", 0.01),), {"floor": "popularity", "max_len": 16}
    with_prior((fitted.recommender, fitted.params), seen, fitted.catalogue, grid=grid, **known)
    assert "the model does not help" not in caplog.text
    known["floor"] = "markov"
    both = with_prior((fitted.recommender, fresh), seen, fitted.catalogue, grid=grid, **known)
    assert both.floor_alone > both.alone
    assert both.grid["mixture 0.01"] <= both.floor_alone
    assert "the model does not help: validation ndcg@10" in caplog.text


def test_a_prior_counts_the_split_of_its_model(bundle):
    other = zoo.load_data(data().dataset, zoo.DataOptions(tie_seed=0, split="global-time"))
    with pytest.raises(ValueError, match="has to count the same one"):
        prior_of(bundle, other)


def test_a_prior_keeps_as_many_neighbours_as_asked(bundle):
    seen = zoo.load_data(data().dataset, zoo.DataOptions(tie_seed=0))
    both = prior_of(bundle, seen, "markov", keep=2)
    assert both.params["b"]["weights"].shape[1] == 2
    for floor, keep in (("ease", 2), ("popularity", 2), ("markov", 0)):
        with pytest.raises(ValueError, match=f"keep is {keep} for {floor}; expected >= 1"):
            prior_of(bundle, seen, floor, keep)


def test_unknown_metric_is_told_before_training():
    with pytest.raises(ValueError, match="nearest: ndcg@10"):
        zoo.fit("sasrec", data(), settings=zoo.Settings(select="ndgc@10", steps=1))


def said(capsys, *argv) -> dict:
    """Run the command line; standard output must be exactly one JSON object."""
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_command_line(run, tmp_path, capsys):
    out, _, seen = run
    folder = tmp_path / "data"
    folder.mkdir()
    rows = chain()
    columns = zip(rows["users"], rows["items"], rows["times"], strict=True)
    lines = ["user_id,item_id,timestamp", *(f"{u},{i},{t}" for u, i, t in columns)]
    (folder / "interactions.csv").write_text("\n".join(lines))
    named = [f"item-{i:02},Title {i}" for i in range(N_ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *named]))
    described = said(capsys, "data", "describe", "--data", str(folder))
    assert described["users"] == 150 and described["items"] == N_ITEMS
    told = said(capsys, "evaluate", str(out), "--data", str(folder), "--split", "valid")
    assert told["split"] == "valid" and set(told) >= {"metrics", "strata"}
    assert told["metrics"]["recall@10"] > 0.8 and told["same_split_as_training"]
    words = ("--split", "valid", "--prior", "auto")
    both = said(capsys, "evaluate", str(out), "--data", str(folder), *words)
    assert both["prior"]["floor"] == "sr-graph+text" and both["prior"]["weight"] > 0
    assert both["metrics"]["ndcg@10"] > told["metrics"]["ndcg@10"] - 0.02
    fused = said(capsys, "fuse", str(out), "--data", str(folder), "--out", str(tmp_path / "fused"))
    assert {k: fused[k] for k in ("floor", "weight")} == {
        k: both["prior"][k] for k in ("floor", "weight")
    }
    again = said(capsys, "evaluate", str(tmp_path / "fused"), "--data", str(folder), *words[:2])
    assert again["metrics"] == both["metrics"] and again["prior"]["floor"] == "sr-graph+text"
    told = said(capsys, "train", "markov", "--data", str(folder), "--out", str(tmp_path / "m"))
    assert told["best"]["recall@10"] > 0.7
    listed = said(capsys, "recommend", str(out), "--history", "item-03,item-04", "--k", "3")
    assert len(listed["recommendations"]) == 3
    (tmp_path / "stock.txt").write_text("item-30\nitem-31\n")
    words = ("--history", "item-03,item-04", "--k", "2", "--allowed", str(tmp_path / "stock.txt"))
    listed = said(capsys, "recommend", str(out), *words)["recommendations"]
    assert {row["item"] for row in listed} == {"item-30", "item-31"}
    assert "sasrec" in said(capsys, "models")["models"]
    floors = said(capsys, "floors", "--data", str(folder), "--only", "popularity", "markov")
    assert floors["floors"]["markov"]["metrics"]["recall@10"] > 0.7
    assert floors["floors"]["popularity"]["metrics"]["recall@10"] < 0.5
    assert main(["floors", "--data", str(folder), "--only", "markov", "knn+markov"]) == 0
    assert capsys.readouterr().out.count("(table only)") == 1, "markov serves"
    trained = said(
        capsys, "train", "sasrec", "--data", str(folder), "--out", str(tmp_path / "run"),
        "--steps", "4", "--batch", "8", "--model.width", "8", "--objective", "bce",
    )  # fmt: skip
    assert trained["steps"] == 4 and len(trained["params_sha256"]) == 64
    assert {"seconds", "examples_per_second", "best"} <= set(trained)


@pytest.mark.parametrize(
    "argv,told",
    [
        (["trian"], "did you mean train"),
        (["train", "sasrek", "--data", "x", "--out", "y"], "nearest: sasrec"),
        (["recommend", "no-such-bundle", "--history", "a"], "no-such-bundle"),
        (["floors", "--data", "/nowhere"], "/nowhere"),
        (["train", "popularity", "--data", "/nowhere", "--out", "y"], "/nowhere"),
        (["pretrain", "popularity", "--data", "x", "--out", "y"], "no pretraining stage"),
        (["pretrain", "contrastiv", "--data", "x", "--out", "y"], "nearest: contrastive"),
        (["train", "sasrec", "--data", "x", "--out", "y", "--model.max-len", "0"], "max_len is 0"),
        (["recommend", "quickstart", "--history", "a", "--times", "a,b"], "--times has 'a'"),
        (
            ["recommend", "quickstart", "--history", "a", "--allowed", "/nowhere"],
            "no file /nowhere",
        ),
        (["quickstart", "--epochs", "-1"], "epochs is -1"),
    ],
)
def test_mistakes_are_one_clear_message(argv, told, capsys):
    assert main(argv) == 2
    text = capsys.readouterr()
    assert told in text.out + text.err and "Traceback" not in text.err


@pytest.mark.parametrize("command", ["evaluate", "recommend", "fuse", "train"])
def test_help_is_help(command, capsys):
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    assert "usage" in capsys.readouterr().out


def test_help_says_what_every_option_is(capsys):
    with pytest.raises(SystemExit):
        main(["train", "unisrec", "--help"])
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Evaluations without a better one before stopping. (default: 5)" in told
    assert all(name in told for name in SCHEDULES)
    assert all(f"`{stage}`" in told for stage in TRAINABLE), "of the constructor's docstring"


def test_a_folder_of_another_run_is_refused_before_compiling(run, monkeypatch):
    def compiled(self):
        raise AssertionError("compiled first")

    monkeypatch.setattr("zoo.stepper.Stepper.compile", compiled)
    with pytest.raises(ValueError, match="holds another run"):
        zoo.fit("sasrec", data(), run[0], zoo.Settings(steps=1), width=8)


def test_a_package_that_lacks_is_one_clear_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "interactions.csv").write_text("user_id,item_id\na,b\n")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    builder_class.cache_clear()
    assert main(["data", "prepare", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'mmrec-zoo[data]'" in capsys.readouterr().err


def test_mesh_that_does_not_fit_is_told(capsys, tmp_path):
    words = ["train", "sasrec", "--data", "x", "--out", str(tmp_path), "--mesh.model", "3"]
    assert main(words) == 2
    assert "does not divide the 8 devices" in capsys.readouterr().err


@pytest.fixture(scope="module")
def graph_run(tmp_path_factory):
    """FREEDOM on the chain as sets: prepared graphs, pruned anew each epoch, content features."""
    out = tmp_path_factory.mktemp("runs") / "freedom"
    settings = zoo.settings_for("freedom", epochs=12, batch=256, rate=2e-2)
    fitted, seen = zoo.fit("freedom", data(), out, settings, width=16, knn=3)
    return out, fitted, seen


def test_a_graph_model_fits_saves_and_reloads_the_same(graph_run):
    out, fitted, seen = graph_run
    assert fitted.steps % 12 == 0 and fitted.history[0]["step"] == fitted.steps // 12
    pair = fitted.recommender, fitted.params
    fresh = zoo.evaluate(pair, seen, max_len=50)  # prepares the catalogue
    loaded = zoo.evaluate(zoo.from_pretrained(out), seen)
    assert fresh.metrics["recall@20"] > 0.6, "half the items would be 0.5"
    assert loaded.metrics == pytest.approx(fresh.metrics)
    found = zoo.from_pretrained(out).recommend(["item-03", "item-04"], k=5)
    assert len({line.item for line in found} - {"item-03", "item-04"}) == 5
    again, _ = zoo.fit(  # the finished run is restored, not trained again
        "freedom",
        data(),
        out,
        zoo.settings_for("freedom", epochs=12, batch=256, rate=2e-2),
        width=16,
        knn=3,
    )
    assert again.params_sha256 == fitted.params_sha256


@pytest.mark.parametrize("model", list(MODELS))
def test_a_misspelt_option_is_refused_when_the_model_is_built(model):
    if entry(model).family == "floor":
        return
    for name, (_, default) in fields(model).items():
        if isinstance(default, str) and name != "dtype":
            with pytest.raises(ValueError, match="bth"):
                zoo.build(model, **{name: "bth"})


def test_a_bare_pair_has_to_say_how_long_its_histories_are(graph_run):
    _, fitted, seen = graph_run
    with pytest.raises(ValueError, match="name max_len"):
        zoo.evaluate((fitted.recommender, fitted.params), seen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": -3}, {"epochs": "five"}, {"steps": -5}, {"batch": 0}, {"accumulate": 0},
        {"rate": -1.0}, {"rate": float("nan")}, {"flops": -5.0}, {"clip": 0.0}, {"patience": -1},
        {"weight_decay": -0.1}, {"weight_decay": float("inf")}, {"dispatch": 0},
    ],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range_are_told(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a"):
        zoo.settings_for("sasrec", **wrong)


@pytest.mark.parametrize(
    "wrong,told",
    [
        ({"width": 0}, "width is 0"),
        ({"layers": -1}, "layers is -1"),
        ({"dropout": 1.5}, "dropout is 1.5; expected a number of at least 0, below 1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"width": 10, "heads": 3}, "10 is not a multiple of 3 heads; .* such as 9"),
    ],
)
def test_sizes_that_no_model_can_have_are_told(wrong, told):
    with pytest.raises(ValueError, match=told):
        zoo.build("sasrec", **wrong)


def test_another_content_under_the_same_names_is_another_run(tmp_path):
    rows, settings = chain(users=20), zoo.settings_for("sasrec", steps=1)
    ids = sorted({str(x) for x in rows["items"]})

    def fit(titles):
        columns = {"item_id": ids, "title": titles}
        data = zoo.load_data(from_arrays(**rows, item_columns=columns))
        return zoo.fit("sasrec", data, tmp_path, settings, items="both", width=8)

    titles = [f"a thing of kind {i}" for i in range(len(ids))]
    fit(titles)
    fit(titles)
    with pytest.raises(ValueError, match=r"another run: read.content is "):
        fit(titles[::-1])


def test_settings_follow_the_family():
    graph, sequence = zoo.settings_for("lightgcn"), zoo.settings_for("sasrec", batch=7)
    assert (graph.batch, graph.select, graph.dispatch) == (2048, "recall@20", None)
    assert (sequence.batch, sequence.select, sequence.dispatch) == (7, "ndcg@10", 1)
