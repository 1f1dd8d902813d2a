"""SASRec and its descendants: causal self-attention over the history, one next item a position.

SASRec (Kang & McAuley 2018, arXiv 1808.09781), gSASRec (Petrov & Macdonald 2023, arXiv 2308.07192:
gBCE over many negatives), eSASRec (2025: LiGR blocks, sampled softmax).
Train:  zoo train sasrec --data amazon-beauty --out runs/sasrec
"""

from functools import partial

import jax.numpy as jnp

from zoo.items import Items
from zoo.layers import Stack, Trunk
from zoo.models.coded import CodedItems, with_one_table
from zoo.models.sequential import aligned, sequential
from zoo.objectives import Objective
from zoo.recommender import Recommender


def sasrec(
    width: int = 64,
    layers: int = 2,
    heads: int = 1,
    max_len: int = 50,
    dropout: float = 0.5,
    block: str = "pre",
    ffn: str = "relu",
    multiplier: int = 1,
    objective: str = "ce",
    negatives: int = 256,
    t: float = 0.75,
    similarity: str = "dot",
    temperature: float = 1.0,
    items: str = "id",
    modalities: tuple[str, ...] | None = None,
    fuse: str = "sum",
    hidden: int = 0,
    modality_dropout: float = 0.0,
    codebook: int = 256,
    align: str = "left",
    scan: bool = False,
    remat: bool = False,
    dtype: str = "float32",
) -> Recommender:
    """x_t = item_t sqrt(d) + position_t; h = Stack(x); f_j = h_t . item_j.

    items: `id`, `content`, `both`, or `codes`: the sum of an embedding a code of `codebook` ones a
    level, all that the item is (models/coded.py). block: `pre`, `post`, `ligr` or `original`
    (layers.Block); objective: objectives.NAMES; align: where positions count from
    (sequential.aligned); dtype: of the activations, parameters and losses stay float32. Fields not
    named here are those of Items, Stack and Objective.
    """
    stack = Stack(
        layers, block, heads, ffn, multiplier, dropout, 1e-6, jnp.dtype(dtype), scan, remat
    )
    rest = (
        Trunk(max_len, True, dropout, stack),
        Objective(objective, negatives, t, similarity, temperature),
        aligned(align, max_len),
    )
    if items == "codes":
        made = sequential(CodedItems(width, codebook, pool="sum"), *rest)
        return made._replace(prepare=partial(with_one_table, codebook=codebook))
    return sequential(Items(width, items, modalities, fuse, hidden, modality_dropout), *rest)
