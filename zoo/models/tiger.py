"""TIGER: generative retrieval, an encoder-decoder that spells the next item's semantic id.

Rajput et al. 2023 (NeurIPS, arXiv 2305.05065). The published recipe encodes every prefix of every
history, code by code (`tiger_paper`). The default trains the same factorisation at one encoder
pass a user: a causal encoder over items, each the sum of its codes, and the decoder asked at every
place. With `user_tokens` rows a history also knows whose it is: users share the rows by their
number modulo that, as in the paper, whose token before the history is here a vector added to each
of its items, so that packed rows stay as they are; strangers have none.
The paper trains 200,000 steps of 256 sequences at a rate of .01 that falls with the inverse square
root after 10,000 (`--schedule inverse-sqrt --rate 0.01 --warmup 10000 --steps 200000`; a step here
is of packed rows, each of several sequences). That is no default: with the zoo's Adam nobody has
tried that rate, and the rows of the results name the settings that they were trained with.
Train:  zoo train tiger --data amazon-beauty --codes letter_sid --out runs/tiger
"""

from functools import partial

import jax
import jax.numpy as jnp

from zoo.encoders.t5 import encoder_decoder
from zoo.layers import init_normal
from zoo.models.generative import Speller, codes_of, generative
from zoo.recommender import Recommender

Array = jax.Array


class Personal(Speller):
    """A Speller of histories (codes int[b,l,c], users int[b,l]); user 0 is a stranger."""

    user_tokens: int = 2000

    def setup(self):
        super().setup()
        self.owners = self.param("owners", init_normal, (self.user_tokens, self.decoder.width))

    def read(self, history: tuple, mask: Array, train: bool = False) -> Array:
        codes, users = history
        own = self._sized(self.owners[users % self.user_tokens]) * (users > 0)[:, :, None]
        return super().read((codes, own), mask, train)


def codes_and_users(holder: dict, batch: dict) -> tuple[Array, Array]:
    """What the speller reads of a batch."""
    users = jnp.broadcast_to(jnp.asarray(batch["users"]), batch["items"].shape)
    return (*codes_of(holder, batch), users)


def tiger(
    width: int = 128,
    layers: int = 2,
    decoder_layers: int = 2,
    heads: int = 4,
    head_width: int = 32,
    inner: int = 256,
    max_len: int = 20,
    dropout: float = 0.1,
    user_tokens: int = 0,
    by_token: bool = False,
    causal: bool = True,
    beam: int = 20,
    among: str = "existing",
) -> Recommender:
    """ln p(item) is the sum over its codes; fields are those of T5Stack, Speller, generative."""
    if user_tokens < 0:
        raise ValueError(f"user_tokens is {user_tokens}; expected 0, for none, or more.")
    sizes = {"heads": heads, "head_width": head_width, "width": width, "inner": inner}
    encoder, decoder = encoder_decoder(layers, decoder_layers, causal, dropout, **sizes)
    parts = {"encoder": encoder, "decoder": decoder, "by_token": by_token}
    if not user_tokens:
        return generative(partial(Speller, **parts), causal, beam, among=among)
    speller = partial(Personal, **parts, user_tokens=user_tokens)
    return generative(speller, causal, beam, codes_and_users, among=among)
