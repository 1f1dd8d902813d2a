"""generative(...): an item is a word of a few codes, and the next one is spelled, code by code.

    p(item | history) = prod_l p(c_l | c_1 .. c_{l-1}, history)

A history is encoded once; a decoder of T5 blocks spells from its states. Training asks at every
place of a packed row (`next`: a causal encoder, one pass a user) or at the end of every prefix
(`last`: the published recipe, one pass a prefix). Serving is a beam search over the codes that
exist (decode.py), so every item of a list exists; mmgrec_official alone is held to nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import trie as tries
from zoo.decode import generate, generate_freely
from zoo.encoders.t5 import KeysValues, T5Stack
from zoo.layers import init_normal
from zoo.losses import mean
from zoo.places import segment_mask
from zoo.recommender import Recommender

Array = jax.Array


class Speller(nn.Module):
    """Histories of codes to states, and states to the log-probabilities of codes.

    sizes: codes of each level; a code of level l is row offset_l + code of one table, shared by
    the history, the decoder's input and, as in T5, its output; `shared`: code c is row c at every
    level. by_token: the encoder reads every code, else every item as the sum of its codes. Rows
    start with sd 0.02: at T5's own sd of 1 a step of 1e-3 hardly moves them.
    """

    sizes: tuple[int, ...]
    encoder: T5Stack
    decoder: T5Stack
    by_token: bool = False
    shared: bool = False

    def setup(self):
        d, rows = self.decoder.width, max(self.sizes) if self.shared else sum(self.sizes)
        self.codes = self.param("codes", init_normal, (rows, d))
        self.start = self.param("start", init_normal, (d,))

    @property
    def offsets(self) -> list[int]:
        """The row of each level's first code."""
        return [0 if self.shared else sum(self.sizes[:i]) for i in range(len(self.sizes))]

    def __call__(self, history: tuple, mask: Array, targets: Array) -> Array:
        """Everything once, for init: histories and as many targets int[b,l,c] to [b,l]."""
        memory = self.remember(self.read(history, mask))
        return self.likelihood(memory, mask, targets)

    def read(self, history: tuple, mask: Array, train: bool = False) -> Array:
        """States [b,l,d] (by_token [b,l*c,d]) of a history; mask bool [b,l,l].

        history: codes int[b,l,c] and any vectors [b,l,d] to be added to those of the items (to
        each of their codes by_token).
        """
        codes, *added = history
        present = (codes[:, :, :1] >= 0)[..., None]
        x = self._embed(codes) * present  # b l c d
        b, l, c, d = x.shape
        if self.by_token:
            mask = jnp.repeat(jnp.repeat(mask, c, axis=1), c, axis=2)
            x = sum((y[:, :, None] for y in added), x)
            return self.encoder.encode(x.reshape(b, l * c, d), mask, train)
        return self.encoder.encode(sum(added, jnp.sum(x, axis=2) / c**0.5), mask, train)

    def look(self, seen: Array) -> Array:
        """Which states [b,w,l'] are seen where items [b,w,l] are."""
        return jnp.repeat(seen, len(self.sizes), axis=2) if self.by_token else seen

    def remember(self, states: Array) -> list[KeysValues]:
        """Keys and values of the states, for every layer of the decoder."""
        return self.decoder.read(states)

    def likelihood(
        self,
        memory: list[KeysValues],
        seen: Array,
        targets: Array,
        exists: list[Array] | None = None,
        train: bool = False,
    ) -> Array:
        """ln p float32 [b,w] of items int[b,w,c], all levels at once; among all codes of a level,
        or those that exist [b,w,v]."""
        x = self._embed(jnp.maximum(targets, 0))[:, :, :-1]
        start = jnp.broadcast_to(self._sized(self.start), (*x.shape[:2], 1, x.shape[-1]))
        x = jnp.concatenate([start, x], axis=2)
        h, _ = self.decoder.decode(x, memory, self.look(seen), None, train)
        exists = exists or [None] * len(self.sizes)
        log_p = [self._log_p(h[:, :, i], i, exists[i]) for i in range(len(self.sizes))]
        own = [
            jnp.take_along_axis(p, jnp.maximum(targets[:, :, i : i + 1], 0), axis=-1)[..., 0]
            for i, p in enumerate(log_p)
        ]
        return sum(own)

    def step(
        self, memory: list[KeysValues], seen: Array, past: Any, tokens: Array | None, level: int
    ) -> tuple[Array, Any]:
        """decode.Step: ln p [b,w,v] of the level's codes behind the tokens so far."""
        if level == 0:
            x = jnp.broadcast_to(self._sized(self.start), (len(seen), 1, 1, len(self.start)))
        else:
            x = self._sized(self.codes[tokens + self.offsets[level - 1]])[:, :, None]
        h, past = self.decoder.decode(x, memory, self.look(seen), past)
        return self._log_p(h[:, :, 0], level), past

    def _embed(self, codes: Array) -> Array:
        first = jnp.array(self.offsets).reshape((1,) * (codes.ndim - 1) + (-1,))
        return self._sized(jnp.take(self.codes, jnp.maximum(codes, 0) + first, axis=0))

    def _sized(self, x: Array) -> Array:
        return x * x.shape[-1] ** 0.5

    def _log_p(self, h: Array, level: int, exists: Array | None = None) -> Array:
        first = self.offsets[level]
        size = len(self.codes) if self.shared else self.sizes[level]
        rows = self.codes[first : first + size]
        logits = jnp.einsum("bwd,vd->bwv", h, rows).astype(jnp.float32)
        return jax.nn.log_softmax(logits if exists is None else jnp.where(exists, logits, -1e9))


def codes_of(holder: dict, batch: dict) -> tuple[Array]:
    """What Speller.read reads of a batch: the codes of its items."""
    return (jnp.take(holder["codes"], batch["items"], axis=0),)


class Side(NamedTuple):
    """What a model has beside the spelling: parameters `side`, a loss, another order of lists."""

    init: Callable[..., Any]  # (key, catalogue) -> params
    extend: Callable[..., dict]  # (params, catalogue) -> catalogue with what the side makes of it
    loss: Callable[..., Array]  # (params, catalogue, states [b,s,d], targets [b,s], weights)
    rank: Callable[
        ..., tuple
    ]  # (index, query, the beam's items [b,k], k, exclude) -> items, scores
    keep: tuple[str, ...]  # what of the extended catalogue serving needs


def generative(
    speller: Callable[[tuple[int, ...]], Speller],
    causal: bool,
    beam: int = 20,
    history: Callable[[dict, dict], tuple] = codes_of,
    keep: tuple[str, ...] = (),
    side: Side | None = None,
    among: str = "existing",
    held: bool = True,
) -> Recommender:
    """speller(sizes) makes the module; causal: whether a place of a row hides what came later.

    beam: prefixes kept in the search; k where more are asked for, as evaluation does where items
    share their codes (evaluation.py). history(catalogue or index,
    batch): what the module reads of a batch; keep: what of the catalogue that needs when serving.
    among: what probabilities sum to one over, in training and search alike: the codes that are
    `existing` behind a prefix, so that the decoder need not learn the catalogue by heart, or `all`.
    held: whether the search is held to the codes that exist; without, lists have gaps.
    """
    check_beam(beam)
    if among not in ("existing", "all"):
        raise ValueError(f"among is '{among}'; expected 'existing' or 'all'.")
    if not held and among != "all":
        raise ValueError("a search that is held to nothing (held=False) needs among='all'.")
    keep = ("trie", "codes", "valid", *keep, *(side.keep if side else ()))

    def module(holder: dict) -> Speller:
        return speller(holder["trie"].sizes)

    def apply(params, holder, method, *args, key=None):
        rngs, own = None if key is None else {"dropout": key}, params["speller"]
        return module(holder).apply({"params": own}, *args, method=method, rngs=rngs)

    def extended(params, catalogue):
        return side.extend(params["side"], catalogue) if side else catalogue

    def behind(holder, ids):
        return existing(holder["trie"], ids) if among == "existing" else None

    def init(key, catalogue, batch):
        own, other = jax.random.split(key)
        params = {"side": side.init(other, catalogue)} if side else {}
        holder = extended(params, catalogue)
        mask = segment_mask(batch["segments"], causal)[:, 0]
        targets = jnp.take(catalogue["codes"], batch["items"], axis=0)
        made = module(catalogue).init(own, history(holder, batch), mask, targets)
        return params | {"speller": made["params"]}

    def loss(params, catalogue, batch, key):
        if not causal and "ends" not in batch:
            raise ValueError(
                "causal=False reads what comes after a place, and this batch asks at every place: "
                "take tiger_paper, which asks at the ends of prefixes."
            )
        read_key, spell_key = jax.random.split(key)
        holder, targets = extended(params, catalogue), batch["targets"]
        mask = segment_mask(batch["segments"], causal)[:, 0]
        states = apply(params, holder, "read", history(holder, batch), mask, True, key=read_key)
        memory = apply(params, holder, "remember", states)
        if "ends" in batch:
            mask = jnp.take_along_axis(mask, batch["ends"][:, :, None], axis=1)
        wanted = jnp.take(holder["codes"], targets, axis=0)
        spelled = (memory, mask, wanted, behind(holder, targets), True)
        own = apply(params, holder, "likelihood", *spelled, key=spell_key)
        weights = ((targets > 0) & (wanted[:, :, 0] >= 0)).astype(jnp.float32)
        value = -mean(own, weights)
        if side:
            value += side.loss(params["side"], holder, states, targets, weights)
        return value, {"targets": jnp.sum(weights)}

    def index(params, catalogue):
        holder = extended(params, catalogue)
        return {name: holder[name] for name in keep}

    def encode(params, index, batch):
        at = batch["query"][:, None, None]
        seen = jnp.arange(batch["items"].shape[1])[None, :] <= batch["query"][:, None]
        mask = segment_mask(batch["segments"] * seen, causal)[:, 0]
        states = apply(params, index, "read", history(index, batch), mask)
        query = {"memory": apply(params, index, "remember", states)}
        query["seen"] = jnp.take_along_axis(mask, at, axis=1)
        return query | ({"state": jnp.take_along_axis(states, at, axis=1)[:, 0]} if side else {})

    def recommend(params, index, batch, k):
        query = encode(params, index, batch)
        step = partial(apply, params, index, "step", query["memory"], query["seen"])
        rows, exclude = len(batch["query"]), batch.get("exclude")
        room = max(beam, k) if side else k  # what is ranked anew must not depend on k
        asked = (index["trie"], room, rows, beam, index["valid"], exclude)
        if held:
            found = generate(step, *asked, renormalise=among == "existing")
        else:
            found = generate_freely(step, *asked)
        return side.rank(index, query, found[0], k, exclude) if side else found

    def score(params, index, batch, candidates):
        query, wanted = encode(params, index, batch), jnp.take(index["codes"], candidates, axis=0)
        spelled = (query["memory"], query["seen"], wanted, behind(index, candidates))
        own = apply(params, index, "likelihood", *spelled)
        return jnp.where(wanted[:, :, 0] >= 0, own, -jnp.inf)

    return Recommender(init, loss, index, recommend, score, encode, None, prepare=with_trie)


def check_beam(beam: int) -> None:
    """Raise ValueError for a search that keeps nothing; one may be wider than the catalogue."""
    if beam < 1:
        raise ValueError(f"beam is {beam}; expected at least 1 prefix to search from.")


def existing(trie: tries.Trie, ids: Array) -> list[Array]:
    """By level, bool [...,v]: the codes that exist behind the first ones of items int[...]."""
    states = jnp.take(trie.above, ids, axis=0, mode="clip")
    before = [jnp.full_like(ids, tries.ROOT), *jnp.moveaxis(states, -1, 0)[:-1]]
    return [tries.mask(trie, state, level) for level, state in enumerate(before)]


def with_trie(catalogue: dict[str, Any], parts: int = 1) -> dict[str, Any]:
    """The catalogue with one vocabulary's `codes` int32[n,c] and its `trie`, in place of all."""
    if "trie" in catalogue:
        return catalogue
    _, codes, sizes = one_vocabulary(catalogue)
    kept = {k: v for k, v in catalogue.items() if k not in ("codes", "sizes")}
    trie = tries.build(codes, sizes, codes[:, 0] >= 0, parts=parts)
    return {**kept, "codes": codes, "trie": trie}


def one_vocabulary(catalogue: dict[str, Any]) -> tuple[str, Array, tuple[int, ...]]:
    """Name, codes int32[n,c] and sizes. Raises ValueError without codes, or with several."""
    found = catalogue.get("codes", {})
    if len(found) != 1:
        raise ValueError(
            f"this model spells items in one vocabulary of codes; the catalogue has "
            f"{sorted(found) or 'none'}. Name one: --codes COLUMN, FILE.json or rkmeans."
        )
    name, codes = next(iter(found.items()))
    return name, codes, tuple(int(v) for v in catalogue["sizes"][name])
