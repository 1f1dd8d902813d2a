"""The house: import directions, captions, cheap imports, no traces of anything but the project."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("zoo", "pipelines", "checkpoints")
FILES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
# The doors see all three packages.
DOORS = {"api", "arguments", "cli", "fitting", "serve", "session", "quickstart", "quickstart_page"}
DOORS |= {"prior", "reasons", "report", "settings", "tokenize", "coding", "embed", "inputs"}
DOORS |= {"data", "load", "own", "saving", "transfer", "pretraining", "cli_content"}
DOORS |= {"counted", "cli_floors", "embedded", "append_codes", "run", "cli_train"}
DOORS |= {"mel"}  # its constants and tables of bands are those of the host
FLAX = {"adapters", "layers", "items", "experts", "train", "rqvae", "relation"} | {
    p.stem for p in (ROOT / "zoo/models").glob("*.py")
}
FLAX |= {"blocks", "text", "image", "audio", "video", "t5", "t5_text", "side"}
FLAX |= {"content_objectives"}


def imports(path: Path) -> set[str]:
    """Top names of every import of a file, lazy ones included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module}
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_directions(path):
    package, used = path.relative_to(ROOT).parts[0], tops(path)
    if package == "pipelines":
        assert not used & {"jax", "flax", "optax", "zoo", "checkpoints"}
    elif package == "checkpoints":
        assert not used & {"flax", "optax", "zoo", "pipelines"}
    elif path.stem not in DOORS | {"__init__"}:
        assert not used & {"pipelines", "checkpoints"}
    if package == "zoo" and "flax" in used:
        assert path.stem in FLAX, "flax belongs in layers, items, models and the state's class"


@pytest.mark.parametrize(
    "name", ["train", "evaluation", "retrieval", "losses", "metrics", "layers"]
)
def test_the_core_knows_no_model(name):
    assert not [m for m in imports(ROOT / "zoo" / f"{name}.py") if m.startswith("zoo.models")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_has_a_caption(path):
    caption = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert caption.splitlines() and len(caption.splitlines()[0]) > 15


@pytest.mark.parametrize("statement", ["import zoo", "from zoo.cli import main; main(['--help'])"])
def test_nothing_heavy_before_it_is_needed(statement):
    heavy = "{'jax', 'flax', 'polars', 'grain', 'scipy'}"
    code = f"import sys\n{statement}\nassert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
