"""Encoders of `zoo pretrain OBJECTIVE`, opened as published ones are: vectors for any model."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from checkpoints.bundle import Bundle
from checkpoints.store import params_sha256
from pipelines.raw import raw_content
from pipelines.schema import Dataset
from zoo.encoders.inputs import Content, Inputs, some_rows
from zoo.encoders.load import Encoder, which
from zoo.encoders.small import SIZES, Encoding, how_raw, small, standard
from zoo.serve import bundle_of

log = logging.getLogger("zoo")


def is_own(folder: Path) -> bool:
    """Whether a folder is a run or a bundle of the zoo's, and none of a published model."""
    return any((folder / name).is_file() for name in ("bundle/manifest.json", "manifest.json"))


def own_encoder(folder: Path, dataset: Dataset, modality: str | None) -> tuple[Encoder, Content]:
    """One tower of a pretraining run, and the items' content as it reads it.

    modality None: the only one, else text. Raises ValueError for a run that is none of encoders,
    for a modality that it lacks, and for items whose words it knows under other ids.
    """
    bundle = bundle_of(folder)
    if "objective" not in bundle.config:
        raise ValueError(
            f"{folder} is a run of {bundle.config.get('model')}, not of encoders alone: expected "
            "the run of a zoo pretrain OBJECTIVE, or a published encoder's folder."
        )
    known = bundle.params["encoders"]
    modality = which(known, modality, folder)
    encoding = Encoding(**bundle.config["encoding"])
    raw, there, problems = raw_content(dataset, (modality,), **how_raw(encoding))[modality]
    _check_words(bundle, {modality: raw}, folder, dataset)
    for problem in problems:
        log.warning("masked: %s", problem)
    module, read = small(encoding, modality, raw)

    def apply(params: Any, *inputs: jax.Array) -> dict[str, jax.Array]:
        made = module.apply({"params": params[modality]}, *inputs)
        return made | {"pooled": standard(made["pooled"])}

    rows = some_rows(np.flatnonzero(there), dataset, modality)

    def take(places: np.ndarray) -> tuple[Inputs, np.ndarray, list]:
        inputs = read(jax.tree.map(lambda x: x[rows[places]], raw))
        return tuple(np.asarray(x) for x in inputs), np.ones(len(places), bool), []

    how = {k: getattr(encoding, k) for k in SIZES[modality]}
    towers = {modality: module}, {modality: known[modality]}, bundle.config, {modality: apply}
    how |= {"learned_from": bundle.split} if "split" in bundle.config else {}
    return Encoder(*towers), Content(rows, how, params_sha256({modality: raw}), take)


def word_ids_sha256(raw: dict[str, Any]) -> str | None:
    """Of the ids of all items' words, on which a small encoder of text depends; None: no text."""
    ids = raw["text"].get("ids") if isinstance(raw.get("text"), dict) else None
    return None if ids is None else params_sha256({"ids": ids})


def _check_words(bundle: Bundle, raw: dict[str, Any], folder: Path, dataset: Dataset) -> None:
    theirs, mine = bundle.config["word_ids_sha256"], word_ids_sha256(raw)
    if mine not in (None, theirs):
        raise ValueError(
            f"{folder} read the words of {bundle.split['data']} under other ids than those of "
            f"{dataset.name}: pretrain on these items, or take a published encoder."
        )
