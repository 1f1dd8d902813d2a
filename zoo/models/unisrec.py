"""UniSRec: sequences of content alone, pretrained over domains, fine-tuned with a frozen trunk.

UniSRec (Hou et al. 2022, arXiv 2206.05941), equations 1-9. An item is its text vector through a
mixture of whitening experts, so a trunk learned on some shops reads the items of another:

    x_t = LN(item_t + position_t); h = post-norm Stack(x) at the newest item
    f_j = cos(h, item_j) / temperature
    pretrain  in-batch contrast of sequence and next item + `contrast` x the same of a sequence
              and a copy of it with items dropped
    after it  full softmax over the items that training has seen; `transductive` adds an ID to the
              item's vector

MISSRec's fusion on the side of the candidates is an option (zoo/models/candidate.py).

The paper is 300 wide with a dropout of .5 over shops of millions of events; 64 (with experts and
trunk to match) and .1, chosen on validation, are for data of one small shop, and the default here.
The paper's other augmentation, word drop, is left out: sequences are augmented by item drop. The
catalogue holds an item's vector, not its words; what is left of a vector after a word is known to
the encoder of text alone, and even hashed words (--text hashed) are kept as their normalised sum,
so every step would need the words of all its items beside their vectors, as no other model does.
Train:  zoo train unisrec --data amazon-beauty --model.stage scratch --out runs/unisrec
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import contrast as contrasts
from zoo import losses
from zoo.augment import drop_items
from zoo.experts import Content, Experts, present, read, wanted
from zoo.layers import Stack, Table, Trunk
from zoo.models.candidate import by_candidate
from zoo.models.coded import CodedItems, seen_rows, with_one_table
from zoo.models.sequential import sequential, states
from zoo.names import check
from zoo.objectives import Objective
from zoo.recommender import Recommender

Array = jax.Array

# Regexes of the parameters that a stage trains; all others stay as pretraining left them.
TRAINABLE: dict[str, tuple[str, ...]] = {
    "pretrain": (r".*",),
    "inductive": (r"^items/(?!id/)", r"^fusion/"),  # the adaptor
    "transductive": (r"^items/", r"^fusion/"),  # the adaptor and the ID table
    "scratch": (r".*",),  # the control: the transductive model without pretraining
    "content": (r".*",),  # the control of the inductive one, without IDs
}
FROM_NOTHING = {"transductive": "scratch", "inductive": "content"}
STAGES_WITH_ID = ("transductive", "scratch")
OLDER = {"dropout": 0.5}  # the paper's, of runs from before 64 columns had one of their own
COMBINE = ("sum", "concat")
INPUTS = ("content", "codes")


class AdaptedItems(nn.Module):
    """Item ids to vectors [...,d]: content through experts, and an ID added where `with_id`.

    combine: `sum` gives each modality experts of its own, `concat` has one mixture read all
    features side by side, zeros where one is missing. What is missing adds nothing.
    """

    width: int = 64
    modalities: tuple[str, ...] | None = None  # None: all that the catalogue has
    combine: str = "sum"
    with_id: bool = False
    experts: int = 8
    dropout: float = 0.2

    def there(self, catalogue: dict, ids: Array | None = None) -> Array:
        """bool[...]: items that have something to be represented by."""
        names = wanted(catalogue, self.modalities) + (("id",) if self.with_id else ())
        return jnp.any(jnp.stack([present(catalogue, name, ids) for name in names]), axis=0)

    def __call__(self, catalogue: dict, ids: Array | None = None, train: bool = False) -> Array:
        """Vectors [...,d] of `ids` [...], or of the whole catalogue [n,d]; row 0 is zero."""
        return sum(self.parts(catalogue, ids, train))

    def views(self, catalogue: dict, train: bool = False) -> tuple[Array, Array]:
        """What `__call__` sums, of the whole catalogue: [n,m,d], and which there are bool[n,m]."""
        names, sources = wanted(catalogue, self.modalities), ("id",) if self.with_id else ()
        there = [present(catalogue, name) for name in (*names, *sources)]
        if self.combine == "concat":
            content = jnp.any(jnp.stack(there[: len(names)]), axis=0)
            there = [content, *there[len(names) :]]
        return jnp.stack(self.parts(catalogue, None, train), axis=1), jnp.stack(there, axis=1)

    @nn.compact
    def parts(self, catalogue: dict, ids: Array | None, train: bool) -> list[Array]:
        """[...,d] of each modality, or of all side by side, and of the ID; zero where missing."""
        names = wanted(catalogue, self.modalities)
        if self.combine == "concat":
            parts = [self._joined(catalogue, names, ids, train)]
        else:
            parts = [self._content(m)(catalogue, ids, train) for m in names]
        if self.with_id:
            table = Table(len(catalogue["valid"]), self.width, name="id")()
            parts.append(seen_rows(table, catalogue, ids))
        return parts

    def _content(self, modality: str) -> Content:
        return Content(modality, self.width, self.experts, dropout=self.dropout, name=modality)

    def _joined(self, catalogue: dict, names: tuple[str, ...], ids, train: bool) -> Array:
        there = [present(catalogue, m, ids) for m in names]
        x = [read(catalogue["features"][m], ids) for m in names]
        x = [jnp.where(t[..., None], v, 0) for t, v in zip(there, x, strict=True)]
        mixture = Experts(self.width, self.experts, dropout=self.dropout, name="content")
        y = mixture(jnp.concatenate(x, axis=-1), train)
        return jnp.where(jnp.any(jnp.stack(there), axis=0)[..., None], y, 0)


def unisrec(
    stage: str = "scratch",
    width: int = 64,
    layers: int = 2,
    heads: int = 2,
    max_len: int = 50,
    dropout: float = 0.1,
    multiplier: int = 4,
    experts: int = 8,
    adaptor_dropout: float = 0.2,
    modalities: tuple[str, ...] | None = None,
    combine: str = "sum",
    item_input: str = "content",
    candidate_fusion: bool = False,
    codebook: int = 256,
    temperature: float = 0.07,
    drop_rate: float = 0.2,
    contrast: float = 1e-3,
    dtype: str = "float32",
) -> Recommender:
    """The recommender of a stage: `pretrain`, `inductive`, `transductive`, `scratch` or `content`.

    Trains on batches of the scheme `last`: every prefix of a history with what came after it.
    A stage says the loss and whether items have an ID; which parameters it trains stands in
    TRAINABLE. item_input `codes` is VQ-Rec's item in the same trunk: `codebook` digits a code,
    whose tables `inductive` trains. candidate_fusion: MISSRec's scores after pretraining, by the
    modality that answers the query best (zoo/models/candidate.py). Raises ValueError for an unknown
    stage, combine or item_input, and for candidate_fusion of codes.
    """
    check(stage=(stage, TRAINABLE), combine=(combine, COMBINE), item_input=(item_input, INPUTS))
    with_id = stage in STAGES_WITH_ID
    if item_input == "codes":
        if candidate_fusion:
            raise ValueError("candidate_fusion weighs modalities; item_input='codes' has one view.")
        items = CodedItems(width, codebook, with_id)
    else:
        items = AdaptedItems(width, modalities, combine, with_id, experts, adaptor_dropout)
    stack = Stack(layers, "post", heads, "gelu", multiplier, dropout, 1e-12, jnp.dtype(dtype))
    trunk = Trunk(max_len, scale=False, dropout=dropout, stack=stack, norm=True)
    objective = Objective("ce", similarity="cosine", temperature=temperature)
    base = sequential(items, trunk, objective)

    def vectors(params, catalogue, ids, key):
        rngs = {"dropout": key}
        return items.apply({"params": params["items"]}, catalogue, ids, True, rngs=rngs)

    def views(params, catalogue, key):
        rngs = None if key is None else {"dropout": key}
        train, options = key is not None, {"rngs": rngs, "method": "views"}
        return items.apply({"params": params["items"]}, catalogue, train, **options)

    def queries(params, x, batch, key):
        """States [b s,d] at the ends of the segments."""
        h = states(trunk, params, x, batch, key, batch["ends"])
        return h.reshape(-1, h.shape[-1])

    def pretrain(params, catalogue, batch, key):
        item_key, drop_key, trunk_key = jax.random.split(key, 3)
        ids = jnp.concatenate([batch["items"], batch["targets"]], axis=1)
        length, targets = batch["items"].shape[1], batch["targets"].reshape(-1)
        both = vectors(params, catalogue, ids, item_key)
        x, z = both[:, :length], losses.normalise(both[:, length:].reshape(-1, width))
        twice = _stacked(batch, drop_items(drop_key, batch, drop_rate))
        h = losses.normalise(queries(params, jnp.concatenate([x, x]), twice, trunk_key))
        h, augmented = jnp.split(h, 2)
        weights = (targets > 0) & items.there(catalogue, targets)
        weights = weights.astype(jnp.float32)
        own = contrasts.seq_item(h, z, targets, temperature, weights)
        views = contrasts.seq_seq(h, augmented, targets, temperature, weights)
        metrics = {"targets": jnp.sum(weights), "seq_item": own, "seq_seq": views}
        return own + contrast * views, metrics

    if item_input == "codes":
        base = base._replace(prepare=partial(with_one_table, codebook=codebook))
    if stage == "pretrain":
        return base._replace(loss=pretrain)
    return by_candidate(base, views, queries, objective) if candidate_fusion else base


def _stacked(a: dict[str, Array], b: dict[str, Array]) -> dict[str, Array]:
    """What the trunk reads of two batches, one below the other."""
    return {k: jnp.concatenate([a[k], b[k]]) for k in ("segments", "positions", "ends")}
