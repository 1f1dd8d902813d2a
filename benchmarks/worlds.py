"""Worlds whose law is known: does losing a modality cost what it should?

    python benchmarks/worlds.py [--seeds 0 1 2]

In a synthetic world (pipelines/synthetic.py) pitch is heard only, shape is seen only, colour and
texture are seen and told. two_tower learns from content alone; then one modality at a time is taken
away. What that should cost is what it costs who knows the law: the best possible ranking, and the
best one that does not know the factors which only that modality shows. The floors are of the whole
world. Writes results/worlds.json after every seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from decode import load, write

from pipelines import choices, synthetic
from zoo import api
from zoo.knockout import knock_out

OUT = Path(__file__).parent / "results" / "worlds.json"
WEIGHTS = {"shape": 1.0, "colour": 0.75, "texture": 0.5, "pitch": 1.0}
ONLY = {"image": ("shape",), "text": (), "audio": ("pitch",)}  # factors that nothing else shows
WORLD = {"n_items": 600, "n_users": 4000, "missing": 0.0, "cold": 0.1, "launch": 0.3}
SETTINGS = {"epochs": 40, "rate": 2e-3, "patience": 5}
METRIC = "recall@10"


def best(law: choices.Law, data: api.Data) -> float:
    """Recall@10 of the ranking by the law, on the test events."""
    test = data.split.test
    scores = choices.predictive(law, test.history)
    own = np.take_along_axis(scores, test.positives.values[:, None], axis=1)  # one an event
    return float(np.mean((scores > own).sum(1) < 10))


def seed_of(seed: int) -> dict:
    """One world: the law's figures and the model's, whole and without each modality."""
    made = synthetic.world(weights=WEIGHTS, seed=seed, **WORLD)
    data = api.load_data(made.dataset)
    law = {"all": best(made.law, data)}
    for name, factors in ONLY.items():
        known = {k: v for k, v in WEIGHTS.items() if k not in factors}
        law[name] = best(synthetic.world(weights=known, seed=seed, **WORLD).law, data)
    settings = api.settings_for("two_tower", seed=seed, **SETTINGS)
    fitted, seen = api.fit("two_tower", data, None, settings, items="content", user="trunk")
    model = {"all": api.evaluate(fitted, seen)}
    for name in ONLY:
        without = knock_out(fitted.catalogue, name)
        model[name] = api.evaluate(fitted, seen, catalogue=without)
    cold = {name: one.strata["target count 0"][METRIC] for name, one in model.items()}
    floors = {name: one["metrics"][METRIC] for name, one in api.floors(seen).items()}
    rest = {"steps": fitted.steps, "seconds": round(fitted.seconds, 1), "floors": floors}
    rest["cold"] = cold
    return {"law": law, "model": {k: one.metrics[METRIC] for k, one in model.items()}, **rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    found = {}
    for seed in parser.parse_args().seeds:
        found[seed] = seed_of(seed)
        print(json.dumps({seed: found[seed]}), flush=True)
        write("two_tower", {"world": WORLD, "weights": WEIGHTS, "seeds": found} | load(), OUT)


if __name__ == "__main__":
    main()
