"""Vectors that `zoo embed` made, as features: found by item, of one making, or layer by layer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.rows import differences, read_rows
from pipelines.schema import DataError, Dataset
from zoo.encoders.inputs import item_sentences, item_texts, json_sha256

LAYERS = "layers"
ROWS = "item_rows"  # the fact that says how many rows of an item stand side by side
SPACE = ("modality", "encoder_files", "preprocessing", "pooling", "dtype")  # what a vector means


def embedded(folder: str | Path, dataset: Dataset) -> Dataset:
    """The data set with the vectors of a finished folder as features of their modality.

    Items are found by their ids, so those of a k-core are too. They take the place of features of
    that modality that the data set had. Raises ValueError for a folder that is none, unfinished
    or damaged, and DataError for one of another data set, of other items or of other texts (files
    are not read again: a machine that has the vectors need not have the pictures).
    """
    made = read_rows(folder)
    facts, ids = made.facts, ids_of(dataset)
    if facts["data"] != dataset.name:
        raise DataError(
            f"{folder} holds vectors of {facts['data']}, the data set is {dataset.name}. "
            "Ids of two data sets may be equal and mean other items: embed this one."
        )
    if json_sha256(ids) != facts["items_sha256"]:
        made = made._replace(**_picked(made.vectors, made.present, made.ids, ids, folder))
    else:
        _check_texts(facts, dataset, folder)
    modality = facts["modality"]
    if modality in dataset.source.get("embedded", {}):
        raise DataError(f"{folder}: '{modality}' has vectors already: name one folder a modality.")
    vectors = np.concatenate([np.zeros((1, made.vectors.shape[1]), np.float32), made.vectors])
    told = {**dataset.source.get("embedded", {}), modality: facts}
    return replace(
        dataset,
        features={**dataset.features, modality: vectors},
        present={**dataset.present, modality: np.r_[False, made.present]},
        source={**dataset.source, "embedded": told},
    )


def space_differences(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """How the meaning of vectors differs, of two manifests' facts ({}: features of no encoder)."""
    return differences({k: theirs.get(k) for k in SPACE}, {k: mine.get(k) for k in SPACE})


def _check_texts(facts: dict[str, Any], dataset: Dataset, folder: Any) -> None:
    """Raise DataError for vectors of other texts than those of the same items here."""
    how = facts.get("preprocessing", {})
    if facts["modality"] != "text" or "max_length" not in how or "content_sha256" not in facts:
        return  # not of a published text tower
    many = how.get("sentences", 0)
    said = item_sentences(dataset, many) if many else [[x] for x in item_texts(dataset)]
    texts = [text for own in said for text in own if text]
    if texts and json_sha256(texts) != facts["content_sha256"]:
        raise DataError(
            f"{folder} holds vectors of other texts than the items of {dataset.name} have: they "
            "were changed since, or are another shop's. Embed them anew, to another folder."
        )


def _picked(vectors, present, theirs: list[str], ids: list[str], folder: Any) -> dict[str, Any]:
    at = {item: row for row, item in enumerate(theirs)}
    lost = [item for item in ids if item not in at]
    if lost:
        raise DataError(
            f"{folder} has no rows for {len(lost)} of {len(ids)} items, first {lost[:3]}; its ids "
            f"look like {theirs[:3]}. Embed the whole data set once, with the same part."
        )
    rows = np.array([at[item] for item in ids], int)
    return {"vectors": vectors[rows], "present": present[rows]}


def layered(dataset: Dataset, modality: str) -> np.ndarray:
    """float32 [n+1,k+1,d]: the features of a modality by layer. DataError where they are not."""
    facts = dataset.source.get("embedded", {}).get(modality, {})
    if facts.get("pooling") != LAYERS:
        raise DataError(
            f"{dataset.name}: the '{modality}' features are not one vector a layer; make them with "
            "zoo embed --pooling layers, and name the folder with --features."
        )
    x = dataset.features[modality]
    return x.reshape(len(x), facts["layers"], -1)


def rows_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """bool [n+1,s] of every modality with s rows an item: which of them there are."""
    many, n = {}, dataset.n_items + 1
    for modality, facts in dataset.source.get("embedded", {}).items():
        x = dataset.features[modality]
        if ROWS in facts and x.shape[1]:  # else the model encodes the modality itself
            x = x.reshape(n, facts[ROWS], -1)
            many[modality] = np.any(x != 0, axis=-1)
    return many


def ids_of(dataset: Dataset) -> list[str]:
    """The items' external ids, in order."""
    return [str(item) for item in dataset.item_ids[1:]]
