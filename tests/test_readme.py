"""README and tables are true of this commit: generated blocks, commands, links."""

import re
import sys
from pathlib import Path

from checkpoints.hub import shipped
from zoo.cli import COMMANDS
from zoo.metrics import RANKING
from zoo.objectives import NAMES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
sys.path.insert(0, str(ROOT / "benchmarks"))


def test_generated_blocks_are_what_the_code_says():
    from readme import PAGES, written

    for page in PAGES:
        text = (ROOT / page).read_text()
        assert written(page, text) == text, f"{page}: run python benchmarks/readme.py"


def test_the_two_commands_stand_at_the_top():
    top = README.split("##")[0]
    assert "pip install -e . && zoo quickstart" in top
    assert "pip install -e '.[dev]' && pytest" in top


def test_commands_and_links_exist():
    for command in re.findall(r"^zoo (\w+)", README, re.M):
        assert command in COMMANDS, command
    for page in ("README.md", "benchmarks/results/README.md"):
        for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / link).exists(), (page, link)


def test_lists_are_complete():
    for name in (*NAMES, *(metric.split("@")[0] for metric in RANKING)):
        assert re.search(rf"`?{name}`?", README), name
    for name in shipped():
        assert f"`{name}`" in README, f"the shipped bundle {name} is not named"
