"""Content that the model encodes itself: end to end, after pretraining, adapted a little."""

MOVIES = {
    "model": "two_tower",
    "data": "ml-latest-small",
    "options": {"require": ("image",), "k_core": 5, "split": "global-time", "text": "lsa:64"},
    "settings": {"epochs": 60, "rate": 1e-3, "patience": 6},
}
TOWERS = {"user": "trunk"}
HOSTS = {"two_tower": TOWERS, "sasrec": {}}
# Posters, titles and genres, by encoders that two cores can train in minutes.
SMALL = {"layers": 1, "pixels": 48, "tokens": 16, "dropout": 0.0, "bound": 1280}
OWN = {"encoding": {"modalities": ("image", "text"), **SMALL}}
# A loss of inner products over all items hardly learns beside negatives that stand still, nor from
# vectors most of which all items share.
STILL = {"encoding": OWN["encoding"] | {"remove_drift": True}}
CENTRED = {"encoding": STILL["encoding"] | {"centre": True}}
OWN_OF = {"two_tower": OWN, "sasrec": CENTRED}
SIDE = {"modalities": ("image", "text"), "kind": "side", "bound": 1280}  # beside their layers
FIRST = {"pretrain": {"objective": "contrastive", "settings": {}}}

# What of an encoder pretrained on the same content trains on; `full`, all of it, is
# `two_tower-pretrained`.
SEEN = "^encoders_(image|text)/stack"
ADAPTED = {
    "kept": "encoders",
    "prompt": f"encoders+prompt:8:{SEEN}$",
    "adapter": f"encoders+adapter:16:{SEEN}/.*(attention|ffn)$",
    "lora": "encoders+lora:8:encoders/.*(query|value)/kernel$",
}

# Items that training never saw, by their titles: vectors of a published encoder beside LSA.
COLD = {
    "data": "amazon-beauty",
    "folder": "content",
    "options": {"split": "cold-items"},
    "settings": {"epochs": 40, "rate": 1e-3, "patience": 4},
}
BY_TITLE = {"items": "content", "modalities": ("text",)}
VECTORS = {
    "lsa": {"options": {**COLD["options"], "text": "lsa:64"}},
    "lsa768": {"options": {**COLD["options"], "text": "lsa:768"}},
    "minilm": {"embed": {"modality": "text"}},
}


def on_movies(host: str, items: str = "both", **more: dict) -> dict:
    """A host on posters, titles and genres."""
    fields = {**HOSTS[host], "items": items}
    return {**MOVIES, "model": host, "folder": "content", "fields": fields, **more}


CONTENT_RUNS: dict[str, dict] = {
    "sasrec-id": on_movies("sasrec", "id"),  # two_tower: towers-id, towers-both
    "sasrec-features": on_movies("sasrec"),
    **{f"{host}-whole": on_movies(host, **own) for host, own in OWN_OF.items()},
    **{f"{host}-pretrained": on_movies(host, **own, **FIRST) for host, own in OWN_OF.items()},
    "try-sasrec-still": on_movies("sasrec", **STILL),
    "try-sasrec-drifting": on_movies("sasrec", **OWN),
    "try-two_tower-still": on_movies("two_tower", **STILL),
    "try-two_tower-centred": on_movies("two_tower", **CENTRED),
    **{
        f"two_tower-{name}": on_movies("two_tower", **OWN, **FIRST, adapt=recipe)
        for name, recipe in ADAPTED.items()
    },
    "two_tower-side": on_movies("two_tower", encoding=SIDE, pretrain=FIRST["pretrain"] | OWN),
    **{
        f"{host}-{name}-beauty": {"model": host, **COLD, "fields": fields | BY_TITLE, **vectors}
        for host, fields in HOSTS.items()
        for name, vectors in VECTORS.items()
    },
}
