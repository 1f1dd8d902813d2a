"""The evaluation protocol: full ranking of every event, exact under ties, by stratum.

Every candidate competes; an event's history is masked unless asked otherwise. A model is asked
for scores and never sees the positives. Counts come from the device, metrics are float64 on the
host, so the result depends on neither batch nor chunk nor mesh.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo.blockwise import in_blocks
from zoo.mesh import fetch, path_name, shard_batch
from zoo.recommender import Catalogue, Index, Params, Recommender
from zoo.result import Asked, Result, Strata, result, target_count_and_length
from zoo.retrieval import Ranks, count_ranks, refuse_nan, row_tiles
from zoo.trie import Trie

HOST_ONLY = ("weight", "event", "positives")  # keys of a batch that no model may see


def evaluate(
    recommender: Recommender,
    params: Params,
    catalogue: Catalogue,
    batches: Iterable[dict[str, np.ndarray]],
    ks: Sequence[int] = (5, 10, 20),
    mask: bool = True,
    strata: Callable[[Asked], Strata] | Strata | None = target_count_and_length,
    index: Index | None = None,
    mesh: Mesh | None = None,
    candidates: np.ndarray | None = None,  # bool n
    chunk: int | None = None,
) -> Result:
    """Rank every positive of every event among all candidates.

    batches: EVENT_KEYS with `positives` [b,p] and, if known, `weight` [b] (0: filling) and
    `event` [b] (its number: the result is in that order). A few shapes, each compiled once.
    mask: whether `exclude` leaves the ranking. strata: named subsets of events, or of positives
    (then the others of the event are ignored); arrays follow the order of the result.
    candidates: who competes, all valid items if None; the model's view of items is unchanged.
    A model without `match` is asked for its max(ks) best: items that it does not list rank last,
    and a tie within the list counts as one. Where items share their codes it is asked for more, by
    the most items of one code less one, so that a tie at the last place is listed whole: for 22
    instead of 20 where up to three items share theirs, the same for every batch. Its search is as
    wide as what it is asked for, or as its beam, if that is wider.
    mesh: batches go to it with rows over 'data'.

    Raises ValueError for an event without positive, a positive that is no candidate or that the
    mask removes; FloatingPointError for NaN in the index or in a positive's score.
    """
    if index is None:
        index = _index(recommender, params, catalogue)
    _refuse_nan_index(index)
    valid = fetch(index["valid"]).copy()
    if candidates is not None:
        valid &= np.asarray(candidates, bool)
    valid[0] = False
    rows, pending = [], None
    count = partial(_dispatch, recommender, params, index, valid, mask, mesh, chunk)
    if recommender.match is None:
        most = max(ks) + _widest_tie(index) - 1
        count = partial(_listed, recommender, params, {**index, "valid": valid}, mask, mesh, most)
    for batch in batches:
        counted = count(batch)
        if pending is not None:
            rows.append(_read(*pending, valid, mask))
        pending = (batch, counted)
    if pending is not None:
        rows.append(_read(*pending, valid, mask))
    return result(_asked(rows, catalogue), ks, strata)


@partial(jax.jit, static_argnums=0)
def _index(recommender: Recommender, params: Params, catalogue: Catalogue) -> Index:
    return recommender.index(params, catalogue)


def _refuse_nan_index(index: Index) -> None:
    for path, bad in jax.tree_util.tree_leaves_with_path(_nan_leaves(index)):
        if bad:
            raise FloatingPointError(
                f"the index holds NaN in '{path_name(path)}': the item representation is broken "
                "(look at the parameters, then at the content features)."
            )


@jax.jit
def _nan_leaves(index: Index) -> Any:
    return jax.tree.map(
        lambda x: jnp.isnan(x).any() if jnp.issubdtype(x.dtype, jnp.inexact) else False, index
    )


def _shown(batch: dict[str, np.ndarray], mask: bool) -> dict[str, np.ndarray]:
    """What the model sees of a batch; without `mask` nothing is excluded, by the model neither."""
    hidden = HOST_ONLY if mask else (*HOST_ONLY, "exclude")
    return {k: v for k, v in batch.items() if k not in hidden}


def _dispatch(recommender, params, index, valid, mask, mesh, chunk, batch) -> Ranks:
    shown = _shown(batch, mask)
    positives = batch["positives"]
    exclude = batch.get("exclude") if mask else None
    tiles = row_tiles(len(positives), len(valid)) if mesh is None and chunk is None else 1
    if mesh is not None:
        asked = {"positives": positives} | ({} if exclude is None else {"exclude": exclude})
        asked, shown = shard_batch(asked, mesh), shard_batch(shown, mesh)
        positives, exclude = asked["positives"], asked.get("exclude")
    return _count(recommender, chunk, tiles, params, index, valid, shown, positives, exclude)


def _widest_tie(index: Index) -> int:
    """Most items of one code, of an index that holds tries."""
    held = jax.tree.leaves(index, is_leaf=lambda x: isinstance(x, Trie))
    return max((x.group for x in held if isinstance(x, Trie)), default=1)


def _listed(recommender, params, index, mask, mesh, k, batch) -> Ranks:
    """Places in the k best of a model that searches."""
    shown, positives = _shown(batch, mask), batch["positives"]
    if mesh is not None:
        shown = shard_batch(shown, mesh)
        positives = shard_batch({"positives": positives}, mesh)["positives"]
    return _place(recommender, k, params, index, shown, positives)


@partial(jax.jit, static_argnums=(0, 1))
def _place(recommender, k, params, index, batch, positives) -> Ranks:
    items, scores = recommender.recommend(params, index, batch, k)
    own = items[:, None, :] == positives[:, :, None]  # b p k
    found = jnp.any(own, axis=-1)
    score = jnp.sum(jnp.where(own, scores[:, None, :], 0), axis=-1)
    greater = jnp.sum(scores[:, None, :] > score[:, :, None], axis=-1)
    equal = jnp.sum(scores[:, None, :] == score[:, :, None], axis=-1) - 1
    last = len(index["valid"])
    known = jnp.take(index["valid"], positives, mode="fill", fill_value=False)
    if "exclude" in batch:
        known &= ~jnp.any(positives[:, :, None] == batch["exclude"][:, None, :], axis=-1)
    score = jnp.where(known, jnp.where(found, score, -1e9), -jnp.inf)
    score = jnp.where(jnp.isnan(scores).any(axis=1)[:, None], jnp.nan, score)
    return Ranks(jnp.where(found, greater, last), jnp.where(found, equal, 0), score)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _count(recommender, chunk, tiles, params, index, valid, batch, positives, exclude) -> Ranks:
    def count(query, positives, exclude):
        match = partial(recommender.match, params, index, query)
        return count_ranks(match, len(valid), positives, valid, exclude, chunk)

    rows = (recommender.encode(params, index, batch), positives, exclude)
    return in_blocks(count, len(positives) // tiles, *rows)


def _read(batch: dict, ranks: Ranks, valid: np.ndarray, mask: bool) -> dict[str, np.ndarray]:
    """One batch on the host, checked, without the rows that only fill it."""
    kept = np.ones(len(batch["positives"]), bool)
    if "weight" in batch:
        kept = np.asarray(batch["weight"]) > 0
    row = {
        "positives": np.asarray(batch["positives"])[kept],
        "history": _history(batch)[kept],
        **{name: x[kept] for name, x in fetch(ranks._asdict()).items()},
    }
    row["event"] = np.asarray(batch["event"])[kept] if "event" in batch else None
    exclude = np.asarray(batch["exclude"])[kept] if mask and "exclude" in batch else None
    _check_positives(row, exclude, valid)
    return row


def _history(batch: dict) -> np.ndarray:
    """Items in the past: `exclude` lists them all, unless the loader left it empty."""
    listed = np.count_nonzero(batch["exclude"], axis=1) if "exclude" in batch else 0
    seen = np.count_nonzero(batch["items"], axis=1) if "items" in batch else 0
    return np.maximum(listed, seen) + np.zeros(len(batch["positives"]), int)


def _check_positives(row: dict, exclude: np.ndarray | None, valid: np.ndarray) -> None:
    positives, place = row["positives"], row["event"]
    empty = np.flatnonzero(~np.any(positives > 0, axis=1))
    bad = np.argwhere((positives > 0) & ~np.isfinite(row["scores"]))
    if not len(empty) and not len(bad):
        return
    r = int(empty[0]) if len(empty) else int(bad[0, 0])
    who = f"row {r} of a batch" if place is None else f"event {place[r]}"
    if len(empty):
        raise ValueError(f"{who} has no positive: it cannot be ranked. Leave it out of the split.")
    item = int(positives[r, bad[0, 1]])
    if not 0 < item < len(valid) or not valid[item]:
        raise ValueError(
            f"{who} asks for item {item}, which is no candidate: the catalogue has {len(valid)} "
            f"rows and {valid.sum()} candidates. Restrict the events, or widen the candidates."
        )
    if exclude is not None and item in exclude[r]:
        raise ValueError(
            f"{who} asks for item {item}, which its own history masks. The split leaks, or items "
            "repeat in this data: then evaluate with mask=False."
        )
    raise FloatingPointError(
        f"{who}: its positive, item {item}, scores {row['scores'][r, bad[0, 1]]}; expected a "
        "finite number. Look at the query and at the item's vector."
    )


def _asked(rows: list[dict], catalogue: Catalogue) -> Asked:
    rows = [row for row in rows if len(row["positives"])]
    if not rows:
        raise ValueError("no event to evaluate: the batches are empty or all of weight 0.")
    width = max(row["positives"].shape[1] for row in rows)

    def column(name: str) -> np.ndarray:
        grown = [np.pad(r[name], ((0, 0), (0, width - r[name].shape[1]))) for r in rows]
        return np.concatenate(grown)

    positives = column("positives")
    popularity = fetch(catalogue["popularity"])
    numbered = all(row["event"] is not None for row in rows)
    event = [row["event"] for row in rows] if numbered else [np.arange(len(positives))]
    event = np.concatenate(event)
    history = np.concatenate([row["history"] for row in rows])
    order = np.argsort(event, kind="stable")
    columns = (positives, history, popularity[positives], column("greater"), column("equal"))
    return Asked(event[order], *(x[order] for x in columns))


def top_lists(
    recommender: Recommender,
    params: Params,
    catalogue: Catalogue,
    batches: Iterable[dict[str, np.ndarray]],
    k: int = 20,
    index: Index | None = None,
) -> np.ndarray:
    """The k best items of every event, int32 [n,k], for metrics.list_metrics."""
    if index is None:
        index = _index(recommender, params, catalogue)
    lists = []
    for batch in batches:
        shown = {key: v for key, v in batch.items() if key not in HOST_ONLY}
        items, scores = _recommend(recommender, k, params, index, shown)
        refuse_nan(scores)
        kept = np.asarray(batch["weight"]) > 0 if "weight" in batch else slice(None)
        lists.append(np.asarray(items)[kept])
    return np.concatenate(lists)


def invalid_share(
    recommender: Recommender,
    params: Params,
    catalogue: Catalogue,
    batches: Iterable[dict[str, np.ndarray]],
    beam: int,
) -> float:
    """Share of the `beam` words that a search ends with which name no item of the catalogue; the
    word of an item in the history counts as naming one. Searches held to the codes that exist have
    none, if there are `beam` items. Expects a word an item: several items of one word count for
    several words."""
    unmasked = ({k: v for k, v in batch.items() if k != "exclude"} for batch in batches)
    lists = top_lists(recommender, params, catalogue, unmasked, beam)
    return float(np.mean(lists == 0))


@partial(jax.jit, static_argnums=(0, 1))
def _recommend(recommender, k, params, index, batch):
    return recommender.recommend(params, index, batch, k)
