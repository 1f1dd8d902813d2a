"""What a training step costs whose model encodes pictures and words itself, in one run.

    python benchmarks/end_to_end.py --data DATA/ml-latest-small [--arms NAME ...]

two_tower and its settings are those of content_experiments.py; every arm is compiled, then all
take turns, a dispatch each (as many steps as lie between two encodings of all items, that encoding
among them). temp MiB: what the compiled dispatch needs beside its arguments and results, as XLA
has it. Writes results/end_to_end.json.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from content_experiments import ADAPTED, MOVIES, OWN, SIDE, on_movies
from decode import load, write

from zoo import api
from zoo import mesh as meshes
from zoo.adapt import plan_of
from zoo.data import with_raw
from zoo.fitting import Run
from zoo.plan import counts

OUT = Path(__file__).parent / "results" / "end_to_end.json"
ENCODING = api.Encoding(**OWN["encoding"])
DEEP = replace(ENCODING, layers=4)
# name: (encoding, adaptation)
COSTS = {
    "each occurrence": (replace(ENCODING, bound=None), None),
    "distinct items": (ENCODING, None),
    "distinct items, 4 layers": (DEEP, None),
    "distinct items, 4 layers, scan": (replace(DEEP, scan=True), None),
    "distinct items, 4 layers, scan and remat": (replace(DEEP, scan=True, remat=True), None),
}
BESIDE = api.Encoding(**SIDE)
ARMS = COSTS | {name: (ENCODING, recipe) for name, recipe in ADAPTED.items()}
ARMS |= {"side": (BESIDE, None)}


def compiled(data: api.Data, encoding: api.Encoding, adapt: str | None) -> tuple[Run, dict]:
    """A run ready to step, and what its compilation tells."""
    plan = on_movies("two_tower")
    settings = api.settings_for("two_tower", **MOVIES["settings"])
    mesh = meshes.make_mesh(1)
    with jax.set_mesh(mesh):
        what = (data.split, data.catalogue(), settings, mesh, None, adapt, encoding)
        run = Run("two_tower", plan["fields"], *what)
        memory = run.stepper.step.memory_analysis()
        rules = plan_of(run.recommender) if adapt else ((".*", "train"),)
        found = counts(run.stepper.shapes.params, rules)
    told = {"temp_mib": round(memory.temp_size_in_bytes / 2**20, 1)}
    return run, told | {"trainable": found.trainable, "parameters": found.total}


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a step, of dispatches in turns; the first of each is not counted."""
    states, found = {}, {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            steps = run.loader.stack
            with jax.set_mesh(run.mesh):
                state = states.pop(name, None) or run.stepper.fresh()
                until, begun = int(state.step) + steps, time.perf_counter()
                state = run.stepper.advance(state, until, lambda *heard: None)
                states[name] = jax.block_until_ready(state)
            ms = 1e3 * (time.perf_counter() - begun) / steps
            print(name, round(ms, 1), load(), flush=True)
            found[name] += [ms] if turn else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    data = api.load_data(args.data, api.DataOptions(**MOVIES["options"]))
    data = with_raw(data, ENCODING)
    states = (data.dataset.n_items + 1, ENCODING.layers + 1, ENCODING.width)
    kept = replace(data, raw=dict.fromkeys(SIDE["modalities"], np.zeros(states, np.float32)))
    seen = {name: kept if name == "side" else data for name in args.arms}  # any values cost as much
    made = {name: compiled(seen[name], *ARMS[name]) for name in args.arms}
    took = measure({name: run for name, (run, _) in made.items()}, args.rounds)
    rows = {}
    for name, (_, told) in made.items():
        low, high = min(took[name]), max(took[name])
        ms = {"ms_per_step": round(statistics.median(took[name]), 1)}
        rows[name] = told | ms | {"range": [round(low, 1), round(high, 1)]}
        print(name, json.dumps(rows[name]))
    write("steps", {"jax": jax.__version__, "rows": rows} | load(), OUT)


if __name__ == "__main__":
    main()
