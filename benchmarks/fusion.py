"""Does a counting prior help a trained model? SASRec, SR-graph+text, and their fusion.

python benchmarks/fusion.py --data FOLDER_OF_DATA_SETS --runs DIR --seeds 0 1 2
DIR/sasrec-beauty-SEED are runs of benchmarks/reach.py. The way and weight of the fusion are
chosen on 4,000 validation events; the test split is scored once.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from reach import COMMIT, RESULTS, hardware

from pipelines.schema import Events
from zoo import api
from zoo.models.fusion import fuse

GRID = [(how, w) for how in ("mixture", "product") for w in (0.5, 1.0, 2.0, 4.0)]
FLOOR = {"window": 20, "alpha": (0.5, 0.25), "symmetry": 0.3, "decay": 1.5, "g": 0.3, "h": 0.3}


def some(events: Events, n: int = 4000, seed: int = 1) -> Events:
    """n events, drawn as evaluation.md draws them for the floors' grid."""
    rows = np.random.default_rng(seed).permutation(len(events))[:n]
    return Events(events.users[rows], events.history.take(rows), events.positives.take(rows))


def measure(recommender, params, data, catalogue, part: str):
    return api.evaluate((recommender, params), data, part, catalogue=catalogue)


def one(folder: Path, data) -> dict:
    """Validation-chosen fusion of one run with the floor; test metrics of the three."""
    bundle = api.from_pretrained(folder)
    catalogue = data.counted(data.catalogue())
    floor = api.build("sr-graph+text", **FLOOR)
    few = replace(data, split=replace(data.split, valid=some(data.split.valid)))
    counted = jax.tree.map(jax.numpy.asarray, floor.init(jax.random.key(0), catalogue, None))
    params = {"a": bundle.params, "b": counted}
    plain = {k: v for k, v in catalogue.items() if k not in ("train", "words")}
    grid = {}
    for how, weight in GRID:
        both = fuse(bundle.recommender, floor, weight, how)
        grid[how, weight] = measure(both, params, few, plain, "valid").metrics["ndcg@10"]
        print(f"{how} {weight}: {grid[how, weight]:.4f}", flush=True)
    how, weight = max(grid, key=grid.get)
    both = fuse(bundle.recommender, floor, weight, how)
    parts = {
        "sasrec": (bundle.recommender, bundle.params),
        "sr-graph+text": (floor, counted),
        "fusion": (both, params),
    }
    test = {k: measure(*v, data, plain, "test") for k, v in parts.items()}
    return {
        "how": how,
        "weight": weight,
        "grid": {f"{h} {w}": v for (h, w), v in grid.items()},
        "test": {k: r.metrics for k, r in test.items()},
        "strata": {k: r.strata for k, r in test.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    data = api.load_data(args.data / "amazon-beauty")
    told = {
        "command": "python benchmarks/fusion.py --data DATA --runs RUNS",
        "protocol": data.split.protocol,
        "split_hash": data.split.hash,
        "hardware": hardware(),
        "commit": COMMIT,
        "seeds": {},
    }
    for seed in args.seeds:
        told["seeds"][seed] = one(args.runs / f"sasrec-beauty-{seed}", data)
        (RESULTS / "fusion-beauty.json").write_text(json.dumps(told, indent=1))
        print(json.dumps({k: v["ndcg@10"] for k, v in told["seeds"][seed]["test"].items()}))


if __name__ == "__main__":
    main()
