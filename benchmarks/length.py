"""What a longer history costs: a training step of SASRec and HSTU at 50 to 2,000 events.

    python benchmarks/length.py [--lengths 50 100 200 500 1000 2000]
    python benchmarks/length.py --tails

Each measurement is a process of its own. A step always holds 8,000 events (one history a row, all
rows full), so what grows is attention and not the batch; loss and catalogue (12,000 items, sampled
softmax) stay the same. --tails: histories of many lengths, in rows of one width and of several.
Writes results/length.json and length.png. Processor times: on a machine
that does other work they tell more than wall times.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace

from sequential import command, hardware

HEIGHTS = {"cpu_ms": (200, 500, 1000, 2000), "peak_mib": (600, 800, 1000, 1500, 2000)}
EVENTS, ITEMS, STEPS = 8000, 12_000, 3
USERS, ROUNDS = 1200, 3  # of histories of many lengths
MODELS = {
    "sasrec": {"objective": "sampled", "heads": 2},
    "hstu": {"qk_width": 32, "v_width": 32, "time_bias": "none"},
    "hstu, times": {"qk_width": 32, "v_width": 32, "time_bias": "target"},
}


def one(name: str, length: int) -> dict[str, float]:
    """Processor milliseconds of a step, and the largest resident set of the process."""
    import jax
    import numpy as np

    from zoo.models import build
    from zoo.optim import optimizer
    from zoo.train import create, make_step

    rng, rows = np.random.default_rng(0), max(1, EVENTS // length)
    model = build(name.split(",")[0], max_len=length, negatives=256, **MODELS[name])
    catalogue = {"valid": np.arange(ITEMS) > 0, "popularity": np.ones(ITEMS, np.float32)}
    items = rng.integers(1, ITEMS, (rows, length + 1)).astype(np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    times = np.cumsum(rng.integers(1, 86400, (rows, length + 1)), axis=1).astype(np.int32)
    batch = {"items": items[:, :-1], "targets": items[:, 1:], "positions": places}
    batch |= {"segments": np.ones_like(places), "users": np.ones_like(places)}
    batch |= {"times": times[:, :-1], "target_times": times[:, 1:]}
    chain = optimizer(1e-3)
    state = jax.jit(lambda c, b: create(model, chain, c, b, 0))(catalogue, batch)
    step = jax.jit(make_step(model, chain, 0), donate_argnums=0)
    state, _ = jax.block_until_ready(step(state, catalogue, batch))
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        state, _ = jax.block_until_ready(step(state, catalogue, batch))
    wall, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_ms": 1e3 * cpu / STEPS, "ms": 1e3 * wall / STEPS, "peak_mib": peak}


def tail(name: str, length: int) -> dict[str, float]:
    """Histories of many lengths, few of them as long as the model reads: processor ms of an epoch
    in rows of one width and in rows of several, turn about, and the ratio."""
    import jax
    import numpy as np

    from pipelines.loader import sequence_loader
    from pipelines.schema import Events, Ragged, Split
    from pipelines.transforms import ladder
    from zoo.mesh import make_mesh
    from zoo.models import build
    from zoo.optim import optimizer
    from zoo.stepper import Stepper

    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.0, 1.0, USERS).astype(int), 3, length)
    histories = Ragged.of([[], *(rng.integers(1, ITEMS, n) for n in lengths)])
    clock = np.cumsum(rng.integers(1, 86400, len(histories.values))).astype(np.int64)
    histories = replace(histories, times=clock)
    none = Events(np.zeros(0, np.int32), Ragged.of([]), Ragged.of([]))
    split = Split("leave-one-out", "loo-full-v1", histories, none, none, "x", ordered=True)
    catalogue = {"valid": np.arange(ITEMS) > 0, "popularity": np.ones(ITEMS, np.float32)}
    runs: dict[str, list[float]] = {}
    mesh, steppers = make_mesh(1), {}
    with jax.set_mesh(mesh):
        for how, widths in (("one", ()), ("several", ladder(length))):
            loader = sequence_loader(split, max(1, EVENTS // length), length, widths=widths)
            model = build(name.split(",")[0], max_len=length, negatives=256, **MODELS[name])
            stepper = Stepper(model, optimizer(1e-3), loader, catalogue, mesh)
            stepper.compile()
            steppers[how] = stepper, stepper.fresh()
        for _ in range(ROUNDS):
            for how, (stepper, state) in steppers.items():
                begun = time.process_time()
                until = int(state.step) + stepper.loader.per_epoch
                state = jax.block_until_ready(stepper.advance(state, until, lambda n, told: None))
                runs.setdefault(how, []).append(1e3 * (time.process_time() - begun))
                steppers[how] = stepper, state
    ratios = [a / b for a, b in zip(runs["one"], runs["several"], strict=True)]
    told = {f"{how}_cpu_ms": float(np.median(x)) for how, x in runs.items()}
    return {**told, "ratio": float(np.median(ratios)), "range": [min(ratios), max(ratios)],
            "mean_length": float(lengths.mean()), "widths": ladder(length)}  # fmt: skip


def measured(name: str, length: int, how: str = "--one") -> dict[str, float]:
    words = [sys.executable, __file__, how, name, str(length)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} at {length} ended with {done.returncode}: {done.stderr[-800:]}")
    return {"model": name, "length": length, **json.loads(done.stdout.splitlines()[-1])}


def plot(rows: list[dict], path) -> None:
    """Milliseconds of a step and peak memory against length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, key, what in zip(
        panels, ("cpu_ms", "peak_mib"), ("processor ms a step", "peak MiB"), strict=True
    ):
        for name in MODELS:
            line = [(r["length"], r[key]) for r in rows if r["model"] == name]
            panel.plot(*zip(*line, strict=True), marker="o", label=name)
        panel.set(xscale="log", yscale="log", xlabel="events a history", ylabel=what)
        lengths, heights = sorted({r["length"] for r in rows}), HEIGHTS[key]
        panel.set_xticks(lengths, lengths, minor=False)
        panel.set_yticks(heights, heights, minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle("8,000 events a step, CPU")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lengths = (50, 100, 200, 500, 1000, 2000)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--tails", action="store_true", help="of many lengths, alone")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--tail", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one or args.tail:
        name, length = args.one or args.tail
        return print(json.dumps((one if args.one else tail)(name, int(length))))
    from reach import COMMIT, RESULTS

    path, cores = RESULTS / "length.json", len(os.sched_getaffinity(0))
    told = {"command": command(), "hardware": hardware(), "cores": cores, "commit": COMMIT}
    if args.tails:
        rows = []
        for name in MODELS:
            rows.append(measured(name, max(args.lengths), "--tail"))
            print(rows[-1], flush=True)
        kept = json.loads(path.read_text())
        path.write_text(json.dumps({**kept, "tails": {**told, "rows": rows}}, indent=1))
        return None

    rows = []
    for length in args.lengths:
        for name in MODELS:
            rows.append(measured(name, length))
            print(rows[-1], flush=True)
    kept = {"tails": json.loads(path.read_text()).get("tails")} if path.exists() else {}
    path.write_text(json.dumps({**told, "rows": rows, **kept}, indent=1))
    plot(rows, RESULTS / "length.png")


if __name__ == "__main__":
    main()
