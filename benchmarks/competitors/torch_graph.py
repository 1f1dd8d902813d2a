"""LightGCN in plain PyTorch with sparse CSR products, written from its equations; prints JSON.

arXiv 2002.02126: E^{l+1} = L E^l with L the symmetrically normalised adjacency, the mean of all
layers, BPR with one negative that the user has not seen. No code of others was used.
"""

import argparse
import json
import time
from collections.abc import Callable

import harness
import numpy as np
import random_graph
import torch
import torch.nn.functional as F
from torch import Tensor


def adjacency(users: Tensor, items: Tensor, n_users: int, n_items: int, layout: str) -> Tensor:
    """L [n,n], n = n_users + n_items, rows of users first."""
    n, items = n_users + n_items, items + n_users
    rows, columns = torch.cat([users, items]), torch.cat([items, users])
    degree = torch.bincount(rows, minlength=n).clamp(min=1).float()
    weights = (degree[rows] * degree[columns]).rsqrt()
    coo = torch.sparse_coo_tensor(torch.stack([rows, columns]), weights, (n, n)).coalesce()
    return coo if layout == "coo" else coo.to_sparse_csr()


class LayerMean(torch.autograd.Function):
    """(1 + L + ... + L^k) e / (k + 1); L is symmetric, so the gradient is the same map."""

    @staticmethod
    def forward(ctx, e: Tensor, matrix: Tensor, layers: int) -> Tensor:
        ctx.matrix, ctx.layers = matrix, layers
        total = e.clone()
        for _ in range(layers):
            e = matrix @ e
            total += e
        return total.div_(layers + 1)

    @staticmethod
    def backward(ctx, g: Tensor):
        return LayerMean.forward(argparse.Namespace(), g, ctx.matrix, ctx.layers), None, None


def layer_mean(e: Tensor, matrix: Tensor, layers: int) -> Tensor:
    """The same with the gradient left to autograd."""
    total = e
    for _ in range(layers):
        e = matrix @ e
        total = total + e
    return total / (layers + 1)


class Unseen:
    """One uniform negative a user, drawn again where the user has it: no loop over users."""

    def __init__(self, users: Tensor, items: Tensor, n_users: int, n_items: int, how: str):
        self.n_items, self.trained = n_items, torch.unique(items)
        keys = users * n_items + items
        self.keys = self.table = None
        if how == "keys":
            self.keys = torch.sort(keys).values
        else:
            self.table = torch.zeros(n_users * n_items, dtype=torch.bool)
            self.table[keys] = True

    def seen(self, keys: Tensor) -> Tensor:
        if self.table is not None:
            return self.table[keys]
        at = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.keys[at] == keys

    def __call__(self, users: Tensor) -> Tensor:
        items = self.trained[torch.randint(len(self.trained), users.shape)]
        bad = self.seen(users * self.n_items + items).nonzero()[:, 0]
        while len(bad):
            items[bad] = self.trained[torch.randint(len(self.trained), bad.shape)]
            bad = bad[self.seen(users[bad] * self.n_items + items[bad])]
        return items


def loss_of(table: Tensor, out: Tensor, batch: tuple[Tensor, ...], n_users: int) -> Tensor:
    """BPR + 1e-4 (norms of the batch's rows of the free table) / B."""
    users, positives, negatives = batch
    rows = (users, positives + n_users, negatives + n_users)
    u, p, q = (out.index_select(0, ids) for ids in rows)
    norms = sum(table.index_select(0, ids).norm() for ids in rows)
    return F.softplus((u * q).sum(-1) - (u * p).sum(-1)).mean() + 1e-4 * norms / len(users)


def measured(
    args: argparse.Namespace,
    parameters: list[Tensor],
    loss_of_batch: Callable[[tuple[Tensor, ...]], Tensor],
    unseen: Unseen,
    users: Tensor,
    items: Tensor,
) -> None:
    """Warm up, then time whole epochs: shuffle, negatives, loss, gradient, Adam. Prints JSON."""
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    seconds, cpu, losses = [], [], []
    for _ in range(args.warmup + args.epochs):
        begun, used = time.perf_counter(), time.process_time()
        losses.append([])
        for part in torch.randperm(len(users)).split(args.batch)[: args.steps]:
            optimizer.zero_grad()
            loss = loss_of_batch((users[part], items[part], unseen(users[part])))
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.detach())
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    result = {
        "name": "torch",
        "ms_per_step": 1e3 * min(seconds[args.warmup :]) / len(losses[-1]),
        "cpu_ms_per_step": 1e3 * min(cpu[args.warmup :]) / len(losses[-1]),
        "epoch_seconds": seconds[args.warmup :],
        "last_loss": float(torch.stack(losses[-1]).mean()),
        "peak_mib": harness.peak_mib(),
        "versions": {"torch": torch.__version__},
    }
    print(json.dumps(result))


def options(caption: str) -> argparse.ArgumentParser:
    """What every graph competitor understands."""
    options = argparse.ArgumentParser(description=caption)
    options.add_argument("--size", choices=random_graph.SIZES, default="tiktok")
    for name, value in {"width": 64, "batch": 2048, "threads": 2}.items():
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--epochs", type=int, default=3, help="timed; the fastest one counts")
    options.add_argument("--steps", type=int, help="of an epoch, None: all")
    options.add_argument("--warmup", type=int, default=1, help="epochs before the clock starts")
    options.add_argument("--autograd", action="store_true", help="no hand-written gradient")
    options.add_argument("--sampler", choices=("keys", "table"), default="keys")
    return options


def main() -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--layout", choices=("csr", "coo"), default="csr")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n_users, n_items, edges = random_graph.SIZES[args.size]
    pairs = random_graph.interactions(n_users, n_items, edges)
    users, items = (torch.from_numpy(x.astype(np.int64) - 1) for x in pairs)
    matrix = adjacency(users, items, n_users, n_items, args.layout)
    unseen = Unseen(users, items, n_users, n_items, args.sampler)
    tables = [torch.empty(n, args.width) for n in (n_users, n_items)]
    table = torch.nn.Parameter(torch.cat([torch.nn.init.xavier_uniform_(x) for x in tables]))
    mean = layer_mean if args.autograd else LayerMean.apply

    def loss(batch: tuple[Tensor, ...]) -> Tensor:
        return loss_of(table, mean(table, matrix, args.layers), batch, n_users)

    measured(args, [table], loss, unseen, users, items)


if __name__ == "__main__":
    main()
