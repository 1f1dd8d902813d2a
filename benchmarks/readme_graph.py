"""The tables of the graph family."""

import json

from graph_experiments import CONTENT, EPOCHS, MODELS, TRIALS, winner
from kept import RESULTS, best_floor, commits, load, spread, verdict

# recall@20 of the authors' code (enoche/MMRec e775373) run on the same files: mean over its seeds,
# their standard deviation, how many.
REFERENCE = {
    "lightgcn-tiktok": (0.0860, 0.0068, 3),
    "vbpr-tiktok": (0.0536, 0.0016, 2),
    "bm3-tiktok": (0.0620, 0.0, 1),
    "freedom-tiktok": (0.0872, 0.0011, 3),
    "lgmrec-tiktok": (0.0532, 0.0, 1),
    "lightgcn-ml-100k": (0.1928, 0.0008, 2),
    "vbpr-ml-100k": (0.2187, 0.0016, 3),
    "bm3-ml-100k": (0.1835, 0.0092, 3),
    "freedom-ml-100k": (0.2260, 0.0008, 3),
    "lgmrec-ml-100k": (0.1967, 0.0, 1),
}


def graph() -> str:
    """The graph family under MMRec's protocol, beside the authors' code and the best floor."""
    lines = [
        "| run | recall@20 | ndcg@20 | reference recall@20 | best floor recall@20 | seeds | split "
        "| train | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    hardware, under = set(), []
    for path in sorted((RESULTS / "graph").glob("*.json")):
        told = json.loads(path.read_text())
        hardware.add(told["hardware"])
        rows, seeds = told["rows"], len(told["rows"])
        r20, n20 = (spread(told["summary"][k], seeds) for k in ("recall@20", "ndcg@20"))
        beside = verdict(told, "recall@20")
        under += [path.stem] if beside.startswith("below") else []
        mean, sd, n = REFERENCE.get(path.stem, (0.0, 0.0, 0))
        theirs = f"{mean:.4f}" + (f" ± {sd:.4f} ({n})" if sd else "") if n else "–"
        seconds = sum(r["train_seconds"] for r in rows) / seeds
        lines.append(
            f"| {path.stem} | {r20} | {n20} | {theirs} | {beside} | {seeds} | "
            f"`{told['split_hash'][:8]}` | {seconds:.0f} s | {commits(rows)} |"
        )
    lost = f"Below a counted floor: {', '.join(under)}." if under else ""
    how = "`python benchmarks/reach.py RUN --data FOLDER`; " + "; ".join(sorted(hardware))
    told = f"{how}. A + behind a commit: as above. (n): seeds of the reference."
    return "\n".join([*lines, "", lost, "", told])


def search() -> str:
    """The authors' settings beside the best of an equal number of trials, chosen on validation."""
    lines = [
        "| tiktok, recall@20 | authors': validation | test | best trial: validation | test "
        "| trial |",
        "|---|---|---|---|---|---|",
    ]
    trials, runs, counted = load("searches") or [], {}, []
    for model in MODELS:
        names = [f"try-{model}-tiktok-{n}" for n in range(TRIALS)]
        mine = [r for r in trials if r["name"] in names]
        usual, best = load(f"graph/{model}-tiktok"), load(f"graph/{model}-searched-tiktok")
        if len(mine) < TRIALS or usual is None:
            continue
        counted += mine
        top = max(mine, key=lambda r: r["valid"]["recall@20"])
        own = _seed(usual)["valid"]["recall@20"]
        told = {**top["experiment"]["fields"], "rate": top["experiment"]["settings"]["rate"]}
        runs |= {model: usual, f"{model} (searched)": best}
        test = "–" if winner(model) is None else _test(best) if best else "not run yet"
        lines.append(
            f"| {model} | {own:.4f} | {_test(usual)} | {top['valid']['recall@20']:.4f} | "
            f"{test} | {', '.join(f'{k} {v}' for k, v in told.items())} |"
        )
    if len(lines) == 2:
        return "Not run to its end for any model yet: no figures."
    how = (
        f"{TRIALS} trials a model, drawn once (`benchmarks/graph_experiments.py`), at most "
        f"{EPOCHS} epochs each, validation by seed 0; "
        "`python benchmarks/reach.py try-MODEL-tiktok-N`, then `MODEL-searched-tiktok` (its number "
        "of seeds in brackets). –: no trial was better on validation than the authors' settings."
    )
    return "\n".join([*lines, "", f"{how} {_held(runs, counted)}"])


def _held(runs: dict[str, dict | None], trials: list[dict] = ()) -> str:
    """Which runs stay below the best floor of their split; where and by what commits they ran."""
    found = {name: told for name, told in runs.items() if told}
    if not found:
        return ""
    split = next(iter(found.values()))["split_hash"]
    floor, value = best_floor(split, "recall@20")
    mean = lambda rows: sum(r["test"]["recall@20"] for r in rows) / len(rows)  # noqa: E731
    under = [n for n, told in found.items() if mean(told["rows"]) < value]
    rows = [*(row for told in found.values() for row in told["rows"]), *trials]
    where = "; ".join(sorted({told["hardware"] for told in found.values()}))
    return (
        f"Below {floor}, {value:.4f}: {', '.join(under) or 'none'}. Split `{split[:8]}`; {where}; "
        f"commits {commits(rows)}."
    )


def _test(told: dict) -> str:
    return spread(told["summary"]["recall@20"], len(told["rows"])) + f" ({len(told['rows'])})"


def study() -> str:
    """What each model makes of content: one modality, both, none, another item's."""
    names = ("both", *CONTENT)
    heads = [f"{name} only" if name in ("image", "audio") else name for name in names]
    lines = [f"| tiktok, recall@20 | {' | '.join(heads)} |", "|---|" + "---|" * len(names)]
    runs = {}
    for model in MODELS[2:]:
        found = {n: load(f"study/{model}-{n}-tiktok") for n in CONTENT}
        found["both"] = load(f"graph/{model}-tiktok")
        if all(found.values()):
            cells = [f"{_seed(found[n])['test']['recall@20']:.4f}" for n in names]
            lines.append(f"| {model} | {' | '.join(cells)} |")
            runs |= {f"{model} ({n})": {**found[n], "rows": [_seed(found[n])]} for n in names}
    if len(lines) == 2:
        return "Not run for any model yet: no figures."
    how = "`python benchmarks/reach.py MODEL-CONTENT-tiktok`; seed 0, the authors' settings. none: "
    told = how + "every item's content is missing; shuffled: another item's. "
    return "\n".join([*lines, "", told + _held(runs)])


def _seed(told: dict, seed: int = 0) -> dict:
    return next(row for row in told["rows"] if row["seed"] == seed)


def graph_speed() -> str:
    """A training step of the graph family beside plain PyTorch, and the scale."""
    told = load("graph")
    if told is None:
        return ""
    lines = [
        "| training step | cores | zoo, ms | PyTorch, ms | ratio (range) | gradient by hand, ms "
        "| ratio (range) | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in (x for name, x in told.items() if name.endswith("cores")):
        row, (ms, peak) = entry["summary"], (entry["summary"][k] for k in RATES)
        lines.append(
            f"| {row['model']}, {row['size']} size | {row['cores']} | {ms['zoo']:.0f} | "
            f"{ms['torch']:.0f} | {_over(ms, 'torch')} | {ms['by hand']:.0f} | "
            f"{_over(ms, 'by hand')} | "
            f"{peak['zoo']:.0f}, {peak['torch']:.0f}, {peak['by hand']:.0f} |"
        )
    big = told["scale"]
    lines += [
        "",
        "Wall time; two cores: a quiet machine, each side at its best number of threads; one core: "
        "a training had the other. "
        f"{big['users']:,} users, {big['items']:,} items, {big['edges']:,} edges, width 64: three "
        f"layers {big['three_layers_cpu_ms'] / 1e3:.0f} s, a training step "
        f"{big['training_step_cpu_s']:.0f} s of processor time, "
        f"{big['training_step_s_peak_mib'] / 1024:.1f} GiB at the peak. `{big['command']}`, "
        "`python benchmarks/graph.py beside`; a plot of cost against edges is "
        "[here](graph.png).",
    ]
    return "\n".join(lines)


def graph_ratios() -> list[tuple[str, str, str, str]]:
    """(what, measure, beside, ratio) of each training step, beside the faster of both gradients."""
    sides = {"torch": "PyTorch", "by hand": "PyTorch, gradient by hand"}
    found = []
    for row in (
        x["summary"] for name, x in (load("graph") or {}).items() if name.endswith("cores")
    ):
        ms = row["ms_per_step"]
        side = min(sides, key=lambda one, ms=ms: ms[f"{one} over zoo"][0])
        what = f"{row['model']} step, {row['size']} size"
        cores = f"wall time, {row['cores']} core" + "s" * (row["cores"] > 1)
        found.append((what, cores, sides[side], _over(ms, side)))
    return found


RATES = ("ms_per_step", "peak_mib")


def _over(row: dict, side: str) -> str:
    middle, low, high = row[f"{side} over zoo"]
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


GRAPH_BLOCKS = {"graph": graph, "search": search, "study": study, "graph_speed": graph_speed}
