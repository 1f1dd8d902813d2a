"""The quickstart end to end: it learns, keeps what it learned, and says so on one page."""

import json
import time
from pathlib import Path

import pytest
from test_report import fetched

import zoo
from zoo.quickstart import MODEL, quickstart
from zoo.quickstart_page import best_floor

SMALL = {"n_items": 120, "n_users": 700, "length": (6, 12), "image_size": 16}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[dict, Path, list]:
    out, heard = tmp_path_factory.mktemp("quickstart") / "run", []
    report = lambda step, steps, metrics: heard.append((step, steps, metrics))  # noqa: E731
    return quickstart(out, 12, 0, report, quiet=True, world=SMALL), out, heard


def test_result_is_plain_data(small):
    result, out, _ = small
    assert json.loads(json.dumps(result)) == result
    assert result["report"] == str(out / "report.html")
    assert result["seconds"] >= result["training_seconds"] > 0
    assert len(result["split_hash"]) >= 32 and len(result["params_sha256"]) == 64


def test_it_learns_and_the_optimum_stays_above(small):
    result, _, _ = small
    model, optimum = (result[name]["recall@10"] for name in ("model", "optimum"))
    assert model > 1.2 * result["floors"]["popularity"]["recall@10"]
    assert optimum > best_floor(result["floors"])[1]
    assert model < optimum
    assert set(result["knock_outs"]) == {f"without {m}" for m in ("image", "text", "audio", "id")}
    assert result["knock_outs"]["without id"] != result["model"]


def test_progress_is_reported_to_the_last_step(small):
    result, _, heard = small
    assert [step for step, _, metrics in heard if "loss" in metrics] == list(
        range(1, result["steps"] + 1)
    )
    assert any("recall@10" in metrics for _, _, metrics in heard)


def test_the_world_is_real_files(small):
    _, out, _ = small
    assert list((out / "world" / "images").glob("*.png"))
    assert list((out / "world" / "sounds").glob("*.wav"))
    assert (out / "world" / "items.csv").is_file()


def test_the_bundle_recommends_the_same_again(small):
    result, out, _ = small
    bundle = zoo.from_pretrained(out / "run")
    assert bundle.config["model"] == MODEL
    for person in result["recommendations"]:
        lines = bundle.recommend([item["item"] for item in person["history"]], 5)
        assert [line.item for line in lines] == [x["item"] for x in person["recommended"]]
        had = {item["item"] for item in person["history"]}
        assert not had & {line.item for line in lines}
        assert all(x["hit"] == (x["item"] == person["next"]["item"]) for x in person["recommended"])


def test_every_recommendation_can_be_checked(small):
    result, _, _ = small
    told = [
        line["reasons"] for person in result["recommendations"] for line in person["recommended"]
    ]
    assert len(told) == 15
    assert sum(bool(reasons) for reasons in told) >= 12


def test_the_page_needs_nothing_else(small):
    result, out, _ = small
    page = (out / "report.html").read_text(encoding="utf-8")
    assert fetched(page) == []
    assert page.count("data:image/png;base64,") > 10 and "data:audio/wav;base64," in page
    for expected in ("best possible", "without image", result["split_hash"], "target count 0"):
        assert expected in page
    assert f"{result['model']['recall@10']:.4f}" in page


def test_other_settings_do_not_overwrite_a_finished_world(small):
    _, out, _ = small
    before = (out / "world" / "interactions.csv").read_bytes()
    with pytest.raises(ValueError, match="seed 0, not 1.*--out"):
        quickstart(out, 12, 1, quiet=True, world=SMALL)
    assert (out / "world" / "interactions.csv").read_bytes() == before


def test_the_same_call_again_trains_nothing_and_prints_a_summary(small, capsys):
    result, out, _ = small
    assert capsys.readouterr().out == ""
    again = quickstart(out, 12, 0, world=SMALL)
    assert again["params_sha256"] == result["params_sha256"]
    assert again["model"] == result["model"]
    told = capsys.readouterr().out
    assert "optimum" in told and "zoo recommend" in told and "report.html" in told


@pytest.mark.slow
def test_the_real_one_beats_every_count_in_five_minutes(tmp_path):
    begun = time.monotonic()
    result = quickstart(tmp_path, quiet=True)
    assert time.monotonic() - begun < 300
    table = zoo.floors(zoo.load_data(tmp_path / "world"))
    floors = {k: row["metrics"] for k, row in table.items() if k != "missing"}
    assert result["model"]["recall@10"] > 1.2 * best_floor(floors)[1]
    assert result["model"]["ndcg@10"] > 1.2 * best_floor(floors, "ndcg@10")[1]
    assert result["model"]["recall@10"] > 0.8 * result["optimum"]["recall@10"]
