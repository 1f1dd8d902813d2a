"""The README's first table: on each split, the best floor and the best run of every model."""

import json
from statistics import mean

from kept import RESULTS, best_floor, fusions, load, without_data

NAMES = {"tiktok": "tiktok (image, audio)", "ml-latest-small": "ml-latest-small (posters, words)"}
METRICS = {"leave-one-out": "ndcg@10", "global-time": "ndcg@10", "labels": "recall@20"}
FROM_NOTHING = ", from nothing"  # a control
ORDER = ("amazon-beauty", "amazon-sports", "ml-latest-small", "tiktok", "ml-100k", "amazon-graph")


def best() -> str:
    """One row a split: what must be beaten, and what each model reaches, the best first."""
    lines = [
        "| data | split | metric | best floor | the models, best first |",
        "|---|---|---|---|---|",
    ]
    runs = _runs()
    kinds = {row["split_hash"]: row["split"] for row in load("floors")["rows"]}
    shown = [split for split in runs if kinds.get(split) in METRICS]  # with floors beside them
    place = {name: i for i, name in enumerate(ORDER)}
    order = lambda s: (place.get(runs[s][0]["experiment"]["data"], len(ORDER)), s)  # noqa: E731
    lines += [_line(split, kinds[split], runs[split]) for split in sorted(shown, key=order)]
    how = (
        "Of several runs of a model the one that is best on validation, by its name in "
        "[every table](benchmarks/results/README.md), where protocols, spreads, hardware, commands "
        "and commits stand; its mean over seeds, (n): how many. **Bold**: above the floor. +: with "
        "that floor as its prior."
    )
    return "\n".join([*lines, "", how])


def _runs() -> dict[str, list[dict]]:
    """Split hash -> the finished experiments on it, and their controls."""
    found: dict[str, list[dict]] = {}
    folders = ("", "graph/", "content/", "transfer/")
    for path in (path for folder in folders for path in RESULTS.glob(f"{folder}*.json")):
        told = json.loads(path.read_text())
        if "experiment" in told:
            name, own = without_data(path.stem), found.setdefault(told["split_hash"], [])
            own.append({**told, "name": name})
            if controls := [row["control"] for row in told["rows"] if "control" in row]:
                own.append({**told, "name": f"{name}{FROM_NOTHING}", "rows": controls})
    return found


def _fused(split: str, metric: str) -> list[dict]:
    """Of each model the run, of those that were given a prior, that is best alone on validation."""
    found: dict[str, tuple[float, dict]] = {}
    for told in (told for told in fusions() if told["split_hash"] == split):
        of, valid = told["model"].split("-")[0], _alone(told, metric)
        if valid > found.get(of, (0,))[0]:
            found[of] = valid, told
    return [told for _, told in found.values()]


def _alone(told: dict, metric: str) -> float:
    """What the run behind a fusion reached without, on all of validation: fusion.py chooses the
    way and the weight on a sample of it, which is too few events to tell two runs apart."""
    name = told["command"].split("--of ")[1].split()[0]
    (path,) = RESULTS.rglob(f"{name}.json")
    rows = json.loads(path.read_text())["rows"]
    return mean((row["control"] if told.get("control") else row)["valid"][metric] for row in rows)


def _line(split: str, kind: str, runs: list[dict]) -> str:
    experiment = runs[0]["experiment"]
    metric, chosen = METRICS[kind], {}
    for told in runs:
        model = told["experiment"]["model"]
        on_valid = mean(row["valid"][metric] for row in told["rows"])
        if told["experiment"].get("content") is None and on_valid > chosen.get(model, (0,))[0]:
            chosen[model] = (
                on_valid,
                told["name"],
                (mean(r["test"][metric] for r in told["rows"]), len(told["rows"])),
            )
    reached = {name: value for _, name, value in chosen.values()}
    name, floor = best_floor(split, metric)
    for told in _fused(split, metric):
        rows = list(told["seeds"].values())
        fused = mean(row["test"]["fusion"][metric] for row in rows)
        called = told["model"] + (FROM_NOTHING if told.get("control") else "")
        reached[f"{called} + {rows[0]['floor']}"] = fused, len(rows)
    cells = [
        f"{f'**{name} {value:.4f}**' if value > floor else f'{name} {value:.4f}'} ({seeds})"
        for name, (value, seeds) in sorted(reached.items(), key=lambda one: -one[1][0])
    ]
    data = NAMES.get(experiment["data"], experiment["data"])
    part = (experiment.get("options") or {}).get("part", "")
    called = f"{data} {part}".strip()
    return (
        f"| {called} | {kind} `{split[:8]}` | {metric} | {name} {floor:.4f} | {' · '.join(cells)} |"
    )
