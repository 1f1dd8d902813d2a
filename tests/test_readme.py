"""README and tables are true of this commit: generated blocks, commands, links."""

import json
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


# What a row was recorded under another name, or without saying what was the default then. (Where a
# model's own default is another since, the page beside the row says so.)
ONCE = {"options": {"text": "lsa:64"}, "settings": {}, "fields": {}}


def spelled_out(told: dict) -> dict:
    """An experiment as it would be written today, as JSON."""
    told = {**ONCE, **told}
    told["options"] = {"text": "lsa:64", **told["options"]}
    if told["options"]["text"] == "hashed":
        told["options"]["text"] = "hashed:512"
    if told.pop("shuffle", False):
        told["content"] = "shuffled"
    return json.loads(json.dumps(told))


def test_every_kept_row_is_of_an_experiment_as_it_is_defined():
    from experiments import EXPERIMENTS

    checked = 0
    for path in sorted((ROOT / "benchmarks" / "results").rglob("*.json")):
        kept = json.loads(path.read_text())
        if isinstance(kept, dict) and "experiment" in kept:
            own = EXPERIMENTS[path.stem]
            assert spelled_out(kept["experiment"]) == spelled_out(own), path.name
            checked += 1
    assert checked > 50


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
