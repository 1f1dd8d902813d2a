"""Write the README's generated blocks: the tree, the models, the tables from benchmarks/results.

python benchmarks/readme.py          rewrite README.md
python benchmarks/readme.py --check  exit 1 when a block is not what it should be
"""

import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("pipelines", "zoo", "checkpoints")


def caption(path: Path) -> str:
    """The first sentence of a file's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def tree() -> str:
    """Every source file with its caption."""
    lines = ["```"]
    for package in SHOWN:
        lines.append(f"{package + '/':<24}{caption(ROOT / package / '__init__.py')}")
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT / package))
            if not name.endswith("__init__.py"):
                lines.append(f"  {name:<22}{caption(path)}")
    others = {
        "tests/": "one file a source file, and the suites that cut across",
        "colab/": "notebooks, executed by the tests",
        "benchmarks/": "each script prints ratios or figures; results/ keeps what they printed",
    }
    return "\n".join([*lines, *(f"{k:<24}{v}" for k, v in others.items()), "```"])


def models() -> str:
    """The register as a table."""
    from zoo.models import MODELS

    lines = ["| name | family | what | source |", "|---|---|---|---|"]
    lines += [f"| `{n}` | {e.family} | {e.summary} | {e.paper} |" for n, e in MODELS.items()]
    return "\n".join(lines)


def _load(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _spread(pair: list[float], seeds: int) -> str:
    return f"{pair[0]:.4f}" if seeds == 1 else f"{pair[0]:.4f} ± {pair[1]:.4f}"


def reached() -> str:
    """What the trained models reach: one row an experiment."""
    head = (
        "| experiment | recall@10 | ndcg@10 | unmasked | seeds | split | train | commit | command |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        told = json.loads(path.read_text())
        if "rows" not in told or "summary" not in told:
            continue
        rows, seeds = told["rows"], len(told["rows"])
        r10, n10 = (_spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))
        unmasked = sum(r["test_unmasked"]["ndcg@10"] for r in rows) / seeds
        minutes = sum(r["train_seconds"] for r in rows) / seeds / 60
        commits = ", ".join(sorted({r["commit"] for r in rows}))
        lines.append(
            f"| {path.stem} | {r10} | {n10} | {unmasked:.4f} | {seeds} | "
            f"`{told['split_hash'][:8]}` | {minutes:.0f} min | {commits} | `{told['command']}` |"
        )
    return "\n".join(lines)


BLOCKS = {"tree": tree, "models": models, "reached": reached}


def written(text: str) -> str:
    """README text with every block made anew."""
    for name, make in BLOCKS.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        if not re.search(pattern, text, re.S):
            raise SystemExit(f"README.md has no block '{name}': <!-- {name} --> ... <!-- end -->")
        body = make()
        text = re.sub(pattern, lambda m, body=body: m[1] + body + m[2], text, flags=re.S)
    return text


def main() -> int:
    path = ROOT / "README.md"
    old = path.read_text()
    new = written(old)
    if "--check" in sys.argv:
        return int(new != old)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
