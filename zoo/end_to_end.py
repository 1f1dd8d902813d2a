"""end_to_end(recommender, encoders): raw content in place of features, trained with the model.

The items of a batch, each once, go through the encoder; their vectors take the places of those
rows in the feature table, and the rest of the table is what the encoder made of the other items
when it was last asked (`draw`: once a dispatch). So any loss of any model works as it is: what it
asks of items of the batch trains the encoder, other items (the negatives of a full softmax) are as
old as the dispatch and get no gradient.

    catalogue["raw"]  {m: pytree of [n,...]}  token ids, pixels, mel bands: what an encoder reads
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.blockwise import in_blocks
from zoo.recommender import Batch, Catalogue, Recommender, undrawn

Array = jax.Array
ASKED = ("items", "targets")  # what of a batch names items
CHUNK = 128  # rows of the catalogue encoded at a time


class ContentEncoder(NamedTuple):
    """Pure functions from raw rows to vectors."""

    init: Callable[..., Any]  # (key, raw [b,...]) -> params
    apply: Callable[..., Array]  # (params, raw [b,...], key or None) -> float32 [b,width]
    width: int
    states: Callable[..., Array] | None = None  # as apply -> tokens [b,l,width], before pooling
    params: Any = None  # of a pretrained one: a run's start


def end_to_end(
    recommender: Recommender,
    encoders: Mapping[str, ContentEncoder],
    bound: int | None = 1024,
    refresh: bool = True,
    centre: bool = False,
    remove_drift: bool = False,
) -> Recommender:
    """A recommender over {model, encoders: {m: ...}} parameters.

    bound: distinct items of a batch that are encoded; chance says which are left, as the last draw
    made them (counted by the metric `items_left`). None: no de-duplication, an item is encoded as
    often as it is named. refresh: whether a draw encodes the catalogue; a loss that asks of the
    batch's items alone (in-batch) needs none, where all of them are encoded. centre: vectors have
    mean 0 and deviation 1 over the items that have the modality, as features do, by the last draw
    (catalogue["spread"]): what all items share, most of a young encoder's vector, says nothing.
    remove_drift: what the items of a batch have moved alike since the last draw is taken out.
    """
    if bound is not None and bound < 1:
        raise ValueError(f"bound is {bound}; expected at least one item, or None.")
    if (centre or remove_drift) and not refresh:
        raise ValueError(
            "centre and remove_drift compare with all items, which only a refresh encodes: give "
            "refresh a number of steps, or leave them off."
        )

    def init(key: Array, catalogue: Catalogue, batch: Batch) -> Any:
        own, other = jax.random.split(key)
        model = recommender.init(own, catalogue, batch)
        return {"model": model, "encoders": init_encoders(other, encoders, catalogue)}

    def loss(params: Any, catalogue: Catalogue, batch: Batch, key: Array):
        model_key, encoder_key = jax.random.split(key)
        named = jnp.concatenate([batch[k].reshape(-1) for k in ASKED if k in batch])
        n = len(catalogue["valid"])
        if not refresh and bound is not None and bound < min(len(named), n):
            raise ValueError(
                f"a batch names up to {min(len(named), n)} items and {bound} are encoded: without "
                "a refresh the others would have no vector. Raise bound, or refresh."
            )
        ids, left = (named, 0) if bound is None else _distinct(key, named, bound, n)
        fresh = encoded(encoders, params, catalogue, ids, encoder_key)
        if centre:
            fresh = {m: standardised(x, *catalogue["spread"][m]) for m, x in fresh.items()}
        if remove_drift:
            fresh = {m: _undrifted(x, catalogue, m, ids) for m, x in fresh.items()}
        tables = {m: _put(catalogue["features"][m], ids, x) for m, x in fresh.items()}
        seen = {**catalogue, "features": {**catalogue["features"], **tables}}
        value, metrics = recommender.loss(params["model"], seen, batch, model_key)
        return value, {**metrics, "items_left": jnp.asarray(left, jnp.float32)}

    def prepare(catalogue: Catalogue, parts: int = 1) -> Catalogue:
        n, features = len(catalogue["valid"]), dict(catalogue.get("features", {}))
        for name, one in encoders.items():
            _check(catalogue, name, n)
            features[name] = np.zeros((n, one.width), np.float32)
        made = recommender.prepare({**catalogue, "features": features}, parts)
        none = {m: (np.zeros(e.width, np.float32),) * 2 for m, e in encoders.items()}
        return {**made, "spread": none} if centre else made

    def draw(params: Any, catalogue: Catalogue, key: Array) -> Catalogue:
        made = encoded_catalogue(encoders, params, catalogue, centre)
        return recommender.draw(params["model"], made, key)

    def index(params: Any, catalogue: Catalogue) -> Any:
        made = encoded_catalogue(encoders, params, catalogue, centre)
        return recommender.index(params["model"], made)

    def of_model(function: Callable | None) -> Callable | None:
        if function is None:
            return None
        return lambda params, *rest: function(params["model"], *rest)

    reader, plain_draw = recommender.incremental, recommender.draw
    if plain_draw is not undrawn:
        plain_draw = of_model(plain_draw)
    return recommender._replace(
        init=init,
        loss=loss,
        index=index,
        prepare=prepare,
        draw=draw if refresh else plain_draw,
        recommend=of_model(recommender.recommend),
        score=of_model(recommender.score),
        encode=of_model(recommender.encode),
        match=of_model(recommender.match),
        incremental=reader and reader._replace(extend=of_model(reader.extend)),
    )


def encoded_catalogue(
    encoders: Mapping[str, ContentEncoder],
    params: Any,
    catalogue: Catalogue,
    centre: bool = False,
) -> Catalogue:
    """The catalogue with the features of all items made anew, by the parameters of `end_to_end`."""
    if not encoders:
        return catalogue
    n = len(catalogue["valid"])
    of = lambda ids: encoded(encoders, params, catalogue, ids)  # noqa: E731
    made = in_blocks(of, CHUNK, jnp.arange(n))
    if centre:
        spread = {m: spread_of(x, catalogue["present"][m]) for m, x in made.items()}
        made = {m: standardised(x, *spread[m]) for m, x in made.items()}
        catalogue = {**catalogue, "spread": spread}
    return {**catalogue, "features": {**catalogue["features"], **made}}


def spread_of(x: Array, present: Array) -> tuple[Array, Array]:
    """Mean and deviation float32 [f] of the rows x [n,f] that are present."""
    weights = present / jnp.maximum(jnp.sum(present), 1)
    mean = weights @ x
    return mean, jnp.sqrt(weights @ jnp.square(x - mean[None]))


def standardised(x: Array, mean: Array, deviation: Array, least: float = 1e-3) -> Array:
    """[c,f] of mean 0 and deviation 1; a column that hardly differs is not blown up."""
    return (x - mean[None]) / jnp.maximum(deviation, least)[None]


def init_encoders(
    key: Array, encoders: Mapping[str, ContentEncoder], catalogue: Catalogue
) -> dict[str, Any]:
    """{m: fresh parameters}."""
    first = jnp.zeros(1, jnp.int32)
    return {
        m: one.init(jax.random.fold_in(key, i), rows_of(catalogue, m, first))
        for i, (m, one) in enumerate(encoders.items())
    }


def rows_of(catalogue: Catalogue, m: str, ids: Array) -> Any:
    """The raw content of items ids [c] in one modality."""
    return jax.tree.map(lambda x: jnp.take(x, ids, axis=0, mode="clip"), catalogue["raw"][m])


def encoded(
    encoders: Mapping[str, ContentEncoder],
    params: Any,
    catalogue: Catalogue,
    ids: Array,
    key: Array | None = None,
) -> dict[str, Array]:
    """{m: [c,f]} of items ids [c]; key: of the dropout, None: serving."""
    made = {}
    for i, (name, one) in enumerate(encoders.items()):
        own = None if key is None else jax.random.fold_in(key, i)
        made[name] = one.apply(params["encoders"][name], rows_of(catalogue, name, ids), own)
    return made


def _distinct(key: Array, named: Array, bound: int, n: int) -> tuple[Array, Array]:
    """(`bound` distinct items, the next ones from a random id on, n where there are fewer; how many
    distinct items there are beyond them)."""
    start = jax.random.randint(jax.random.fold_in(key, n), (), 0, n)
    ids = jnp.unique((named - start) % n, size=min(bound, n), fill_value=n)
    ids = jnp.where(ids < n, (ids + start) % n, n)
    counted = jnp.zeros(n, bool).at[named].set(True)
    return ids, jnp.sum(counted) - jnp.sum(ids < n)


def _undrifted(fresh: Array, catalogue: Catalogue, m: str, ids: Array) -> Array:
    """Fresh rows [c,f] without what all of them have moved alike since the last draw.

    The other rows of the table have not moved. Were it left in, pulling every item of the batch
    along the queries would part the targets from all other items at no merit: a loss that falls
    until the next draw moves all items alike.
    """
    there = jnp.take(catalogue["present"][m], ids, mode="fill", fill_value=False)
    before = jnp.take(catalogue["features"][m], ids, axis=0, mode="clip")
    moved = jnp.where(there[:, None], fresh - jax.lax.stop_gradient(before), 0.0)
    return fresh - jnp.sum(moved, axis=0, keepdims=True) / jnp.maximum(jnp.sum(there), 1)


def _put(table: Array, ids: Array, fresh: Array) -> Array:
    """`table` with the mean of the fresh rows of each item in its place."""
    table = jax.lax.stop_gradient(table)
    counts = jnp.zeros(len(table)).at[ids].add(1.0, mode="drop")
    share = fresh / jnp.maximum(jnp.take(counts, ids, mode="clip"), 1.0)[:, None]
    return jnp.where(counts[:, None] > 0, 0.0, table).at[ids].add(share, mode="drop")


def _check(catalogue: Catalogue, name: str, n: int) -> None:
    if name not in catalogue.get("raw", {}):
        raise ValueError(
            f"there is an encoder for '{name}', but catalogue['raw'] has "
            f"{sorted(catalogue.get('raw', {}))}: it needs what the encoder reads, one row an item."
        )
    if name not in catalogue["present"]:
        raise ValueError(f"catalogue['present'] lacks '{name}': which items have it.")
    sizes = {len(x) for x in jax.tree.leaves(catalogue["raw"][name])}
    if sizes != {n}:
        raise ValueError(f"catalogue['raw']['{name}'] has {sizes} rows; expected {n}, one an item.")
