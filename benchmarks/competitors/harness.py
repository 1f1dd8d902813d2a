"""What the measured programs share: data, sizes, metrics, peak memory (numpy only)."""

import argparse
import resource
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIZES = {
    "batch": 256,  # users a step
    "threads": 2,
    "width": 64,
    "layers": 2,
    "heads": 1,
    "length": 50,
    "negatives": 256,  # of the sampled softmax
    "users": 0,  # timed training users, 0 = one epoch
    "warmup": 3,  # steps before the clock starts
    "eval-users": 0,  # timed test users, the first of the file; 0 = all
    "eval-batch": 256,
    "k": 10,
    "seed": 0,
}
LOSSES = ("softmax", "bce", "sampled")
MODELS = ("sasrec", "hstu", "bert4rec")
HIDDEN = 0.15  # share of items that BERT4Rec hides


class Histories(NamedTuple):
    """Leave-one-out in file order: the last item is the test target, the one before validation."""

    train: list[np.ndarray]  # int64, all but the last two items of each user, at least one
    test: list[np.ndarray]  # int64, all but the last item: input and mask of the test event
    target: np.ndarray  # int64 [users]
    n_items: int


def parser(caption: str) -> argparse.ArgumentParser:
    """The options that every measured program understands."""
    options = argparse.ArgumentParser(description=caption)
    options.add_argument("--data", type=Path, required=True, help="folder with sequences.txt")
    options.add_argument("--model", choices=MODELS, default="sasrec")
    options.add_argument("--loss", choices=LOSSES, default="softmax")
    options.add_argument("--dropout", type=float, default=0.2)
    for name, value in SIZES.items():
        options.add_argument(f"--{name}", type=int, default=value)
    return options


def read(folder: Path) -> Histories:
    """Histories of `folder`/sequences.txt, one user a line: user item item ... in time order.

    Raises ValueError, naming the line, for a user with fewer than three items.
    """
    lines = (Path(folder) / "sequences.txt").read_text().splitlines()
    rows = [np.array(line.split()[1:], np.int64) for line in lines]
    short = [number for number, row in enumerate(rows, 1) if len(row) < 3]
    if short:
        raise ValueError(
            f"{folder}/sequences.txt line {short[0]}: expected a user and at least 3 items, "
            f"found {len(rows[short[0] - 1])} items. Drop users that short."
        )
    return Histories(
        [row[:-2] for row in rows],
        [row[:-1] for row in rows],
        np.array([row[-1] for row in rows]),
        int(max(row.max() for row in rows)),
    )


def steps(args: argparse.Namespace) -> int:
    """How many batches hold `--users` users; 0 stands for the whole epoch."""
    return -(-args.users // args.batch)


def asked(data: Histories, args: argparse.Namespace) -> Histories:
    """With the first `--eval-users` test users alone; 0 keeps all."""
    users = args.eval_users or len(data.test)
    return data._replace(test=data.test[:users], target=data.target[:users])


def check_timed(timed: int, args: argparse.Namespace) -> None:
    """Raise ValueError when the warm-up used up every batch."""
    if timed < 1:
        raise ValueError(
            f"{args.warmup} warm-up steps of {args.batch} users left no step to time in the epoch "
            f"of {args.data}. Lower --batch or --warmup, or take a larger data set."
        )


def epoch_examples(rows: list[np.ndarray], length: int) -> int:
    """Next-item targets of an epoch: the last `length` of each user."""
    return sum(min(len(row) - 1, length) for row in rows)


def left_aligned(rows: list[np.ndarray], length: int) -> np.ndarray:
    """int64 [rows, length]: the last `length` items of each row, 0 behind them."""
    table = np.zeros((len(rows), length), np.int64)
    for place, row in zip(table, rows, strict=True):
        place[: min(len(row), length)] = row[-length:]
    return table


def hit_and_ndcg(top: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Means over users of hit and NDCG for one target each; `top` int64 [users, k], best first."""
    found = top == target[:, None]
    gain = found / np.log2(np.arange(top.shape[1]) + 2)[None, :]
    return float(found.any(1).mean()), float(gain.sum(1).mean())


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
