"""The graph family's runs: authors' settings, a search of equal budget, what content is worth."""

import random

from kept import load

MODELS = ("bpr", "lightgcn", "vbpr", "bm3", "freedom", "mgcn", "smore", "lgmrec", "em3_public")
# The sets of the reference runs, with the authors' settings where they differ from ours.
DATA = {
    "tiktok": {"data": "tiktok"},
    "ml-100k": {"data": "ml-100k", "options": {"part": "ml100k_logs_33_33_33"}},
}
FIELDS = {
    ("lgmrec", "tiktok"): {"modalities": ("image", "audio")},  # as the reference contrasts them
    ("bm3", "tiktok"): {"layers": 1, "dropout": 0.5, "reg": 0.1},
    ("bm3", "ml-100k"): {"layers": 1, "dropout": 0.3, "reg": 0.01},
    ("freedom", "tiktok"): {"dropout": 0.8, "reg": 1e-3},
    ("freedom", "ml-100k"): {"dropout": 0.8, "reg": 0.0},
}
# Their validation curves on tiktok lie flat for stretches longer than the usual patience of 21
# evaluations, and then rise on.
SETTINGS = {(model, "tiktok"): {"patience": 60} for model in ("vbpr", "bm3", "lgmrec")}


def published(model: str, data: str) -> dict:
    """The authors' settings."""
    return {
        "model": model,
        "folder": "graph",
        "fields": FIELDS.get((model, data), {}),
        "settings": SETTINGS.get((model, data), {}),
        **DATA[data],
    }


# IDs alone, on the larger sets that LightGCN is usually compared on.
IDS = {
    f"lightgcn-{part}": published("lightgcn", "tiktok")
    | {"data": "amazon-graph", "options": {"part": part}}
    for part in ("baby", "sports")
}

# A search of equal budget on tiktok: TRIALS settings a model, drawn once from what its paper
# searches, one seed, at most EPOCHS epochs; validation chooses among them and the authors' own.
TRIALS, EPOCHS = 3, 150
SPACES: dict[str, dict[str, tuple]] = {
    "bpr": {"reg": (1e-4, 1e-3, 1e-2, 1e-1)},
    "lightgcn": {"layers": (1, 2, 3, 4), "reg": (1e-5, 1e-4, 1e-3, 1e-2)},
    "vbpr": {"reg": (2e-2, 2e-1, 2.0)},
    "bm3": {"layers": (1, 2), "dropout": (0.3, 0.5), "reg": (0.01, 0.1), "content": (1.0, 2.0)},
    "freedom": {"dropout": (0.8, 0.9), "reg": (1e-4, 1e-3, 1e-2), "item_layers": (1, 2)},
    "mgcn": {"layers": (2, 3), "contrast": (1e-3, 1e-2, 1e-1), "reg": (1e-5, 1e-4, 1e-3)},
    "smore": {"layers": (2, 3), "contrast": (1e-3, 1e-2, 3e-2), "dropout": (0.0, 0.1)},
    "lgmrec": {
        "hyperedges": (4, 16),
        "alpha": (0.1, 0.3, 0.6),
        "contrast_weight": (1e-5, 1e-4, 1e-3),
        "reg": (1e-6, 1e-4, 1e-3),
    },
    "em3_public": {"contrast": (1e-3, 1e-2), "dropout": (0.8, 0.9), "weights": (None, (0.5, 0.5))},
}
RATES = (5e-4, 1e-3, 2e-3)


def drawn(model: str) -> list[dict]:
    """TRIALS different (fields, rate) of a model's space, the same at every call, none of them
    the authors' own."""
    rng, found, own = random.Random(model), [], FIELDS.get((model, "tiktok"), {})
    while len(found) < TRIALS:
        one = {key: rng.choice(values) for key, values in SPACES[model].items()}
        one = {"fields": one, "settings": {"rate": rng.choice(RATES), "epochs": EPOCHS}}
        known = one["settings"]["rate"] == 1e-3 and own and own.items() <= one["fields"].items()
        found += [one] if one not in found and not known else []
    return found


def searched(model: str, number: int) -> dict:
    """A trial of the search; patience 21 for all."""
    base, trial = published(model, "tiktok"), drawn(model)[number]
    return base | {"fields": base["fields"] | trial["fields"], "settings": trial["settings"]}


def winner(model: str) -> int | None:
    """The trial that was best on validation; None while trials are missing, or where the authors'
    settings were better, by the same seed."""
    usual, names = load(f"graph/{model}-tiktok"), [f"try-{model}-tiktok-{n}" for n in range(TRIALS)]
    found = {row["name"]: row["valid"]["recall@20"] for row in load("searches") or []}
    if usual is None or not found.keys() >= set(names):
        return None
    best = max(range(TRIALS), key=lambda n: found[names[n]])
    return best if found[names[best]] > usual["rows"][0]["valid"]["recall@20"] else None


# What content is worth to each: one modality alone, none (every item's is missing), or another
# item's; beside `MODEL-tiktok`, which reads both.
CONTENT = {
    "image": {"fields": {"modalities": ("image",)}},
    "audio": {"fields": {"modalities": ("audio",)}},
    "none": {"content": "none"},
    "shuffled": {"content": "shuffled"},
}


def studied(model: str, what: dict) -> dict:
    """A row of the modality study."""
    base = published(model, "tiktok") | {"folder": "study"}
    return base | what | {"fields": base["fields"] | what.get("fields", {})}


# Does what LGMRec's two modalities bring outweigh what contrasting them costs?
UNCONTRASTED = published("lgmrec", "tiktok")
UNCONTRASTED |= {"fields": UNCONTRASTED["fields"] | {"contrast_weight": 0.0}}

GRAPH: dict[str, dict] = {
    "lgmrec-uncontrasted-tiktok": UNCONTRASTED,
    **{f"{model}-{data}": published(model, data) for model in MODELS for data in DATA},
    **IDS,
    **{f"try-{m}-tiktok-{n}": searched(m, n) for m in MODELS for n in range(TRIALS)},
    **{
        f"{m}-searched-tiktok": searched(m, best)
        for m, best in ((m, winner(m)) for m in MODELS)
        if best is not None
    },
    **{
        f"{model}-{name}-tiktok": studied(model, what)
        for model in MODELS[2:]
        for name, what in CONTENT.items()
    },
}
