"""The runs of reach.py: which model on which data, with which fields and settings."""

from content_experiments import CONTENT_RUNS, MOVIES, TOWERS
from graph_experiments import GRAPH

SLOW_LOSS = {"epochs": 40, "rate": 2e-3, "evaluate_every": 170, "patience": 3}
SPORTS_SEARCH = {
    "small-batch": ({}, {"batch": 8, "rate": 1e-3, "evaluate_every": 960}),
    "wide": ({"width": 128}, {"rate": 1e-3}),
    "less-dropout": ({"dropout": 0.3}, {"rate": 1e-3}),
    "ligr": ({"block": "ligr", "ffn": "swiglu", "multiplier": 2}, {"rate": 1e-3}),
}
BCE_SEARCH = {
    "patient": ({}, {"rate": 2e-3}),
    "slow": ({}, {"rate": 1e-3}),
    "light": ({"dropout": 0.3}, {"rate": 1e-3}),
    "post": ({"block": "post", "ffn": "gelu", "multiplier": 4, "heads": 2}, {"rate": 1e-3}),
    "decayed": ({}, {"rate": 2e-3, "schedule": "cosine", "epochs": 200}),
    "small-batch": (
        {},
        {"batch": 8, "rate": 1e-3, "schedule": "cosine", "epochs": 120, "evaluate_every": 1700},
    ),
    "small-light": (
        {"dropout": 0.3},
        {"batch": 8, "rate": 1e-3, "schedule": "cosine", "epochs": 80, "evaluate_every": 1700},
    ),
}
PREFIXES = {  # of BSARec
    "epochs": 30,
    "batch": 64,
    "rate": 1e-3,
    "warmup": 200,
    "schedule": "cosine",
    "evaluate_every": 730,
    "patience": 4,
}
COUPLED_PREFIXES = PREFIXES | {"l2": 1e-4}  # RecBoard's way to decay, but for biases and norms
MORE_PREFIXES = PREFIXES | {"epochs": 40, "evaluate_every": 1240}  # 20: still rising
HSTU = (  # RecBoard's, but for its times
    {"layers": 4, "negatives": 512, "dropout": 0.2, "embedding_dropout": 0.4},
    {
        "rate": 1e-3,
        "b2": 0.98,
        "weight_decay": 1e-3,
        "schedule": "cosine",
        "epochs": 300,
        "evaluate_every": 830,
        "patience": 6,
    },
)
HSTU_SEARCH = {
    "constant": ({}, {"rate": 1e-3, "epochs": 120}),
    "decayed": ({}, {"rate": 1e-3, "schedule": "cosine", "epochs": 120}),
    "fast-decayed": ({}, {"rate": 2e-3, "schedule": "cosine", "epochs": 80}),
    # Shared negatives name an item in 4 of 100 steps, and Adam forgets in between: name all.
    "full": ({"objective": "ce"}, {"rate": 1e-3, "schedule": "cosine", "epochs": 60}),
    "full-sharp": (
        {"objective": "ce", "temperature": 0.05},
        {"rate": 1e-3, "schedule": "cosine", "epochs": 60},
    ),
    "full-narrow": (  # heads of four columns and the dropout that RecBoard sets
        {
            "objective": "ce",
            "qk_width": 4,
            "v_width": 4,
            "dropout": 0.2,
            "embedding_dropout": 0.4,
        },
        {"rate": 1e-3, "schedule": "cosine", "epochs": 60},
    ),
}
BERT = {"epochs": 150, "rate": 1e-3, "warmup": 200, "evaluate_every": 490, "patience": 5}
# RecBoard's Adam, and its 512 histories a step in packed rows.
COUPLED = {"l2": 1e-4, "rate": 5e-3, "batch": 64, "evaluate_every": 246}
BERT_SEARCH = {
    "left": ({"align": "left"}, {}),
    "right": ({}, {}),
    "coupled": ({"heads": 4}, COUPLED | {"epochs": 120}),
    "coupled-decayed": ({"heads": 4}, COUPLED | {"epochs": 100, "schedule": "cosine"}),
    "projected": (
        {"heads": 4, "head": "projected"},
        COUPLED | {"epochs": 100, "schedule": "cosine"},
    ),
}
# Pretraining beside the same model without, for as many operations in all, and without content: on
# one shop (titles and, as a second modality, semantic ids of images), on films (posters and
# titles), and from two shops to a third by their words.
PRETRAIN = {"epochs": 10, "batch": 64, "rate": 1e-3, "patience": 10}
TUNE = {"epochs": 20, "batch": 64, "rate": 1e-3, "patience": 3}
CARRIED = {"folder": "transfer", "options": {"text": "hashed:512"}, "knockouts": True}
INSTRUMENTS = {"data": "amazon-instruments", **CARRIED}
COLD = {**INSTRUMENTS, "options": {**CARRIED["options"], "split": "cold-items"}}
FILMS = {**CARRIED, "data": MOVIES["data"], "options": MOVIES["options"] | CARRIED["options"]}
SHORT = {"fields": {"max_len": 20}, "batch": 160}  # of films, whose histories are long
SPORTS = {"data": "amazon-sports", **CARRIED}
BY_WORDS = {"fields": (("modalities", ("text",)),)}
ALIKE = {"block": "post", "ffn": "gelu", "multiplier": 4, "heads": 2}
ALIKE |= {"similarity": "cosine", "temperature": 0.07}
SHOPS = ("amazon-beauty", "amazon-instruments")
STAGES = {"mp4sr": "finetune", "unisrec": "transductive"}


def on_beauty(model: str, fields: dict, settings: dict) -> dict:
    """A row a model of IDs on amazon-beauty."""
    return {"model": model, "data": "amazon-beauty", "fields": fields, "settings": settings}


def carried(on: dict, first: dict | None = None, times: float = 1.0, fields=(), **more) -> dict:
    """A row a model on one data set: with `times` as many epochs, settings in which `more` differs,
    pretrained on `first`."""
    before, tune = ({**x, **more, "epochs": round(times * x["epochs"])} for x in (PRETRAIN, TUNE))
    then = {"pretrain": {"settings": before, **(first or {})}, "settings": tune, "control": True}
    return {
        model: {"model": model, **on, "fields": {"stage": stage, **dict(fields)}, **then}
        for model, stage in STAGES.items()
    }


TRANSFER: dict[str, dict] = {
    **{f"{k}-instruments": x for k, x in carried(INSTRUMENTS).items()},
    "unisrec-whole-instruments": {  # all of it is fine-tuned, not the items alone
        "model": "unisrec",
        **INSTRUMENTS,
        "fields": {"stage": "scratch"},
        "pretrain": {"settings": PRETRAIN, "of": "unisrec-instruments"},
        "settings": TUNE,
    },
    "sasrec-instruments": {
        "model": "sasrec",
        **INSTRUMENTS,
        "settings": {"epochs": 40, "rate": 2e-3, "evaluate_every": 100, "patience": 3},
    },
    "sasrec-alike-instruments": {  # IDs alone in UniSRec's trunk and scores, as many operations
        "model": "sasrec",
        **INSTRUMENTS,
        "fields": ALIKE,
        "settings": {**TUNE, "flops": 67e12, "evaluate_every": 200},
    },
    # Test asks for items that training never saw: nothing but content tells them apart.
    **{f"{k}-cold-instruments": x for k, x in carried(COLD, times=0.5).items()},
    "unisrec-inductive-cold-instruments": carried(COLD, times=0.5, fields={"stage": "inductive"})[
        "unisrec"
    ],
    # MP4SR computes the vectors of all items in each step: fewer steps, of more histories each.
    "unisrec-movies": carried(FILMS, times=0.5, **SHORT)["unisrec"],
    "mp4sr-movies": carried(FILMS, times=0.5, **SHORT | {"batch": 480, "rate": 2e-3})["mp4sr"],
    "sasrec-movies": {
        "model": "sasrec",
        **FILMS,
        "fields": SHORT["fields"],
        "settings": MOVIES["settings"],
    },
    **{f"{k}-to-sports": x for k, x in carried(SPORTS, {"data": SHOPS}, 0.5, **BY_WORDS).items()},
}
# Of what pretraining is judged by, from nothing. UniSRec's dropout in the paper, .5, is of a trunk
# of 300 columns; here are 64.
FROM_NOTHING = {
    model: {
        "model": model,
        **INSTRUMENTS,
        "fields": {"stage": stage},
        "settings": {**TUNE, "epochs": 8},
    }
    for model, stage in (("unisrec", "scratch"), ("mp4sr", "finetune"))
}
RATES = {"paper": 0.5, "light": 0.2, "lighter": 0.1}
DROPOUT_SEARCH = {
    f"try-{name}-{rate}": run | {"fields": {**run.get("fields", {}), "dropout": RATES[rate]}}
    for name, run, rates in (
        ("unisrec", FROM_NOTHING["unisrec"], RATES),
        ("mp4sr", FROM_NOTHING["mp4sr"], ("lighter",)),  # .2 by default
        *((name, TRANSFER[name], ("light",)) for name in TRANSFER if name.startswith("sasrec")),
    )
    for rate in rates
}
# Words that tell items apart: of 64 columns too few do.
WORDS = {"data": "amazon-beauty", "options": {"text": "lsa:768"}}
BY_BOTH = {**WORDS, "fields": {"items": "both"}}
BY_PREFIXES = {**BY_BOTH, "model": "bsarec", "settings": PREFIXES}
# Semantic ids published with the data, the zoo's own of the titles, and ids that mean nothing. A
# narrower model than the paper's: two cores.
TIGER = {
    "model": "tiger",
    "data": "amazon-beauty",
    "fields": {"width": 64, "head_width": 16},
    "settings": {
        "epochs": 20,
        "batch": 32,
        "rate": 2e-3,
        "warmup": 200,
        "schedule": "cosine",
        "weight_decay": 1e-3,
        "evaluate_every": 824,
        "evaluate_batch": 256,
        "patience": 3,
    },
}
# The paper's vectors come from GraphSAGE; FREEDOM's know more of both content and interactions.
MMGREC = {
    "model": "mmgrec",
    "data": "tiktok",
    "folder": "graph",
    "settings": {
        "epochs": 5,
        "batch": 128,
        "rate": 2e-3,
        "warmup": 100,
        "schedule": "cosine",
        "select": "recall@20",
        "patience": 4,
    },
}
REC_IDS = {"method": "rqvae", "size": 128, "hidden": (64,), "width": 16, "steps": 2000}


def by_freedom(**fields) -> dict:
    """Vectors and ids of a FREEDOM."""
    fields = {"dropout": 0.8, "reg": 1e-3, **fields}
    return {"model": "freedom", "fields": fields, "settings": {}, "tokenize": REC_IDS}


# As wide as the published one, with half its layers: an hour of one core.
LONG_TIGER = {
    **TIGER,
    "fields": {"dropout": 0.2},
    "settings": TIGER["settings"]
    | {"epochs": 40, "rate": 1e-3, "evaluate_every": 1648, "patience": 5},
}

# The published way to train, every prefix encoded anew code by code, beside one pass a user: the
# same sizes, examples, examples a step and probabilities.
ONCE = {
    **MOVIES,
    "fields": {**TIGER["fields"], "max_len": 10},
    "settings": TIGER["settings"] | {"epochs": 10, "evaluate_every": 216, "patience": 10},
}
EACH = {
    **ONCE,
    "fields": ONCE["fields"]
    | {"layers": 2, "decoder_layers": 2, "heads": 4, "inner": 256, "among": "existing"},
    "settings": ONCE["settings"] | {"batch": 320},
}

BERTS = {
    name: on_beauty("bert4rec", fields, BERT | more) for name, (fields, more) in BERT_SEARCH.items()
}
EXPERIMENTS: dict[str, dict] = {
    **GRAPH,
    **CONTENT_RUNS,
    **TRANSFER,
    "mmgrec-tiktok": {**MMGREC, "vectors": by_freedom()},
    "mmgrec-image-tiktok": {**MMGREC, "vectors": by_freedom(modalities=("image",))},
    "mmgrec-audio-tiktok": {**MMGREC, "vectors": by_freedom(modalities=("audio",))},
    "mmgrec-official-tiktok": {**MMGREC, "model": "mmgrec_official", "vectors": by_freedom()},
    "mmgrec-graphsage-tiktok": {  # the paper's vectors
        **MMGREC,
        "vectors": {"model": "graphsage", "fields": {}, "settings": {}, "tokenize": REC_IDS},
    },
    "mmgrec-id-tiktok": {
        **MMGREC,
        "vectors": {"model": "lightgcn", "fields": {}, "settings": {}, "tokenize": REC_IDS},
    },
    "rpg-beauty": {
        "model": "rpg",
        "data": "amazon-beauty",
        "options": {"codes": "opq:text"},
        "settings": {"epochs": 60, "rate": 2e-3, "evaluate_every": 212, "patience": 3},
    },
    **{
        f"{model}-movies": {
            **MOVIES,
            "model": model,
            "fields": TIGER["fields"],
            "settings": TIGER["settings"] | {"epochs": 10, "evaluate_every": 300},
        }
        for model in ("tiger", "liger")
    },
    "tiger-letter-beauty": {**TIGER, "options": {"codes": "letter_sid"}},
    "tiger-published-beauty": {**TIGER, "options": {"codes": "tigerrepro_rqvae_sid"}},
    "tiger-published-kmeans-beauty": {**TIGER, "options": {"codes": "tigerrepro_rqkmeans_sid"}},
    "tiger-long-beauty": {**LONG_TIGER, "options": {"codes": "letter_sid"}},
    "tiger-instruments": {
        **TIGER,
        "data": "amazon-instruments",
        "options": {"codes": "sid_text"},
        "settings": TIGER["settings"] | {"evaluate_every": 636},
        "strings": True,
    },
    "mql4grec-instruments": {
        **TIGER,
        "model": "mql4grec",
        "data": "amazon-instruments",
        "options": {"codes": "sid_text,sid_image"},
        "settings": TIGER["settings"] | {"evaluate_every": 636},
        "strings": True,
    },
    "tiger-positions-movies": {**ONCE, "model": "tiger"},
    "tiger-prefixes-movies": {**EACH, "model": "tiger_paper"},
    "tiger-minilm-beauty": {
        **TIGER,
        "options": {"codes": "rkmeans:text"},
        "embed": {"modality": "text"},
    },
    "tiger-relocated-beauty": {
        **TIGER,
        "embed": {"modality": "text"},
        "tokenize": {"levels": 4, "resolver": "relocate"},
    },
    "tiger-rkmeans-beauty": {**TIGER, "options": {"codes": "rkmeans:text"}},
    "tiger-bsarec-beauty": {  # ids of what a next-item model learnt of IDs and titles
        **TIGER,
        **WORDS,
        "ids": {**BY_PREFIXES, "tokenize": {"method": "rkmeans"}},
    },
    "tiger-random-beauty": {**TIGER, "options": {"codes": "random"}},
    "towers-id": {**MOVIES, "fields": {**TOWERS, "items": "id"}},
    "towers-content": {**MOVIES, "fields": {**TOWERS, "items": "content"}},
    "towers-both": {**MOVIES, "fields": {**TOWERS, "items": "both"}},
    "towers-shuffled": {**MOVIES, "fields": {**TOWERS, "items": "both"}, "content": "shuffled"},
    "sasrec-beauty": on_beauty("sasrec", {}, SLOW_LOSS),
    "try-sasrec-right": on_beauty("sasrec", {"align": "right"}, SLOW_LOSS),
    # One trunk, other items: the sum of the codes that TIGER spells, and words in place of IDs.
    "sasrec-codes-beauty": {
        "model": "sasrec",
        "data": "amazon-beauty",
        "options": {"codes": "letter_sid"},
        "fields": {"items": "codes", "dropout": 0.2},
        "settings": SLOW_LOSS,
    },
    "sasrec-content-beauty": {
        "model": "sasrec",
        "data": "amazon-beauty",
        "options": {"text": "lsa:64"},
        "fields": {"items": "content", "dropout": 0.2},
        "settings": SLOW_LOSS,
    },
    "sasrec-words-beauty": {
        "model": "sasrec",
        **WORDS,
        "fields": {"items": "content", "dropout": 0.2},
        "settings": SLOW_LOSS | {"rate": 1e-3},
    },
    "sasrec-text-beauty": {"model": "sasrec", **BY_BOTH, "settings": SLOW_LOSS},
    "sasrec-both-instruments": {  # IDs, titles and the images' ids
        "model": "sasrec",
        "data": "amazon-instruments",
        "options": WORDS["options"],
        "fields": {"items": "both"},
        "settings": {"epochs": 40, "rate": 1e-3, "evaluate_every": 100, "patience": 3},
    },
    "sasrec-bce-beauty": {
        "model": "sasrec",
        "data": "amazon-beauty",
        "fields": {"objective": "bce"},
        "settings": BCE_SEARCH["decayed"][1] | {"evaluate_every": 425, "patience": 6},
    },
    "sasrec-sampled-sports": {
        "model": "sasrec",
        "data": "amazon-sports",
        "fields": {"objective": "sampled", "negatives": 1024},
        "settings": {"epochs": 60, "rate": 2e-3, "evaluate_every": 300, "patience": 3},
    },
    "sasrec-sports": {
        "model": "sasrec",
        "data": "amazon-sports",
        "settings": {"epochs": 40, "rate": 2e-3, "evaluate_every": 250, "patience": 3},
    },
    "sasrec-text-sports": {
        "model": "sasrec",
        "data": "amazon-sports",
        "options": {"text": "lsa:64"},
        "fields": {"items": "both"},
        "settings": {
            "epochs": 40,
            "batch": 16,
            "rate": 1e-3,
            "evaluate_every": 480,
            "patience": 3,
        },
    },
    **{
        f"try-sports-{name}": {
            "model": "sasrec",
            "data": "amazon-sports",
            "fields": fields,
            "settings": {"epochs": 40, "rate": 2e-3, "evaluate_every": 250, "patience": 3} | other,
        }
        for name, (fields, other) in SPORTS_SEARCH.items()
    },
    **{
        f"try-bce-{name}": {
            "model": "sasrec",
            "data": "amazon-beauty",
            "fields": {"objective": "bce", **fields},
            "settings": {"epochs": 300, "evaluate_every": 425, "patience": 6} | other,
        }
        for name, (fields, other) in BCE_SEARCH.items()
    },
    **{
        f"try-hstu-{name}": on_beauty(
            "hstu",
            {"layers": 4, "embedding_dropout": 0.5, **fields},
            {"evaluate_every": 332, "patience": 4} | other,
        )
        for name, (fields, other) in HSTU_SEARCH.items()
    },
    "hstu-beauty": on_beauty("hstu", *HSTU),  # the file has no times: no time bias
    "bsarec-beauty": {
        "model": "bsarec",
        "data": "amazon-beauty",
        "settings": {
            "epochs": 20,
            "batch": 64,
            "rate": 5e-4,
            "warmup": 200,
            "evaluate_every": 365,
            "patience": 3,
        },
    },
    "bsarec-decayed-beauty": on_beauty("bsarec", {}, COUPLED_PREFIXES),
    "try-bsarec-decayed": on_beauty("bsarec", {}, PREFIXES),
    "try-text-coupled": {**BY_PREFIXES, "settings": COUPLED_PREFIXES},
    "bsarec-text-beauty": BY_PREFIXES,
    **{
        f"bsarec-{name}-sports": {
            "model": "bsarec",
            "data": "amazon-sports",
            "settings": MORE_PREFIXES,
            **more,
        }
        for name, more in (
            ("decayed", {"settings": MORE_PREFIXES | {"l2": 1e-4}}),
            ("text", {"options": WORDS["options"], "fields": {"items": "both"}}),
        )
    },
    **DROPOUT_SEARCH,
    **{f"try-bert4rec-{name}": x for name, x in BERTS.items()},
    "bert4rec-beauty": BERTS["coupled-decayed"],
    "hstu-sports": {  # as many steps of about as many histories each
        **on_beauty("hstu", HSTU[0], HSTU[1] | {"epochs": 180, "evaluate_every": 1100}),
        "data": "amazon-sports",
    },
    "bert4rec-sports": {**BERTS["coupled-decayed"], "data": "amazon-sports"},
    "esasrec-beauty": {
        "model": "esasrec",
        "data": "amazon-beauty",
        "fields": {"negatives": 1024, "dropout": 0.5},
        "settings": SLOW_LOSS,
    },
}
