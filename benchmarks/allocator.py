"""What keeping freed memory is worth on a CPU: training steps with it and without, turn about.

    python benchmarks/allocator.py --data FOLDER_OF_DATA_SETS [--rounds 3]

Each measurement is a process of its own on one core: some steps of an experiment of reach.py.
Writes results/allocator.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from experiments import EXPERIMENTS
from reach import COMMIT, RESULTS, hardware

STEPS = 60
CODE = Path(__file__).resolve().parent.parent
ROWS = (
    "sasrec-beauty",
    "bsarec-decayed-beauty",
    "bert4rec-beauty",
    "unisrec-whole-instruments",
    "freedom-tiktok",
)


def one(name: str, kept: bool, root: Path) -> dict[str, float]:
    """Milliseconds of a step, and the largest resident set of the process."""
    from zoo.allocator import keep_freed_memory

    if kept and not keep_freed_memory():
        raise SystemExit("freed memory is kept by glibc, and where no MALLOC_* variable is set")
    from zoo import api

    plan = EXPERIMENTS[name]
    data = api.load_data(root / plan["data"], api.DataOptions(**plan.get("options", {})))
    own = {k: x for k, x in plan["settings"].items() if k not in ("epochs", "evaluate_every")}
    settings = api.settings_for(plan["model"], **own, steps=STEPS, evaluate_every=STEPS)
    fitted, _ = api.fit(plan["model"], data, settings=settings, **plan.get("fields", {}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": 1e3 * fitted.seconds / STEPS, "peak_mib": round(peak)}


def apart(name: str, kept: bool, root: Path, code: Path = CODE) -> dict[str, float]:
    """`one` by the repository in `code`, in its own process, on the first core that this one may
    use."""
    script = str(code / "benchmarks" / "allocator.py")
    root = str(root.resolve())
    command = [sys.executable, script, "--data", root, "--one", name, *["--kept"] * kept]
    plain = {k: x for k, x in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC"))}
    plain |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(code)}
    core = {min(os.sched_getaffinity(0))}
    how = {"env": plain, "cwd": code, "preexec_fn": lambda: os.sched_setaffinity(0, core)}
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **how)
    return json.loads(told.stdout.splitlines()[-1])


def beside(name: str, rounds: int, ways: dict[str, Callable[[], dict]]) -> dict:
    """Two ways, turn about: the ratios of a round's two, and the medians."""
    pairs = [[measure() for measure in ways.values()] for _ in range(rounds)]
    ratios = sorted(first["ms"] / second["ms"] for first, second in pairs)
    row: dict = {"name": name, "ratio": median(ratios), "range": [ratios[0], ratios[-1]]}
    for at, how in enumerate(ways):
        row[how] = {k: median(pair[at][k] for pair in pairs) for k in ("ms", "peak_mib")}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=ROWS)
    parser.add_argument("--kept", action="store_true")
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(one(args.one, args.kept, args.data)))
    told = {"commit": COMMIT, "hardware": hardware(), "rounds": args.rounds, "rows": []}
    for name in ROWS:
        ways = {how: partial(apart, name, how == "kept", args.data) for how in ("as_it_is", "kept")}
        told["rows"].append(beside(name, args.rounds, ways))
        print(json.dumps(told["rows"][-1]), flush=True)
        (RESULTS / "allocator.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
