"""What a training step costs beside an older commit of this repository, turn about.

    python benchmarks/steps.py --since COMMIT --data FOLDER_OF_DATA_SETS [--rounds 2]

The older code is checked out apart. Each measurement is a process of its own on one core, whose
freed memory is kept: allocator.py's of that commit. Writes results/steps.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from reach import COMMIT, RESULTS, hardware

HERE = Path(__file__).resolve().parent.parent
ROWS = (
    "sasrec-beauty",
    "bsarec-decayed-beauty",
    "bert4rec-beauty",
    "unisrec-whole-instruments",
)


def milliseconds(name: str, code: Path, root: Path) -> float:
    """Of a step of `name` by the repository in `code`."""
    command = [sys.executable, code / "benchmarks" / "allocator.py", "--data", root]
    plain = {k: x for k, x in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC"))}
    plain |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(code)}
    core = {min(os.sched_getaffinity(0))}
    how = {"env": plain, "cwd": code, "preexec_fn": lambda: os.sched_setaffinity(0, core)}
    command = [*map(str, command), "--one", name, "--kept"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **how)
    return json.loads(told.stdout.splitlines()[-1])["ms"]


def beside(name: str, older: Path, rounds: int, root: Path) -> dict:
    """Both, turn about: the ratios of a round's two, and the medians."""
    pairs = [[milliseconds(name, code, root) for code in (older, HERE)] for _ in range(rounds)]
    ratios = sorted(before / now for before, now in pairs)
    before, now = (median(x) for x in zip(*pairs, strict=True))
    own = {"name": name, "ratio": median(ratios), "range": [ratios[0], ratios[-1]]}
    return own | {"before_ms": before, "now_ms": now}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    told = {"since": args.since, "commit": COMMIT, "hardware": hardware(), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--detach", folder, args.since], check=True)
        try:
            for name in ROWS:
                row = beside(name, Path(folder), args.rounds, args.data.resolve())
                told["rows"].append(row)
                print(json.dumps(row), flush=True)
                (RESULTS / "steps.json").write_text(json.dumps(told, indent=1) + "\n")
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


if __name__ == "__main__":
    main()
