"""The zoo's loader alone: packed training batches, in next-item targets a second.

python benchmarks/pipeline.py --data DATA/amazon-beauty
"""

import argparse
import json
import statistics
import time
from itertools import islice
from pathlib import Path

from sequential import command, hardware

from pipelines import sources, splits
from pipelines.loader import Loader, sequence_loader


def epoch(loader: Loader) -> dict[str, float]:
    """One epoch of batches: seconds, targets, and how full the rows are."""
    started, targets, filled, cells = time.perf_counter(), 0, 0, 0
    for batch in islice(iter(loader), loader.per_epoch):
        targets += int((batch["targets"] > 0).sum())
        filled += int((batch["segments"] > 0).sum())
        cells += batch["segments"].size
    seconds = time.perf_counter() - started
    return {"examples_per_s": targets / seconds, "filled": filled / cells, "seconds": seconds}


def measure(data: Path, batch: int, length: int, epochs: int) -> dict[str, float]:
    """Medians over `epochs` epochs after one to warm up; packing is timed on its own."""
    split = splits.make_split(sources.load(data))
    started = time.perf_counter()
    loader = sequence_loader(split, batch, length)
    packing = time.perf_counter() - started
    epoch(loader)
    rows = [epoch(loader) for _ in range(epochs)]
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {"batch": batch, "length": length, "packing_seconds": packing, **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data folder")
    parser.add_argument("--batch", nargs="+", type=int, default=[32, 128], help="packed rows")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    args = parser.parse_args()
    rows = [measure(args.data, batch, args.length, args.epochs) for batch in args.batch]
    for row in rows:
        print(
            f"batch {row['batch']:4}  {row['examples_per_s']:10.0f} examples/s  "
            f"rows {row['filled']:.0%} full  packed in {row['packing_seconds']:.2f} s"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"command": command(), "hardware": hardware(), "runs": rows}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
