"""Two towers: a user vector and an item vector meet in one inner product (Covington et al. 2016;
Yi et al. 2019 for the sampling-bias correction of in-batch negatives).

Train:  zoo train two_tower --data ml-latest-small --model.items both --out runs/towers
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.items import Items
from zoo.layers import Dropout, Stack, Table, Trunk
from zoo.objectives import Objective
from zoo.recommender import Recommender
from zoo.retrieval import dot_match
from zoo.scorer import scorer

Array = jax.Array
USERS = ("pool", "trunk", "id")


class Head(nn.Module):
    """A residual MLP: the part of a tower after its input vector."""

    hidden: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        y = nn.gelu(nn.Dense(self.hidden, name="in")(x))
        y = Dropout(self.dropout, name="dropout")(y, deterministic=not train)
        return x + nn.Dense(x.shape[-1], name="out")(y)


class UserTower(nn.Module):
    """User vectors [b,l,d] at every position. kind: `pool` the mean of the history so far,
    `trunk` a causal transformer over it, `id` a row of the user table."""

    kind: str
    width: int
    max_len: int
    layers: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, batch: dict, users: Array | None, train: bool = False) -> Array:
        if self.kind == "trunk":
            stack = Stack(self.layers, "pre", self.heads, dropout=self.dropout, parent=None)
            return Trunk(self.max_len, True, self.dropout, stack, name="trunk")(x, batch, train)
        if self.kind == "id":
            h = jnp.take(Table(len(users), self.width, name="users")(), batch["users"], axis=0)
        else:
            h = running_mean(x, batch["segments"])
        return Head(2 * self.width, self.dropout, name="head")(h, train)


def running_mean(x: Array, segments: Array) -> Array:
    """Mean of the items so far in the same segment; x [b,l,d], segments [b,l] -> [b,l,d]."""
    length = x.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    weights = (same & causal & (segments > 0)[:, None, :]).astype(x.dtype)
    count = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1.0)
    return jnp.einsum("bqk,bkd->bqd", weights / count, x)


def two_tower(
    user: str = "pool",
    width: int = 64,
    items: str = "both",
    modalities: tuple[str, ...] | None = None,
    fuse: str = "sum",
    hidden: int = 128,
    modality_dropout: float = 0.1,
    layers: int = 2,
    heads: int = 1,
    max_len: int = 50,
    dropout: float = 0.2,
    objective: str = "mixed",
    negatives: int = 256,
    t: float = 0.75,
    similarity: str = "cosine",
    temperature: float = 0.07,
) -> Recommender:
    """q = user tower; f_j = cos(q, item tower of j) / temperature.

    user: `pool`, `trunk` or `id`; items: `id`, `content` or `both`; objective: objectives.NAMES.
    A user unknown to training (id 0) has no vector of its own under `id`: use pool or trunk there.
    """
    if user not in USERS:
        raise ValueError(f"user is '{user}'; expected one of {', '.join(USERS)}.")
    item_tower = Items(width, items, modalities, fuse, hidden, modality_dropout)
    user_tower = UserTower(user, width, max_len, layers, heads, dropout)
    aim = Objective(objective, negatives, t, similarity, temperature)

    def init(key, catalogue, batch):
        a, b = jax.random.split(key)
        x = jnp.zeros((*batch["items"].shape, width))
        item_params = item_tower.init(a, catalogue, batch["items"])["params"]
        user_params = user_tower.init(b, x, batch, catalogue.get("users"))["params"]
        return {"items": item_params, "user": user_params}

    def loss(params, catalogue, batch, key):
        item_key, user_key, negative_key = jax.random.split(key, 3)

        def vectors(ids, role=None):
            del role  # one draw of modality dropout for all of them
            rngs = {"dropout": item_key}
            return item_tower.apply({"params": params["items"]}, catalogue, ids, True, rngs=rngs)

        x = vectors(batch["items"])
        rngs = {"dropout": user_key}
        users = catalogue.get("users")
        h = user_tower.apply({"params": params["user"]}, x, batch, users, True, rngs=rngs)
        targets = batch["targets"].reshape(-1)
        weights = (targets > 0).astype(jnp.float32)
        q = h.reshape(-1, width)
        matrix = lambda: vectors(None)  # noqa: E731
        value = aim(q, targets, weights, vectors, matrix, catalogue, negative_key)
        return value, {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        table = item_tower.apply({"params": params["items"]}, catalogue)
        users = {"users": catalogue["users"]} if "users" in catalogue else {}
        return {"table": table, "valid": catalogue["valid"], **users}

    def encode(params, index, batch):
        x = jnp.take(index["table"], batch["items"], axis=0)
        h = user_tower.apply({"params": params["user"]}, x, batch, index.get("users"))
        at = jnp.broadcast_to(batch["query"][:, None, None], (len(h), 1, width))
        return aim.scaled(jnp.take_along_axis(h, at, axis=1)[:, 0])

    def match(params, index, query, ids):
        return dot_match(aim.items(index["table"]), query, ids)

    return scorer(init, loss, index, encode, match)
