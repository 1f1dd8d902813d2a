"""collaborative(module, aim): every graph model of the zoo is this, configured.

A user is a row, an item is a row, and a score is their inner product. The module makes both
matrices from the catalogue's graphs; the aim says what a batch of (user, positive, negative)
costs. A user without a row in training is folded in: the mean of the item vectors of the history.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.edges import interaction_graph
from zoo.layers import Table
from zoo.losses import bpr
from zoo.negatives import sample_unseen
from zoo.recommender import Recommender, undrawn
from zoo.retrieval import dot_match
from zoo.scorer import scorer

Array = jax.Array
xavier = nn.initializers.xavier_uniform()


class Pairs(NamedTuple):
    """What a step learns from, p interactions in a row."""

    users: Array  # int32 p
    positives: Array  # int32 p
    negatives: Array  # int32 p, one for each positive, unseen by its user
    weights: Array  # float32 p, 0 where there is no pair


class Free(nn.Module):
    """Free rows for users and items: {users [u,d], items [n,d]}, Xavier-uniform."""

    width: int
    users_width: int | None = None  # None: as wide as the items

    @nn.compact
    def __call__(self, catalogue: dict) -> tuple[Array, Array]:
        wide = self.users_width or self.width
        users = Table(len(catalogue["users"]), wide, xavier, name="users")()
        return users, Table(len(catalogue["valid"]), self.width, xavier, name="items")()


def collaborative(
    module: nn.Module,
    aim: Callable[..., Array],
    prepare: Callable[..., dict] | None = None,
    draw: Callable[..., dict] = undrawn,
) -> Recommender:
    """module(catalogue, train) -> {users [u,d], items [n,d], ...}, the vectors of the score and
    whatever else the loss reads; aim(params, out, pairs, catalogue, key) -> loss.

    prepare: what the model adds to the catalogue beside the interaction graph.
    """

    def apply(params, catalogue, key=None):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params}, catalogue, key is not None, rngs=rngs)

    def init(key, catalogue, batch):
        return module.init(key, catalogue, False)["params"]

    def loss(params, catalogue, batch, key):
        module_key, negative_key, aim_key = jax.random.split(key, 3)
        pairs = sample_pairs(catalogue, batch, negative_key)
        out = apply(params, catalogue, module_key)
        value = aim(params, out, pairs, catalogue, aim_key)
        return value, {"targets": jnp.sum(pairs.weights)}

    def index(params, catalogue):
        out = apply(params, catalogue)
        return {"table": out["items"], "users": out["users"], "valid": catalogue["valid"]}

    def encode(params, index, batch):
        return user_vectors(index, batch)

    def match(params, index, query, ids):
        return dot_match(index["table"], query, ids)

    def ready(catalogue, parts=1):
        catalogue = with_graph(catalogue, parts)
        return catalogue if prepare is None else prepare(catalogue, parts)

    return scorer(init, loss, index, encode, match, prepare=ready, draw=draw)


def with_graph(catalogue: dict[str, Any], parts: int = 1) -> dict[str, Any]:
    """The catalogue with `graph`, R̂ [u,n], in place of `train`. Raises ValueError without it."""
    if "graph" in catalogue:
        return catalogue
    if "train" not in catalogue:
        raise ValueError(
            "a graph model needs catalogue['train'] = {'users': int32[e], 'items': int32[e]}, the "
            f"train interactions; the catalogue has {sorted(catalogue)}. Data.linked adds it."
        )
    kept = {k: v for k, v in catalogue.items() if k != "train"}
    train, sizes = catalogue["train"], (len(catalogue["users"]), len(catalogue["valid"]))
    return kept | {"graph": interaction_graph(train["users"], train["items"], *sizes, parts)}


def sample_pairs(catalogue: dict, batch: dict, key: Array) -> Pairs:
    """The (user, target) pairs of a batch, flattened, with one unseen negative each."""
    users, positives = batch["users"].reshape(-1), batch["targets"].reshape(-1)
    history, popularity = catalogue["graph"].forward, catalogue["popularity"]
    negatives, found = sample_unseen(key, users, history, popularity)
    weights = ((positives > 0) & found).astype(jnp.float32)
    return Pairs(users, positives, negatives, weights)


def user_vectors(index: dict, batch: dict) -> Array:
    """[b,d]: the user's row, or, for user 0, the mean of the item rows of the history."""
    at = batch["query"][:, None]
    users = jnp.take_along_axis(batch["users"], at, axis=1)[:, 0]
    own = jnp.take_along_axis(batch["segments"], at, axis=1)
    past = (batch["segments"] == own) & (jnp.arange(batch["items"].shape[1])[None] <= at)
    weights = (past & (batch["items"] > 0)).astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
    folded = jnp.einsum("bl,bld->bd", weights, jnp.take(index["table"], batch["items"], axis=0))
    return jnp.where((users > 0)[:, None], jnp.take(index["users"], users, axis=0), folded)


def ranking_loss(users: Array, items: Array, pairs: Pairs) -> Array:
    """BPR of the pairs under vectors users [u,d], items [n,d]."""
    u = jnp.take(users, pairs.users, axis=0)
    positive = jnp.sum(u * jnp.take(items, pairs.positives, axis=0), axis=-1)
    negative = jnp.sum(u * jnp.take(items, pairs.negatives, axis=0), axis=-1)
    return bpr(positive, negative[:, None], pairs.weights)


def batch_norms(users: Array, items: Array, pairs: Pairs) -> Array:
    """(‖u‖_F + ‖p‖_F + ‖q‖_F) / B over the rows of the batch: norms, not squares."""
    total = sum(norm(block) for block in gathered(users, items, pairs))
    return total / jnp.maximum(jnp.sum(pairs.weights), 1.0)


def batch_squares(users: Array, items: Array, pairs: Pairs) -> Array:
    """½(‖u‖² + ‖p‖² + ‖q‖²) / B over the rows of the batch."""
    total = sum(jnp.sum(jnp.square(block)) for block in gathered(users, items, pairs))
    return total / 2 / jnp.maximum(jnp.sum(pairs.weights), 1.0)


def gathered(users: Array, items: Array, pairs: Pairs) -> tuple[Array, Array, Array]:
    """Rows of the batch's users, positives and negatives, [p,d] each, zero where no pair is."""
    w = pairs.weights[:, None]
    rows = ((users, pairs.users), (items, pairs.positives), (items, pairs.negatives))
    return tuple(jnp.take(table, ids, axis=0) * w for table, ids in rows)


def norm(x: Array) -> Array:
    """Frobenius norm; gradient 0 at 0."""
    square = jnp.sum(jnp.square(x))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
