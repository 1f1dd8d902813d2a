"""Does a counting prior help a trained model? SASRec, SR-graph+text, and their fusion.

python benchmarks/fusion.py --data FOLDER_OF_DATA_SETS --runs DIR --seeds 0 1 2
DIR/sasrec-beauty-SEED are runs of benchmarks/reach.py. The way and weight of the fusion are
chosen on 4,000 validation events; the test split is scored once.
"""

import argparse
import json
from pathlib import Path

from reach import COMMIT, RESULTS, hardware

from zoo import api
from zoo.prior import with_prior

FLOOR = {"window": 20, "alpha": (0.5, 0.25), "symmetry": 0.3, "decay": 1.5, "g": 0.3, "h": 0.3}


def one(folder: Path, data) -> dict:
    """Validation-chosen fusion of one run with the floor; test metrics of the three."""
    bundle = api.from_pretrained(folder)
    model = (bundle.recommender, bundle.params)
    plain = data.catalogue()
    both = with_prior(model, data, plain, "sr-graph+text", FLOOR)
    print(both.grid, flush=True)
    floor = (api.build("sr-graph+text", **FLOOR), both.params["b"])
    parts = {"sasrec": model, "sr-graph+text": floor, "fusion": (both.recommender, both.params)}
    test = {k: api.evaluate(v, data, "test", catalogue=plain) for k, v in parts.items()}
    return {
        "how": both.how,
        "weight": both.weight,
        "grid": both.grid,
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
