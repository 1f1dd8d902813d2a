"""What encoders learn from content alone: two views of an item agree, the hidden is guessed, and
words are told from pictures.

contrastive     every two modalities of an item among those of the batch: CLIP (arXiv 2103.00020)
siglip          the same, each pair by itself (arXiv 2303.15343)
co-consumption  an item and the one taken next, in training histories, by all their modalities
masked          15 % of the words (BERT, arXiv 1810.04805: of these 80 % hidden, 10 % others), and
                60 % of the patches, of which the pixels are guessed (SimMIM, arXiv 2111.09886),
                each patch standardised (MAE, arXiv 2111.06377); of sound, 60 % of the time, of
                which the spectrogram is guessed
autoregressive  the words of an item one by one, given its picture

A batch is {items int32[b]} (co-consumption: and `others`); the catalogue has `raw`, `present` and
`alike` {m: int32[n]}, a number that items of equal content share: they are no negatives of each
other (co-consumption: the same items are none).
"""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.encoders.audio import sound_patches
from zoo.encoders.image import patches
from zoo.encoders.mel import HOP, spectrogram
from zoo.encoders.small import standard
from zoo.encoders.t5 import T5Stack
from zoo.end_to_end import ContentEncoder, encoded, init_encoders, rows_of
from zoo.layers import init_normal
from zoo.losses import clip, mean, normalise, siglip
from zoo.names import unknown
from zoo.recommender import undrawn

Array = jax.Array
HIDDEN_WORDS, HIDDEN_PATCHES = 0.15, 0.6
UNKNOWN = 1  # the word id that hides a word (pipelines/raw.py)
GREY = 127
FLAT = 1e-4  # added to the variance of a patch


class Pretraining(NamedTuple):
    """As much of a recommender as a training step needs; `view` is for retrieval."""

    init: Callable[..., Any]  # (key, catalogue, batch) -> {encoders, heads}
    loss: Callable[..., tuple[Array, dict[str, Array]]]  # (params, catalogue, batch, key)
    view: Callable[..., dict[str, Array]] | None = None  # (params, catalogue, ids [b]) ->
    # {m: [b,d]}, unit length, where modalities are compared
    draw: Callable[..., dict] = undrawn


class Projections(nn.Module):
    """Each modality's vector into the common space; a scale and a bias for what compares them."""

    width: int
    log_scale: float
    bias: float

    @nn.compact
    def __call__(self, made: dict[str, Array]) -> tuple[dict[str, Array], Array, Array]:
        put = {m: nn.Dense(self.width, use_bias=False, name=m)(x) for m, x in made.items()}
        scale = self.param("log_scale", lambda _: jnp.float32(self.log_scale))
        return put, scale, self.param("bias", lambda _: jnp.float32(self.bias))


class Captioner(nn.Module):
    """ln p of each word [b,t] given those before and memory [b,l,d]: a decoder of T5 blocks."""

    vocabulary: int
    width: int
    layers: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, memory: Array, words: Array, train: bool = False) -> Array:
        table = self.param("words", init_normal, (self.vocabulary, self.width))
        sizes = (self.layers, self.heads, self.width // self.heads, self.width, 4 * self.width)
        decoder = T5Stack(*sizes, cross=True, both_ways=False, name="decoder")
        # The padding id starts a text: it is never a word to be told.
        x = jnp.take(table, jnp.pad(words, ((0, 0), (1, 0)))[:, :-1], axis=0) * self.width**0.5
        seen = jnp.ones((len(memory), 1, memory.shape[1]), bool)
        h, _ = decoder.decode(x[:, None], decoder.read(memory), seen, None, train)
        log_p = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", h[:, 0], table).astype(jnp.float32))
        return jnp.take_along_axis(log_p, words[:, :, None], axis=-1)[..., 0]


def _there(catalogue: dict, m: str, ids: Array) -> Array:
    return jnp.take(catalogue["present"][m], ids) & (ids > 0)


def _alike(catalogue: dict, names: tuple[str, ...], ids: Array) -> Array:
    """bool [b,b]: pairs of items whose content is equal in one of the modalities."""
    numbers = [jnp.take(catalogue["alike"][m], ids) for m in names]
    return jnp.any(jnp.stack([one[:, None] == one[None] for one in numbers]), axis=0)


def _with_heads(encoders: Mapping[str, ContentEncoder], heads: Callable) -> Callable:
    """init: the encoders', and heads(key, params, catalogue, ids)."""

    def init(key, catalogue, batch):
        own, other = jax.random.split(key)
        params = {"encoders": init_encoders(other, encoders, catalogue)}
        return params | {"heads": heads(own, params, catalogue, batch["items"][:1])}

    return init


def contrastive(
    encoders: Mapping[str, ContentEncoder],
    width: int = 64,
    how: str = "clip",
    others: bool = False,
) -> Pretraining:
    """how: `clip` or `siglip`; others: an item beside the one taken next, not beside itself."""
    if len(encoders) < 2 and not others:
        raise ValueError(
            f"contrastive compares two modalities of an item; there is {sorted(encoders)}. Name "
            "two (--encode.modalities image text), or take co-consumption."
        )
    start = (jnp.log(10.0), -10.0) if how == "siglip" else (jnp.log(1 / 0.07), 0.0)
    project = Projections(width, *(float(x) for x in start))

    def heads(key, params, catalogue, ids):
        return project.init(key, encoded(encoders, params, catalogue, ids))["params"]

    def put(params, catalogue, ids, key=None):
        there = {m: _there(catalogue, m, ids) for m in encoders}
        made = encoded(encoders, params, catalogue, ids, key)
        made, scale, bias = project.apply({"params": params["heads"]}, made)
        return {m: normalise(x) for m, x in made.items()}, there, scale, bias

    def agree(x, y, weights, same, scale, bias):
        if how == "siglip":
            return siglip(x, y, scale, bias, weights, same)
        return clip(x, y, scale, weights, same)

    def pairs(params, catalogue, batch, key):
        x, there, scale, bias = put(params, catalogue, batch["items"], key)
        for a, b in combinations(x, 2):
            weights = (there[a] & there[b]).astype(jnp.float32)
            same = _alike(catalogue, (a, b), batch["items"])
            yield agree(x[a], x[b], weights, same, scale, bias)

    def neighbours(params, catalogue, batch, key):
        first, second = jax.random.split(key)
        x, here, scale, bias = put(params, catalogue, batch["items"], first)
        y, there, *_ = put(params, catalogue, batch["others"], second)
        x, y = (normalise(sum(z[m] * w[m][:, None] for m in z)) for z, w in ((x, here), (y, there)))
        some = [sum(w.values()) > 0 for w in (here, there)]
        ids = (batch["items"], batch["others"])
        same = [a[:, None] == b[None] for a in ids for b in ids]
        same = jnp.any(jnp.stack(same), axis=0)
        yield agree(x, y, (some[0] & some[1]).astype(jnp.float32), same, scale, bias)

    def loss(params, catalogue, batch, key):
        value = sum((neighbours if others else pairs)(params, catalogue, batch, key))
        return value, {"scale": jnp.exp(params["heads"]["log_scale"])}

    def view(params, catalogue, ids):
        return put(params, catalogue, ids)[0]

    return Pretraining(_with_heads(encoders, heads), loss, view)


def masked(encoders: Mapping[str, ContentEncoder], patch: int = 16, bands: int = 32) -> Pretraining:
    """The hidden words, patches and sound of each modality by itself; patch and bands as in the
    encoder. ValueError: another modality."""
    for m in encoders:
        if m not in HIDE:
            raise unknown("masked hides nothing of the modality", m, HIDE)

    def head(m: str, catalogue: dict) -> nn.Dense:
        sizes = {"image": 3 * patch**2, "audio": patch**2, "text": _vocabulary(catalogue)}
        return nn.Dense(sizes[m], name=m)

    def heads(key, params, catalogue, ids):
        width = {m: jnp.zeros((1, 1, one.width)) for m, one in encoders.items()}
        return {m: head(m, catalogue).init(key, x)["params"] for m, x in width.items()}

    def loss(params, catalogue, batch, key):
        total, told = 0.0, {}
        for i, (m, one) in enumerate(encoders.items()):
            hide_key, own = jax.random.split(jax.random.fold_in(key, i))
            raw = rows_of(catalogue, m, batch["items"])
            more = {
                "image": (patch,),
                "audio": (patch, bands),
                "text": (jnp.sum(catalogue["vocabulary"]),),
            }
            seen, target, hidden = HIDE[m](hide_key, raw, *more[m])
            states = one.states(params["encoders"][m], seen, own)
            states = states[:, -hidden.shape[1] :]  # without class tokens, which go first
            out = head(m, catalogue).apply({"params": params["heads"][m]}, states)
            weights = hidden & _there(catalogue, m, batch["items"])[:, None]
            told[m] = mean(_wrong(m, out, target), weights.astype(jnp.float32))
            total += told[m]
        return total, told

    return Pretraining(_with_heads(encoders, heads), loss)


def _vocabulary(catalogue: dict) -> int:
    """Rows of the table of words: a shape, since sizes are no traced values."""
    return len(catalogue["vocabulary"])


def _hide_words(key: Array, raw: dict, vocabulary: int | Array):
    hide, how, other = jax.random.split(key, 3)
    ids, mask = raw["ids"], raw["mask"]
    hidden = jax.random.bernoulli(hide, HIDDEN_WORDS, ids.shape) & mask
    draw = jax.random.uniform(how, ids.shape)
    another = jax.random.randint(
        other, ids.shape, UNKNOWN + 1, jnp.maximum(vocabulary, UNKNOWN + 2)
    )
    instead = jnp.where(draw < 0.8, UNKNOWN, jnp.where(draw < 0.9, another, ids))
    return {"ids": jnp.where(hidden, instead, ids), "mask": mask}, ids, hidden


def _hide_patches(key: Array, raw: Array, patch: int):
    b, height, width, _ = raw.shape
    grid = (b, height // patch, width // patch)
    hidden = jax.random.bernoulli(key, HIDDEN_PATCHES, grid)
    over = jnp.repeat(jnp.repeat(hidden, patch, axis=1), patch, axis=2)
    over = jnp.pad(over, ((0, 0), (0, height % patch), (0, width % patch)))
    seen = jnp.where(over[..., None], jnp.asarray(GREY, raw.dtype), raw)
    x = standard(patches(raw.astype(jnp.float32) / 255.0, patch), FLAT)
    return seen, x, hidden.reshape(b, -1)


def _hide_sound(key: Array, raw: Array, patch: int, bands: int):
    """Silence, for stretches as long as a patch; all bands of it are to be guessed."""
    x = sound_patches(spectrogram(raw, bands), patch, (patch, patch))
    rows = bands // patch
    hidden = jax.random.bernoulli(key, HIDDEN_PATCHES, (len(x), x.shape[1] // rows))
    over = jnp.repeat(hidden, patch * HOP, axis=1)
    over = jnp.pad(over, ((0, 0), (0, raw.shape[1] - over.shape[1])))
    return jnp.where(over, 0, raw), standard(x, FLAT), jnp.tile(hidden, (1, rows))


HIDE = {"image": _hide_patches, "text": _hide_words, "audio": _hide_sound}


def _wrong(m: str, out: Array, target: Array) -> Array:
    """[b,l]: squared error of pixels and spectrograms, or -ln p of words."""
    if m != "text":
        return jnp.mean(jnp.square(out - target), axis=-1)
    return -jnp.take_along_axis(jax.nn.log_softmax(out), target[..., None], axis=-1)[..., 0]


def autoregressive(encoders: Mapping[str, ContentEncoder]) -> Pretraining:
    """-ln p of an item's words given the tokens of its picture."""
    if "image" not in encoders or len(encoders) > 1:
        raise ValueError(
            f"autoregressive tells words from pictures: it trains the encoder of image, and was "
            f"given {sorted(encoders)}."
        )
    one = encoders["image"]

    def decoder(catalogue: dict) -> Captioner:
        return Captioner(_vocabulary(catalogue), one.width)

    def heads(key, params, catalogue, ids):
        states = one.states(params["encoders"]["image"], rows_of(catalogue, "image", ids), None)
        words = rows_of(catalogue, "text", ids)["ids"]
        return decoder(catalogue).init(key, states, words)["params"]

    def loss(params, catalogue, batch, key):
        own, drop = jax.random.split(key)
        ids = batch["items"]
        states = one.states(params["encoders"]["image"], rows_of(catalogue, "image", ids), own)
        words = rows_of(catalogue, "text", ids)
        rngs, heads = {"dropout": drop}, {"params": params["heads"]}
        log_p = decoder(catalogue).apply(heads, states, words["ids"], True, rngs=rngs)
        there = _there(catalogue, "image", ids) & _there(catalogue, "text", ids)
        value = -mean(log_p, (words["mask"] & there[:, None]).astype(jnp.float32))
        return value, {"text": value}

    return Pretraining(_with_heads(encoders, heads), loss)


OBJECTIVES = ("contrastive", "siglip", "co-consumption", "masked", "autoregressive")


def objective(
    name: str,
    encoders: Mapping[str, ContentEncoder],
    width: int = 64,
    patch: int = 16,
    bands: int = 32,
) -> Pretraining:
    """One of OBJECTIVES; width: of the space in which views are compared."""
    if name == "masked":
        return masked(encoders, patch, bands)
    if name == "autoregressive":
        return autoregressive(encoders)
    if name not in OBJECTIVES:
        raise unknown("unknown objective", name, OBJECTIVES)
    how = "siglip" if name == "siglip" else "clip"
    return contrastive(encoders, width, how, name == "co-consumption")
