"""A bundle made plainer: what LoRA learned inside the kernels, an item's content as one vector."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo import mesh as meshes
from zoo.adapt import merged
from zoo.models import build
from zoo.saving import save_again
from zoo.serve import Pretrained

VECTOR = "vector"  # the only modality of items that are merged
ROUNDING = 1e-2  # of products: TF32 and bfloat16, which GPUs and TPUs take, keep 2 to 3 digits
PLAIN = {"items": "content", "modalities": (VECTOR,), "fuse": "sum", "hidden": 0}


def check_merged(bundle: Pretrained, items: bool = False) -> None:
    """Raise ValueError for a bundle with nothing to merge, and for one with a prior: merge first,
    then `zoo fuse`."""
    model = bundle.config["model"]
    if "prior" in bundle.config:
        raise ValueError("the bundle has a prior: merge what it was made of, then zoo fuse that.")
    if not items and "adapt" not in bundle.config:
        raise ValueError(
            f"the bundle of {model} is not adapted: it has nothing to merge. Expected a run of "
            "--adapt lora:8 or the like, or --items, which merges what items are made of."
        )
    fields = bundle.config["fields"]
    if items and not (set(PLAIN) <= set(fields) and fields["items"] in ("content", "both")):
        raise ValueError(
            f"the bundle of {model} with items '{fields.get('items', 'of its own')}' has no "
            "content to merge. Expected a run of sasrec, bsarec, hstu or the like with "
            "--model.items both or content."
        )


def save_merged(folder: str | Path, bundle: Pretrained, items: bool = False) -> Path:
    """The bundle as one of the model alone, what LoRA learned added to its kernels: as large, and
    as fast, as before it was adapted.

    items: what items are made of (features, the maps that read them, encoders) gives way to one
    vector an item, float32 [items, width], which is what the model made of it: the same lists out
    of a smaller bundle, that takes no new items and starts no model of other data.

    Raises ValueError where `check_merged` does, for additions that are layers of their own
    (adapters, prompts), and for items that are not one vector.
    """
    check_merged(bundle, items)
    config = {k: v for k, v in bundle.config.items() if k != "adapt"}
    params, plain = bundle.params, bundle.bundle
    if "adapt" in bundle.config:
        params = merged(bundle.recommender, params)
    if items:
        config, params, plain = _with_vectors(bundle, config, params)
    return save_again(folder, plain, config, meshes.fetch(params), plain.evaluation)


def _with_vectors(
    bundle: Pretrained, config: dict[str, Any], params: Any
) -> tuple[dict[str, Any], Any, Any]:
    """Config, parameters and bundle of the same model that reads its items' vectors."""
    model, table = config["model"], np.asarray(bundle.index["table"], np.float32)
    config = {k: v for k, v in config.items() if k not in ("encoding", "word_ids_sha256")}
    config["merged"] = {"items": config["fields"]["items"], "features": bundle.bundle.features}
    config["fields"] = config["fields"] | PLAIN | {"width": table.shape[1]}
    kernel = {VECTOR: {"kernel": np.eye(table.shape[1], dtype=np.float32)}}
    params = params["model"] if "encoding" in bundle.config else params  # beside its encoders
    params = params | {"items": kernel}
    told = {VECTOR: table.any(1)}
    arrays = {k: x for k, x in bundle.bundle.catalogue.items() if k != "rows"}
    arrays |= {"features": {VECTOR: table}, "present": told}
    again = build(model, **config["fields"]).index(params, {**bundle.catalogue, **arrays})
    off = np.abs(np.asarray(again["table"]) - table).max()
    if off > ROUNDING * np.abs(table).max():
        raise ValueError(f"the items of {model} are not one vector each: it cannot be merged.")
    manifest = {VECTOR: {"width": table.shape[1], "present": int(told[VECTOR].sum())}}
    return config, params, replace(bundle.bundle, catalogue=arrays, features=manifest)
