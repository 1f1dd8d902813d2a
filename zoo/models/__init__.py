"""The register: name -> constructor, variant fields, family, paper. `build` makes one."""

import importlib
import inspect
from typing import Any, NamedTuple

from zoo.names import at_least, between, unknown
from zoo.recommender import Recommender

SIZES = ("width", "heads", "head_width", "qk_width", "v_width", "inner", "experts")
SIZES += ("max_len", "beam")
LAYERS = ("layers", "decoder_layers", "item_layers", "hidden")


class Entry(NamedTuple):
    """One name of the register; nothing heavy is imported before `constructor()`."""

    family: str  # sequential, generative, two-tower, graph, floor
    home: str  # module
    function: str
    fields: dict[str, Any]  # what the variant sets beside the constructor's defaults
    paper: str
    summary: str
    targets: str = "next"  # what a training batch asks for: pipelines.transforms.SCHEMES
    codes: str = "rkmeans"  # the semantic ids that it reads, if it does and none are named

    @property
    def text(self) -> str:
        """The features of words that it reads, if it does and none are named: many columns where
        they alone tell items apart, few where they are quantised, or smoothed over a graph."""
        return "lsa:768" if self.family in ("sequential", "two-tower") else "lsa"

    def constructor(self):
        """The function that returns the Recommender."""
        return getattr(importlib.import_module(self.home), self.function)


def _entry(
    family: str,
    where: str,
    paper: str,
    summary: str,
    targets: str = "next",
    codes: str = "rkmeans",
    **fields,
) -> Entry:
    home, function = where.split(":")
    return Entry(family, f"zoo.models.{home}", function, fields, paper, summary, targets, codes)


MODELS: dict[str, Entry] = {
    "sasrec": _entry(
        "sequential",
        "sasrec:sasrec",
        "arXiv 1808.09781",
        "causal self-attention, full softmax",
    ),
    "gsasrec": _entry(
        "sequential",
        "sasrec:sasrec",
        "arXiv 2308.07192",
        "SASRec with gBCE over 256 negatives",
        objective="gbce",
        block="original",
    ),
    "esasrec": _entry(
        "sequential",
        "sasrec:sasrec",
        "arXiv 2508.06450",
        "LiGR blocks, sampled softmax",
        objective="sampled",
        block="ligr",
        ffn="swiglu",
        multiplier=4,
        layers=1,
        dropout=0.2,
    ),
    "unisrec": _entry(
        "sequential",
        "unisrec:unisrec",
        "arXiv 2206.05941",
        "content through whitening experts, pretrained by contrast",
        "last",
        codes="opq",
    ),
    "mp4sr": _entry(
        "sequential",
        "mp4sr:mp4sr",
        "arXiv 2303.11879",
        "a stream a modality through one trunk, pretrained by contrast",
        "last",
    ),
    "bert4rec": _entry(
        "sequential",
        "bert4rec:bert4rec",
        "arXiv 1904.06690",
        "hidden items guessed from both sides",
        "cloze",
    ),
    "bsarec": _entry(
        "sequential",
        "bsarec:bsarec",
        "arXiv 2312.10325",
        "attention beside a frequency filter, every prefix",
        "last",
    ),
    "hstu": _entry(
        "sequential",
        "hstu:hstu",
        "arXiv 2402.17152",
        "SiLU attention without softmax, biases by position and time",
    ),
    "tiger": _entry(
        "generative",
        "tiger:tiger",
        "arXiv 2305.05065",
        "spells semantic ids, asked at every place of the history",
    ),
    "tiger_paper": _entry(
        "generative",
        "tiger:tiger",
        "arXiv 2305.05065",
        "the published recipe: every prefix encoded anew, code by code",
        "last",
        by_token=True,
        causal=False,
        among="all",
        layers=4,
        decoder_layers=4,
        heads=6,
        head_width=64,
        inner=1024,
    ),
    "liger": _entry(
        "generative",
        "liger:liger",
        "arXiv 2411.18814",
        "semantic ids and content vectors by one encoder, cold items too",
    ),
    "mql4grec": _entry(
        "generative",
        "mql4grec:mql4grec",
        "Zhai et al. 2025 (ICLR)",
        "a language of codes a modality, each translated to each, lists merged",
    ),
    "mmgrec": _entry(
        "generative",
        "mmgrec:mmgrec",
        "arXiv 2404.16555",
        "spells Rec-IDs from the set of a user's other items",
        "rest",
    ),
    "mmgrec_official": _entry(
        "generative",
        "mmgrec:mmgrec",
        "arXiv 2404.16555",
        "as the authors' code has it: the target is in the set, the search is free",
        "whole",
        users="graph",
        among="all",
        shared=True,
        held=False,
        beam=10,
    ),
    "rpg": _entry(
        "generative",
        "rpg:rpg",
        "arXiv 2506.05781",
        "long unordered ids, all codes at once, every item scored",
        codes="opq",
    ),
    "two_tower": _entry(
        "two-tower",
        "two_tower:two_tower",
        "Yi et al. 2019 (RecSys)",
        "user and item towers over ID and content",
    ),
    "bpr": _entry(
        "graph", "lightgcn:bpr", "arXiv 1205.2618", "matrix factorisation, pairwise loss"
    ),
    "lightgcn": _entry(
        "graph", "lightgcn:lightgcn", "arXiv 2002.02126", "free vectors smoothed over interactions"
    ),
    "vbpr": _entry(
        "graph", "vbpr:vbpr", "arXiv 1510.01784", "factorisation with content in the item's vector"
    ),
    "bm3": _entry(
        "graph", "bm3:bm3", "arXiv 2207.05969", "bootstrapped targets instead of negatives"
    ),
    "freedom": _entry(
        "graph", "freedom:freedom", "arXiv 2211.06924", "frozen item graph, pruned interactions"
    ),
    "mgcn": _entry(
        "graph", "mgcn:mgcn", "arXiv 2308.03588", "IDs seen through each modality, shared and own"
    ),
    "smore": _entry(
        "graph",
        "mgcn:mgcn",
        "arXiv 2412.14978",
        "modalities filtered and fused in frequencies",
        fusion="spectral",
        layers=3,
        dropout=0.1,
        contrast=0.03,
    ),
    "em3_public": _entry(
        "graph", "em3:em3", "arXiv 2404.06078", "FREEDOM's graphs, a Q-Former, content against ID"
    ),
    "lgmrec": _entry(
        "graph", "lgmrec:lgmrec", "arXiv 2312.16400", "local graphs and a global hypergraph"
    ),
    "graphsage": _entry(
        "graph", "graphsage:graphsage", "arXiv 1706.02216", "content averaged over neighbours"
    ),
    "popularity": _entry("floor", "floors:popularity", "counting", "train counts"),
    "markov": _entry("floor", "floors:markov", "counting", "what followed the last item"),
    "item-knn": _entry(
        "floor", "floors:item_knn", "Sarwar et al. 2001", "cosine of co-occurrence, newest first"
    ),
    "sr-graph": _entry(
        "floor", "floors:sr_graph", "counting", "sequential rules in a window, both ways"
    ),
    "sr-graph+text": _entry(
        "floor", "floors:sr_graph_text", "counting", "sequential rules spread over text neighbours"
    ),
    "text-knn": _entry(
        "floor", "floors:text_knn", "counting", "text neighbours of the newest items"
    ),
    "cf-graph": _entry(
        "floor", "floors:cf_graph", "counting", "degree-normalised co-occurrence of sets"
    ),
    "cf-graph+text": _entry(
        "floor", "floors:cf_graph_text", "counting", "the same spread over text neighbours"
    ),
    "ease": _entry(
        "floor", "floors:ease", "arXiv 1905.03375", "ridge regression of items on items"
    ),
}


def entry(name: str) -> Entry:
    """The register's entry; KeyError-like ValueError with the nearest names otherwise."""
    if name in MODELS:
        return MODELS[name]
    raise unknown("unknown model", name, MODELS)


def fields(name: str) -> dict[str, tuple[Any, Any]]:
    """Field name -> (type, default) of a model, variant settings applied."""
    found = entry(name)
    parameters = inspect.signature(found.constructor()).parameters.values()
    return {p.name: (p.annotation, found.fields.get(p.name, p.default)) for p in parameters}


def reads(name: str, chosen: dict[str, Any]) -> str:
    """Whether a model with the `chosen` fields reads `id` alone, `content` or `both`."""
    known = fields(name)
    if "codes" in (chosen.get("item_input"), chosen.get("items")):
        return "id"
    if "items" in known:
        return chosen.get("items", known["items"][1])
    return "both" if "modalities" in known else "id"


def reads_codes(name: str, chosen: dict[str, Any]) -> bool:
    """Whether a model with the `chosen` fields reads semantic ids."""
    asked = chosen.get("item_input"), chosen.get("items")
    return entry(name).family == "generative" or "codes" in asked


def older(name: str) -> dict[str, Any]:
    """What fields of the model meant that older runs and bundles leave unsaid, where that is not
    the default."""
    return getattr(importlib.import_module(entry(name).home), "OLDER", {})


def build(name: str, **chosen: Any) -> Recommender:
    """The named recommender, with `chosen` fields instead of the defaults."""
    known = fields(name)
    for field in chosen:
        if field not in known:
            raise unknown(f"{name} has no field", field, known)
    found = entry(name)
    _check_numbers(name, {k: v for k, (_, v) in known.items()} | chosen)
    return found.constructor()(**{**found.fields, **chosen})


def _check_numbers(name: str, given: dict[str, Any]) -> None:
    """Raise ValueError for sizes, shares and heads that no model can have."""
    at_least(1, **{k: given[k] for k in SIZES if given.get(k) is not None})
    at_least(0, **{k: given[k] for k in LAYERS if isinstance(given.get(k), int)})
    dropped = {k: x for k, x in given.items() if k.endswith("dropout") or k == "drop_rate"}
    between(0, 1, **{k: x for k, x in dropped.items() if isinstance(x, int | float)})
    width, heads = given.get("width"), given.get("heads")
    own = {"head_width", "qk_width"} & set(given) or given.get("user") == "pool"
    if heads and width and width % heads and not own:
        raise ValueError(
            f"{name}: a width of {width} is not a multiple of {heads} heads; choose one that is, "
            f"such as {max(1, width // heads) * heads}."
        )


def trainable(name: str, chosen: dict[str, Any]) -> tuple[str, ...] | None:
    """Regexes of the parameters that the model's `stage` trains; None where there are no stages."""
    home = importlib.import_module(entry(name).home)
    stages = getattr(home, "TRAINABLE", None)
    return None if stages is None else stages[chosen.get("stage", fields(name)["stage"][1])]


def from_nothing(name: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """The `chosen` fields with a stage that needs no pretraining: the same, or the counterpart
    that the model's FROM_NOTHING names of one that trains a part of it alone."""
    if trainable(name, chosen) in (None, (r".*",)):
        return chosen
    home = importlib.import_module(entry(name).home)
    return chosen | {"stage": home.FROM_NOTHING[chosen["stage"]]}
