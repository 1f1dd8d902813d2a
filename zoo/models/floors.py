"""Counting models as recommenders: popularity, Markov, item-kNN, SR-graph, CF-graph, EASE.

    s(u) = Σ_k w_k M[h_{−1−k}] + ε·popularity    h the history, newest last, k = 0, 1, ...

M is counted on the host by `init` and kept as the `keep` largest entries of each row; w_k is
(k+1)^−decay over the last `depth` items (ordered data), or 1 over all of them (set data). EASE
keeps its whole table and has no ε. There is nothing to learn by gradient: `loss` is the constant 0.

Beside what every catalogue has, `init` reads
    train  {users: int32[e] ascending, items: int32[e] in order within a user}
    words  {items: int32[w], words: int32[w]}     the text graphs only
Exact figures, with parameters chosen on validation: `zoo floors` (floor_table.py).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp

from zoo.models import counting
from zoo.recommender import Batch, Catalogue, Recommender
from zoo.scorer import scorer

Array = jax.Array
Matrix = Callable[[dict], sp.csr_array]  # numpy catalogue -> M


def popularity() -> Recommender:
    """s = train count, the same for everybody."""

    def encode(params, index, batch):
        shape = (len(batch["items"]), len(index["popularity"]))
        return jnp.broadcast_to(index["popularity"][None, :], shape)

    return _recommender(lambda key, catalogue, batch: _popularity(catalogue), encode)


def markov(keep: int = 256) -> Recommender:
    """What followed the last item, by share: first-order Markov chain."""
    return _graph(lambda c: counting.markov_matrix(*_train(c)), keep, depth=1)


def item_knn(keep: int = 256) -> Recommender:
    """Cosine of train columns (Sarwar et al. 2001), newest of 20 items first: decay 1."""
    return _graph(lambda c: counting.cosine_knn(_user_items(c)), keep, depth=20, decay=1.0)


def sr_graph(
    window: int = 20,
    alpha: tuple[float, float] = (0.5, 0.25),
    symmetry: float = 0.3,
    decay: float = 1.5,
    keep: int = 256,
) -> Recommender:
    """Sequential rules over a window, both ways, degree-normalised (counting.sr_matrix)."""
    return _graph(lambda c: _sr(c, window, alpha, symmetry), keep, depth=30, decay=decay)


def sr_graph_text(
    window: int = 20,
    alpha: tuple[float, float] = (0.5, 0.25),
    symmetry: float = 0.3,
    decay: float = 1.5,
    g: float = 0.3,
    h: float = 0.3,
    keep: int = 256,
) -> Recommender:
    """SR-graph M with text neighbours T: M + g·T̃ + h·(TM + MT) (counting.fuse_content)."""

    def matrix(c):
        return counting.fuse_content(_sr(c, window, alpha, symmetry), _text(c, True), g, h)

    return _graph(matrix, keep, depth=30, decay=decay)


def text_knn(decay: float = 1.5, keep: int = 10, ordered: bool = True) -> Recommender:
    """Text neighbours of the last items, of sets (not `ordered`) of all items alike; no interaction
    is counted but for the prior."""
    if not ordered:
        return _graph(lambda c: _text(c, False), keep)
    return _graph(lambda c: _text(c, True), keep, depth=30, decay=decay)


def cf_graph(c: tuple[float, float] = (0.25, 0.1), keep: int = 256) -> Recommender:
    """Degree-normalised co-occurrence for set data (counting.cf_matrix)."""
    return _graph(lambda catalogue: _cf(catalogue, c), keep)


def cf_graph_text(
    c: tuple[float, float] = (0.25, 0.1), g: float = 0.1, h: float = 0.3, keep: int = 256
) -> Recommender:
    """CF-graph W with text neighbours T: W + g·T̃ + h·(TW + WT)."""

    def matrix(catalogue):
        return counting.fuse_content(_cf(catalogue, c), _text(catalogue, False), g, h)

    return _graph(matrix, keep)


def ease(lam: float = 500.0) -> Recommender:
    """EASE (Steck 2019): s(u) = x_u B, B closed-form ridge regression of items on items."""

    def init(key, catalogue, batch):
        n = len(catalogue["valid"])
        shape = {"table": jax.ShapeDtypeStruct((n, n), jnp.float32)}
        count = lambda c: {"table": counting.ease_matrix(_user_items(c), lam)}  # noqa: E731
        return _on_host(count, shape, catalogue) | _popularity(catalogue)

    def encode(params, index, batch):
        items = jnp.where(_in_query(batch), batch["items"], 0)
        rows = jnp.arange(len(items))[:, None]
        x = jnp.zeros((len(items), len(index["valid"]))).at[rows, items].set(1.0)
        x = x.at[:, 0].set(0.0)
        return jnp.einsum("bn,nj->bj", x, index["table"], precision="highest")

    return _recommender(init, encode)


def _recommender(init, encode) -> Recommender:
    def loss(params, catalogue, batch, key):
        return jnp.zeros(()), {}

    def index(params, catalogue):
        return {**params, "valid": catalogue["valid"]}

    def match(params, index, query, items):
        if items.ndim == 1:
            return query[:, items]
        return jnp.take_along_axis(query, items, axis=1)

    return scorer(init, loss, index, encode, match)


def _graph(matrix: Matrix, keep: int, depth: int | None = None, decay: float = 0.0) -> Recommender:
    """A recommender from a matrix; `depth` None: set data, the whole history at weight 1."""

    def init(key, catalogue, batch):
        n = len(catalogue["valid"])
        shapes = {
            "neighbours": jax.ShapeDtypeStruct((n, keep), jnp.int32),
            "weights": jax.ShapeDtypeStruct((n, keep), jnp.float32),
        }

        def count(c):
            return dict(zip(shapes, counting.ell(matrix(c), keep), strict=True))

        return _on_host(count, shapes, catalogue) | _popularity(catalogue)

    def encode(params, index, batch):
        items, weights = _newest(batch, depth, decay)
        rows = jnp.arange(len(items))[:, None]

        def add(k: int, scores: Array) -> Array:
            ids = jnp.take(index["neighbours"], items[:, k], axis=0)  # b keep
            values = jnp.take(index["weights"], items[:, k], axis=0) * weights[:, k, None]
            return scores.at[rows, ids].add(values)

        scores = jnp.zeros((len(items), len(index["valid"])))
        scores = jax.lax.fori_loop(0, items.shape[1], add, scores)
        return scores + _prior(index, ordered=depth is not None)

    return _recommender(init, encode)


def _newest(batch: Batch, depth: int | None, decay: float) -> tuple[Array, Array]:
    """The last `depth` items of each history, newest first, and their weights: [b,k] twice."""
    length = batch["items"].shape[1]
    age = jnp.arange(length if depth is None else min(depth, length))
    at = batch["query"][:, None] - age[None, :]
    there = at >= 0
    at = jnp.maximum(at, 0)
    there &= jnp.take_along_axis(_in_query(batch), at, axis=1)
    items = jnp.where(there, jnp.take_along_axis(batch["items"], at, axis=1), 0)
    return items, jnp.where(there, (age[None, :] + 1.0) ** -decay, 0.0)


def _in_query(batch: Batch) -> Array:
    """bool [b,l]: columns of the history that the query column belongs to, up to it."""
    segments, query = batch["segments"], batch["query"][:, None]
    own = jnp.take_along_axis(segments, query, axis=1)
    columns = jnp.arange(segments.shape[1])[None, :]
    return (segments == own) & (columns <= query) & (batch["items"] > 0)


def _prior(index: dict, ordered: bool) -> Array:
    """[1,n]: the last resort where nothing was counted."""
    pop = index["popularity"][None, :]
    return 1e-6 * pop / jnp.maximum(jnp.max(pop), 1.0) if ordered else 1e-7 * pop


def _popularity(catalogue: Catalogue) -> dict[str, Array]:
    return {"popularity": jnp.asarray(catalogue["popularity"], jnp.float32)}


def _on_host(count: Callable[[dict], dict], shapes: dict, catalogue: Catalogue) -> dict:
    """`count` of the catalogue as numpy; under jit and eval_shape a host callback stands for it."""
    read = {k: catalogue[k] for k in ("valid", "popularity", "train", "words") if k in catalogue}
    if "train" not in read:
        raise ValueError(
            "counting needs catalogue['train'] = {'users': int32[e], 'items': int32[e]}, the train "
            f"interactions in order; the catalogue has {sorted(catalogue)}. Add it before init."
        )

    def host(c: dict) -> dict:
        return count(jax.tree.map(np.asarray, c))

    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(read)):
        return jax.pure_callback(host, shapes, read)
    return jax.tree.map(jnp.asarray, host(read))


def _train(c: dict) -> tuple[np.ndarray, np.ndarray, int]:
    """values, offsets, n: what counting.py takes."""
    users, n = c["train"]["users"], len(c["valid"])
    counts = np.bincount(users)
    return c["train"]["items"], np.concatenate([[0], np.cumsum(counts)]), n


def _user_items(c: dict) -> sp.csr_array:
    return counting.user_items(*_train(c))


def _sr(c: dict, window: int, alpha: tuple[float, float], symmetry: float) -> sp.csr_array:
    return counting.sr_matrix(counting.sequence_counts(*_train(c), window), alpha, symmetry)


def _cf(c: dict, exponents: tuple[float, float]) -> sp.csr_array:
    counts = counting.cf_counts(_user_items(c))
    return counting.cf_matrix(counts, c["popularity"].astype(np.float64), exponents)


def _text(c: dict, smooth: bool) -> sp.csr_array:
    if "words" not in c:
        raise ValueError(
            "a text graph needs catalogue['words'] = {'items': int32[w], 'words': int32[w]}, one "
            f"entry for each distinct word of an item; the catalogue has {sorted(c)}. "
            "Data without text has sr_graph and cf_graph."
        )
    items, words = c["words"]["items"], c["words"]["words"]
    n_items = int(np.count_nonzero(c["valid"]))
    rows = counting.tfidf(items, words, len(c["valid"]), n_items, smooth)
    return counting.content_neighbours(rows)
