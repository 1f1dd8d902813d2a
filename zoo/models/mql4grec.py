"""MQL4GRec: one speller for several languages of codes, one a modality, each translated to each.

Zhai et al. 2025 (ICLR). Every row of a batch has a task, drawn anew each step: history in language
s, next item in language t, for all s and t; and for s other than t the same item from s to t. So
what is learned of the words helps with the pictures. Serving spells the next item in every
language from the history in that language, each search held to its own trie, and merges the lists:
the mean of an item's log-probabilities, plus 1 where all languages list it.
The published recipe encodes every prefix; here a causal encoder is asked at every place, as by
`tiger`. An item without codes in a language is neither asked for in it nor seen through it. `score`
is the mean over all languages that spell an item, without the lists' plus 1.
Train:  zoo train mql4grec --data amazon-instruments --codes sid_text,sid_image --out runs/mql4grec
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo import trie as tries
from zoo.decode import generate
from zoo.encoders.t5 import KeysValues, encoder_decoder
from zoo.layers import init_normal
from zoo.losses import mean
from zoo.models.generative import Speller, check_beam, existing
from zoo.places import segment_mask
from zoo.recommender import Recommender

Array = jax.Array


class Polyglot(Speller):
    """A Speller of several languages: `sizes` are the levels of one, wide enough for all.

    language int[b] says in which one a row's codes are.
    """

    languages: int = 2

    def setup(self):
        d, v = self.decoder.width, self.languages
        self.codes = self.param("codes", init_normal, (v, sum(self.sizes), d))
        self.start = self.param("start", init_normal, (v, d))

    def __call__(self, codes: Array, mask: Array, language: Array) -> Array:
        """Everything once, for init."""
        memory = self.remember(self.read((codes, language), mask))
        return self.likelihood(memory, mask, codes, language)

    def read(self, history: tuple, mask: Array, train: bool = False) -> Array:
        codes, language = history
        present = (codes[:, :, :1] >= 0)[..., None]
        x = jnp.sum(self._words(codes, language) * present, axis=2) / codes.shape[2] ** 0.5
        return self.encoder.encode(x, mask, train)

    def likelihood(
        self,
        memory: list[KeysValues],
        seen: Array,
        targets: Array,
        language: Array,
        exists: list[Array] | None = None,
        train: bool = False,
    ) -> Array:
        x = self._words(targets, language)[:, :, :-1]
        start = jnp.broadcast_to(
            self._sized(self.start[language])[:, None, None], (*x.shape[:2], 1, x.shape[-1])
        )
        x = jnp.concatenate([start, x], axis=2)
        h, _ = self.decoder.decode(x, memory, seen, None, train)
        total = 0.0
        for level in range(len(self.sizes)):
            known = None if exists is None else exists[level]
            log_p = self._spoken(h[:, :, level], level, language, known)
            own = jnp.maximum(targets[:, :, level, None], 0)
            total += jnp.take_along_axis(log_p, own, axis=-1)[..., 0]
        return total

    def step(
        self,
        memory: list[KeysValues],
        seen: Array,
        language: Array,
        past: Any,
        tokens: Array | None,
        level: int,
    ) -> tuple[Array, Any]:
        """decode.Step of rows that are all asked in `language` int[b]."""
        if level == 0:
            x = self._sized(self.start[language])[:, None, None]
        else:
            row = tokens + self.offsets[level - 1]
            x = self._sized(self.codes[language[:, None], row])[:, :, None]
        h, past = self.decoder.decode(x, memory, seen, past)
        return self._spoken(h[:, :, 0], level, language), past

    def _words(self, codes: Array, language: Array) -> Array:
        rows = jnp.maximum(codes, 0) + jnp.array(self.offsets)[None, None]
        return self._sized(self.codes[language[:, None, None], rows])

    def _spoken(self, h: Array, level: int, language: Array, exists=None) -> Array:
        first = self.offsets[level]
        rows = self.codes[:, first : first + self.sizes[level]][language]  # b v d
        logits = jnp.einsum("bwd,bvd->bwv", h, rows)
        logits = logits.astype(jnp.float32)
        return jax.nn.log_softmax(logits if exists is None else jnp.where(exists, logits, -1e9))


def mql4grec(
    width: int = 128,
    layers: int = 2,
    decoder_layers: int = 2,
    heads: int = 4,
    head_width: int = 32,
    inner: int = 256,
    max_len: int = 20,
    dropout: float = 0.1,
    beam: int = 20,
) -> Recommender:
    """ln p in every language, merged; fields are those of T5Stack, generate."""
    check_beam(beam)
    sizes = {"heads": heads, "head_width": head_width, "width": width, "inner": inner}
    encoder, decoder = encoder_decoder(layers, decoder_layers, True, dropout, **sizes)

    def module(holder: dict) -> Polyglot:
        found = holder["tries"]
        levels = tuple(max(trie.sizes[i] for trie in found) for i in range(len(found[0].sizes)))
        return Polyglot(levels, encoder, decoder, languages=len(found))

    def apply(params, holder, method, *args, key=None):
        rngs = None if key is None else {"dropout": key}
        return module(holder).apply({"params": params["speller"]}, *args, method=method, rngs=rngs)

    def behind(holder, ids, language):
        """By level [b,w,v]: the codes that exist behind items ids [b,w] in their row's language."""
        widths = module(holder).sizes
        spoken = [existing(trie, ids) for trie in holder["tries"]]
        rows = jnp.arange(len(ids))
        return [
            jnp.stack([_wide(of[level], width) for of in spoken])[language, rows]
            for level, width in enumerate(widths)
        ]

    def init(key, catalogue, batch):
        codes = jnp.take(catalogue["codes"][:, 0], batch["items"], axis=0)
        mask = segment_mask(batch["segments"])[:, 0]
        language = jnp.zeros(len(codes), jnp.int32)
        return {"speller": module(catalogue).init(key, codes, mask, language)["params"]}

    def loss(params, catalogue, batch, key):
        task_key, read_key, spell_key = jax.random.split(key, 3)
        source, target, same = _tasks(task_key, len(batch["items"]), len(catalogue["tries"]))
        mask = segment_mask(batch["segments"])[:, 0]
        alone = jnp.eye(mask.shape[1], dtype=bool)[None]
        mask = jnp.where(same[:, None, None], alone, mask)
        targets = jnp.where(same[:, None], batch["items"], batch["targets"])
        codes = catalogue["codes"]
        read = codes[batch["items"], source[:, None]], source
        states = apply(params, catalogue, "read", read, mask, True, key=read_key)
        memory, wanted = (
            apply(params, catalogue, "remember", states),
            codes[targets, target[:, None]],
        )
        asked = (memory, mask, wanted, target, behind(catalogue, targets, target), True)
        own = apply(params, catalogue, "likelihood", *asked, key=spell_key)
        heard = ~same[:, None] | (read[0][:, :, 0] >= 0)  # nothing is translated from nothing
        weights = ((targets > 0) & (wanted[:, :, 0] >= 0) & heard).astype(jnp.float32)
        return -mean(own, weights), {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        return {name: catalogue[name] for name in ("tries", "codes", "valid")}

    def encode(params, index, batch):
        """The history in every language: memory and what of it is seen, one a language."""
        seen = jnp.arange(batch["items"].shape[1])[None, :] <= batch["query"][:, None]
        mask = segment_mask(batch["segments"] * seen)[:, 0]
        own = jnp.take_along_axis(mask, batch["query"][:, None, None], axis=1)
        heard = []
        for v in range(len(index["tries"])):
            language = jnp.full(len(mask), v)
            codes = jnp.take(index["codes"][:, v], batch["items"], axis=0)
            states = apply(params, index, "read", (codes, language), mask)
            heard.append((apply(params, index, "remember", states), own, language))
        return heard

    def recommend(params, index, batch, k):
        lists, rows, exclude = [], len(batch["query"]), batch.get("exclude")
        for trie, heard in zip(index["tries"], encode(params, index, batch), strict=True):
            step = partial(apply, params, index, "step", *heard)
            held = (trie, max(beam, k), rows, beam, index["valid"], exclude)
            lists.append(generate(step, *held, renormalise=True))
        return merged(lists, k)

    def score(params, index, batch, candidates):
        total, count = 0.0, 0
        for v, (memory, seen, language) in enumerate(encode(params, index, batch)):
            wanted = jnp.take(index["codes"][:, v], candidates, axis=0)
            exists = behind(index, candidates, language)
            own = apply(params, index, "likelihood", memory, seen, wanted, language, exists)
            known = wanted[:, :, 0] >= 0
            total, count = total + jnp.where(known, own, 0.0), count + known
        return jnp.where(count > 0, total / jnp.maximum(count, 1), -jnp.inf)

    return Recommender(init, loss, index, recommend, score, encode, None, prepare=prepare)


def _wide(mask: Array, width: int) -> Array:
    """bool [...,width]: a language with fewer codes a level has no others."""
    spare = [(0, 0)] * (mask.ndim - 1) + [(0, width - mask.shape[-1])]
    return jnp.pad(mask, spare)


def _tasks(key: Array, rows: int, languages: int) -> tuple[Array, Array, Array]:
    """Source and target language of every row, and whether the target is the item itself."""
    s, t = (x.reshape(-1) for x in np.indices((languages, languages)))
    apart = np.flatnonzero(s != t)
    source, target = np.concatenate([s, s[apart]]), np.concatenate([t, t[apart]])
    same = np.arange(len(source)) >= len(s)
    drawn = jax.random.randint(key, (rows,), 0, len(source))
    return tuple(jnp.asarray(x)[drawn] for x in (source, target, same))


def merged(lists: list[tuple[Array, Array]], k: int) -> tuple[Array, Array]:
    """The k best [b,k] of lists of items and log-probabilities [b,k]: the mean over the lists that
    have an item, plus 1 where all have it; each item once."""
    items = jnp.concatenate([x for x, _ in lists], axis=1)
    scores = jnp.concatenate([x for _, x in lists], axis=1)
    same = (items[:, :, None] == items[:, None, :]) & (items > 0)[:, None, :]
    finite = jnp.where(jnp.isneginf(scores), 0.0, scores)
    count = jnp.sum(same, axis=-1)
    total = jnp.einsum("bij,bj->bi", same.astype(scores.dtype), finite)
    score = total / jnp.maximum(count, 1) + (count == len(lists))
    order = jnp.arange(items.shape[1])
    again = jnp.any(same & (order[None, :] < order[:, None])[None], axis=-1)
    score = jnp.where((items > 0) & ~again, score, -jnp.inf)
    score, at = lax.top_k(score, k)
    items = jnp.take_along_axis(items, at, axis=1)
    return jnp.where(jnp.isneginf(score), 0, items), score


def prepare(catalogue: dict[str, Any], parts: int = 1) -> dict[str, Any]:
    """The catalogue with `codes` int32[n,languages,c] and a trie a language, by name.

    Raises ValueError for fewer than two vocabularies, or of different numbers of levels.
    """
    if "tries" in catalogue:
        return catalogue
    found = catalogue.get("codes", {})
    names = sorted(found)
    levels = {name: found[name].shape[1] for name in names}
    if len(names) < 2 or len(set(levels.values())) > 1:
        raise ValueError(
            f"mql4grec needs two or more vocabularies of one number of levels; found {levels}. "
            "Name them with --codes A,B."
        )
    sizes = [tuple(int(v) for v in catalogue["sizes"][name]) for name in names]
    built = [
        tries.build(found[name], size, found[name][:, 0] >= 0, parts=parts)
        for name, size in zip(names, sizes, strict=True)
    ]
    kept = {k: v for k, v in catalogue.items() if k not in ("codes", "sizes")}
    return {**kept, "codes": np.stack([found[n] for n in names], axis=1), "tries": tuple(built)}
