"""Other views of a packed batch, made on the device: items dropped, modalities exchanged.

Nothing moves: a dropped item becomes padding where it stands, and its neighbours' positions close
the gap. So shapes stay, one compile serves every draw, and the attention mask does the rest.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def drop_items(key: Array, batch: dict[str, Array], rate: float | Array) -> dict[str, Array]:
    """The batch (scheme `last`) with each item left out with probability `rate`.

    items, segments, positions [b,l] and ends [b,s] int32 come back changed, the rest as it was:
    dropped columns get item and segment 0, positions are the rank among what is left of the
    segment, and `ends` is the newest survivor. A segment that would lose all keeps its newest
    item. MP4SR's sequence random drop (arXiv 2303.11879), UniSRec's item drop (2206.05941).
    """
    segments = batch["segments"]
    drawn = jax.random.bernoulli(key, 1 - rate, segments.shape) & (segments > 0)
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, :, None]
    kept = drawn | (_newest(same) & ~jnp.any(same & drawn[:, None, :], axis=2))
    columns = jnp.arange(segments.shape[1])
    before = columns[:, None] > columns[None, :]
    rank = jnp.sum(same & kept[:, None, :] & before[None], axis=2, dtype=jnp.int32)
    newest = jnp.max(jnp.where(same & kept[:, None, :], columns[None, None, :], 0), axis=2)
    ends = jnp.take_along_axis(newest, batch["ends"], axis=1)
    ends = jnp.where(batch["targets"] > 0, ends, 0).astype(jnp.int32)
    left = {name: jnp.where(kept, batch[name], 0) for name in ("items", "segments")}
    return {**batch, **left, "positions": jnp.where(kept, rank, 0), "ends": ends}


def _newest(same: Array) -> Array:
    """bool[b,l]: the last column of each segment, from which columns share one [b,l,l]."""
    columns = jnp.arange(same.shape[1])
    return jnp.any(same, axis=2) & ~jnp.any(same & (columns[:, None] < columns[None, :])[None], 2)


def complementary_mixup(key: Array, streams: Array, mask: Array, most: float = 0.5) -> Array:
    """Modalities exchanged at random places: streams [m,...,d], mask bool[...] to [m,...,d].

    One rate p ~ U(0, most) a call; where a Bernoulli(p) draw falls and the mask allows, each
    stream takes the vector of the one before it, so the sum over streams is the same everywhere.
    With two streams they swap, as in MP4SR (arXiv 2303.11879); with one nothing happens.
    """
    rate_key, key = jax.random.split(key)
    rate = jax.random.uniform(rate_key, (), maxval=most)
    swap = jax.random.bernoulli(key, rate, mask.shape) & mask
    return jnp.where(swap[None, ..., None], jnp.roll(streams, 1, axis=0), streams)
