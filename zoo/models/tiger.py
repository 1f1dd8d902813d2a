"""TIGER: generative retrieval, an encoder-decoder that spells the next item's semantic id.

Rajput et al. 2023 (NeurIPS, arXiv 2305.05065). The published recipe encodes every prefix of every
history, code by code (`tiger_paper`). The default trains the same factorisation at one encoder
pass a user: a causal encoder over items, each the sum of its codes, and the decoder asked at every
place.
Train:  zoo train tiger --data amazon-beauty --codes letter_sid --out runs/tiger
"""

from functools import partial

from zoo.encoders.t5 import encoder_decoder
from zoo.models.generative import Speller, generative
from zoo.recommender import Recommender


def tiger(
    width: int = 128,
    layers: int = 2,
    decoder_layers: int = 2,
    heads: int = 4,
    head_width: int = 32,
    inner: int = 256,
    max_len: int = 20,
    dropout: float = 0.1,
    by_token: bool = False,
    causal: bool = True,
    beam: int = 20,
    among: str = "existing",
) -> Recommender:
    """ln p(item) is the sum over its codes; fields are those of T5Stack, Speller, generative."""
    sizes = {"heads": heads, "head_width": head_width, "width": width, "inner": inner}
    encoder, decoder = encoder_decoder(layers, decoder_layers, causal, dropout, **sizes)
    speller = partial(Speller, encoder=encoder, decoder=decoder, by_token=by_token)
    return generative(speller, causal, beam, among=among)
