"""BERT4Rec: items are hidden from a whole history and guessed from both sides.

Sun et al. 2019 (CIKM, arXiv 1904.06690). Asked for the next item, it guesses a hidden one that
is appended to the history: softmax(h E^T), E the items' vectors, or with head="projected", as
published (eq. 7), softmax(GELU(h W + b) E^T + o).
Train:  zoo train bert4rec --data amazon-beauty --out runs/bert4rec
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.items import Items
from zoo.layers import Stack, Trunk, init_normal
from zoo.models.sequential import ALIGN, Head, Reading, counted_back, sequential, tied
from zoo.names import check
from zoo.objectives import Objective
from zoo.places import newest_columns
from zoo.recommender import Recommender

Array = jax.Array
OLDER = {"align": "left"}  # in bundles of before there was a choice
HEADS = ("projected", "tied")


def hidden_columns(key: Array, segments: Array, rate: float, last: float) -> Array:
    """int32 [b,s]: columns to guess, -1 for none.

    Each item is hidden with probability `rate`; in a share `last` of the rows only the newest
    item of every segment is. s is three standard deviations above the mean, and at least one column
    in three where there are such rows: what would not fit stays visible.
    """
    b, length = segments.shape
    s = int(np.ceil(rate * length + 3 * np.sqrt(rate * length)))
    s = min(length, max(s, length // 3 if last else 0))
    newest = newest_columns(segments)
    cloze_key, row_key, order_key = jax.random.split(key, 3)
    cloze = jax.random.uniform(cloze_key, segments.shape) < rate
    rows = jax.random.uniform(row_key, (b, 1)) < last
    hidden = jnp.where(rows, newest, cloze) & (segments > 0)
    order = jnp.where(hidden, 1.0 + jax.random.uniform(order_key, segments.shape), 0.0)
    found, columns = jax.lax.top_k(order, s)
    return jnp.where(found > 0, columns, -1)


def cloze(rate: float, last: float, newest: int | None = None) -> Reading:
    """Hide and guess; when asked, the vector that hides stands behind the newest item.

    newest: the position of a history's last column, from which the others count back; None: they
    count from the first, 0. Raises ValueError unless 0 < rate <= 1 and 0 <= last <= 1.
    """
    if not (0 < rate <= 1 and 0 <= last <= 1):
        raise ValueError(
            f"rate is {rate}, last {last}: expected a share of items to hide above 0 and at most "
            "1 (it also makes the room for what is guessed), and a share of rows from 0 to 1."
        )

    def placed(batch):
        if newest is None:
            return batch
        return counted_back(batch, newest)

    def init(key, width):
        return {"hidden": {"table": init_normal(key, (1, width))}}

    def learn(params, x, batch, key):
        columns = hidden_columns(key, batch["segments"], rate, last)
        one_hot = jnp.arange(x.shape[1])[None, None, :] == columns[:, :, None]
        hidden = jnp.any(one_hot, axis=1)
        x = jnp.where(hidden[:, :, None], params["hidden"]["table"][None], x)
        at = jnp.maximum(columns, 0)
        targets = jnp.take_along_axis(batch["targets"], at, axis=1)
        return x, placed(batch), at, jnp.where(columns >= 0, targets, 0)

    def ask(params, x, batch):
        end, length = batch["query"] + 1, x.shape[1] + 1
        column = jnp.arange(length)[None, :]
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
        hidden = (column == end[:, None])[:, :, None]
        x = jnp.where(hidden, params["hidden"]["table"][None], x)
        segments = (column <= end[:, None]).astype(jnp.int32)
        positions = jnp.broadcast_to(column, segments.shape)
        return x, placed({**batch, "segments": segments, "positions": positions}), end

    return Reading(init, learn, ask)


def _own(key: Array, width: int, rows: int) -> dict:
    kernel = init_normal(key, (width, width))
    own = {"kernel": kernel, "bias": jnp.zeros(width), "items": {"table": jnp.zeros((rows, 1))}}
    return {"head": own}


def _guess(params: dict, h: Array) -> Array:
    """GELU(h W + b) [...,d] and, for the items' own bias, a 1."""
    y = h @ params["head"]["kernel"] + params["head"]["bias"][None]
    y = nn.gelu(y, approximate=False)
    return jnp.concatenate([y, jnp.ones_like(y[..., :1])], axis=-1)


def _with_bias(params: dict, x: Array, ids: Array | None = None) -> Array:
    bias = params["head"]["items"]["table"]
    bias = bias if ids is None else jnp.take(bias, ids, axis=0)
    return jnp.concatenate([x, bias.astype(x.dtype)], axis=-1)


projected = Head(_own, _guess, _with_bias)


def bert4rec(
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    max_len: int = 50,
    dropout: float = 0.2,
    rate: float = 0.2,
    last: float = 0.2,
    align: str = "right",
    head: str = "tied",
    objective: str = "ce",
    negatives: int = 256,
    similarity: str = "dot",
    temperature: float = 1.0,
    items: str = "id",
    modalities: tuple[str, ...] | None = None,
    fuse: str = "sum",
    hidden: int = 0,
    modality_dropout: float = 0.0,
    scan: bool = False,
    remat: bool = False,
    dtype: str = "float32",
) -> Recommender:
    """rate: share of hidden items; last: share of rows where only the newest items are hidden.

    align: `right` counts positions back from the newest item, so that the guess for the next one
    always stands at the same; `left` counts from the oldest. head: `tied` compares states with the
    items' vectors as they are, by inner product or cosine; `projected` is the published one (on
    amazon-beauty no better: benchmarks/results). Raises ValueError for another align or head, and
    for cosines of a projected one.

    Post-norm blocks with GELU 4d. Fields not named here are those of Items, Stack and Objective.
    """
    check(align=(align, ALIGN), head=(head, HEADS))
    if head == "projected" and similarity != "dot":
        raise ValueError(
            f"similarity is '{similarity}' with head='projected', whose items have a bias beside "
            "their vectors: expected 'dot', or head='tied'."
        )
    stack = Stack(layers, "post", heads, "gelu", 4, dropout, 1e-12, jnp.dtype(dtype), scan, remat)
    return sequential(
        Items(width, items, modalities, fuse, hidden, modality_dropout),
        Trunk(max_len + 1, False, dropout, stack, norm=True, causal=False),
        Objective(objective, negatives, 0.75, similarity, temperature),
        cloze(rate, last, max_len if align == "right" else None),
        projected if head == "projected" else tied,
    )
