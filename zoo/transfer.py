"""Parameters of a pretrained run, once it is sure that they can mean the same on other data."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints.bundle import Bundle
from zoo import coding
from zoo.adapt import merged
from zoo.data import Data, split_otherwise
from zoo.embedded import space_differences
from zoo.encoders.inputs import json_sha256
from zoo.encoders.own import word_ids_sha256
from zoo.encoders.small import SIZES, Encoding
from zoo.graft import without
from zoo.models import fields, older
from zoo.serve import Pretrained, bundle_of

MAKE = ("kind", "width", "layers", "heads", "scan")  # what makes two encoders alike, and SIZES
FORWARD = ("official", "c", "alpha", "time_bias")  # what else the same parameters may compute
SAME_SIZE = 0.1  # by how much features may be divided otherwise
ITEM_TABLE, USER_TABLE = r"(^|/)items(/id)?/table$", r"(^|/)users/table$"  # a row each
log = logging.getLogger("zoo")


def pretrained_for(
    model: str,
    graft: Pretrained | str | Path,
    data: Data,
    adapt: str | None = None,
    encoding: Encoding | None = None,
    renamed: bool = False,
    chosen: dict | None = None,
) -> Any:
    """Parameters of a pretrained run, after checking that they can mean the same here.

    Raises ValueError for another model, for features or codes of another space, for a modality
    that the pretraining read and `data` lacks, and for one that learned from another split of the
    same data. Tables of other items or users are left out: they start fresh. What a graft was
    adapted by is merged into it, unless this run is adapted alike. Of encoders pretrained on
    content alone (pretraining.py), those that `encoding` names. renamed: by a table of names, so
    that another modality may take the place of one that `data` lacks.
    """
    if not isinstance(graft, Pretrained):
        found = bundle_of(graft)
        if "objective" in found.config:
            return _encoders_of(found, data, encoding)
        graft = Pretrained(found)
    bundle = graft
    if "prior" in bundle.config:
        raise ValueError(
            "the graft has a floor of its data as its prior: take the run that it was made of."
        )
    theirs, known = bundle.config["model"], _read(bundle)
    if theirs != model:
        raise ValueError(f"the graft was pretrained as {theirs}; this model is {model}.")
    _check_fields(bundle, chosen or {})
    check_split(bundle.split, data, "the graft")
    if known - set(data.dataset.features) and not renamed:
        raise ValueError(
            f"the graft reads {sorted(known)}; {data.dataset.name} has "
            f"{sorted(data.dataset.features)}. Pretrain on modalities that both have "
            "(--model.modalities), or say whose place which takes (--names)."
        )
    _check_encoded(bundle.config.get("encoding", {}), encoding, known)
    made = data.dataset.source.get("embedded", {})
    known &= set(data.dataset.features)  # what is renamed is the caller's word
    for modality in sorted(known):
        theirs = bundle.bundle.features.get(modality, {}).get("made_by", {})
        if lines := space_differences(theirs, made.get(modality, {})):
            raise ValueError(
                f"the graft was pretrained on other '{modality}' vectors:\n  "
                + "\n  ".join(lines)
                + "\nEmbed both data sets with one encoder, and name it with --features."
            )
    text, mine = bundle.data_options().text, data.options.text
    moved = bundle.split.get("data") != data.dataset.name and text.startswith("lsa")
    if "text" in known - set(made) - set(data.raw) and (text != mine or moved):
        raise ValueError(
            f"the graft was pretrained on text='{text}' features of {bundle.split.get('data')}, "
            f"which mean nothing on text='{mine}' features of {data.dataset.name}: use "
            "--text hashed for both, the same space in every data set."
        )
    _tell_features(bundle, data, known)
    _check_codes(bundle, data)
    if encoding and "encoding" in bundle.config:
        _check_make(bundle.bundle, data, encoding)
    found = bundle.params
    if bundle.config.get("adapt") not in (None, adapt):
        found = merged(bundle.recommender, found)
    return _of_these(found, bundle, data)


def flops_of(graft: Pretrained | str | Path | None) -> float | None:
    """What a run's matrix products took, those of what it started from included: 0 of no run, None
    of one that does not say."""
    if graft is None:
        return 0.0
    return (graft if isinstance(graft, Pretrained) else bundle_of(graft)).config.get("flops")


def _check_fields(bundle: Pretrained, chosen: dict) -> None:
    """Raise ValueError where positions are counted from the other end, whose tables have the same
    shape; warn where the same parameters compute something else here."""
    model = bundle.config["model"]
    usual = {k: default for k, (_, default) in fields(model).items()}
    theirs, mine = {**usual, **older(model), **bundle.config["fields"]}, {**usual, **chosen}
    differ = {k for k in usual if theirs[k] != mine[k]}
    if "align" in differ:
        raise ValueError(
            f"the graft's positions are counted from the {theirs['align']}, this model's from the "
            f"{mine['align']}: take --model.align {theirs['align']}."
        )
    for name in (k for k in FORWARD if k in differ):
        log.warning("the graft was pretrained with %s=%s, this run has %s: its parameters were"
                    " fitted to another computation", name, theirs[name], mine[name])  # fmt: skip


def _tell_features(bundle: Pretrained, data: Data, known: set[str]) -> None:
    """Warn of features that each data set computes by itself, and of those of another size."""
    own, there = data.dataset.source, bundle.split.get("data")
    for m in sorted((known & set(own.get("computed", ()))) - {"text"}):
        if there != data.dataset.name:
            log.warning("the graft's '%s' features were computed and standardised among the items"
                        " of %s, here among those of %s: they are taken to mean the same",
                        m, there, data.dataset.name)  # fmt: skip
    for m in sorted(known):
        theirs = bundle.bundle.features.get(m, {}).get("divided_by", 1.0)
        mine = own.get("divided_by", {}).get(m, 1.0)
        if abs(mine / theirs - 1) > SAME_SIZE:
            log.warning("the graft read '%s' features divided by %.3g, this run's are by %.3g",
                        m, theirs, mine)  # fmt: skip


def _read(bundle: Pretrained) -> set[str]:
    """The modalities that a graft's model reads: those it names, or all that its items have."""
    has = set(bundle.catalogue.get("features", {}))
    named = bundle.config["fields"].get("modalities")
    return has if named is None else has & set(named)


def _of_these(params: Any, bundle: Pretrained, data: Data) -> Any:
    """The parameters without the tables of items and users that are not those of `data`, or the
    first of them. Raises ValueError where nothing is left."""
    ids = [str(x) for x in data.dataset.item_ids]
    same_items = ids[: len(bundle.item_ids)] == bundle.item_ids
    told = bundle.split.get("users")  # bundles without it: other items, other users
    same_users = users_told(data, told["count"]) == told if told else same_items
    other = {ITEM_TABLE: not same_items, USER_TABLE: not same_users}
    for pattern in (k for k, differ in other.items() if differ):
        params = without(params, pattern)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"the graft has vectors of items and users of {bundle.split.get('data')} and nothing "
            f"else, and those of {data.dataset.name} are others: train it from the start."
        )
    return params


def users_told(data: Data, first: int | None = None) -> dict[str, Any]:
    """How many users there are and a digest of their ids, or of the first ones' alone."""
    ids = [str(x) for x in data.dataset.user_ids[1:]][:first]
    return {"count": len(ids), "sha256": json_sha256(ids)}


def check_split(theirs: dict[str, Any], data: Data, what: str) -> None:
    """Raise ValueError where `what` learned from other interactions of the same data: they may be
    held out here. theirs: {data, hash} of its split and, of merged data, parts."""
    name = split_otherwise(theirs, data)
    if name is None:
        return
    if name == theirs["data"]:
        how = "with the same options of data and split"
    else:
        how = f"without {name}, or so that {theirs['data']} is split as {name} is by itself"
        how += " (leave-one-out, no two events of a user at one time)"
    raise ValueError(
        f"{what} was trained on another split of {name}: it may know what is held out here. Train "
        f"it {how}."
    )


def _check_encoded(theirs: dict[str, Any], encoding: Encoding | None, known: set[str]) -> None:
    """Raise ValueError where a graft's own encoder made what here are features, or the reverse."""
    there = set(theirs.get("modalities", ()))
    here = set(encoding.modalities) if encoding else set()
    for modality in sorted((there ^ here) & known):
        raise ValueError(
            f"the graft {'encoded' if modality in there else 'read features of'} '{modality}', "
            f"this run {'encodes it' if modality in here else 'reads features of it'}: the vectors "
            "mean other things. Name the same --encode.modalities for both."
        )


def _encoders_of(bundle: Bundle, data: Data, encoding: Encoding | None) -> dict[str, Any]:
    """Pretrained encoders of the run's modalities; ValueError where they are of another make."""
    if encoding is None:
        raise ValueError(
            "the graft holds encoders of raw content, and this run reads features: name the "
            "modalities that it shall encode itself (--encode.modalities)."
        )
    if "split" in bundle.config:  # it has read interactions, too
        check_split(bundle.split, data, "the graft")
    _check_make(bundle, data, encoding)
    there = {m: x for m, x in bundle.params["encoders"].items() if m in encoding.modalities}
    if not there:
        raise ValueError(
            f"the graft has encoders of {sorted(bundle.params['encoders'])}; this run encodes "
            f"{list(encoding.modalities)}."
        )
    return {"encoders": there}


def _check_make(bundle: Bundle, data: Data, encoding: Encoding) -> None:
    """Raise ValueError where the bundle's encoders are of other sizes, or read other word ids."""
    theirs, mine = asdict(Encoding(**bundle.config["encoding"])), asdict(encoding)
    both = [m for m in theirs["modalities"] if m in mine["modalities"]]
    names = [*MAKE, *(k for m in both for k in SIZES.get(m, ()))]
    other = {k: (theirs[k], mine[k]) for k in names if theirs[k] != mine[k]}
    if other:
        told = "; ".join(f"{k} {a} there, {b} here" for k, (a, b) in other.items())
        raise ValueError(f"the graft's encoders are of another make: {told}. Name the same.")
    here = word_ids_sha256(data.raw) if "text" in both else None
    if here and encoding.kind == "small" and bundle.config["word_ids_sha256"] not in (None, here):
        raise ValueError(
            f"the graft's encoder read the words of {bundle.split['data']} under other ids than "
            f"those of {data.dataset.name}: pretrain on these items, with as many tokens."
        )


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
