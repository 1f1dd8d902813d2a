"""LIGER: semantic ids spelled and content vectors compared, by one encoder: cold items, too.

Yang et al. 2024 (arXiv 2411.18814). A history item is the sum of its codes and its mapped content.
The loss adds to the spelling the softmax of cosines between the history's state and the content of
all items, over a temperature. A list is the beam's items and all those that training has not seen,
ranked by the cosine: a decoder never spells what it has never met. `score` is ln p of the codes.
Train:  zoo train liger --data amazon-beauty --codes rkmeans:text --out runs/liger
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from zoo.encoders.t5 import encoder_decoder
from zoo.items import Items
from zoo.losses import normalise
from zoo.models.generative import Side, Speller, generative
from zoo.recommender import Recommender
from zoo.retrieval import dot_match, scan_top_k
from zoo.softmax import full_softmax

Array = jax.Array


def codes_and_content(holder: dict, batch: dict) -> tuple[Array, Array]:
    """What the speller reads of a batch."""
    return tuple(jnp.take(holder[name], batch["items"], axis=0) for name in ("codes", "content"))


def dense(items: Items, temperature: float) -> Side:
    """Content vectors of the catalogue as `content`, their softmax, and lists of both kinds."""

    def init(key, catalogue):
        return items.init(key, catalogue)["params"]

    def extend(params, catalogue):
        content = items.apply({"params": params}, catalogue)  # of the size of an ID row, as codes
        return {**catalogue, "content": content * items.width**0.5}

    def loss(params, holder, states, targets, weights):
        table, flat = normalise(holder["content"]), normalise(states).reshape(-1, items.width)
        arguments = (flat, targets.reshape(-1), weights.reshape(-1), table, holder["valid"])
        return full_softmax(*arguments, temperature=temperature)

    def rank(index, query, found, k, exclude):
        """The k best by cosine of the beam's items [b,k] and of those without train events."""
        table, state = normalise(index["content"]), normalise(query["state"])
        said = jnp.any(index["content"] != 0, axis=1)  # of an item without content nothing is known
        n, cold = len(table), index["valid"] & (index["popularity"] == 0) & said
        items, scores = scan_top_k(
            partial(dot_match, table, state), n, k, cold, exclude, len(state)
        )
        known = (found > 0) & jnp.take((index["popularity"] > 0) & said, found)
        own = jnp.where(known, dot_match(table, state, found), -jnp.inf)
        items = jnp.concatenate([found, items], axis=1)
        scores, at = lax.top_k(jnp.concatenate([own, scores], axis=1), k)
        items = jnp.take_along_axis(items, at, axis=1)
        return jnp.where(jnp.isneginf(scores), 0, items), scores

    return Side(init, extend, loss, rank, ("content", "popularity"))


def liger(
    width: int = 128,
    layers: int = 2,
    decoder_layers: int = 2,
    heads: int = 4,
    head_width: int = 32,
    inner: int = 256,
    max_len: int = 20,
    dropout: float = 0.1,
    modalities: tuple[str, ...] | None = None,
    hidden: int = 0,
    temperature: float = 0.07,
    beam: int = 20,
    among: str = "existing",
) -> Recommender:
    """Loss: -ln p(codes) + softmax of cosines / temperature. Other fields as tiger, Items."""
    sizes = {"heads": heads, "head_width": head_width, "width": width, "inner": inner}
    encoder, decoder = encoder_decoder(layers, decoder_layers, True, dropout, **sizes)
    speller = partial(Speller, encoder=encoder, decoder=decoder)
    side = dense(Items(width, "content", modalities, "sum", hidden), temperature)
    return generative(speller, True, beam, codes_and_content, side=side, among=among)
