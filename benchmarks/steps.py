"""What a training step costs beside an older commit of this repository, turn about.

    python benchmarks/steps.py --since COMMIT --data FOLDER_OF_DATA_SETS [--rounds 2]

The older code is checked out apart. Each measurement is allocator.py's of that commit, with freed
memory kept. Writes results/steps.json.
"""

import argparse
import json
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from allocator import CODE, ROWS, apart, beside
from reach import COMMIT, RESULTS, hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    told = {"since": args.since, "commit": COMMIT, "hardware": hardware(), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(CODE), "worktree"]
        subprocess.run([*git, "add", "--detach", folder, args.since], check=True)
        try:
            for name in ROWS:
                codes = {"before": Path(folder), "now": CODE}
                ways = {k: partial(apart, name, True, args.data, x) for k, x in codes.items()}
                told["rows"].append(beside(name, args.rounds, ways))
                print(json.dumps(told["rows"][-1]), flush=True)
                (RESULTS / "steps.json").write_text(json.dumps(told, indent=1) + "\n")
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


if __name__ == "__main__":
    main()
