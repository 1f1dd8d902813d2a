"""Write the generated blocks: the tree and the models, short tables, and every table.

python benchmarks/readme.py          rewrite README.md and benchmarks/results/README.md
python benchmarks/readme.py --check  exit 1 when a block is not what it should be
"""

import ast
import json
import re
import sys
from pathlib import Path

from kept import (
    RESULTS,
    commits,
    fusions,
    load,
    minutes,
    rows_of_floors,
    spread,
    stratum,
    verdict,
)
from readme_best import best
from readme_content import CONTENT_BLOCKS
from readme_generative import GENERATIVE_BLOCKS
from readme_graph import GRAPH_BLOCKS, graph_ratios
from readme_sequential import BESIDE, SEQUENTIAL_BLOCKS

ROOT = Path(__file__).parent.parent
SHOWN = ("pipelines", "zoo", "checkpoints")


def caption(path: Path) -> str:
    """The first sentence of a file's docstring."""
    text = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def tree() -> str:
    """Every source file with its caption."""
    lines = ["```"]
    for package in SHOWN:
        lines.append(f"{package + '/':<28}{caption(ROOT / package / '__init__.py')}")
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT / package))
            if not name.endswith("__init__.py"):
                lines.append(f"  {name:<25} {caption(path)}")
    others = {
        "tests/": "what every file promises, and the suites that cut across",
        "colab/": "notebooks, executed by the tests",
        "benchmarks/": "each script prints ratios or figures; results/ keeps what they printed",
    }
    return "\n".join([*lines, *(f"{k:<28}{v}" for k, v in others.items()), "```"])


def models() -> str:
    """The register as a table."""
    from zoo.models import MODELS

    lines = ["| name | family | what | source |", "|---|---|---|---|"]
    lines += [f"| `{n}` | {e.family} | {e.summary} | {e.paper} |" for n, e in MODELS.items()]
    return "\n".join(lines)


def reached() -> str:
    """What the trained models reach: one row an experiment."""
    from zoo.models import MODELS

    family = lambda model: MODELS[model].family  # noqa: E731
    lines = [
        "| experiment | recall@10 | ndcg@10 | unmasked | warm, cold recall@10 | best "
        "floor, ndcg@10 | seeds | split | train | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    hardware = set()
    for path in sorted(RESULTS.glob("*.json")):
        told = json.loads(path.read_text())
        if "experiment" not in told or family(told["experiment"]["model"]) == "generative":
            continue  # those that spell items have a table of their own
        hardware.add(told["hardware"])
        rows, seeds = told["rows"], len(told["rows"])
        r10, n10 = (spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))
        unmasked = sum(r["test_unmasked"]["ndcg@10"] for r in rows) / seeds
        warm, cold = (sum(stratum(r, c) for r in rows) / seeds for c in (False, True))
        lines.append(
            f"| {path.stem} | {r10} | {n10} | {unmasked:.4f} | {warm:.4f}, {cold:.4f} | "
            f"{verdict(told)} | {seeds} | `{told['split_hash'][:8]}` | "
            f"{minutes(rows):.0f} min | {commits(rows)} |"
        )
    how = "`python benchmarks/reach.py EXPERIMENT --data FOLDER`; " + "; ".join(sorted(hardware))
    return "\n".join(
        [*lines, "", f"{how}. A + behind a commit: zoo/ or pipelines/ had edits not yet committed."]
    )


ORDERED = ("popularity", "markov", "item-knn", "sr-graph", "text-knn", "sr-graph+text", "ease")
SETS = ("popularity", "cf-graph", "cf-graph+text", "cf-graph+image", "cf-graph+audio", "ease")


def _floor_lines(names: tuple[str, ...], metrics: tuple[str, str], splits: tuple[str, ...]):
    yield f"| {', '.join(metrics)} | split | history | {' | '.join(names)} |"
    yield "|---|---|---|" + "---|" * len(names)
    for row in rows_of_floors():
        if row["split"] not in splits:
            continue
        cells = []
        for name in names:
            found = row["floors"].get(name)
            cells.append(
                "–" if found is None else ", ".join(f"{found['metrics'][m]:.4f}" for m in metrics)
            )
        data = row["data"] + (f" {row['part']}" if row["part"] else "")
        data += f", {row['candidates']}" if row["candidates"] != "all items" else ""
        mask = "ranked too" if row["mask"] == "none" else "masked"
        where = f"{row['split']} `{row['split_hash'][:8]}`"
        yield f"| {data} | {where} | {mask} | {' | '.join(cells)} |"


def floors() -> str:
    """The floors on every data set."""
    told = load("floors")
    ordered = _floor_lines(
        ORDERED, ("recall@10", "ndcg@10"), ("leave-one-out", "global-time", "cold-items")
    )
    sets = _floor_lines(SETS, ("recall@20", "ndcg@20"), ("labels",))
    how = f"`{told['command']}`; {told['hardware']}. Parameters are chosen on validation; –: not"
    return "\n".join([*ordered, "", *sets, "", how + " measured, or not defined for the data."])


def fusion() -> str:
    """Does a counting prior help? A model, the floor, and their fusion, seed by seed."""
    lines = [
        "| recall@10, ndcg@10 | the model | the floor | fusion | floor, way and weight |",
        "|---|---|---|---|---|",
    ]
    how = []
    for told in fusions():
        for seed, row in told["seeds"].items():
            cells = [
                f"{row['test'][n]['recall@10']:.4f}, {row['test'][n]['ndcg@10']:.4f}"
                for n in (told["model"], row["floor"], "fusion")
            ]
            chosen = f"{row['floor']}, {row['how']}, {row['weight']}"
            model = told["model"] + (" from nothing" if told.get("control") else "")
            where = f"{told['data']}, {model}, seed {seed}"
            lines.append(f"| {where} | {' | '.join(cells)} | {chosen} |")
        how.append(f"`{told['command']}`, {told['hardware']}, commit {told['commit']}")
    return "\n".join([*lines, "", "; ".join(how) + "."])


DECODED = {
    "hf prefix": "generate, prefix_allowed_tokens_fn",
    "hf vectorised": "generate, a mask of our own",
    "hf free": "generate, unconstrained",
    "zoo free": "the zoo, unconstrained",
}


def codes() -> str:
    """Beam search beside Hugging Face's, quantising beside scikit-learn's."""
    lines = [
        "| beside | what | processor time over the zoo's (range) | zoo, ms |",
        "|---|---|---|---|",
    ]
    how = []
    for name, told in (load("decode") or {}).items():
        if name.startswith("beside_") and "--untuned" not in told["command"]:
            rows, own = told["summary"], told["summary"]["zoo recommend"]["cpu_ms"]["median"]
            for key, what in DECODED.items():
                if key in rows:
                    lines.append(f"| beam search, {told['sizes']['items']:,} items | {what} | "
                                 f"{_ratio(rows[key])} | {own:.0f} |")  # fmt: skip
            how.append(f"`{told['command']}`")
    for told, way, what in _quantised():
        rows = told[way]["summary"]
        own = rows["zoo"]["cpu_ms"]["median"]
        lines.append(f"| {what} | scikit-learn | {_ratio(rows['sklearn'])} | {own:.0f} |")
    how += [f"`{told['command']}`" for told in (load("quantize") or {}).values()]
    hardware = "; AMD EPYC, 2 cores."
    return "\n".join([*lines, "", "; ".join(how) + hardware, *_scaled()])


def _scaled() -> list[str]:
    """Beam search by items, beam and batch."""
    told = load("decode")["scale"]
    lines = ["", "| items | beam | batch | ms | trie, s |", "|---|---|---|---|---|"]
    order = lambda row: tuple(row["sizes"][k] for k in ("items", "beam", "batch"))  # noqa: E731
    for row in sorted(told["rows"], key=order):
        items, beam, batch = order(row)
        ms = row["recommend"]["cpu_ms"]
        lines.append(f"| {items:,} | {beam} | {batch} | {ms:.0f} | {row['trie_s']:.2f} |")
    how = f"Processor time of a batch on one core; `{told['command']}`, commit {told['commit']}."
    return [*lines, "", how]


EMBEDDED = {
    "text": ("`zoo embed`, MiniLM on 12,101 titles", "Sentence Transformers"),
    "image": ("ViT-S/16, pictures of 224 x 224", "PyTorch"),
}
STARTS = {"sample": "sampled start", "plusplus": "k-means++ start", "batches": "mini-batches"}


def _quantised() -> list[tuple[dict, str, str]]:
    """(run, way, what it is called) of residual k-means beside scikit-learn's."""
    name = "residual k-means, {rows:,} x {width}, {way}"
    return [
        (told, way, name.format(**told["sizes"], way=called))
        for told in (load("quantize") or {}).values()
        for way, called in STARTS.items()
        if way in told
    ]


def _ratio(row: dict) -> str:
    low, high = row["cpu_ms"]["range"]
    return f"{row['cpu_ms']['over_zoo']:.2f} ({low:.2f} to {high:.2f})"


def fast() -> str:
    """The ratios of training and serving, one line each, beside the fastest of the competitors'
    forms."""
    lines = ["| what | measure | beside | times as fast (range) |", "|---|---|---|---|"]
    for model, name in BESIDE.items():
        told = load(name)
        for row in told["summary"] if told else ():
            x, (low, high) = row["examples_per_s"], row["examples_per_s"]["range"]
            ratio = f"{x['ratio']:.1f} ({low:.1f} to {high:.1f})"
            measure = f"examples/s, {told['hardware']['cores']} cores"
            lines.append(f"| {model}, training | {measure} | {row['competitor']} | {ratio} |")
    lines += [f"| {' | '.join(row)} |" for row in graph_ratios()]
    for name, told in (load("decode") or {}).items():
        if name.startswith("beside_") and "--untuned" not in told["command"]:
            held = {k: told["summary"][k] for k in ("hf prefix", "hf vectorised")}
            key = min(held, key=lambda k: held[k]["cpu_ms"]["over_zoo"])
            beside = f"Hugging Face {DECODED[key]}"
            lines.append(
                f"| beam search, {told['sizes']['items']:,} items | processor time | {beside} | "
                f"{_ratio(held[key])} |"
            )
    for name, told in (load("embed") or {}).items():
        what, beside = EMBEDDED[name]
        x, (low, high) = told["row"]["torch"]["ms"], told["row"]["torch"]["ms"]["range"]
        ratio = f"{x['over_zoo']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {what} | wall time, 2 cores | {beside} | {ratio} |")
    for told, way, what in _quantised():
        ratio = _ratio(told[way]["summary"]["sklearn"])
        lines.append(f"| {what} | processor time | scikit-learn | {ratio} |")
    how = "Each competitor at its best settings and in its fastest form, side by side on the same "
    how += "cores; how, and more: [every table](benchmarks/results/README.md#how-fast)."
    return "\n".join([*lines, "", how])


PAGES: dict[str, dict] = {
    "README.md": {"tree": tree, "models": models, "best": best, "fast": fast},
    "benchmarks/results/README.md": {
        "codes": codes,
        **SEQUENTIAL_BLOCKS,
        **GENERATIVE_BLOCKS,
        "reached": reached,
        "fusion": fusion,
        **CONTENT_BLOCKS,
        **GRAPH_BLOCKS,
        "floors": floors,
    },
}


def written(page: str, text: str) -> str:
    """A page's text with every block made anew."""
    for name, make in PAGES[page].items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.S):
            raise SystemExit(f"{page} has no block '{name}': <!-- {name} --> ... <!-- end -->")
        body = make()
        text = re.sub(pattern, lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)
    return text


def main() -> int:
    changed = 0
    for page in PAGES:
        path = ROOT / page
        old = path.read_text()
        new = written(page, old)
        changed |= new != old
        if "--check" not in sys.argv:
            path.write_text(new)
    return int(changed and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
