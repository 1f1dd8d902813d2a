"""MMGRec: the next item's Rec-ID, spelled from the unordered set of the user's other items.

Liu et al. 2024 (arXiv 2404.16555). Items and users have frozen vectors of a graph model over
content (graphsage); a residual quantiser turns the items' into codes, the popularity rank among
those of equal codes makes them unique (tokenize.py). The set is read by relation-aware attention
(relation.py). Here the target is never part of the set it is asked from, nor of the user's vector,
which is the mean of the set (users="mean"). A graph's vector of the user ("graph", as published)
has been trained on the target, which a model can learn to read off it. Every level has a vocabulary
of its own, the beam is held to items that exist, and the decoder is of T5's blocks, where the
paper's has sinusoidal positions. `mmgrec_official` is, but for those blocks, what the authors' code
does: the target is in the set it is asked from (scheme `whole`), users have the graph's vectors,
all levels one vocabulary, and a beam of 10 is held to nothing. It learns to copy
(tests/test_generative.py).
Train:  zoo train graphsage --data tiktok --out runs/graphsage
        zoo tokenize --data tiktok --run runs/graphsage --method rqvae --size 128 --out ids.json
        zoo train mmgrec --data tiktok --vectors runs/graphsage --codes ids.json --out runs/mmgrec
"""

from functools import partial

import jax
import jax.numpy as jnp

from zoo.encoders.t5 import T5Stack
from zoo.models.generative import Speller, generative
from zoo.recommender import Recommender
from zoo.relation import SetEncoder

Array = jax.Array


class SetSpeller(Speller):
    """A Speller whose encoder reads sets: item vectors [b,l,f], user vectors [b,l,u]."""

    encoder: SetEncoder

    def read(self, history: tuple, mask: Array, train: bool = False) -> Array:
        items, users = history
        return self.encoder(items, users, mask[:, None], train)


def vectors_of(users: str, holder: dict, batch: dict) -> tuple[Array, Array]:
    """Frozen vectors of the items of a batch [b,l,f] and of their users [b,l,u].

    Raises ValueError where the catalogue has none.
    """
    if "vectors" not in holder:
        raise ValueError(
            "mmgrec reads the vectors of a trained graph model; the catalogue has none. Train one "
            "(zoo train graphsage) and name its run: --vectors RUN."
        )
    vectors = holder["vectors"]
    items = jnp.take(vectors["items"], batch["items"], axis=0)
    folded = _mean(items, batch)
    if users == "mean":
        return items, folded
    own = jnp.take(vectors["users"], batch["users"], axis=0)
    return items, jnp.where((batch["users"] > 0)[:, :, None], own, folded)  # strangers: the mean


def _mean(items: Array, batch: dict) -> Array:
    """[b,l,f]: at every place the mean of its set."""
    same = (batch["segments"][:, :, None] == batch["segments"][:, None, :]).astype(items.dtype)
    return jnp.einsum("bkl,bld->bkd", same / jnp.sum(same, axis=-1, keepdims=True), items)


def mmgrec(
    width: int = 64,
    layers: int = 2,
    decoder_layers: int = 2,
    heads: int = 4,
    head_width: int = 64,
    inner: int = 256,
    max_len: int = 32,
    dropout: float = 0.2,
    users: str = "mean",
    beam: int = 20,
    among: str = "existing",
    shared: bool = False,
    held: bool = True,
) -> Recommender:
    """ln p(Rec-ID | set, user); fields are those of SetEncoder, T5Stack, Speller, generative."""
    if users not in ("mean", "graph"):
        raise ValueError(f"users is '{users}'; expected 'mean' or 'graph'.")
    if shared and among == "existing":
        raise ValueError("one vocabulary for all levels (shared) needs among='all'.")
    encoder = SetEncoder(layers, width, heads, head_width, dropout)
    sizes = {"heads": heads, "head_width": head_width, "width": width, "inner": inner}
    decoder = T5Stack(decoder_layers, **sizes, cross=True, both_ways=False, dropout=dropout)
    speller = partial(SetSpeller, encoder=encoder, decoder=decoder, shared=shared)
    read = partial(vectors_of, users)
    return generative(speller, False, beam, read, ("vectors",), among=among, held=held)
