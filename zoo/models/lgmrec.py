"""LGMRec: free, modality and hypergraph views of users and items, each propagated, then added.

Guo et al. 2024 (AAAI, arXiv 2312.16400). For each modality m with raw features X [n,f]:
    local      Ẽ_i = X W_m, Ẽ_u the mean over its items; E^m = Ẽ after `modality_layers` of L̂
    assigned   H̃_i = softmax((X V_m + g)/τ), H̃_u = softmax((R X V_m + g)/τ) over hyperedges
    global     Z = H̃_iᵀ e; u^m = H̃_u Z, e^m = H̃_i Z, `hyper_layers` times, from e = E^id
    E* = E^id + Σ_m norm(E^m) + α norm(Σ_m [u^m; e^m]),   score e*_u·e*_i
    loss = BPR + contrast · Σ_{m before m'} (u^m against u^m', e^m against e^m') + reg · penalty
Train:  zoo train lgmrec --data tiktok --out runs/lgmrec
"""

from functools import partial
from itertools import combinations
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.graph import Graph, binary, light_mean, product, propagate
from zoo.hypergraph import NOISE, Hyper, assign, contrast, draw_noise, drop, gather_messages
from zoo.losses import normalise
from zoo.models.collaborative import Free, Pairs, batch_norms, collaborative, ranking_loss, xavier
from zoo.models.content import chosen
from zoo.names import unknown
from zoo.negatives import sample_unseen
from zoo.recommender import Recommender

Array = jax.Array
EPSILON = 1e-7  # added to the number of items that a user's row averages

# Where the paper and the authors' code differ; a field of `lgmrec` that is not None goes first.
PRESETS: dict[str, dict[str, str]] = {
    "official": {"noise": "gumbel", "source": "items", "reg_kind": "norm", "negatives": "seen"},
    "paper": {"noise": "logistic", "source": "users", "reg_kind": "square", "negatives": "all"},
}
CHOICES: dict[str, tuple[str, ...]] = {
    "noise": tuple(NOISE),
    "eval_noise": tuple(NOISE),
    "source": ("items", "users"),
    "reg_kind": ("norm", "square"),
    "negatives": ("seen", "all"),
}


class LGMRec(nn.Module):
    """users [u,d], items [n,d]: E*. Pairs of users and items: hyper, assignment (H̃), present.

    The axis m of their arrays follows `modalities`. An item without m adds nothing to m: its
    projection is zero, it is in no hyperedge of m, and users average over their other items. The
    same holds for a user none of whose train items has m.
    """

    modalities: tuple[str, ...] | None = None
    width: int = 64
    layers: int = 2
    modality_layers: int = 2
    hyper_layers: int = 1
    hyperedges: int = 4
    keep: float = 0.5
    alpha: float = 0.3
    tau: float = 0.2
    noise: str = "gumbel"
    eval_noise: str = "none"
    source: str = "items"
    bug_compat: bool = False

    @nn.compact
    def __call__(
        self, catalogue: dict, train: bool = False, noise: tuple[Array, Array] | None = None
    ) -> dict[str, Any]:
        """noise: given g of users [u,m,a] and items [n,m,a], in place of drawn ones."""
        graph, names = catalogue["graph"], chosen(catalogue, self.modalities, "lgmrec")
        ids = light_mean(graph, *Free(self.width, name="free")(catalogue), self.layers)
        items = jnp.stack([self._read(m, catalogue) for m in names], axis=1)  # n m d+a
        users, counts = summed(graph, items), stacked(catalogue["reached"], names)
        means = users[..., : self.width] / (counts + EPSILON)[..., None]
        local = modality_view(graph, means, items[..., : self.width], self.modality_layers)
        logits = users[..., self.width :], items[..., self.width :]
        present = counts > 0, stacked(catalogue["present"], names) & catalogue["valid"][:, None]
        keys = jax.random.split(self.make_rng("dropout") if train else key_of(logits[1]))
        noise = noise or self._noise(keys[0], logits, train)
        assignment = self._assigned(logits, noise, present)
        hyper = self._passed(keys[1], assignment, ids, train)
        views = zip(ids, local, hyper, strict=True)
        final = [e + x + self.alpha * normalise(whole(h)) for e, x, h in views]
        out = {"hyper": hyper, "assignment": assignment, "present": present}
        return {"users": final[0], "items": final[1], **out}

    def _read(self, name: str, catalogue: dict) -> Array:
        """X [W | V] in one product: projection [n,d] and hyperedge logits [n,a], side by side."""
        x = catalogue["features"][name]
        project = self.param(f"project_{name}", xavier, (x.shape[1], self.width))
        edges = self.param(f"hyperedges_{name}", xavier, (x.shape[1], self.hyperedges))
        rows = x @ jnp.concatenate([project, edges], axis=1)
        return jnp.where(catalogue["present"][name][:, None], rows, 0.0)

    def _noise(self, key: Array, logits: tuple, train: bool) -> tuple[Array, Array]:
        law = self.noise if train else self.eval_noise
        keys = jax.random.split(key)
        return tuple(draw_noise(law, k, x.shape) for k, x in zip(keys, logits, strict=True))

    def _assigned(self, logits: tuple, noise: tuple, present: tuple) -> tuple[Array, Array]:
        given = zip(logits, noise, present, strict=True)
        users, items = (assign(h, g, self.tau, there) for h, g, there in given)
        if self.bug_compat:  # the second modality's shares for the first, its logits for itself
            if users.shape[1] != 2:
                raise ValueError(
                    f"bug_compat repeats what an early version did to two modalities; here are "
                    f"{users.shape[1]}. Name two in `modalities`, or leave bug_compat off."
                )
            users = jnp.stack([users[:, 1], logits[0][:, 1]], axis=1)
        return users, items

    def _passed(self, key: Array, assignment: tuple, ids: tuple, train: bool) -> tuple:
        """(Hyper of users, of items), stacked by modality; one dropout mask a matrix."""
        keep = self.keep if train else 1.0
        keys = jax.random.split(key)
        users, items = (drop(k, x, keep) for k, x in zip(keys, assignment, strict=True))
        gather = partial(gather_messages, layers=self.hyper_layers)
        hubs = jax.vmap(gather, (1, None))(items, ids[1])
        own = hubs if self.source == "items" else jax.vmap(gather, (1, None))(users, ids[0])
        return Hyper(users, own), Hyper(items, hubs)


def summed(graph: Graph, items: Array) -> Array:
    """[u,m,c]: for each user the sum of the rows [n,m,c] of the train items."""
    n, m, c = items.shape
    return product(binary(graph), items.reshape(n, m * c)).reshape(-1, m, c)


def modality_view(graph: Graph, users: Array, items: Array, layers: int) -> tuple[Array, Array]:
    """Σ_m norm(E^m) of users [u,d] and of items [n,d]; E^m is the last layer over [·,m,d]."""
    m, d = items.shape[1:]
    last = propagate(graph, *(x.reshape(len(x), m * d) for x in (users, items)), layers)[-1]
    return tuple(jnp.sum(normalise(x.reshape(len(x), m, d)), axis=1) for x in last)


def whole(hyper: Hyper) -> Array:
    """Σ_m of the vectors of a stacked Hyper, [n,d]."""
    return jnp.einsum("nma,mad->nd", *hyper)


def stacked(columns: dict[str, Array], names: tuple[str, ...]) -> Array:
    """[n,m] of the columns [n] named."""
    return jnp.stack([columns[name] for name in names], axis=1)


def key_of(x: Array) -> Array:
    """A key for noise at evaluation: another for other parameters, the same for the same."""
    return jax.random.key(lax.bitcast_convert_type(jnp.sum(x, dtype=jnp.float32), jnp.uint32))


def with_reach(modalities: tuple[str, ...] | None, catalogue: dict, parts: int = 1) -> dict:
    """The catalogue with `reached` {m: float32 [u]}: how many train items of a user have m."""
    edges, n_users = catalogue["graph"].forward, len(catalogue["users"])
    users, items = np.asarray(edges.rows), np.asarray(edges.columns)
    there = np.asarray(edges.weights) != 0
    reached = {}
    for name in chosen(catalogue, modalities, "lgmrec"):
        has = np.asarray(catalogue["present"][name])[items] & there
        reached[name] = np.bincount(users, has, minlength=n_users).astype(np.float32)
    return catalogue | {"reached": reached}


def hypergraph_contrast(out: dict, pairs: Pairs, temperature: float) -> Array:
    """Sum over the batch of the contrast of users and of positives, each modality against every
    later one; the denominators run over all users, all items, that have the later one.

    With one modality there is no pair, and it is 0; with three there are three pairs.
    """
    total, nodes = jnp.zeros(()), (pairs.users, pairs.positives)
    for hyper, present, ids in zip(out["hyper"], out["present"], nodes, strict=True):
        for i, j in combinations(range(present.shape[1]), 2):
            first, second = (Hyper(hyper.assignment[:, k], hyper.hubs[k]) for k in (i, j))
            weights = jnp.where((present[:, i] & present[:, j])[ids], pairs.weights, 0.0)
            total += contrast(first, second, ids, weights, present[:, j], temperature)
    return total


def norms(params: Any, out: dict, pairs: Pairs) -> Array:
    """(‖e*_u‖_F + ‖e*_p‖_F + ‖e*_q‖_F) / B of the final vectors of the batch."""
    return batch_norms(out["users"], out["items"], pairs)


def squares(params: Any, out: dict, pairs: Pairs) -> Array:
    """‖Θ‖² of all parameters, rows of padding included."""
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


def anywhere(pairs: Pairs, catalogue: dict, key: Array) -> Pairs:
    """The pairs with negatives among all items, also those that training has not seen."""
    every, history = catalogue["valid"].astype(jnp.float32), catalogue["graph"].forward
    negatives, found = sample_unseen(key, pairs.users, history, every)
    weights = ((pairs.positives > 0) & found).astype(jnp.float32)
    return pairs._replace(negatives=negatives, weights=weights)


def settled(preset: str, **given: str | None) -> dict[str, str]:
    """The preset's fields with the given ones over them. Raises ValueError for unknown names."""
    if preset not in PRESETS:
        raise unknown("unknown preset", preset, PRESETS)
    found = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if value not in CHOICES[name]:
            raise unknown(f"unknown {name}", value, CHOICES[name])
    return found


def lgmrec(
    width: int = 64,
    layers: int = 2,
    modality_layers: int = 2,
    hyper_layers: int = 1,
    hyperedges: int = 4,
    keep: float = 0.5,
    alpha: float = 0.3,
    tau: float = 0.2,
    contrast_weight: float = 1e-4,
    contrast_tau: float = 0.2,
    reg: float = 1e-6,
    modalities: tuple[str, ...] | None = None,
    preset: str = "official",
    noise: str | None = None,
    source: str | None = None,
    reg_kind: str | None = None,
    negatives: str | None = None,
    eval_noise: str = "none",
    bug_compat: bool = False,
) -> Recommender:
    """Local and global graphs over free rows and content; defaults as published for Amazon Baby.

    Sports: alpha .6, keep .4, and layers 4, hyper_layers 1 (the authors' configuration) or
    layers 2, hyper_layers 4 (their log). Where items have 64 hyperedges they take alpha .2,
    keep .2, hyper_layers 2.

    preset: `official`, what the authors' code does, or `paper`. They differ in four fields, each
    of which, where given, goes before the preset:
      noise      g of the assignment in training: official `gumbel`, paper `logistic`; or `none`
      source     rows that make the hubs users read: official `items`, paper `users`
      reg_kind   official `norm`, of the batch's final vectors over B; paper `square`, ‖Θ‖²
      negatives  official `seen`, from items that training has seen; paper `all`
    eval_noise: the same laws; with noise a score depends on chance, anew for every evaluation.
    bug_compat: the first public version, where users had the second modality's shares for the
    first and its raw logits for the second. Takes two modalities.
    modalities: the order is the direction of the contrast, each against every later one; None
    all, by name.
    """
    laws = settled(
        preset,
        noise=noise,
        source=source,
        reg_kind=reg_kind,
        negatives=negatives,
        eval_noise=eval_noise,
    )
    module = LGMRec(
        modalities,
        width,
        layers,
        modality_layers,
        hyper_layers,
        hyperedges,
        keep,
        alpha,
        tau,
        laws["noise"],
        laws["eval_noise"],
        laws["source"],
        bug_compat,
    )

    def aim(params, out, pairs, catalogue, key):
        if laws["negatives"] == "all":
            pairs = anywhere(pairs, catalogue, key)
        loss = ranking_loss(out["users"], out["items"], pairs)
        loss += reg * PENALTIES[laws["reg_kind"]](params, out, pairs)
        return loss + contrast_weight * hypergraph_contrast(out, pairs, contrast_tau)

    return collaborative(module, aim, prepare=partial(with_reach, modalities))


PENALTIES = {"norm": norms, "square": squares}
