"""Residual k-means beside scikit-learn's, in one run: the same rows, levels, codes and rounds.

    python benchmarks/quantize.py beside --competitor-python ENV/bin/python

Writes results/quantize.json, one key a number of rows. Both sides are processes that stay, held to
the same cores, and take turns fit by fit; each makes one fit that is not counted. `left` is the
mean squared distance that the levels leave: speed bought with worse codes would show.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from decode import Side, load, rounded, summary, write

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "quantize.json"
sys.path.append(str(HERE / "competitors"))
from random_vectors import FITS, vectors  # noqa: E402

WORKS = ("sample", "plusplus", "batches")


def zoo(args: argparse.Namespace) -> None:
    """One fit for every line of stdin, as competitors/sk_kmeans.py has it."""
    from functools import partial

    import jax
    from turns import serve

    from zoo.quantize import encode, fit_residual, reconstruct

    x, seeds = vectors(args.rows, args.width), iter(range(10**6))
    same = {"levels": args.levels, "size": args.size, "standardise": False}

    def fit(**more: object) -> dict[str, float]:
        begun, used = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(fit_residual(x, seed=next(seeds), **same, **more))
        seconds, cpu = time.perf_counter() - begun, time.process_time() - used
        rest = x - reconstruct(encode(found, x), found.codebooks)
        left = float((rest * rest).sum(1).mean())
        return {"ms": 1e3 * seconds, "cpu_ms": 1e3 * cpu, "left": left}

    works = {way: partial(fit, start=way, steps=args.steps) for way in WORKS[:2]}
    works["batches"] = partial(fit, start="sample", steps=args.batches, batch=args.batch)
    serve(works, {"versions": {"jax": jax.__version__}})


def beside(args: argparse.Namespace) -> dict:
    """Both sides in turns; medians, and scikit-learn's time over the zoo's in the same round."""
    sizes = {key: getattr(args, key) for key in FITS}
    programs = {
        "zoo": [sys.executable, Path(__file__), "zoo"],
        "sklearn": [args.competitor_python, HERE / "competitors" / "sk_kmeans.py"],
    }
    both = {name: Side(words, sizes, args.cores) for name, words in programs.items()}
    found = {"sizes": sizes, "made": {name: side.ready for name, side in both.items()}}
    for way in args.works:
        runs = {name: [] for name in both}
        for turn in range(args.rounds + 1):
            for name, side in both.items():
                told = rounded(side.ask(way)) | load()
                print(way, name, json.dumps(told), flush=True)
                runs[name] += [told] if turn else []  # the first compiles
        row = {name: summary(runs, name, "zoo") for name in runs}
        for name, done in runs.items():
            row[name]["left"] = round(statistics.median(run["left"] for run in done), 4)
        found[way] = {"summary": row, "runs": runs}
    for side in both.values():
        side.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("beside", "zoo"))
    parser.add_argument("--competitor-python", help="see benchmarks/README.md")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    for name, value in FITS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    if args.mode == "zoo":
        zoo(args)
        return
    if not args.competitor_python:
        parser.error("beside needs --competitor-python, see benchmarks/README.md")
    write(str(args.rows), beside(args), OUT)


if __name__ == "__main__":
    main()
