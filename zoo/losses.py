"""Losses as pure functions of scores or vectors, each a float32 mean over weighted positions.

Scores: `pos` [...] is the score of the item that was chosen, `neg` [...,k] are those of k others.
Where `weights` [...] is given, positions of weight 0 carry no loss and may hold anything finite.
`*_each` gives the loss of every position instead of the mean. Inputs may be bfloat16; everything
is computed in float32. Column masks put -1e9 after temperature and correction, never -inf, so a
row with nothing left has a finite loss. The full softmax over a table stands in softmax.py.
"""

import jax
import jax.numpy as jnp
from jax import lax

from zoo.negatives import log_probability as log_probability
from zoo.negatives import sample_among as sample_among
from zoo.negatives import sample_by_counts as sample_by_counts
from zoo.negatives import sample_uniform as sample_uniform

Array = jax.Array

MASKED = -1e9
MAX_LOG_SCALE = 4.605170185988092  # ln 100, the bound on CLIP's scale
LOG_Q_FLOOR = -23.025850929940457  # ln 1e-10: an item never seen must not get an infinite logit


def mean(values: Array, weights: Array | None = None) -> Array:
    """Weighted mean over all positions, float32; 0 where all weights are 0."""
    values = _wide(values)
    if weights is None:
        return jnp.mean(values)
    weights = _wide(weights)
    total = jnp.sum(weights)
    return jnp.sum(values * weights) / jnp.where(total > 0, total, 1)


def normalise(x: Array, eps: float = 1e-12) -> Array:
    """x / |x| over the last axis, in x's dtype. A zero vector stays zero and has gradient 0."""
    wide = _wide(x)
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    nonzero = square > eps * eps
    scale = jnp.where(nonzero, lax.rsqrt(jnp.where(nonzero, square, 1)), 0)
    return (wide * scale).astype(x.dtype)


def cosine(x: Array, y: Array) -> Array:
    """Cosine over the last axis, [...,d] and [...,d] to float32 [...]; 0 with a zero vector."""
    return jnp.sum(normalise(_wide(x)) * normalise(_wide(y)), axis=-1)


# From scores of one positive and k negatives.


def bpr_each(pos: Array, neg: Array) -> Array:
    """-ln sigmoid(f_p - f_n), mean over the k negatives: [...] and [...,k] to [...]."""
    return jnp.mean(jax.nn.softplus(_wide(neg) - _wide(pos)[..., None]), axis=-1)


def bpr(pos: Array, neg: Array, weights: Array | None = None) -> Array:
    """Bayesian personalised ranking (Rendle et al. 2009, arXiv 1205.2618)."""
    return mean(bpr_each(pos, neg), weights)


def bce_each(pos: Array, neg: Array) -> Array:
    """-ln sigmoid(f_p) - sum_n ln sigmoid(-f_n): [...] and [...,k] to [...]."""
    return gbce_each(pos, neg, 2, 0.0)


def bce(pos: Array, neg: Array, weights: Array | None = None) -> Array:
    """Binary cross entropy with sampled negatives (SASRec, arXiv 1808.09781, has one)."""
    return mean(bce_each(pos, neg), weights)


def gbce_each(pos: Array, neg: Array, n_items: int | Array, t: float) -> Array:
    """-beta ln sigmoid(f_p) - sum_n ln sigmoid(-f_n): [...] and [...,k] to [...].

    alpha = k / (n_items - 1), beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha).
    """
    beta = 1 - t * (1 - neg.shape[-1] / (n_items - 1))
    return beta * jax.nn.softplus(-_wide(pos)) + jnp.sum(jax.nn.softplus(_wide(neg)), axis=-1)


def gbce(
    pos: Array, neg: Array, weights: Array | None, n_items: int | Array, t: float = 0.75
) -> Array:
    """Generalised BCE of gSASRec (arXiv 2308.07192): t 0 is BCE, t 1 is calibrated.

    Negatives must be uniform over the n_items real items. The sum over negatives is not divided
    by k + 1, as some code does. beta softplus(-f_p) needs no float64.
    """
    return mean(gbce_each(pos, neg, n_items, t), weights)


def sampled_softmax_each(
    pos: Array,  # ...
    neg: Array,  # ... k
    hits: Array | None = None,  # ... k, True where the negative is the target
    log_q_neg: Array | None = None,  # ... k or k
    log_q_pos: Array | None = None,  # ...
) -> Array:
    """-z_p + lse({z_p} and {z_n}), z = f - ln Q: [...]."""
    pos = _corrected(pos, log_q_pos)
    neg = _masked(_corrected(neg, log_q_neg), hits)
    return jax.nn.logsumexp(jnp.concatenate([pos[..., None], neg], axis=-1), axis=-1) - pos


def sampled_softmax(
    pos: Array,
    neg: Array,
    weights: Array | None = None,
    hits: Array | None = None,
    log_q_neg: Array | None = None,
    log_q_pos: Array | None = None,
) -> Array:
    """Softmax among the target and k sampled negatives; logQ correction where ln Q is given.

    The correction (Bengio & Senecal 2008; Yi et al. 2019) leaves the positive alone unless
    `log_q_pos` is given too. Uniform negatives need none. `hits` marks accidental hits.
    """
    return mean(sampled_softmax_each(pos, neg, hits, log_q_neg, log_q_pos), weights)


def fixed_logq_each(
    pos: Array,  # ...
    neg: Array,  # ... k
    log_q_pos: Array,  # ...
    log_q_neg: Array,  # ... k or k
    hits: Array | None = None,  # ... k
) -> Array:
    """sg(1 - p_p) (-f_p + lse_n(f_n - ln Q'_n)), Q'_n = Q_n / (1 - Q_p): [...].

    p_p is the softmax of f_p among f_n - ln Q'_n - ln k, with k the negatives that are no hits.
    """
    pos, log_q_pos = _wide(pos), _wide(log_q_pos)
    log_q = jnp.broadcast_to(_wide(log_q_neg), neg.shape)
    neg = _masked(_corrected(neg, log_q - jnp.log1p(-jnp.exp(log_q_pos))[..., None]), hits)
    spread = jax.nn.logsumexp(neg, axis=-1)
    k = neg.shape[-1] if hits is None else jnp.maximum(jnp.sum(~hits, axis=-1), 1)
    unsure = jax.nn.sigmoid(spread - jnp.log(k) - pos)  # 1 - p_p
    left = True if hits is None else ~jnp.all(hits, axis=-1)
    return jnp.where(left, lax.stop_gradient(unsure) * (spread - pos), 0)


def fixed_logq(
    pos: Array,
    neg: Array,
    log_q_pos: Array,
    log_q_neg: Array,
    weights: Array | None = None,
    hits: Array | None = None,
) -> Array:
    """Sampled softmax whose logQ correction knows that the positive was given, not sampled.

    arXiv 2507.09331. The value can be negative: only its gradient estimates that of the full
    softmax. `log_q_*` is ln of the probability to draw the item as a negative.
    """
    return mean(fixed_logq_each(pos, neg, log_q_pos, log_q_neg, hits), weights)


# From vectors: the columns of a batch are each other's negatives.


def in_batch_softmax(
    queries: Array,  # b d
    items: Array,  # c d, c >= b: column i belongs to row i
    item_ids: Array,  # c, 0 = padding
    log_q: Array | None = None,  # c
    weights: Array | None = None,  # b
    temperature: float | Array = 1.0,
    exclude: Array | None = None,  # b c
) -> Array:
    """Cross entropy over columns q.e / temperature - ln Q, the positive corrected too.

    Yi et al. 2019. Columns of padding (id 0) and, after the correction, those that show the
    row's own item again get -1e9; `exclude` names more, such as the user's other items.
    Columns beyond b are further negatives for every row.
    """
    same = item_ids[: len(queries), None] == item_ids[None, :]
    keep = ~same & (item_ids > 0)[None, :]
    if exclude is not None:
        keep &= ~exclude
    return info_nce(queries, items, keep, temperature, weights, log_q)


def mixture_log_q(
    log_popularity: Array,  # c, ln of the probability of the item in a batch slot
    item_ids: Array,  # c
    batch: int,
    n_items: int | Array,
) -> Array:
    """ln Q_j = ln (B Q_pop(j) + B' / N) / (B + B') for B batch columns and the B' behind them.

    Mixed negative sampling (Yang et al. 2020). Only columns with an id above 0 are counted.
    """
    present = _wide(item_ids > 0)
    drawn, uniform = jnp.sum(present[:batch]), jnp.sum(present[batch:])
    chance = drawn * jnp.exp(_wide(log_popularity)) + uniform / n_items
    return jnp.log(chance / jnp.maximum(drawn + uniform, 1))


def mixed_negatives(
    queries: Array,  # b d
    items: Array,  # b d
    item_ids: Array,  # b, 0 = padding
    uniform: Array,  # u d, vectors of uniform negatives
    uniform_ids: Array,  # u
    log_popularity: Array,  # b+u, ln of the probability of the item in a batch slot
    n_items: int | Array,
    weights: Array | None = None,  # b
    temperature: float | Array = 1.0,
) -> Array:
    """In-batch softmax with uniform columns added and Q of the mixture (MNS, Yang et al. 2020)."""
    columns, ids = jnp.concatenate([items, uniform]), jnp.concatenate([item_ids, uniform_ids])
    log_q = mixture_log_q(log_popularity, ids, len(queries), n_items)
    return in_batch_softmax(queries, columns, ids, log_q, weights, temperature)


def info_nce(
    a: Array,  # b d
    b: Array,  # c d, c >= b
    mask: Array | None = None,  # b c, False takes a column away; the diagonal always stays
    temperature: float | Array = 1.0,
    weights: Array | None = None,  # b
    log_q: Array | None = None,  # c
) -> Array:
    """Cross entropy of row i on column i over a.b / temperature (arXiv 1807.03748, eq. 4).

    Vectors are taken as they are: normalise them for cosines.
    """
    logits = _corrected(_dots(a, b) / temperature, log_q)
    own = jnp.arange(a.shape[0])[:, None] == jnp.arange(b.shape[0])[None, :]
    logits = logits if mask is None else jnp.where(mask | own, logits, MASKED)
    return mean(jax.nn.logsumexp(logits, axis=-1) - jnp.diagonal(logits), weights)


def clip(
    x: Array,
    y: Array,
    log_scale: Array,
    weights: Array | None = None,
    same: Array | None = None,  # bool b b, symmetric
) -> Array:
    """Mean of row and column cross entropy of t x.y, t = min(exp(log_scale), 100).

    CLIP (arXiv 2103.00020, fig. 3). x, y [b,d] normalised; pairs of weight 0 are no columns, and
    rows that are the `same` are no negatives of each other.
    """
    scale = jnp.exp(jnp.minimum(_wide(jnp.asarray(log_scale)), MAX_LOG_SCALE))
    mask = None if weights is None else jnp.broadcast_to((weights > 0)[None, :], (len(x), len(y)))
    mask = mask if same is None else ~same if mask is None else mask & ~same
    rows = info_nce(x, y, mask, 1 / scale, weights)
    return (rows + info_nce(y, x, mask, 1 / scale, weights)) / 2


def siglip(
    x: Array,
    y: Array,
    log_scale: Array,
    bias: Array,
    weights: Array | None = None,
    same: Array | None = None,  # bool b b
) -> Array:
    """-(1/B) sum_ij ln sigmoid(z_ij (t x_i.y_j + bias)), z 1 on the diagonal and else -1.

    SigLIP (arXiv 2303.15343, eq. 1), t = exp(log_scale). x, y [b,d] normalised; start with
    log_scale ln 10 and bias -10. Pairs of weight 0 are left out and B counts the others; of rows
    that are the `same`, only the diagonal counts.
    """
    logits = jnp.exp(_wide(jnp.asarray(log_scale))) * _dots(x, y) + _wide(jnp.asarray(bias))
    sign = 2 * jnp.eye(len(x), dtype=logits.dtype) - 1
    losses = jax.nn.softplus(-sign * logits)
    if weights is not None:
        losses = losses * (weights > 0)[None, :]
    if same is not None:
        losses = losses * (~same | jnp.eye(len(x), dtype=bool))
    return mean(jnp.sum(losses, axis=-1), weights)


def bootstrap(pred: Array, target: Array, weights: Array | None = None) -> Array:
    """1 - cos(pred, sg(target)), no negatives (BYOL, arXiv 2006.07733; BM3, 2207.05969)."""
    return mean(1 - cosine(pred, lax.stop_gradient(target)), weights)


def _wide(x: Array) -> Array:
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _dots(a: Array, b: Array) -> Array:
    wide = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    return jnp.einsum("bd,cd->bc", a, b, preferred_element_type=wide)


def _corrected(scores: Array, log_q: Array | None) -> Array:
    """scores - ln Q."""
    if log_q is None:
        return _wide(scores)
    return _wide(scores) - jnp.broadcast_to(jnp.maximum(_wide(log_q), LOG_Q_FLOOR), scores.shape)


def _masked(scores: Array, hits: Array | None) -> Array:
    return scores if hits is None else jnp.where(hits, MASKED, scores)
