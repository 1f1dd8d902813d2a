"""Contrast of a batch with itself: next items, augmented sequences, two modalities' streams.

Rows are sequences, columns what stands for them: an item, a second view. Sequences that go on to
the same next item are no negatives of each other. Vectors are taken as they are: normalise them
for cosines. `weights` [p] is 0 for rows that only fill the batch: no loss, and no column either.
Everything is float32 at least, and masked columns get -1e9, so every row stays finite.
"""

import jax
import jax.numpy as jnp

from zoo import losses

Array = jax.Array


def nip(
    states: Array,  # p d
    items: Array,  # p d, row i is the item that sequence i went on to
    item_ids: Array,  # p
    temperature: float | Array = 0.07,
    weights: Array | None = None,  # p
    official: bool = False,
) -> Array:
    """Next-item prediction in the batch: -mean_i ln exp(s_ii) / sum_j exp(s_ij), float32 scalar.

    s_ij = h_i.z_j / temperature; columns j that show i's item again are left out. MP4SR (arXiv
    2303.11879) has it once a modality, UniSRec (arXiv 2206.05941, eq. 6) as its sequence-item
    task. `official` is MP4SR's published code: such columns stay, with a logit of 0.
    """
    if not official:
        keep = ~_same(item_ids) & _columns(item_ids, weights)
        return losses.info_nce(states, items, keep, temperature, weights)
    logits = _logits(states, items, temperature)
    logits = _without(logits, item_ids, weights, official)
    return losses.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.diagonal(logits), weights)


def seq_item(
    states: Array,  # p d
    items: Array,  # p d
    item_ids: Array,  # p
    temperature: float | Array = 0.07,
    weights: Array | None = None,  # p
) -> Array:
    """UniSRec's sequence-item contrast (arXiv 2206.05941, eq. 6): `nip`, whatever the domains."""
    return nip(states, items, item_ids, temperature, weights)


def seq_seq(
    states: Array,  # p d
    augmented: Array,  # p d, the same sequences seen another way
    item_ids: Array,  # p, the items that the sequences went on to
    temperature: float | Array = 0.07,
    weights: Array | None = None,  # p
) -> Array:
    """UniSRec's sequence-sequence contrast (arXiv 2206.05941, eq. 7): each sequence finds its own
    augmentation among those of the batch."""
    return nip(states, augmented, item_ids, temperature, weights)


def cmcl(
    a: Array,  # p d
    b: Array,  # p d
    item_ids: Array,  # p, the items that the sequences went on to
    temperature: float | Array = 0.07,
    weights: Array | None = None,  # p
    official: bool = False,
) -> Array:
    """Cross-modality contrast of two streams of the same sequences (MP4SR, arXiv 2303.11879).

    1/2 mean_i (l_a + l_b), l_x = -ln exp(a_i.b_i/t) / (sum_j exp(a_i.b_j/t)
    + sum_{j != i} exp(x_i.x_j/t)). The cross term of both directions runs over the rows of `a`,
    as published: swapping the streams is another loss. Equal next items leave all three sums.
    `official` is the published code: their logits are 0 instead, and the intra-modal diagonal is
    subtracted as exp(1/t) from the finished sum, which costs about 2e-3 in float32.
    """
    return losses.mean(sum(cmcl_each(a, b, item_ids, temperature, weights, official)) / 2, weights)


def cmcl_each(
    a: Array, b: Array, item_ids: Array, temperature=0.07, weights=None, official: bool = False
) -> tuple[Array, Array]:
    """(l_a, l_b) of `cmcl`, float32 [p] each."""
    cross = _without(_logits(a, b, temperature), item_ids, weights, official)
    real = _real(item_ids, weights)

    def one(x: Array) -> Array:
        intra = _without(_logits(x, x, temperature), item_ids, weights, official)
        if official:
            total = jnp.sum(jnp.exp(cross), axis=-1) + jnp.sum(jnp.exp(intra), axis=-1)
            left = jnp.where(real, total - jnp.exp(1 / temperature), 1.0)  # filling has no exp(1/t)
            return jnp.log(left) - jnp.diagonal(cross)
        intra = jnp.where(jnp.eye(len(x), dtype=bool), losses.MASKED, intra)
        both = jnp.concatenate([cross, intra], axis=-1)
        return jax.nn.logsumexp(both, axis=-1) - jnp.diagonal(cross)

    return one(a), one(b)


def _logits(a: Array, b: Array, temperature) -> Array:
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.einsum("pd,cd->pc", a, b, preferred_element_type=wide) / temperature


def _same(item_ids: Array) -> Array:
    """bool[p,p]: another sequence with the same next item."""
    return (item_ids[:, None] == item_ids[None, :]) & ~jnp.eye(len(item_ids), dtype=bool)


def _columns(item_ids: Array, weights: Array | None) -> Array:
    """bool[p,p]: columns that are sequences, and not filling."""
    return jnp.broadcast_to(_real(item_ids, weights)[None, :], (len(item_ids),) * 2)


def _real(item_ids: Array, weights: Array | None) -> Array:
    """bool[p]: rows that do not only fill the batch."""
    return jnp.ones(item_ids.shape, bool) if weights is None else weights > 0


def _without(logits: Array, item_ids: Array, weights: Array | None, official: bool) -> Array:
    """Logits [p,p] with equal next items and filling taken away; the diagonal stays."""
    logits = jnp.where(_same(item_ids), 0.0 if official else losses.MASKED, logits)
    keep = _columns(item_ids, weights) | jnp.eye(len(item_ids), dtype=bool)
    return jnp.where(keep, logits, losses.MASKED)
