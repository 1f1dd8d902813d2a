"""Items as one vector each: the same lists out of a smaller bundle, whatever they were made of."""

import numpy as np
import pytest

import zoo
from pipelines import synthetic
from pipelines.sources import from_arrays
from zoo import api
from zoo.cli import main
from zoo.merge import save_merged
from zoo.prior import prior_of, save_with_prior

FIELDS = {"width": 8, "layers": 1, "max_len": 8}
SETTINGS = zoo.Settings(steps=4, batch=8, evaluate_every=4, rate=1e-2)
WORDS = "red green blue large small old new steel wool oak tin jade".split()


@pytest.fixture(scope="module")
def data() -> api.Data:
    """40 users, 24 items with titles; the last item is met by nobody in training."""
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"{i}", t) for u in range(40) for t, i in enumerate(rng.permutation(23)[:6])]
    users, items, times = zip(*rows, strict=True)
    ids = [str(i) for i in range(24)]
    titles = [f"{WORDS[i % 12]} {WORDS[(i + 1 + i // 12) % 12]}" for i in range(24)]
    columns = {"item_id": ids, "title": titles}
    return zoo.load_data(from_arrays(users, items, times, item_columns=columns, name="shop"))


def fitted(model: str, data: api.Data, out, **fields) -> api.Pretrained:
    zoo.fit(model, data, out, SETTINGS, **FIELDS, **fields)
    return api.from_pretrained(out)


@pytest.mark.parametrize(
    "model, fields",
    [
        ("sasrec", {"items": "both", "fuse": "gate", "hidden": 6, "modality_dropout": 0.2}),
        ("sasrec", {"items": "content", "similarity": "cosine"}),
        ("bsarec", {"items": "both"}),
        ("bert4rec", {"items": "content"}),
        ("hstu", {"items": "both"}),
        ("two_tower", {"items": "both"}),
    ],
)
def test_a_merged_bundle_lists_and_scores_alike(data, tmp_path, model, fields):
    whole = fitted(model, data, tmp_path / "run", **fields)
    assert main(["merge", str(tmp_path / "run"), "--items", "--out", str(tmp_path / "m")]) == 0
    lean = api.from_pretrained(tmp_path / "m")
    assert set(lean.catalogue["features"]) == {"vector"}
    assert set(lean.params["items"]) == {"vector"}
    made_of = "id, text" if fields["items"] == "both" else "text"
    assert f"one vector each, made of {made_of};" in lean.bundle.card
    assert api.evaluate(lean, data).metrics == api.evaluate(whole, data).metrics
    times = {} if model != "hstu" else {"times": [0.0, 1.0]}
    asked = whole.recommend(["3", "5"], 10, **times)
    assert lean.recommend(["3", "5"], 10, **times) == asked
    assert "23" in {x.item for x in lean.recommend(["3"], 23, **{k: [0.0] for k in times})}


def test_encoders_are_merged_away_too(tmp_path):
    made = synthetic.world(n_items=60, n_users=80, image_size=16, missing=0.2)
    shop = api.load_data(synthetic.save(made, tmp_path / "shop"))
    small = api.Encoding(("image",), width=16, layers=1, heads=2, patch=8, pixels=16, bound=64)
    whole = fitted("sasrec", shop, tmp_path / "run", items="both", encoding=small)
    save_merged(tmp_path / "m" / "bundle", whole, items=True)
    lean = api.from_pretrained(tmp_path / "m")
    assert set(lean.params) == {"items", "trunk"} and "encoding" not in lean.config
    assert lean.recommend([lean.item_ids[3]], 10) == whole.recommend([lean.item_ids[3]], 10)


def test_a_floor_is_put_behind_what_was_merged_but_not_merged(data, tmp_path):
    whole = fitted("bsarec", data, tmp_path / "run", items="both")
    save_merged(tmp_path / "m" / "bundle", whole, items=True)
    told = []
    for name in ("run", "m"):
        bundle = api.from_pretrained(tmp_path / name)
        folder = tmp_path / f"{name}-fused" / "bundle"
        save_with_prior(folder, bundle, data, prior_of(bundle, data))
        told.append(api.from_pretrained(folder.parent).recommend(["3", "5"], 10))
    assert told[0] == told[1]
    with pytest.raises(ValueError, match="has a prior: merge what it was made of"):
        save_merged(tmp_path / "again", api.from_pretrained(tmp_path / "m-fused"), items=True)


@pytest.mark.parametrize("model, fields", [("sasrec", {"items": "id"}), ("unisrec", {})])
def test_items_without_content_of_this_kind_are_refused(data, tmp_path, capsys, model, fields):
    fitted(model, data, tmp_path / "run", **fields)
    assert main(["merge", str(tmp_path / "run"), "--items", "--out", str(tmp_path / "m")]) == 2
    assert "no content to merge" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "m").exists()
