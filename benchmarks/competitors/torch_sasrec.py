"""A plain PyTorch SASRec, timed: one training epoch and full-ranking evaluation; prints JSON.

The model is the pre-LN SASRec of Kang and McAuley (arXiv 1808.09781) with tied item vectors.
What makes PyTorch fast here is switched on: fused attention with a causal flag (histories stand
left, so the causal mask also hides the padding), logits for the valid targets only, fused Adam,
batches cut from one table in memory.
"""

import argparse
import json
import math
import time

import harness
import numpy as np
import torch
from harness import Histories, epoch_examples, hit_and_ndcg, left_aligned, parser, peak_mib
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """x + drop(attention(LN x)), then x + drop(ffn(LN x)); ffn is d to d with ReLU."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )
        self.drop = nn.Dropout(dropout)

    def attend(self, x: Tensor) -> Tensor:
        b, l, d = x.shape
        q, k, v = self.qkv(x).view(b, l, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(b, l, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attend(self.attention_norm(x)))
        return x + self.drop(self.ffn(self.ffn_norm(x)))


class SASRec(nn.Module):
    """States [b, l, d] of left-aligned histories [b, l]; row 0 of `items` is padding."""

    def __init__(self, n_items: int, args: argparse.Namespace):
        super().__init__()
        self.items = nn.Embedding(n_items + 1, args.width, padding_idx=0)
        self.positions = nn.Embedding(args.length, args.width)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.drop = nn.Dropout(args.dropout)
        self.blocks = nn.Sequential(
            *(Block(args.width, args.heads, args.dropout) for _ in range(args.layers))
        )
        self.norm = nn.LayerNorm(args.width)

    def forward(self, history: Tensor) -> Tensor:
        x = self.items(history) * math.sqrt(self.items.embedding_dim)
        x = self.drop(x + self.positions.weight[: history.shape[1]])
        return self.norm(self.blocks(x))


def loss_of(model: SASRec, history: Tensor, target: Tensor, args: argparse.Namespace) -> Tensor:
    """Mean over valid targets of full softmax, BCE (1 negative) or sampled softmax (shared)."""
    valid = target > 0
    h, target = model(history)[valid], target[valid]
    table = model.items.weight
    if args.loss == "softmax":
        return F.cross_entropy(h @ table[1:].T, target - 1)
    positive = (h * model.items(target)).sum(-1)
    if args.loss == "bce":
        negative = (h * model.items(torch.randint_like(target, 1, len(table)))).sum(-1)
        return (F.softplus(-positive) + F.softplus(negative)).mean()
    drawn = torch.randint(1, len(table), (args.negatives,))
    hidden = drawn[None, :] == target[:, None]
    negatives = (h @ model.items(drawn).T).masked_fill(hidden, -1e9)
    return (torch.logsumexp(torch.cat([positive[:, None], negatives], 1), 1) - positive).mean()


def batches(rows: list[np.ndarray], length: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """One shuffled epoch of (history, target) tables int64 [size, length]; the last one smaller."""
    table = torch.from_numpy(left_aligned([row for row in rows if len(row) > 1], length + 1))
    order = torch.randperm(len(table))
    history, target = table[:, :-1], table[:, 1:]
    history = torch.where(target > 0, history, 0)
    return [(history[part], target[part]) for part in order.split(size)]


def train(model: SASRec, data: Histories, args: argparse.Namespace) -> dict[str, float]:
    """Warm up, then time the rest of one epoch (or the batches of `--users` users)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    step = torch.compile(loss_of, dynamic=True) if args.compile else loss_of
    epoch = batches(data.train, args.length, args.batch)
    epoch = epoch[: args.warmup + harness.steps(args)] if args.users else epoch
    harness.check_timed(len(epoch) - args.warmup, args)
    model.train()
    started, cpu, losses = time.perf_counter(), time.process_time(), []
    for number, (history, target) in enumerate(epoch):
        if number == args.warmup:
            started, cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = step(model, history, target, args)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    timed = epoch[args.warmup :]
    examples = sum(int((target > 0).sum()) for _, target in timed)
    users = sum(len(history) for history, _ in timed)
    return {
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "timed_steps": len(timed),
        "examples_per_s": examples / seconds,
        "train_users_per_s": users / seconds,
        "last_loss": float(losses[-1]),
    }


@torch.no_grad()
def recommend(model: SASRec, rows: list[np.ndarray], args: argparse.Namespace) -> np.ndarray:
    """int64 [users, k]: the best items of the whole catalogue, the history masked."""
    tops = []
    for start in range(0, len(rows), args.eval_batch):
        part = rows[start : start + args.eval_batch]
        history = torch.from_numpy(left_aligned(part, args.length))
        last = (history > 0).sum(1) - 1
        scores = model(history)[torch.arange(len(part)), last] @ model.items.weight.T
        users = torch.from_numpy(np.repeat(np.arange(len(part)), [len(row) for row in part]))
        scores[users, torch.from_numpy(np.concatenate(part))] = -torch.inf
        scores[:, 0] = -torch.inf
        tops.append(scores.topk(args.k).indices.numpy())
    return np.concatenate(tops)


def evaluate(model: SASRec, data: Histories, args: argparse.Namespace) -> dict[str, float]:
    """Time top-k for every user, then with the metrics on top."""
    model.eval()
    recommend(model, data.test[: 2 * args.eval_batch], args)
    started = time.perf_counter()
    top = recommend(model, data.test, args)
    recommended = time.perf_counter() - started
    hit, ndcg = hit_and_ndcg(top, data.target)
    evaluated = time.perf_counter() - started
    return {
        "recommend_users_per_s": len(data.test) / recommended,
        "evaluate_users_per_s": len(data.test) / evaluated,
        f"hit@{args.k}": hit,
        f"ndcg@{args.k}": ndcg,
    }


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--compile", action="store_true", help="torch.compile; needs a compiler")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = harness.read(args.data)
    model = SASRec(data.n_items, args)
    result = {"name": "torch", "epoch_examples": epoch_examples(data.train, args.length)}
    result |= train(model, data, args) | {"peak_train_mib": peak_mib()}
    result |= evaluate(model, harness.asked(data, args), args) | {"peak_mib": peak_mib()}
    print(json.dumps(result | {"versions": {"torch": torch.__version__}}))


if __name__ == "__main__":
    main()
