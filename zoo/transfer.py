"""Parameters of a pretrained run, once it is sure that they can mean the same on other data."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from zoo import coding
from zoo.adapt import merged
from zoo.data import Data
from zoo.embed import space_differences
from zoo.serve import Pretrained, from_pretrained

log = logging.getLogger("zoo")


def pretrained_for(
    model: str, graft: Pretrained | str | Path, data: Data, adapt: str | None = None
) -> Any:
    """Parameters of a pretrained run, after checking that they can mean the same here.

    Raises ValueError for another model, for features or codes of another space, and for a modality
    that the pretraining read and `data` lacks. What a graft was adapted by is merged into it,
    unless this run is adapted alike.
    """
    bundle = graft if isinstance(graft, Pretrained) else from_pretrained(graft)
    theirs, known = bundle.config["model"], set(bundle.catalogue.get("features", {}))
    if theirs != model:
        raise ValueError(f"the graft was pretrained as {theirs}; this model is {model}.")
    if known - set(data.dataset.features):
        raise ValueError(
            f"the graft reads {sorted(known)}; {data.dataset.name} has "
            f"{sorted(data.dataset.features)}. Pretrain on modalities that both have "
            "(--model.modalities)."
        )
    made = data.dataset.source.get("embedded", {})
    for modality in sorted(known):
        theirs = bundle.bundle.features.get(modality, {}).get("made_by", {})
        if lines := space_differences(theirs, made.get(modality, {})):
            raise ValueError(
                f"the graft was pretrained on other '{modality}' vectors:\n  "
                + "\n  ".join(lines)
                + "\nEmbed both data sets with one encoder, and name it with --features."
            )
    text, mine = bundle.data_options().text, data.options.text
    other = bundle.split.get("data") != data.dataset.name
    if "text" in known - set(made) and (text != mine or other and text == "lsa"):
        raise ValueError(
            f"the graft was pretrained on text='{text}' features of {bundle.split.get('data')}, "
            f"which mean nothing on text='{mine}' features of {data.dataset.name}: use "
            "--text hashed for both, the same space in every data set."
        )
    _check_codes(bundle, data)
    whole = bundle.bundle.params if data.raw else bundle.params  # with the encoders, or without
    if bundle.config.get("adapt") in (None, adapt):
        return whole
    return merged(bundle.recommender, whole)


def _check_codes(bundle: Pretrained, data: Data) -> None:
    """Raise ValueError where a graft spells the same items in other codes."""
    if not data.codes:
        return
    if bundle.split.get("data") != data.dataset.name:
        log.warning("the graft's codes are of %s: one tokenizer is taken to have made both sets",
                    bundle.split.get("data"))  # fmt: skip
        return
    theirs = bundle.bundle.codes or {}
    mine = coding.arrays(data.codes, len(bundle.catalogue["valid"]))["codes"]
    same = [np.array_equal(theirs.get(f"codes.{name}"), x) for name, x in mine.items()]
    if not all(same):
        raise ValueError(
            f"the graft spells the items of {data.dataset.name} in other codes than "
            f"{sorted(mine)}: its code vectors mean nothing here. Name the codes it was trained "
            "on (--codes)."
        )
