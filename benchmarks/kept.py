"""What benchmarks/results keeps: reading it, and the best floor on a split."""

import json
import re
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def fusions() -> list[dict]:
    """What fusion.py kept, a file a data set."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("fusion-*.json"))]


def summary(rows: list[dict]) -> dict[str, list[float]]:
    """Mean and standard deviation of the test metrics over seeds."""
    values = {k: [row["test"][k] for row in rows] for k in rows[0]["test"]}
    return {k: [float(np.mean(v)), float(np.std(v))] for k, v in values.items()}


def without_data(experiment: str) -> str:
    """An experiment's name without its data's: mp4sr-to-sports is mp4sr."""
    return re.sub(r"(-to)?-(beauty|sports|instruments|movies|tiktok|ml-100k|baby)$", "", experiment)


def spread(pair: list[float], seeds: int) -> str:
    return f"{pair[0]:.4f}" if seeds == 1 else f"{pair[0]:.4f} ± {pair[1]:.4f}"


def rows_of_floors() -> list[dict]:
    told = load("floors")
    return told["rows"] if told else []


def best_floor(split_hash: str, metric: str = "ndcg@10") -> tuple[str, float]:
    """Name and value of the best floor on the same split, history masked, all items ranked."""
    floors = {
        name: found["metrics"][metric]
        for row in rows_of_floors()
        if row["split_hash"] == split_hash and row["mask"] != "none"
        if row["candidates"] == "all items"
        for name, found in row["floors"].items()
        if name != "popularity-leaky"
    }
    name = max(floors, key=floors.get)
    return name, floors[name]


def verdict(told: dict, metric: str = "ndcg@10") -> str:
    """Whether an experiment's mean is above the best floor of its split, and which that is."""
    name, floor = best_floor(told["split_hash"], metric)
    return f"{'**above**' if told['summary'][metric][0] > floor else 'below'} {name} {floor:.4f}"


def commits(rows: list[dict]) -> str:
    return ", ".join(sorted({row["commit"] for row in rows}))


def minutes(rows: list[dict]) -> float:
    """Of training, the mean over seeds."""
    return sum(row["train_seconds"] for row in rows) / len(rows) / 60


def stratum(row: dict, cold: bool) -> float:
    """recall@10 over the events whose item training never saw, or over the others; nan of none."""
    part = row["strata"]["target count 0"]
    n0, r0 = part["events"], part.get("recall@10", 0.0)
    if cold:
        return r0
    n = sum(s["events"] for name, s in row["strata"].items() if name.startswith("target"))
    if n == n0:
        return float("nan")
    return (row["test"]["recall@10"] * n - r0 * n0) / (n - n0)
