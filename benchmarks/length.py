"""What a longer history costs: a training step of SASRec and HSTU at 50 to 2,000 events.

    python benchmarks/length.py [--lengths 50 100 200 500 1000 2000]

Each measurement is a process of its own. A step always holds 8,000 events (one history a row, all
rows full), so what grows is attention and not the batch; loss and catalogue (12,000 items, sampled
softmax) stay the same. Writes results/length.json and length.png. Processor times: on a machine
that does other work they tell more than wall times.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

from sequential import command, hardware

HEIGHTS = {"cpu_ms": (200, 500, 1000, 2000), "peak_mib": (600, 800, 1000, 1500, 2000)}
EVENTS, ITEMS, STEPS = 8000, 12_000, 3
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


def measured(name: str, length: int) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", name, str(length)]
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
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(one(args.one[0], int(args.one[1]))))
    from reach import COMMIT, RESULTS

    rows = []
    for length in args.lengths:
        for name in MODELS:
            rows.append(measured(name, length))
            print(rows[-1], flush=True)
    cores = len(os.sched_getaffinity(0))
    told = {"command": command(), "hardware": hardware(), "cores": cores, "commit": COMMIT}
    (RESULTS / "length.json").write_text(json.dumps({**told, "rows": rows}, indent=1))
    plot(rows, RESULTS / "length.png")


if __name__ == "__main__":
    main()
