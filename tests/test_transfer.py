"""From one shop to another: data sets merged, words in one space, parameters grafted; times."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from pipelines.features import hashed_text
from pipelines.interactions import filter_items
from pipelines.merging import merge, parted
from pipelines.schema import DataError
from pipelines.sources import from_arrays
from zoo import api
from zoo.cli import main
from zoo.data import split_otherwise
from zoo.fitting import Run
from zoo.graft import graft, names_of
from zoo.merge import save_merged
from zoo.mesh import make_mesh
from zoo.optim import optimizer
from zoo.plan import names
from zoo.transfer import _check_encoded, _check_make, check_split

WORDS = ("red blue green black white small large round square soft hard old new cotton steel wood "
         "glass paper light heavy").split()  # fmt: skip


def shop(name: str, seed: int, users: int = 40, items: int = 20):
    """Item i follows i-1; titles tell the place in the chain in words that all shops share."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(items)
    rows = {"users": [], "items": [], "times": []}
    for user in range(users):
        first, length = int(rng.integers(items)), int(rng.integers(5, 9))
        rows["users"] += [f"u{user}"] * length
        rows["items"] += [f"{order[(first + k) % items]}" for k in range(length)]
        rows["times"] += [1000 * k for k in range(length)]
    place = np.argsort(order)
    titles = [f"{WORDS[place[i]]} {WORDS[(place[i] + 1) % items]}" for i in range(items)]
    columns = {"item_id": [str(i) for i in range(items)], "title": titles}
    return from_arrays(**rows, item_columns=columns, name=name)


def test_merge_shares_nothing_and_parts_again():
    a, b = shop("a", 0), shop("b", 1, users=7, items=12)
    both = merge([a, b])
    assert (both.n_users, both.n_items) == (47, 32) and len(both.users) == len(a.users) + len(
        b.users
    )
    assert both.item_ids[21] == f"b:{b.item_ids[1]}" and both.user_ids[1] == f"a:{a.user_ids[1]}"
    assert both.columns["title"][20 + 3] == b.columns["title"][3]
    assert both.items[len(a.items) :].min() > 20 and both.times is not None
    described = api.prepare(zoo.load_data([a, b]), "both").dataset
    first, second = parted(described, [a, b])
    np.testing.assert_array_equal(second.features["text"][5], described.features["text"][25])
    assert len(first.features["text"]) == 21 and not first.features["text"][0].any()


def test_merge_says_what_cannot_be_merged():
    a, b = shop("a", 0), shop("a", 1)
    with pytest.raises(DataError, match="expected different ones"):
        merge([a, b])
    columns = {"item_id": ["x", "y"]}
    sized = [
        from_arrays(
            ["u", "u"], ["x", "y"], None, None, None, columns, {"image": np.ones((2, f))}, str(f)
        )
        for f in (3, 4)
    ]
    with pytest.raises(DataError, match=r"different width.*'image': \[3, 4\]"):
        merge(sized)


def test_hashed_words_are_the_same_everywhere():
    a = hashed_text(["", "Red cotton", "steel"])
    b = hashed_text(["steel steel", "cotton RED"])
    np.testing.assert_array_equal(a[[2, 1]], b)
    assert not a[0].any() and np.allclose(np.linalg.norm(a[1:], axis=1), 1, atol=1e-6)
    many = hashed_text([f"word{i}" for i in range(300)])
    crowded = np.abs(many @ many.T - np.eye(300))
    assert crowded.mean() < 0.03, "different words are nearly orthogonal"


def test_graft_takes_names_and_leaves_the_rest():
    here = {"a": {"w": np.zeros((2, 3))}, "id": {"table": np.zeros((5, 3))}, "new": np.zeros(1)}
    there = {"b": {"w": np.ones((2, 3))}, "id": {"table": np.ones((9, 3))}}
    got = graft(here, there, [("^a/", "b/"), ("^id/", None)])
    assert got.taken == ("a/w",) and got.fresh == ("id/table", "new")
    assert got.unused == ("id/table",)
    assert got.params["a"]["w"].all() and not got.params["id"]["table"].any()
    with pytest.raises(ValueError, match=r"id/table \(5, 3\) here, \(9, 3\) there.*width"):
        graft(here, there)
    with pytest.raises(ValueError, match="nothing to graft"):
        graft(here, {"x": np.ones(1)})


TINY = {"items": "content", "width": 8, "layers": 1, "max_len": 8, "dropout": 0.0}
HSTU = {"width": 8, "layers": 1, "max_len": 8}
HASHED = zoo.DataOptions(text="hashed")
SMALL = {"width": 16, "layers": 1, "max_len": 8, "dropout": 0.0, "experts": 2}
SETTINGS = zoo.Settings(steps=6, batch=8, evaluate_every=6)


def csv(folder, dataset):
    folder.mkdir()
    rows = zip(dataset.users, dataset.items, dataset.times, strict=True)
    lines = [f"{u},{dataset.item_ids[i]},{t}" for u, i, t in rows]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]))
    named = [f"{i},{t}" for i, t in zip(dataset.item_ids, dataset.columns["title"], strict=True)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *named[1:]]))
    return str(folder)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Two shops, from the shell."""
    folder = tmp_path_factory.mktemp("shops")
    a, b = (csv(folder / name, shop(name, i)) for i, name in enumerate("ab"))
    words = ["pretrain", "unisrec", "--data", a, "--more-data", b, "--out", str(folder / "run")]
    words += ["--steps", "8", "--batch", "8", "--text", "hashed", "--json"]
    words += [x for k, v in SMALL.items() for x in (f"--model.{k.replace('_', '-')}", str(v))]
    assert not main(words)
    return folder / "run"


def test_a_grafted_run_trains_its_stage_alone(pretrained):
    data = zoo.load_data(shop("c", 2), zoo.DataOptions(text="hashed"))
    before = zoo.from_pretrained(pretrained).params
    fitted, _ = zoo.fit(
        "unisrec", data, settings=SETTINGS, graft=pretrained, stage="inductive", **SMALL
    )
    after = fitted.params
    np.testing.assert_array_equal(
        after["trunk"]["positions"]["table"], before["trunk"]["positions"]["table"]
    )
    pairs = zip(*(jax.tree.leaves(tree["items"]) for tree in (after, before)), strict=True)
    assert any(np.abs(x - y).max() > 0 for x, y in pairs)
    with pytest.raises(ValueError, match="has to come from pretraining"):
        zoo.fit("unisrec", data, settings=SETTINGS, stage="inductive", **SMALL)


def test_the_control_trains_from_nothing_for_as_many_operations(pretrained, tmp_path, capsys):
    c = csv(tmp_path / "c", shop("c", 2))
    words = ["train", "unisrec", "--data", c, "--text", "hashed", "--graft", str(pretrained)]
    words += ["--model.stage", "transductive", "--out", str(tmp_path / "fine"), "--steps", "1"]
    words += ["--control", str(tmp_path / "control"), "--batch", "16", "--json"]
    words += [x for k, v in SMALL.items() for x in (f"--model.{k.replace('_', '-')}", str(v))]
    capsys.readouterr()
    assert not main(words)
    told = json.loads(capsys.readouterr().out)
    before = zoo.from_pretrained(pretrained).config["flops"]
    control = zoo.from_pretrained(tmp_path / "control").config
    assert control["fields"]["stage"] == "scratch" and before > 0
    assert zoo.from_pretrained(tmp_path / "fine").config["flops"] == before + told["flops"]
    assert told["control"]["flops"] == control["flops"]
    a_step = control["flops"] / control["steps"]
    assert abs(control["flops"] - before - told["flops"]) <= a_step / 2
    assert control["steps"] > 1
    words[words.index("transductive")] = "inductive"
    words[words.index(str(tmp_path / "fine"))] = str(tmp_path / "other")
    words[words.index(str(tmp_path / "control"))] = str(tmp_path / "content")
    assert not main(words)
    alone = zoo.from_pretrained(tmp_path / "content")
    assert alone.config["fields"]["stage"] == "content" and "id" not in alone.params["items"]
    assert "id" in zoo.from_pretrained(tmp_path / "control").params["items"]
    words[words.index(str(tmp_path / "content"))] = str(tmp_path / "other")
    assert main(words) == 2 and "--control and --out are both" in capsys.readouterr().err
    at = words.index("--graft")
    assert main(words[:at] + words[at + 2 :]) == 2 and "--graft" in capsys.readouterr().err


def test_names_say_whose_place_a_parameter_takes(pretrained, tmp_path, caplog):
    data = zoo.load_data(shop("c", 2), HASHED)
    names = names_of(["^items/text/experts=", "^trunk/positions="])
    how = {"settings": SETTINGS, "graft": pretrained, "stage": "transductive", **SMALL}
    zoo.fit("unisrec", data, names=names, **how)
    fresh, unused = caplog.text.split("fresh:")[1].split("of the graft unused:")
    assert "trunk/positions" in fresh and "items/text" in fresh and "trunk/stack" not in fresh
    assert "trunk/positions" in unused and "trunk/stack" not in unused
    with pytest.raises(ValueError, match="the graft has no items/text/experts.* from items/gone"):
        zoo.fit("unisrec", data, names=names_of(["items/text=items/gone"]), **how)
    with pytest.raises(ValueError, match=r"the line of names items/tekst=x is found in no param"):
        zoo.fit("unisrec", data, names=names_of(["items/tekst=x"]), **how)
    with pytest.raises(ValueError, match="names are of a graft's parameters"):
        zoo.fit("unisrec", data, settings=SETTINGS, names=names, **SMALL)
    with pytest.raises(ValueError, match="no line of a table"):
        names_of(["items/text"])
    with pytest.raises(ValueError, match="no regex and its replacement"):
        names_of([r"items/(text=x"])
    with pytest.raises(ValueError, match="no regex and its replacement"):
        names_of([r"items/text=\2"])


def test_what_a_stage_freezes_has_no_part_in_clipping_decay_or_state(pretrained, tmp_path):
    data = api.prepare(zoo.load_data(shop("c", 2), zoo.DataOptions(text="hashed")), "both")
    before, fields = zoo.from_pretrained(pretrained).params, {**SMALL, "stage": "transductive"}
    settings = replace(SETTINGS, clip=0.1, weight_decay=0.1, rate=0.05)
    what = (data.split, data.catalogue(), settings, make_mesh(1), before)
    run = Run("unisrec", fields, *what)
    params, state = run.stepper.fresh().params, None
    own = {"items": params["items"]}
    alone = optimizer(settings.rate, weight_decay=0.1, clip=0.1)
    state, expected = run.optimizer.init(params), alone.init(own)
    assert not [x for x in names(state) if "trunk" in x], "moments of what is frozen"
    for loud in (1e3, 0.0):
        grads = jax.tree.map(jnp.ones_like, params)
        grads["trunk"] = jax.tree.map(lambda x, loud=loud: x + loud, grads["trunk"])
        updates, state = run.optimizer.update(grads, state, params)
        steps, expected = alone.update({"items": grads["items"]}, expected, own)
        jax.tree.map(np.testing.assert_array_equal, updates["items"], steps["items"])
    how = {"settings": settings, "graft": pretrained, **fields}
    fitted, _ = zoo.fit("unisrec", data, tmp_path, **how)
    jax.tree.map(np.testing.assert_array_equal, fitted.params["trunk"], before["trunk"])
    assert np.abs(fitted.params["items"]["id"]["table"]).max() > 0.1
    again, _ = zoo.fit("unisrec", data, tmp_path, **how)  # from the last checkpoint
    assert again.params_sha256 == fitted.params_sha256
    fitted, _ = zoo.fit("unisrec", data, adapt="bitfit", **how)
    jax.tree.map(np.testing.assert_array_equal, fitted.params["trunk"], before["trunk"])
    experts = [x["items"]["text"]["experts"] for x in (before, fitted.params)]
    same = {k: np.array_equal(experts[0][k], experts[1][k]) for k in experts[0]}
    assert not same["bias"] and same["kernel"], "both the stage and the adaptation say what trains"


def test_vectors_of_length_one_are_read_at_the_size_of_an_initialiser(tmp_path):
    data = api.prepare(zoo.load_data(shop("c", 2), zoo.DataOptions(text="hashed")), "both")
    own = data.dataset.features["text"]
    here = own.any(1)
    steps = zoo.settings_for("sasrec", steps=1)
    fitted, seen = zoo.fit("sasrec", data, tmp_path, steps, items="content", width=16)
    read = fitted.catalogue["features"]["text"][: len(own)]
    assert np.sqrt(np.mean(own[here] ** 2)) < 0.1
    np.testing.assert_allclose(np.sqrt(np.mean(read[here] ** 2)), 1, rtol=1e-6)
    np.testing.assert_allclose(read * own.max(), own * read.max(), atol=1e-6)  # one number
    manifest = json.loads((tmp_path / "bundle" / "features.json").read_text())
    assert manifest["text"]["divided_by"] == seen.dataset.source["divided_by"]["text"]
    assert zoo.data.as_loaded(seen).dataset.features["text"] is own
    assert zoo.data.sized(seen) is seen, "what has its size is left alone"
    steps = zoo.settings_for("vbpr", steps=1)
    fitted, _ = zoo.fit("vbpr", seen, settings=steps, width=16)  # as its paper reads them
    np.testing.assert_array_equal(fitted.catalogue["features"]["text"][: len(own)], own)


def test_words_have_the_columns_that_a_model_usually_reads(tmp_path):
    data = zoo.load_data(shop("c", 2))
    for model, more, width in (
        ("sasrec", {"items": "content", "width": 16}, 768),
        ("vbpr", {"width": 16}, 64),
        ("two_tower", {"width": 16}, 768),
    ):
        steps = zoo.settings_for(model, steps=1, batch=8)
        fitted, _ = zoo.fit(model, data, tmp_path / model, steps, **more)
        assert fitted.catalogue["features"]["text"].shape[1] == width, model
    told = zoo.from_pretrained(tmp_path / "sasrec").data_options()
    assert told.text == "lsa:768", "the bundle says which"
    _, seen = zoo.fit("sasrec", data, settings=replace(SETTINGS, steps=1))
    assert seen.options.text == "lsa", "nor where no words are read"
    own = replace(data, options=zoo.DataOptions(text="lsa:64"))
    fitted, _ = zoo.fit("sasrec", own, settings=replace(SETTINGS, steps=1), items="content")
    assert fitted.catalogue["features"]["text"].shape[1] == 64


def test_the_size_is_that_of_the_rows_there_are():
    from zoo.embedded import ROWS

    data = zoo.load_data(shop("c", 2))
    rows = np.zeros((21, 3, 4), np.float32)  # three sentences an item, most have one
    rows[1:, 0], rows[5, 1] = 0.02, -0.02
    facts = {"embedded": {"text": {ROWS: 3}}}
    none, flat = np.zeros((21, 5), np.float32), rows.reshape(21, 12)
    features = {"text": flat, "image": none, "audio": np.zeros((21, 0), np.float32)}
    source = data.dataset.source | facts
    sized = zoo.data.sized(
        replace(data, dataset=replace(data.dataset, features=features, source=source))
    ).dataset
    np.testing.assert_allclose(np.abs(sized.features["text"].reshape(rows.shape)[rows != 0]), 1)
    np.testing.assert_array_equal(sized.features["text"] == 0, flat == 0)
    assert sized.features["image"] is none and list(sized.source["divided_by"]) == ["text"]


def test_grafts_that_mean_nothing_are_refused(pretrained):
    made = (
        zoo.load_data(shop("c", 2), zoo.DataOptions(text=t)) for t in ("hashed", "lsa", "lsa:9")
    )
    hashed, *others = made
    fit = lambda model, data, **more: zoo.fit(  # noqa: E731
        model, data, settings=SETTINGS, graft=pretrained, **{**SMALL, **more}
    )
    for own in others:
        with pytest.raises(ValueError, match="--text hashed for both"):
            fit("unisrec", own, stage="transductive")
    with pytest.raises(ValueError, match=r"here, .* there.*width"):
        fit("unisrec", hashed, stage="transductive", width=32)
    with pytest.raises(ValueError, match="pretrained as unisrec; this model is mp4sr"):
        fit("mp4sr", hashed, stage="finetune")
    bare = from_arrays(["u", "u", "u", "v", "v", "v"], list("abcbca"), [1, 2, 3, 1, 2, 3])
    with pytest.raises(ValueError, match=r"the graft reads \['text'\]; memory has \[\]"):
        fit("unisrec", zoo.load_data(bare, zoo.DataOptions(text="hashed")), stage="transductive")


def test_mp4sr_goes_on_from_its_pretraining_and_tells_what_differs(tmp_path, caplog):
    """As published in both stages; images that each shop describes and standardises by itself."""

    def pictured(name: str, seed: int, scale: float):
        own, rng = shop(name, seed), np.random.default_rng(seed)
        image = {"image": scale * rng.normal(size=(21, 4)).astype(np.float32)}
        source = own.source | {"computed": ["image"]}
        own = replace(own, features=image, present={"image": np.arange(21) > 0}, source=source)
        return zoo.load_data(own, HASHED)

    before, here = pictured("a", 0, 1.0), pictured("c", 2, 8.0)
    first = {"stage": "pretrain", "official": True, **SMALL}
    zoo.fit("mp4sr", before, tmp_path, SETTINGS, **first)
    start = zoo.from_pretrained(tmp_path).params
    still, then = replace(SETTINGS, steps=0), {**first, "stage": "finetune"}
    for settings in (still, SETTINGS):
        caplog.clear()
        fitted, _ = zoo.fit("mp4sr", here, settings=settings, graft=tmp_path, **then)
        assert "'image' features were computed and standardised among the items of a" in caplog.text
        assert "'image' features divided by 1, this run's are by 7." in caplog.text
        assert "official" not in caplog.text
        moved = np.abs(fitted.params["trunk"]["positions"]["table"]
                       - start["trunk"]["positions"]["table"]).max()  # fmt: skip
        assert (moved > 0) == (settings is SETTINGS) and "id" in fitted.params["items"]
    zoo.fit("mp4sr", here, settings=still, graft=tmp_path, **then | {"official": False})
    assert "pretrained with official=True, this run has False" in caplog.text


def test_grafts_of_another_split_or_of_other_makers_are_refused():
    data = zoo.load_data(shop("c", 2))
    check_split({"data": data.dataset.name, "hash": data.split.hash}, data, "the graft")
    check_split({"data": "elsewhere", "hash": "1"}, data, "the graft")
    with pytest.raises(ValueError, match="the graft was trained on another split of"):
        check_split({"data": data.dataset.name, "hash": "1"}, data, "the graft")
    both = {"modalities": ["text", "audio"]}
    _check_encoded(both, zoo.Encoding(("text", "audio")), {"text", "audio"})
    with pytest.raises(ValueError, match="encoded 'text', this run reads features"):
        _check_encoded(both, zoo.Encoding(("audio",)), {"text", "audio"})
    with pytest.raises(ValueError, match="read features of 'text', this run encodes it"):
        _check_encoded({}, zoo.Encoding(("text",)), {"text"})


def test_modalities_that_the_graft_does_not_read_need_not_be_there(tmp_path):
    dealer, settings = shop("a", 0), zoo.Settings(steps=1, batch=4, evaluate_every=1)
    image = {"image": np.random.default_rng(0).normal(size=(21, 4)).astype(np.float32)}
    dealer = replace(dealer, features=image, present={"image": np.arange(21) > 0})
    both, words = zoo.load_data(dealer, HASHED), zoo.load_data(shop("c", 2), HASHED)
    for name, chosen in (("words", {"modalities": ("text",)}), ("all", {})):
        zoo.fit("sasrec", both, tmp_path / name, settings, **TINY, **chosen)
    assert set(zoo.from_pretrained(tmp_path / "words").catalogue["features"]) == {"text", "image"}
    fitted, _ = zoo.fit("sasrec", words, settings=settings, graft=tmp_path / "words", **TINY)
    assert set(fitted.params["items"]) == {"text"}
    with pytest.raises(ValueError, match=r"reads \['image', 'text'\]; c has \['text'\]"):
        zoo.fit("sasrec", words, settings=settings, graft=tmp_path / "all", **TINY)


def renamed(dataset, items: str, users: str):
    """The data set under ids that begin with these."""
    begun = lambda start, ids: np.array([ids[0], *(start + x for x in ids[1:])], object)  # noqa: E731
    own = {"item_ids": begun(items, dataset.item_ids), "user_ids": begun(users, dataset.user_ids)}
    return replace(dataset, **own)


def grown(dataset, name: str):
    """With three more items behind those that there are, which nobody has had."""
    longer = lambda table: {k: np.append(x, x[-3:]) for k, x in table.items()}  # noqa: E731
    tables = {"columns": longer(dataset.columns), "present": longer(dataset.present)}
    ids = np.append(dataset.item_ids, ["x", "y", "z"])
    return replace(dataset, item_ids=ids, name=name, **tables)


def test_hstu_without_times_says_so_and_what_of_the_graft_it_leaves(tmp_path, caplog):
    still = zoo.Settings(steps=0, batch=4)
    zoo.fit("hstu", zoo.load_data(shop("a", 0)), tmp_path, still, **HSTU)
    assert "has no times" not in caplog.text
    zoo.fit(
        "hstu",
        zoo.load_data(replace(shop("b", 1), times=None)),
        None,
        still,
        graft=tmp_path,
        **HSTU,
    )
    assert "b has no times: hstu reads positions alone" in caplog.text
    assert "trunk/layer_0/by_time" in caplog.text.split("of the graft unused:")[1]


def test_id_tables_of_other_items_start_fresh(tmp_path, caplog):
    fields = {"width": 8, "layers": 1, "max_len": 8}
    still = zoo.Settings(steps=0, batch=4, seed=1)
    one = shop("a", 0)
    zoo.fit("sasrec", zoo.load_data(one), tmp_path, replace(still, steps=2, seed=0), **fields)
    before = zoo.from_pretrained(tmp_path).params
    carried = {}
    for name, dataset in (
        ("same", one),
        ("behind", grown(one, "b")),
        ("other", replace(renamed(one, "n", ""), name="c")),
        ("fewer", filter_items(replace(one, name="d"), np.arange(21) != 7)),
    ):
        caplog.clear()
        fitted, _ = zoo.fit("sasrec", zoo.load_data(dataset), None, still, graft=tmp_path, **fields)
        tables = [x["items"]["id"]["table"] for x in (before, fitted.params)]
        assert tables[0].shape == tables[1].shape, "a fit by its shape alone"
        carried[name] = np.array_equal(*tables)
        assert ("items/id/table" in caplog.text) is not carried[name], "told among the fresh"
        jax.tree.map(np.testing.assert_array_equal, before["trunk"], fitted.params["trunk"])
    assert carried == {"same": True, "behind": True, "other": False, "fewer": False}


def test_user_tables_of_other_users_start_fresh(tmp_path):
    data = zoo.load_data(shop("a", 0))
    settings = zoo.settings_for("bpr", steps=1, batch=32)
    zoo.fit("bpr", data, tmp_path, settings, width=8)
    bundle = zoo.from_pretrained(tmp_path)
    tables = lambda dataset, run=bundle: {  # noqa: E731
        k for k, x in api.pretrained_for("bpr", run, zoo.load_data(dataset))["free"].items() if x
    }
    one = shop("a", 0)
    elsewhere = replace(one, name="b")
    assert tables(one) == tables(elsewhere) == {"items", "users"}
    assert tables(renamed(elsewhere, "", "n")) == {"items"}
    assert tables(renamed(elsewhere, "n", "")) == {"users"}
    with pytest.raises(ValueError, match="vectors of items and users of a and nothing else"):
        tables(renamed(elsewhere, "n", "n"))
    older = zoo.from_pretrained(tmp_path)
    older.split = {k: x for k, x in older.split.items() if k != "users"}
    assert tables(renamed(elsewhere, "", "n"), older) == {"items", "users"}, "nothing is known"


def test_a_graft_of_several_data_sets_knows_what_each_of_them_held_out(tmp_path):
    a, b, settings = shop("a", 0), shop("b", 1), zoo.Settings(steps=1, batch=4, evaluate_every=1)
    zoo.fit("sasrec", zoo.load_data([a, b], HASHED), tmp_path, settings, **TINY)
    record = zoo.from_pretrained(tmp_path).split
    same, other = (
        zoo.load_data(b, replace(HASHED, split=name)) for name in ("leave-one-out", "random")
    )
    assert record["parts"]["b"] == same.split.hash
    zoo.fit("sasrec", same, settings=settings, graft=tmp_path, **TINY)
    with pytest.raises(ValueError, match="another split of b: .* Train it without b, or so that"):
        zoo.fit("sasrec", other, settings=settings, graft=tmp_path, **TINY)
    seldom = zoo.load_data(b, replace(HASHED, k_core=6))
    alone = {"data": "b", "hash": same.split.hash}
    older = {k: x for k, x in record.items() if k != "parts"}
    refused = {
        (name, kind): split_otherwise(theirs, data)
        for name, theirs in (("new", record), ("old", older), ("oldest", {"data": "a+b"}))
        for kind, data in (("same", same), ("random", other), ("6-core", seldom))
    }
    assert {k for k, name in refused.items() if name == "b"} == {
        (name, kind) for name in ("new", "old") for kind in ("random", "6-core")
    }
    both = [zoo.load_data([a, b], replace(HASHED, split=s)) for s in ("leave-one-out", "random")]
    assert [split_otherwise(alone, data) for data in both] == [None, "b"]


@pytest.mark.parametrize(
    "there, here, said",
    [
        ({"bands": 48}, {}, "bands 48 there, 32 here"),
        ({}, {"scan": True}, "scan False there, True here"),
        ({"pixels": 32}, {}, None),  # of pictures, which neither reads
        ({"modalities": ("audio", "image"), "shots": 2}, {}, None),
    ],
)
def test_encoders_are_compared_by_what_they_read(there, here, said):
    data = zoo.load_data(shop("c", 2))
    theirs = asdict(replace(zoo.Encoding(("audio",)), **there))
    found = SimpleNamespace(config={"encoding": theirs, "word_ids_sha256": "1"}, split={})
    check = lambda: _check_make(found, data, replace(zoo.Encoding(("audio",)), **here))  # noqa: E731
    if said is None:
        return check()
    with pytest.raises(ValueError, match=said):
        check()


def test_models_without_a_pretraining_stage_say_so(tmp_path, capsys):
    assert main(["pretrain", "sasrec", "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "no pretraining stage; these have: unisrec, mp4sr" in capsys.readouterr().err


def test_a_model_that_reads_times_asks_for_them(tmp_path):
    data = zoo.load_data(shop("a", 0))
    fields = {"width": 16, "layers": 1, "max_len": 8, "negatives": 8}
    zoo.fit("hstu", data, tmp_path / "run", SETTINGS, **fields)
    bundle = zoo.from_pretrained(tmp_path / "run")
    history = [str(x) for x in data.dataset.item_ids[1:4]]
    with pytest.raises(ValueError, match="give the times"):
        bundle.recommend(history, k=3)
    with pytest.raises(DataError, match="one time an item"):
        bundle.recommend(history, 3, times=[1.0])
    with pytest.raises(DataError, match="2.0 is before 3.0; expected the history oldest first"):
        bundle.recommend(history, 3, times=[3.0, 2.0, 1.0])
    with pytest.raises(DataError, match="nan.*expected seconds"):
        bundle.recommend(history, 3, times=[1.0, float("nan"), 3.0])
    near, far = (bundle.recommend(history, 3, times=[0.0, gap, 2 * gap]) for gap in (1.0, 1e7))
    assert [x.score for x in near] != [x.score for x in far]
    session = bundle.session()
    for item, time in zip(history, (0.0, 1e7, 2e7), strict=True):
        session.append(item, time)
        assert not session.reads_once
    assert session.recommend(3) == far
    with pytest.raises(DataError, match="3 of 3 events so far have a time"):
        session.append(str(data.dataset.item_ids[5]))


def test_a_session_of_an_hstu_that_asks_at_its_own_times_reads_each_event_once(tmp_path):
    data = zoo.load_data(shop("a", 0))
    fields = {"width": 16, "layers": 2, "max_len": 4, "negatives": 8, "time_bias": "self"}
    zoo.fit("hstu", data, tmp_path / "run", SETTINGS, **fields)
    bundle = zoo.from_pretrained(tmp_path / "run")
    history = [str(x) for x in data.dataset.item_ids[1:7]]
    times = [1.7e9 + gap for gap in (0.0, 60.5, 3600.0, 1e6, 1e7, 5e7)]
    session = bundle.session()
    for n, (item, time) in enumerate(zip(history, times, strict=True), 1):
        session.append(item, time)
        assert session.reads_once == (n <= 4)
        grown, whole = session.recommend(3), bundle.recommend(history[:n], 3, times[:n])
        assert [x.item for x in grown] == [x.item for x in whole]
        assert [x.score for x in grown] == pytest.approx([x.score for x in whole], abs=1e-4)
    with pytest.raises(DataError, match="expected the history oldest first"):
        session.append(history[0], 1.0)
    for wrong in (float("nan"), "yesterday"):
        with pytest.raises(DataError, match="expected seconds"):
            session.append(history[0], wrong)
    fresh = bundle.session()
    with pytest.raises(ValueError, match="give the times"):
        fresh.append(history[0])
    assert not fresh.history, "an event that could not be read is not kept"


@pytest.mark.parametrize(
    "name,fields,once",
    [
        ("mp4sr", {"layers": 2}, True),
        ("bsarec", {"official": True}, False),
        ("sasrec", {"align": "right"}, False),
        ("bert4rec", {}, False),
    ],
)
def test_a_session_gives_the_lists_of_its_history(name, fields, once, tmp_path):
    """Beyond the positions, too. MP4SR reads every stream once; BSARec, whose filter looks ahead,
    BERT4Rec and what counts positions from the newest event read all of it again."""
    data = zoo.load_data(shop("a", 0), HASHED)
    settings = zoo.Settings(steps=2, batch=4, evaluate_every=2)
    zoo.fit(name, data, tmp_path, settings, width=8, max_len=4, **fields)
    bundle = zoo.from_pretrained(tmp_path)
    session, history = bundle.session(), [str(x) for x in data.dataset.item_ids[1:7]]
    for n, item in enumerate(history, 1):
        session.append(item)
        assert session.reads_once == (once and n <= 4)
        grown, whole = session.recommend(3), bundle.recommend(history[:n], 3)
        assert [x.item for x in grown] == [x.item for x in whole]
        assert [x.score for x in grown] == pytest.approx([x.score for x in whole], abs=1e-4)


def test_a_session_of_scanned_layers_reads_its_history_again(tmp_path):
    data = zoo.load_data(shop("a", 0))
    fields = {"width": 8, "layers": 2, "max_len": 8, "scan": True}
    zoo.fit("sasrec", data, tmp_path, zoo.Settings(steps=1, batch=4, evaluate_every=1), **fields)
    bundle = zoo.from_pretrained(tmp_path)
    session, history = bundle.session(), [str(x) for x in data.dataset.item_ids[1:4]]
    for item in history:
        session.append(item)
        assert not session.reads_once
    assert session.recommend(3) == bundle.recommend(history, 3)


@pytest.mark.parametrize("name", ["sasrec", "bsarec", "bert4rec"])
def test_histories_longer_than_the_positions_are_refused(name):
    model = zoo.build(name, width=8, layers=1, max_len=6)
    catalogue = {"valid": np.arange(30) > 0, "popularity": np.ones(30, np.float32)}
    rows = {n: np.ones((1, n + 3), np.int32) for n in (6, 7)}
    batch = {k: {"items": x, "segments": x, "positions": x} for k, x in rows.items()}
    params = model.init(jax.random.key(0), catalogue, {**batch[6], "targets": rows[6]})
    index = model.index(params, catalogue)
    with pytest.raises(ValueError, match="for a model of . positions: cut them"):
        model.encode(params, index, {**batch[7], "query": np.array([8], np.int32)})


@pytest.fixture(scope="module")
def content_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("content")
    settings = zoo.Settings(steps=3, batch=4, evaluate_every=3)
    zoo.fit("sasrec", zoo.load_data(shop("a", 0), HASHED), out, settings, **TINY)
    return out


def test_an_adapted_run_moves_what_its_recipe_says_and_comes_back_from_its_bundle(
    content_run, tmp_path
):
    settings = zoo.Settings(steps=3, batch=4, evaluate_every=3, rate=1e-2)
    other = zoo.load_data(shop("b", 1), HASHED)
    start = api.from_pretrained(content_run).params
    adapt = "bitfit+lora:2:(query|value)/kernel"
    fitted, _ = zoo.fit("sasrec", other, tmp_path, settings, graft=content_run, adapt=adapt, **TINY)
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b),
        start["trunk"]["stack"]["block_0"],
        fitted.params["trunk"]["stack"]["block_0"],
    )
    assert moved["ffn"]["in"] == {"kernel": False, "bias": True}
    assert moved["attention"]["query"]["kernel"] is False
    pair = fitted.params["lora"]["trunk"]["stack"]["block_0"]["attention"]["query"]["kernel"]
    assert np.abs(pair["b"]).max() > 0
    bundle = api.from_pretrained(tmp_path)
    assert bundle.config["adapt"] == adapt
    valid = api.evaluate(bundle, other, "valid").metrics
    assert {k: fitted.best[k] for k in valid} == valid
    lines = bundle.recommend([bundle.item_ids[1]], k=3)
    assert len(lines) == 3
    assert main(["merge", str(tmp_path), "--out", str(tmp_path / "whole")]) == 0
    assert main(["merge", str(tmp_path), "--out", str(tmp_path / "whole")]) == 0, "the same again"
    assert main(["merge", str(tmp_path), "--out", str(tmp_path)]) == 2, "a run is not overwritten"
    whole = api.from_pretrained(tmp_path / "whole")
    assert "adapt" not in whole.config and "lora" not in whole.params
    alike = whole.recommend([bundle.item_ids[1]], k=3)
    assert [x.item for x in alike] == [x.item for x in lines]
    assert [x.score for x in alike] == pytest.approx([x.score for x in lines], abs=1e-4)
    save_merged(tmp_path / "lean" / "bundle", bundle, items=True)
    assert api.from_pretrained(tmp_path / "lean").recommend([bundle.item_ids[1]], k=3) == alike
    with pytest.raises(ValueError, match="not adapted: it has nothing to merge"):
        save_merged(tmp_path / "again", whole)
    with pytest.raises(ValueError, match="adapt is 'bitfit"):
        zoo.fit("sasrec", other, tmp_path, settings, graft=content_run, adapt="freeze", **TINY)


def test_a_recipe_that_is_none_is_told(content_run):
    data = zoo.load_data(shop("b", 1), HASHED)
    with pytest.raises(ValueError, match="adapts a pretrained run"):
        zoo.fit("sasrec", data, adapt="lora:2", **TINY)
    with pytest.raises(ValueError, match="unknown adaptation 'lara'; nearest: lora"):
        zoo.fit("sasrec", data, graft=content_run, adapt="lara:2", **TINY)
    with pytest.raises(ValueError, match="expected a whole number"):
        zoo.fit("sasrec", data, graft=content_run, adapt="adapter:many", **TINY)
    with pytest.raises(ValueError, match="takes no such options"):
        zoo.fit("sasrec", data, graft=content_run, adapt="freeze:2", **TINY)
