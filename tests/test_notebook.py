"""The notebooks run from top to bottom in a fresh kernel, and their results hold."""

import warnings
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks: pip install mmrec-zoo[dev]")
nbclient = pytest.importorskip("nbclient", reason="notebooks: pip install mmrec-zoo[dev]")
pytest.importorskip("ipykernel", reason="notebooks: pip install mmrec-zoo[dev]")

COLAB = Path(__file__).parents[1] / "colab"

CHECKS = """
import json
import numpy as np
leaves = jax.tree.leaves(gradients)
print(json.dumps({
    "table": table,
    "had": history,
    "recommended": [line.item for line in recommended],
    "items": np.asarray(items).tolist(),
    "again": [[bundle.numbers([x.item])[0] for x in line] for line in bundle.recommend_batch(
        [[bundle.item_ids[i] for i in data.split.test.history[row]] for row in range(4)], 5)],
    "gradient": float(sum(jnp.abs(x).sum() for x in leaves)),
    "losses": np.asarray(losses).tolist(),
    "same": fitted.params_sha256,
}))
"""


def executed(path: Path, folder: Path, checks: str) -> dict:
    """Run a notebook in `folder` with one more cell, and return what that cell printed as JSON."""
    import json

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with warnings.catch_warnings():
        # Of the kernel's own transport, not of the code under test.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(jupyter|zmq).*")
        client.execute()
    return json.loads("".join(output["text"] for output in notebook.cells[-1].outputs))


@pytest.mark.parametrize("path", sorted(COLAB.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_hold_no_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_quickstart_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_TINY", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = executed(COLAB / "quickstart.ipynb", tmp_path, CHECKS)
    table = found["table"]
    assert table["popularity"] < table["sasrec"] < table["optimum"]
    assert len(found["recommended"]) == 5 and not set(found["recommended"]) & set(found["had"])
    assert found["items"] == found["again"]
    assert found["gradient"] > 0
    assert len(set(found["losses"])) == 3
    assert (tmp_path / "runs/notebook/run/bundle/manifest.json").is_file()
