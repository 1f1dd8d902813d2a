"""RecBole's BERT4Rec, timed: training steps on its own batches, full ranking; prints JSON.

RecBole trains on every prefix of every history, some items hidden; what is counted is hidden items.
Only public doors are used: Config, create_dataset, data_preparation, the model's calculate_loss and
full_sort_predict; the loop around them is its Trainer's, without logging and evaluation.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import harness
import numpy as np
import torch
from harness import Histories, hit_and_ndcg, parser, peak_mib
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, init_seed

COLUMNS = "user_id:token\titem_id:token\ttimestamp:float\n"


def written(data: Histories, folder: Path) -> None:
    """The histories with their test items as RecBole's atomic file, the place as the time."""
    (folder / "shop").mkdir()
    with open(folder / "shop" / "shop.inter", "w") as file:
        file.write(COLUMNS)
        for user, (row, last) in enumerate(zip(data.test, data.target, strict=True), 1):
            for place, item in enumerate([*row, last]):
                file.write(f"{user}\t{item}\t{place}\n")


def settings(args: argparse.Namespace, folder: str) -> Config:
    asked = {
        "data_path": folder,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "train_neg_sample_args": None,
        "train_batch_size": args.batch,
        "eval_batch_size": args.eval_batch * 12_102,  # RecBole counts scores
        "MAX_ITEM_LIST_LENGTH": args.length,
        "n_layers": args.layers,
        "n_heads": args.heads,
        "hidden_size": args.width,
        "inner_size": 4 * args.width,
        "hidden_dropout_prob": args.dropout,
        "attn_dropout_prob": args.dropout,
        "mask_ratio": harness.HIDDEN,
        "ft_ratio": 0.0,
        "loss_type": "CE",
        "use_gpu": False,
        "state": "ERROR",
        "seed": args.seed,
        "worker": args.workers,
        "show_progress": False,
    }
    return Config(model="BERT4Rec", dataset="shop", config_dict=asked)


def train(model, batches, args: argparse.Namespace) -> dict[str, float]:
    """Warm up, then time steps; a step ends when its parameters are written."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    wanted = args.warmup + (harness.steps(args) or len(batches) - args.warmup)
    hidden, step, loss = 0, 0, None
    model.train()
    while step < wanted:
        for batch in batches:
            if step == args.warmup:
                started, cpu, hidden = time.perf_counter(), time.process_time(), 0
            optimizer.zero_grad()
            loss = model.calculate_loss(batch)
            loss.backward()
            optimizer.step()
            hidden += int((batch[model.MASK_INDEX] > 0).sum())
            step += 1
            if step == wanted:
                break
    harness.check_timed(wanted - args.warmup, args)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "timed_steps": wanted - args.warmup,
        "examples_per_s": hidden / seconds,
        "last_loss": float(loss),
    }


@torch.no_grad()
def evaluate(model, dataset, batches, data: Histories, args) -> dict[str, float]:
    """The k best of every test user, history masked, then the metrics."""
    model.eval()
    top, users, started = [], [], time.perf_counter()
    for batch, seen, _, _ in batches:
        scores = model.full_sort_predict(batch).view(len(batch), -1)
        scores[:, 0] = -torch.inf
        if seen is not None:
            scores[seen] = -torch.inf
        top.append(torch.topk(scores, args.k).indices.numpy())
        users.append(batch["user_id"].numpy())
        if args.eval_users and sum(map(len, users)) >= args.eval_users:
            break
    seconds = time.perf_counter() - started
    names = dataset.field2id_token["item_id"]
    tokens = np.array([0, *map(int, names[1:])])
    who = np.array([0, *map(int, dataset.field2id_token["user_id"][1:])])[np.concatenate(users)]
    hit, ndcg = hit_and_ndcg(tokens[np.concatenate(top)], data.target[who - 1])
    rate = len(who) / (time.perf_counter() - started)
    found = {f"hit@{args.k}": hit, f"ndcg@{args.k}": ndcg}
    return {"recommend_users_per_s": len(who) / seconds, "evaluate_users_per_s": rate, **found}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, default=0, help="loader processes in training")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    data = harness.read(args.data)
    with tempfile.TemporaryDirectory() as folder:
        written(data, Path(folder))
        config = settings(args, folder)
        init_seed(args.seed, True)
        dataset = create_dataset(config)
        batches, _, test = data_preparation(config, dataset)
        model = get_model("BERT4Rec")(config, batches.dataset)
        result = {"name": "recbole"} | train(model, batches, args) | {"peak_train_mib": peak_mib()}
        result |= evaluate(model, dataset, test, data, args) | {"peak_mib": peak_mib()}
    print(json.dumps(result | {"versions": {name: version(name) for name in ("torch", "recbole")}}))


if __name__ == "__main__":
    main()
