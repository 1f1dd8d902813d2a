"""zoo tokenize: from a data folder to codes that name every item once."""

import json
from dataclasses import replace

import numpy as np
import pytest

import zoo
from pipelines import synthetic
from pipelines.codes import read_index
from pipelines.schema import DataError
from pipelines.sources import from_arrays
from zoo.api import prepare
from zoo.append_codes import append_codes
from zoo.cli import main
from zoo.code_quality import quality
from zoo.coding import coded
from zoo.quantize import encode, fit_residual
from zoo.rqvae import RQVAE
from zoo.tokenize import METHODS, _alarm, tokenize

N = 30
SMALL = {"method": "rqvae", "levels": 2, "size": 8, "hidden": (32,), "width": 8}


def data() -> zoo.Data:
    rng = np.random.default_rng(0)
    names = [f"item-{i}" for i in range(N)]
    titles = [f"word{i % 5} shade{i % 3}" for i in range(N - 1)] + [""]
    rows = {"users": np.repeat(np.arange(20), 5), "times": np.tile(np.arange(5), 20)}
    items = [names[i] for _ in range(20) for i in rng.permutation(N)[:5]]
    return zoo.load_data(
        from_arrays(**rows, items=items, item_columns={"item_id": names, "title": titles})
    )


def test_the_report_tells_purity_and_colliding_targets(tmp_path):
    world = data()
    genres = np.array(["", *[f"g{i % 5}|other" for i in range(N - 1)], ""], object)
    columns = {**world.dataset.columns, "genres": genres}
    world = replace(world, dataset=replace(world.dataset, columns=columns))
    told = tokenize(world, tmp_path / "codes.json", levels=2, size=8)
    assert told["purity"] > told["shuffled"] and 0 < told["targets_colliding"] <= 1
    asked = world.split.test.positives.values
    size = {code: 0 for code in range(15)}
    for i in range(N - 1):
        size[i % 15] += 1  # fifteen different texts
    numbers = [int(name.split("-")[1]) for name in world.dataset.item_ids[asked]]
    shared = [size[i % 15] > 1 for i in numbers if i < N - 1]
    assert told["targets_colliding"] == pytest.approx(np.mean(shared))


@pytest.mark.parametrize("method,resolver", [("rkmeans", "digit"), ("pq", "relocate")])
def test_every_item_with_content_has_a_code_of_its_own(tmp_path, method, resolver):
    world, out = data(), tmp_path / "codes.json"
    told = tokenize(world, out, method=method, levels=2, size=8, resolver=resolver)
    assert (told["items"], told["without_codes"]) == (N - 1, 1)
    assert told["colliding"] > 0, "fifteen different titles for twenty-nine items"
    index = json.loads(out.read_text())
    assert len(index) == N - 1 and len({tuple(v) for v in index.values()}) == N - 1
    assert index["item-0"][0] == index["item-15"][0], "the same title, the same first code"
    codes = read_index(out, world.dataset.item_ids, partial=True)
    assert codes.present.sum() == N - 1
    assert set(np.load(f"{out}.npz")) == {"about", "room", "shift", "scale", "codebooks"}


def test_names_are_answered_with_near_ones(tmp_path):
    with pytest.raises(ValueError, match="nearest: rkmeans"):
        tokenize(data(), tmp_path / "x.json", method="kmeans")
    with pytest.raises(ValueError, match="no features called.*audio"):
        tokenize(data(), tmp_path / "x.json", modality="audio")
    assert main(["tokenize", "--data", "/nowhere", "--out", str(tmp_path / "x.json")]) == 2
    for wrong in ({"method": "rqvae", "steps": 0}, {"levels": 0}, {"size": 0}):
        with pytest.raises(ValueError, match="is 0; expected a whole number of at least 1"):
            tokenize(data(), tmp_path / "x.json", **wrong)
    with pytest.raises(ValueError, match=r"ends in \.json"):
        tokenize(data(), tmp_path / "x")
    bare = from_arrays(np.repeat(np.arange(9), 5), np.tile(list("abcde"), 9), np.arange(45))
    with pytest.raises(DataError, match="no content to make codes of"):
        tokenize(zoo.load_data(bare), tmp_path / "x.json")


def test_the_vectors_that_are_named_become_the_codes(tmp_path):
    plain = data()
    rng = np.random.default_rng(1)
    own = plain.dataset
    vectors = {m: rng.normal(size=(N + 1, 4)).astype(np.float32) for m in ("image", "audio")}
    there = {m: np.arange(N + 1) > 0 for m in vectors}

    def told(*modalities):
        made = {"embedded": {m: {} for m in modalities}}
        some = {m: vectors[m] for m in modalities}, {m: there[m] for m in modalities}
        dataset = replace(own, features=some[0], present=some[1], source=own.source | made)
        one = replace(plain, dataset=dataset)
        return tokenize(one, tmp_path / "x.json", levels=2, size=8)["modality"]

    assert told() == "text" and told("image") == "image"
    with pytest.raises(ValueError, match="audio and image: say which"):
        told("image", "audio")


def test_an_rqvae_makes_codes_that_its_file_makes_again(tmp_path):
    world, out = data(), tmp_path / "codes.json"
    told = tokenize(world, out, steps=300, **SMALL)
    assert told["method"] == "rqvae" and told["resolver"] == "digit"
    assert told["error"] < 0.5, "the codes say most of what the features say"
    index = json.loads(out.read_text())
    assert len({tuple(v) for v in index.values()}) == N - 1
    assert index["item-0"][:2] == index["item-15"][:2], "the same title, the same codes"
    arrays = dict(np.load(f"{out}.npz"))
    params: dict = {"codebooks": arrays["codebooks"]}
    for name, value in arrays.items():
        if "/" in name:
            side, layer, leaf = name.split("/")
            params.setdefault(side, {}).setdefault(layer, {})[leaf] = value
    dataset = prepare(world, "content").dataset
    rows = np.flatnonzero(dataset.present["text"])
    x = (dataset.features["text"][rows] - arrays["shift"]) / arrays["scale"]
    module = RQVAE(x.shape[1], (32,), 8, 2, 8)
    again = module.apply({"params": params}, x.astype(np.float32))["codes"]
    codes = read_index(out, dataset.item_ids, partial=True).codes[rows]
    np.testing.assert_array_equal(codes[:, :2], again)


def shop(known: int, n: int = 60) -> zoo.Data:
    """A shop of n items with vectors, of which the interactions name the first `known`."""
    rng = np.random.default_rng(0)
    names = [f"item-{i}" for i in range(n)]
    rows = {"users": np.repeat(np.arange(30), 6), "times": np.tile(np.arange(6), 30)}
    items = [names[i] for _ in range(30) for i in rng.permutation(40)[:6]]
    vectors = rng.normal(size=(n, 6)).astype(np.float32)[:known]
    columns = {"item_id": names[:known]}
    made = from_arrays(**rows, items=items, item_columns=columns, features={"text": vectors})
    return zoo.load_data(made)


@pytest.mark.parametrize(
    "more,resolver",
    [({}, "digit"), ({"method": "opq"}, "relocate"), ({"steps": 60, **SMALL}, "sinkhorn")],
)
def test_items_that_come_later_get_codes_and_the_others_keep_theirs(tmp_path, more, resolver):
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    tokenize(shop(50), before, resolver=resolver, **{"levels": 2, **more, "size": 16})
    told = append_codes(shop(60), after, before)
    assert (told["kept"], told["new"], told["without_codes"]) == (50, 10, 0)
    old, new = (json.loads(x.read_text()) for x in (before, after))
    assert {k: new[k] for k in old} == old and len(new) == 60
    assert len({tuple(v) for v in new.values()}) == 60
    again = tmp_path / "again.json"
    with pytest.raises(ValueError, match="has codes of every item"):
        append_codes(shop(60), again, after)


KINDS, EACH = 3, 20  # of items that are alike


def groups_of(known: int) -> zoo.Data:
    """A shop in which a user likes one kind of item; `known` of each kind are in the catalogue,
    and the interactions name the first 15."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(KINDS, 6))
    kinds = np.tile(np.arange(KINDS), EACH)  # item i is of kind i % KINDS
    vectors = (centres[kinds] + 0.3 * rng.normal(size=(KINDS * EACH, 6))).astype(np.float32)
    names = [f"item-{i}" for i in range(KINDS * EACH)]
    liked = np.arange(90) % KINDS
    items = [names[KINDS * j + kind] for kind in liked for j in rng.permutation(15)[:6]]
    n = KINDS * known
    columns = {"item_id": names[:n], "users": np.repeat(np.arange(90), 6)}
    rows = {"users": columns.pop("users"), "times": np.tile(np.arange(6), 90), "items": items}
    made = from_arrays(**rows, item_columns=columns, features={"text": vectors[:n]})
    return zoo.load_data(made)


def test_a_trained_model_recommends_items_that_come_later(tmp_path):
    before, after = str(tmp_path / "before.json"), str(tmp_path / "after.json")
    tokenize(groups_of(16), before, levels=2, size=8)
    append_codes(groups_of(EACH), after, before)
    data = [
        replace(groups_of(n), options=zoo.DataOptions(codes=file))
        for n, file in ((16, before), (EACH, after))
    ]
    small = {"width": 16, "layers": 1, "decoder_layers": 1, "heads": 2, "head_width": 8}
    settings = zoo.settings_for("tiger", steps=60, rate=1e-2, evaluate_every=60)
    trained, _ = zoo.fit("tiger", data[0], tmp_path / "run", settings, inner=16, **small)
    data[1] = replace(data[1], dataset=replace(data[1].dataset, name="grown"))
    still, start = zoo.settings_for("tiger", steps=0), tmp_path / "run"
    grown, _ = zoo.fit("tiger", data[1], tmp_path / "grown", still, graft=start, inner=16, **small)
    assert grown.steps == 0 and grown.params_sha256 == trained.params_sha256
    bundle = zoo.from_pretrained(tmp_path / "grown")
    for kind in range(KINDS):
        history = [f"item-{KINDS * j + kind}" for j in range(3)]
        listed = {row.item for row in bundle.recommend(history, k=EACH - 3)}
        later = {f"item-{KINDS * j + kind}" for j in range(16, EACH)}
        assert later <= listed, (kind, later - listed)


def test_codes_that_cannot_grow_say_why(run, tmp_path):
    out, new = tmp_path / "x.json", tmp_path / "new.json"
    with pytest.raises(ValueError, match="x.json.npz is missing"):
        append_codes(shop(60), new, out)
    tokenize(data(), out, levels=2, size=8)
    with pytest.raises(ValueError, match="made of LSA, whose space is that of one catalogue"):
        append_codes(data(), new, out)
    tokenize(data(), out, run=run, levels=1, size=4)
    with pytest.raises(ValueError, match="made of a run's item vectors"):
        append_codes(data(), new, out)
    tokenize(shop(50), out, levels=2, size=8)
    wide = shop(60)
    features = {"text": np.pad(wide.dataset.features["text"], ((0, 0), (0, 2)))}
    with pytest.raises(ValueError, match="made of vectors 6 wide; here they are 8"):
        append_codes(replace(wide, dataset=replace(wide.dataset, features=features)), new, out)
    (tmp_path / "x.json.npz").write_bytes((tmp_path / "x.json.npz").read_bytes()[:99])
    with pytest.raises(ValueError, match="x.json.npz: expected what zoo tokenize writes"):
        append_codes(wide, new, out)
    with pytest.raises(DataError, match="x.json.npz: expected what zoo tokenize writes"):
        coded(wide.dataset, str(out))
    np.savez(f"{out}.npz", room=np.array([8, 2]))
    with pytest.raises(DataError, match="it belongs to other codes"):
        coded(wide.dataset, str(out))
    tokenize(shop(50), out, levels=2, size=8)
    with pytest.raises(DataError, match="x.json was made for another catalogue than the 60 items"):
        coded(wide.dataset, str(out))
    turned = {"text": wide.dataset.features["text"][::-1]}
    with pytest.raises(ValueError, match="vectors of .. of them give other codes: it belongs to"):
        append_codes(replace(wide, dataset=replace(wide.dataset, features=turned)), new, out)
    source = wide.dataset.source | {"embedded": {"text": {"encoder_files": {"a": "b"}}}}
    other = replace(wide, dataset=replace(wide.dataset, source=source))
    with pytest.raises(ValueError, match="vectors of another space"):
        append_codes(other, new, out)


def test_codes_of_items_with_other_titles_or_of_few_items_are_refused(tmp_path):
    """Numbered items of two shops have the same names; what they are called tells them apart."""
    out, one = tmp_path / "x.json", shop(60)
    titles = np.array(["", *(f"brush {i}" for i in range(60))], object)

    def called(titles):
        columns = {**one.dataset.columns, "title": titles}
        return replace(one, dataset=replace(one.dataset, columns=columns))

    tokenize(called(titles), out, levels=2, size=8)
    assert coded(called(titles).dataset, str(out))["x"][0].present[1:].all()
    with pytest.raises(DataError, match="same ids as those of .* and other titles"):
        coded(called(np.roll(titles, 1)).dataset, str(out))
    index = dict(list(json.loads(out.read_text()).items())[:29])
    few = tmp_path / "few.json"
    few.write_text(json.dumps(index))
    with pytest.raises(DataError, match="codes of 29 of the 60 items"):
        coded(one.dataset, str(few))


@pytest.mark.parametrize("method", METHODS)
def test_vectors_that_no_method_can_read_are_named_by_their_item(tmp_path, method):
    world, broken = shop(60), shop(60).dataset.features["text"].copy()
    broken[5, 2] = np.nan
    for features, size, message in (
        (broken, 8, "features of 1 items hold NaN or infinity, the first 'item-4'"),
        (world.dataset.features["text"], 61, "60 items with features cannot fill 61 codes a level"),
    ):
        dataset = replace(world.dataset, features={"text": features})
        with pytest.raises(ValueError, match=message):
            tokenize(replace(world, dataset=dataset), tmp_path / "x.json", method=method, size=size)


def test_a_collapsed_level_is_told(caplog):
    with caplog.at_level("WARNING", "zoo"):
        _alarm([np.array([1.2, 9.0])] * 5, 16)
    assert "level 1 uses 1.2 of 16 codes" in caplog.text and "level 2" not in caplog.text


def test_codes_that_collapse_are_told_by_the_command_that_makes_them(tmp_path, caplog):
    """Sixty items of two different vectors keep two of 32 codes; of sixty, most."""
    world = shop(60)
    alike = world.dataset.features["text"].copy()
    alike[1:] = alike[1:3][np.arange(60) % 2]
    one = replace(world, dataset=replace(world.dataset, features={"text": alike}))
    more = {**SMALL, "levels": 1, "size": 32, "steps": 10}
    with caplog.at_level("WARNING", "zoo"):
        tokenize(world, tmp_path / "x.json", **more)
        assert "collapsed" not in caplog.text
        tokenize(one, tmp_path / "x.json", **more)
    assert "RQ-VAE: level 1 uses 2.0 of 32 codes" in caplog.text


def test_codes_follow_a_teacher(run, tmp_path):
    """LETTER's term, with a heavy hand: neighbours of the run's vectors share more codes."""
    world, out = data(), tmp_path / "codes.json"
    more = {"steps": 40, **SMALL}
    told = tokenize(world, out, teacher=run, balance=0.05, **more)
    assert told["method"] == "rqvae" and len(json.loads(out.read_text())) == N - 1
    with pytest.raises(ValueError, match=r"expected \(29, 6\): one an item, as wide as the codes"):
        tokenize(world, out, teacher=run, **more | {"width": 6})
    with pytest.raises(ValueError, match="are of the RQ-VAE; the method is 'rkmeans'"):
        tokenize(world, out, teacher=run)


def test_codes_spread_without_a_teacher_too(tmp_path):
    books = []
    for beta in (None, 0.0, 5.0):
        out = tmp_path / f"{beta}.json"
        tokenize(data(), out, steps=20, beta=beta, **SMALL)
        books.append(np.load(f"{out}.npz")["codebooks"])
    np.testing.assert_array_equal(books[0], books[1])
    assert np.abs(books[2] - books[0]).max() > 1e-4
    with pytest.raises(ValueError, match="are of the RQ-VAE; the method is 'pq'"):
        tokenize(data(), out, method="pq", beta=1.0)
    with pytest.raises(ValueError, match="beta is -1.0; expected a number of at least 0"):
        tokenize(data(), out, steps=20, beta=-1.0, **SMALL)


@pytest.mark.slow
def test_the_shell_makes_codes_that_follow_a_teacher_and_trains_on_them(tmp_path, capsys):
    """LETTER from end to end: zoo train sasrec, zoo tokenize --teacher, zoo train tiger --codes."""
    folder = synthetic.save(synthetic.world(60, 60, length=(4, 6), image_size=8), tmp_path / "shop")

    def told(command: str, out: str) -> dict:
        assert main([*command.split(), "--data", str(folder), "--out", str(tmp_path / out)]) == 0
        return json.loads(capsys.readouterr().out)

    small = "--json --model.width 16 --model.layers 1 --model.heads 2 --model.max-len 8 --batch 8"
    told(f"train sasrec --steps 20 --evaluate-every 20 --rate 0.1 {small}", "teacher")
    own = "tokenize --method rqvae --levels 2 --size 8 --hidden 16 --width 16 --steps 20 --json"
    plain = told(own, "plain.json")
    letter = told(f"{own} --teacher {tmp_path / 'teacher'}", "letter.json")
    assert plain["items"] == letter["items"] > 40, "those that have words"
    books = [np.load(tmp_path / f"{x}.json.npz")["codebooks"] for x in ("plain", "letter")]
    assert np.abs(books[0] - books[1]).max() > 1e-5, "the teacher is heard"
    few = f"{small} --steps 2 --evaluate-every 2 --model.decoder-layers 1 --model.inner 16"
    told(f"train tiger {few} --codes {tmp_path / 'letter.json'}", "tiger")
    bundle = zoo.from_pretrained(tmp_path / "tiger")
    names = np.asarray(bundle.item_ids, object)
    wanted = read_index(tmp_path / "letter.json", names, partial=True)
    found = bundle.bundle.codes["codes.letter"][: len(names)]
    np.testing.assert_array_equal(found, np.where(wanted.present[:, None], wanted.codes, -1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A graphsage run of a few steps: what MMGRec's ids are made of."""
    out = tmp_path_factory.mktemp("run") / "sage"
    settings = zoo.settings_for("graphsage", steps=4, batch=32, dispatch=2)
    zoo.fit("graphsage", data(), out, settings, width=8, hidden=8)
    return out


def test_a_run_s_item_vectors_become_ids_by_popularity(run, tmp_path):
    world, out = data(), tmp_path / "ids.json"
    told = tokenize(world, out, run=run, levels=1, size=4)
    assert (told["run"], told["resolver"], told["items"]) == ("graphsage", "popularity", N)
    codes = read_index(out, world.dataset.item_ids).codes[1:]
    counts = np.bincount(world.split.train.values, minlength=N + 1)[1:]
    for group in np.unique(codes[:, 0]):
        own = codes[:, 0] == group
        order = np.argsort(codes[own, 1])
        assert codes[own, 1][order].tolist() == list(range(own.sum()))
        assert np.all(np.diff(counts[own][order]) <= 0), "most popular first"
    bundle = zoo.from_pretrained(run)
    table = np.asarray(bundle.index["table"])[1 : N + 1]
    np.testing.assert_array_equal(encode(fit_residual(table, 1, 4), table), codes[:, :1])
    assert quality(codes)["colliding"] == 0


def test_the_shell_makes_rec_ids(run, tmp_path, capsys, monkeypatch):
    """zoo tokenize --run --method rqvae, on the files of a data folder."""
    from zoo import api

    world = data()
    monkeypatch.setattr(api, "load_data", lambda path, options: world)
    out = tmp_path / "ids.json"
    command = f"tokenize --data x --run {run} --method rqvae --out {out} --json"
    command += " --levels 2 --size 8 --hidden 32 --width 8 --steps 20"
    assert main(command.split()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] == "graphsage" and told["resolver"] == "popularity"
    index = json.loads(out.read_text())
    assert len(index) == N and len({tuple(v) for v in index.values()}) == N
    assert {len(v) for v in index.values()} == {3}


def test_the_shell_takes_mini_batches(tmp_path, capsys, monkeypatch):
    """zoo tokenize --batch --steps fits what fit_residual does with them, and no other method."""
    from zoo import api

    world, out = shop(60), tmp_path / "ids.json"
    monkeypatch.setattr(api, "load_data", lambda path, options: world)
    command = f"tokenize --data x --out {out} --json --levels 2 --size 8 --batch 16 --steps 40"
    assert main(command.split()) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "rkmeans"
    x = world.dataset.features["text"][1:]
    found = np.load(f"{out}.npz")["codebooks"]
    for steps, batch, same in ((40, 16, True), (25, 16, False), (40, None, False)):
        wanted = fit_residual(x, 2, 8, steps=steps, batch=batch).codebooks
        assert np.allclose(found, wanted, atol=1e-5) == same, (steps, batch)
    assert main([*command.split(), "--method", "opq"]) == 2
    assert "a batch is of residual k-means; the method is 'opq'" in capsys.readouterr().err
    assert main([*command.split(), "--batch", "4"]) == 2
    assert "looks at 4 rows a step for 8 centres" in capsys.readouterr().err


def test_runs_that_cannot_be_tokenised_say_why(run, tmp_path):
    out = tmp_path / "x.json"
    with pytest.raises(ValueError, match="two sources of vectors: name one"):
        tokenize(data(), out, "text", run=run)
    other = zoo.load_data(data().dataset, zoo.DataOptions(split="random"))
    with pytest.raises(ValueError, match="may know what is held out here"):
        tokenize(other, out, run=run)
    bundle = zoo.from_pretrained(run)
    bundle.index = {"layers": bundle.index["table"][None]}
    with pytest.raises(ValueError, match="graphsage serves without one vector an item"):
        tokenize(data(), out, run=bundle)
