"""Does a counting prior help a trained model? A model, the best floor, and their fusion.

python benchmarks/fusion.py --data FOLDER_OF_DATA_SETS --runs DIR [--of sasrec-beauty] --seeds 0 1 2
DIR/EXPERIMENT-SEED are runs of benchmarks/reach.py. The floor's fields are those that floors.py
chose on validation, the way and weight of the fusion are chosen on validation, too (4,000 events
of 20,000 and more); the test split is scored once. Writes results/fusion-EXPERIMENT.json.
"""

import argparse
import json
from pathlib import Path

from experiments import EXPERIMENTS
from kept import rows_of_floors
from reach import COMMIT, RESULTS, hardware

from zoo import api
from zoo.prior import with_prior

FLOOR = "sr-graph+text"


def fields(split_hash: str) -> dict:
    """What floors.py chose for the floor on this split."""
    return next(
        row["floors"][FLOOR]["chosen"]
        for row in rows_of_floors()
        if row["split_hash"] == split_hash and row["mask"] != "none"
    )


def one(folder: Path, data, name: str) -> dict:
    """Validation-chosen fusion of one run with the floor; test metrics of the three."""
    bundle = api.from_pretrained(folder)
    model, chosen = (bundle.recommender, bundle.params), fields(data.split.hash)
    known = {"catalogue": bundle.catalogue, "max_len": bundle.max_len}
    both = with_prior(model, data, floor=FLOOR, chosen=chosen, **known)
    print(both.alone, both.grid, flush=True)
    floor = (api.build(FLOOR, **both.chosen), both.params["b"])
    parts = {name: model, FLOOR: floor, "fusion": (both.recommender, both.params)}
    test = {k: api.evaluate(v, data, "test", **known) for k, v in parts.items()}
    return {
        "how": both.how,
        "weight": both.weight,
        "grid": both.grid,
        "alone": both.alone,
        "test": {k: r.metrics for k, r in test.items()},
        "strata": {k: r.strata for k, r in test.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--of", default="sasrec-beauty", choices=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    folder = EXPERIMENTS[args.of]["data"]
    data = api.load_data(args.data / folder)
    told = {
        "command": f"python benchmarks/fusion.py --data DATA --runs RUNS --of {args.of}",
        "data": folder,
        "model": args.of.rsplit("-", 1)[0],
        "protocol": data.split.protocol,
        "split_hash": data.split.hash,
        "hardware": hardware(),
        "commit": COMMIT,
        "seeds": {},
    }
    for seed in args.seeds:
        told["seeds"][seed] = one(args.runs / f"{args.of}-{seed}", data, told["model"])
        (RESULTS / f"fusion-{args.of}.json").write_text(json.dumps(told, indent=1))
        print(json.dumps({k: v["ndcg@10"] for k, v in told["seeds"][seed]["test"].items()}))


if __name__ == "__main__":
    main()
