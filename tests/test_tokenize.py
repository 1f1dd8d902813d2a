"""zoo tokenize: from a data folder to codes that name every item once."""

import json

import numpy as np
import pytest

import zoo
from pipelines.codes import read_index
from pipelines.sources import from_arrays
from zoo.cli import main
from zoo.tokenize import tokenize

N = 30


def data() -> zoo.Data:
    rng = np.random.default_rng(0)
    names = [f"item-{i}" for i in range(N)]
    titles = [f"word{i % 5} shade{i % 3}" for i in range(N - 1)] + [""]
    rows = {"users": np.repeat(np.arange(20), 5), "times": np.tile(np.arange(5), 20)}
    items = [names[i] for _ in range(20) for i in rng.permutation(N)[:5]]
    return zoo.load_data(
        from_arrays(**rows, items=items, item_columns={"item_id": names, "title": titles})
    )


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
    assert set(np.load(f"{out}.npz")) == {"shift", "scale", "codebooks"}


def test_names_are_answered_with_near_ones(tmp_path):
    with pytest.raises(ValueError, match="nearest: rkmeans"):
        tokenize(data(), tmp_path / "x.json", method="kmeans")
    with pytest.raises(ValueError, match="no features called.*audio"):
        tokenize(data(), tmp_path / "x.json", modality="audio")
    assert main(["tokenize", "--data", "/nowhere", "--out", str(tmp_path / "x.json")]) == 2
