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
from kept import rows_of_floors, without_data
from reach import COMMIT, RESULTS, hardware

from zoo import api
from zoo.counted import SERVED
from zoo.prior import with_prior


def best_on_validation(split_hash: str, metric: str = "ndcg@10") -> tuple[str, dict]:
    """Name and fields of the floor that serves and was best on validation in floors.py."""
    floors = next(
        row["floors"]
        for row in rows_of_floors()
        if row["split_hash"] == split_hash and row["mask"] != "none"
        if row["candidates"] == "all items"
    )
    name = max(floors.keys() & SERVED, key=lambda n: floors[n]["validation"][metric])
    return name, floors[name]["chosen"]


def one(folder: Path, data, name: str) -> dict:
    """Validation-chosen fusion of one run with the floor; test metrics of the three."""
    bundle = api.from_pretrained(folder)
    model = bundle.recommender, bundle.params
    called, chosen = best_on_validation(data.split.hash)
    known = {"catalogue": bundle.catalogue, "max_len": bundle.max_len}
    both = with_prior(model, data, floor=called, chosen=chosen, **known)
    print(both.alone, both.grid, flush=True)
    floor = (api.build(called, **both.chosen), both.params["b"])
    parts = {name: model, called: floor, "fusion": (both.recommender, both.params)}
    test = {k: api.evaluate(v, data, "test", **known) for k, v in parts.items()}
    return {
        "floor": called,
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
    parser.add_argument("--control", action="store_true")
    args = parser.parse_args()
    experiment, ending = EXPERIMENTS[args.of], "-control" if args.control else ""
    folder = experiment["data"]
    options = api.DataOptions(**experiment.get("options", {}))
    data = api.load_data(args.data / folder, options)
    flag = " --control" if args.control else ""
    told = {
        "command": f"python benchmarks/fusion.py --data DATA --runs RUNS --of {args.of}{flag}",
        "data": folder,
        "model": without_data(args.of),
        "control": args.control,
        "protocol": data.split.protocol,
        "split_hash": data.split.hash,
        "hardware": hardware(),
        "commit": COMMIT,
        "seeds": {},
    }
    for seed in args.seeds:
        told["seeds"][seed] = one(args.runs / f"{args.of}-{seed}{ending}", data, told["model"])
        (RESULTS / f"fusion-{args.of}{ending}.json").write_text(json.dumps(told, indent=1))
        print(json.dumps({k: v["ndcg@10"] for k, v in told["seeds"][seed]["test"].items()}))


if __name__ == "__main__":
    main()
