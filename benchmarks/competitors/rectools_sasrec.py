"""RecTools' SASRec, HSTU and BERT4Rec, timed: a training epoch, full ranking; prints JSON.

Only public doors of RecTools are used: the models, Dataset.construct, fit, recommend. Steps are
timed by a Lightning callback from the end of the last warm-up batch to the end of the last batch,
so that building the model, starting loader workers and first-call costs are left out.
"""

import argparse
import json
import time
import warnings
from importlib.metadata import version

import harness
import numpy as np
import pandas as pd
import torch
from harness import Histories, epoch_examples, hit_and_ndcg, parser, peak_mib
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, HSTUModel, SASRecModel

MODELS = {
    "sasrec": (SASRecModel, {}),
    "hstu": (HSTUModel, {"relative_time_attention": False}),  # the file has no times
    "bert4rec": (BERT4RecModel, {"mask_prob": harness.HIDDEN}),
}
LOSSES = {"softmax": "softmax", "bce": "BCE", "sampled": "sampled_softmax"}


class Stopwatch(Callback):
    """Seconds, valid targets and users of the batches after the first `warmup`."""

    def __init__(self, warmup: int):
        self.warmup, self.steps, self.examples, self.users = warmup, 0, 0, 0
        self.started = self.stopped = self.now()
        self.last_loss = float("nan")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.stopped = self.now()
        if batch_idx < self.warmup:
            self.started = self.stopped
            return
        self.steps += 1
        self.users += len(batch["y"])
        self.examples += int((batch["y"] != 0).sum())
        self.last_loss = float(outputs["loss"])

    @staticmethod
    def now() -> np.ndarray:
        """float64 [2]: wall and processor seconds."""
        return np.array([time.perf_counter(), time.process_time()])

    def report(self) -> dict[str, float]:
        seconds, cpu = (self.stopped - self.started).tolist()
        return {
            "train_seconds": seconds,
            "train_cpu_seconds": cpu,
            "timed_steps": self.steps,
            "examples_per_s": self.examples / seconds,
            "train_users_per_s": self.users / seconds,
            "last_loss": self.last_loss,
        }


def dataset(rows: list[np.ndarray]) -> Dataset:
    """Interactions of the rows; the place in the row stands for the time."""
    lengths = [len(row) for row in rows]
    place = np.concatenate([np.arange(length) for length in lengths])
    table = {
        Columns.User: np.repeat(np.arange(len(rows)), lengths),
        Columns.Item: np.concatenate(rows),
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(place, unit="D"),
    }
    return Dataset.construct(pd.DataFrame(table))


def build(args: argparse.Namespace) -> SASRecModel | HSTUModel | BERT4RecModel:
    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1,
            limit_train_batches=args.warmup + harness.steps(args) if args.users else 1.0,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Stopwatch(args.warmup)],
        )

    model, own = MODELS[args.model]
    return model(
        **own,
        n_blocks=args.layers,
        n_heads=args.heads,
        n_factors=args.width,
        session_max_len=args.length,
        dropout_rate=args.dropout,
        loss=LOSSES[args.loss],
        n_negatives=args.negatives if args.loss == "sampled" else 1,
        lr=1e-3,
        batch_size=args.batch,
        dataloader_num_workers=args.workers,
        recommend_batch_size=args.eval_batch,
        recommend_torch_device="cpu",
        recommend_use_torch_ranking=args.ranking == "torch",
        recommend_n_threads=args.threads,
        get_trainer_func=trainer,
    )


def top_table(recommended: pd.DataFrame, n_users: int, k: int) -> np.ndarray:
    """int64 [users, k]: items by rank, 0 where a user has fewer."""
    top = np.zeros((n_users, k), np.int64)
    top[recommended[Columns.User], recommended[Columns.Rank] - 1] = recommended[Columns.Item]
    return top


def evaluate(model, data: Histories, args: argparse.Namespace) -> dict[str, float]:
    """Time recommend for every user, then with the metrics; building the data is left out."""
    history, users = dataset(data.test), np.arange(len(data.test))
    model.data_preparator.dataloader_num_workers = args.eval_workers
    model.recommend(users[: 2 * args.eval_batch], history, args.k, filter_viewed=True)
    started = time.perf_counter()
    recommended = model.recommend(users, history, args.k, filter_viewed=True)
    seconds = time.perf_counter() - started
    hit, ndcg = hit_and_ndcg(top_table(recommended, len(users), args.k), data.target)
    evaluated = time.perf_counter() - started
    return {
        "recommend_users_per_s": len(users) / seconds,
        "evaluate_users_per_s": len(users) / evaluated,
        f"hit@{args.k}": hit,
        f"ndcg@{args.k}": ndcg,
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, default=0, help="loader processes in training")
    options.add_argument("--eval-workers", type=int, default=0)
    options.add_argument("--ranking", choices=("torch", "implicit"), default="torch")
    args = options.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    seed_everything(args.seed)
    data = harness.read(args.data)
    result = {"name": "rectools", "epoch_examples": epoch_examples(data.train, args.length)}
    model = build(args).fit(dataset(data.train))
    watch = next(c for c in model.fit_trainer.callbacks if isinstance(c, Stopwatch))
    harness.check_timed(watch.steps, args)
    result |= watch.report() | {"peak_train_mib": peak_mib()}
    result |= evaluate(model, harness.asked(data, args), args) | {"peak_mib": peak_mib()}
    names = ("torch", "rectools", "pytorch-lightning")
    print(json.dumps(result | {"versions": {name: version(name) for name in names}}))


if __name__ == "__main__":
    main()
