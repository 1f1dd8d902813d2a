"""LGMRec in plain PyTorch with sparse CSR products, written from its equations; prints JSON.

arXiv 2312.16400, sizes as published for Amazon Baby: 2 layers of the free rows, 2 of the content,
4 hyperedges, 1 hypergraph layer, Gumbel noise, dropout .5 of the assignment, α .3, τ .2, norms of
the final vectors 1e-6, contrast of the batch against all nodes 1e-4. No code of others was used.
"""

import argparse

import numpy as np
import random_graph
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_graph import LayerMean, Unseen, adjacency, layer_mean, measured, options

LAYERS, HYPEREDGES, KEEP, ALPHA, TAU = 2, 4, 0.5, 0.3, 0.2


class Product(torch.autograd.Function):
    """A x with the transpose at hand for the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx, g: Tensor):
        return ctx.transposed @ g, None, None


class LGMRec(torch.nn.Module):
    """forward -> (final vectors [n,d], hypergraph vectors of each modality [n,d])."""

    def __init__(
        self, users: Tensor, items: Tensor, n_users: int, n_items: int, args: argparse.Namespace
    ):
        super().__init__()
        width, self.autograd = args.width, args.autograd
        self.n_users, self.width = n_users, width
        self.matrix = adjacency(users, items, n_users, n_items, "csr")
        ones = torch.ones(len(users))
        pairs = torch.sparse_coo_tensor(torch.stack([users, items]), ones, (n_users, n_items))
        self.history = pairs.coalesce().to_sparse_csr()
        self.owners = pairs.t().coalesce().to_sparse_csr()
        self.counts = torch.bincount(users, minlength=n_users).float()[:, None] + 1e-7
        content = random_graph.features(n_items).values()
        self.content = [torch.from_numpy(x) for x in content]
        xavier = torch.nn.init.xavier_uniform_
        tables = [xavier(torch.empty(n, width)) for n in (n_users, n_items)]
        self.table = torch.nn.Parameter(torch.cat(tables))
        reads = [
            torch.cat([xavier(torch.empty(x.shape[1], n)) for n in (width, HYPEREDGES)], 1)
            for x in self.content
        ]
        self.reads = torch.nn.ParameterList([torch.nn.Parameter(x) for x in reads])  # W | V

    def forward(self) -> tuple[Tensor, list[Tensor]]:
        mean = layer_mean if self.autograd else LayerMean.apply
        ids = mean(self.table, self.matrix, LAYERS)
        items = torch.cat([x @ w for x, w in zip(self.content, self.reads, strict=True)], 1)
        users = self.product(items, self.history, self.owners)
        views, hypers = [], []
        for item, user in zip(items.chunk(2, 1), users.chunk(2, 1), strict=True):
            local, logits = user[:, : self.width] / self.counts, user[:, self.width :]
            views.append(torch.cat([local, item[:, : self.width]]))
            shares = [self.assigned(x) for x in (logits, item[:, self.width :])]
            hubs = shares[1].t() @ ids[self.n_users :]
            hypers.append(torch.cat(shares) @ hubs)
        local = torch.cat(views, 1)  # both modalities in one product
        for _ in range(LAYERS):
            local = self.product(local, self.matrix, self.matrix)
        final = ids + sum(F.normalize(x) for x in local.chunk(2, 1))
        return final + ALPHA * F.normalize(sum(hypers)), hypers

    def product(self, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        return matrix @ x if self.autograd else Product.apply(x, matrix, transposed)

    def assigned(self, logits: Tensor) -> Tensor:
        noise = -torch.empty_like(logits).exponential_().log()
        return F.dropout(torch.softmax((logits + noise) / TAU, 1), 1 - KEEP)


def contrast(hypers: list[Tensor], rows: slice, ids: Tensor) -> Tensor:
    """Σ over the batch of -log softmax of its cosine among all nodes."""
    x, y = (F.normalize(hyper[rows]) for hyper in hypers)
    return F.cross_entropy(x[ids] @ y.t() / TAU, ids, reduction="sum")


def loss_of(model: LGMRec, batch: tuple[Tensor, ...]) -> Tensor:
    users, positives, negatives = batch
    final, hypers = model()
    rows = (users, positives + model.n_users, negatives + model.n_users)
    u, p, q = (final.index_select(0, ids) for ids in rows)
    norms = u.norm() + p.norm() + q.norm()
    sides = ((slice(None, model.n_users), users), (slice(model.n_users, None), positives))
    contrasts = sum(contrast(hypers, rows, ids) for rows, ids in sides)
    bpr = F.softplus((u * q).sum(-1) - (u * p).sum(-1)).mean()
    return bpr + 1e-4 * contrasts + 1e-6 * norms / len(users)


def main() -> None:
    args = options(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n_users, n_items, edges = random_graph.SIZES[args.size]
    pairs = random_graph.interactions(n_users, n_items, edges)
    users, items = (torch.from_numpy(x.astype(np.int64) - 1) for x in pairs)
    unseen = Unseen(users, items, n_users, n_items, args.sampler)
    model = LGMRec(users, items, n_users, n_items, args)
    measured(
        args, list(model.parameters()), lambda batch: loss_of(model, batch), unseen, users, items
    )


if __name__ == "__main__":
    main()
