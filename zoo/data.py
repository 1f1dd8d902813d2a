"""A data set with its split, and what models read of it: content, semantic ids, a run's vectors."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pipelines import content, interactions, sources, splits
from pipelines import loader as loaders
from pipelines.merging import merge
from pipelines.raw import raw_content
from pipelines.schema import DataError, Dataset, Split
from pipelines.words import words
from zoo import coding
from zoo import mesh as meshes
from zoo.embed import tower_inputs
from zoo.embedded import ROWS, embedded, layered, rows_of
from zoo.encoders.small import Encoding, how_raw
from zoo.serve import Pretrained, from_pretrained

# What of a bundle's split record says who is held out, where no hash does.
DIVIDING = ("name", "protocol", "part", "k_core", "require", "split_seed", "tie_seed")
NEAR_ONE = (0.5, 2.0)  # the size of features that is left as it is
log = logging.getLogger("zoo")


@dataclass(frozen=True)
class DataOptions:
    """Which rows of a data set count, and how they are split."""

    part: str | None = None  # which interactions file, where a folder holds several
    split: str = "auto"  # auto: the file's own labels, else leave-one-out
    k_core: int = 0  # keep users and items with at least this many interactions
    require: tuple[str, ...] = ()  # keep items that have these modalities, before the k-core
    split_seed: int = 0
    tie_seed: int = 0  # orders interactions of equal time
    text: str = "lsa"  # features of words: `lsa`, of as many columns as a model usually reads, or
    # `hashed`, the same space in every data set; `lsa:200`: of 200 columns
    codes: str | None = None  # semantic ids (zoo/coding.py); None: the model's usual ones
    features: tuple[str, ...] = ()  # folders of `zoo embed`, one a modality


@dataclass(frozen=True)
class Data:
    """A data set with its split; what every model is trained and measured on."""

    dataset: Dataset
    split: Split
    options: DataOptions = DataOptions()
    codes: dict[str, Any] = field(default_factory=dict)  # semantic ids, where a model spells them
    vectors: dict[str, np.ndarray] = field(default_factory=dict)  # of another run: items, users
    raw: dict[str, Any] = field(default_factory=dict)  # content that the model encodes itself
    before: Dataset | None = None  # with the features that `raw`, or another size, replaced

    def __repr__(self) -> str:
        return f"Data({self.dataset}, {self.split})"

    def catalogue(self, mesh: Mesh | None = None) -> dict[str, Any]:
        """Per-item (and per-user) arrays for a model, numpy, padded to a round number of rows."""
        rows = meshes.table_rows(self.dataset.n_items, mesh)
        user_rows = meshes.table_rows(self.dataset.n_users, mesh)
        made = loaders.catalogue(self.dataset, self.split, rows, user_rows)
        made |= coding.arrays(self.codes, rows) if self.codes else {}
        several = {m: _padded(x, rows) for m, x in rows_of(self.dataset).items()}
        made |= {"rows": several} if several else {}
        made |= {"raw": jax.tree.map(lambda x: _padded(x, rows), self.raw)} if self.raw else {}
        return made | ({"vectors": self._vectors(rows, user_rows)} if self.vectors else {})

    def _vectors(self, rows: int, user_rows: int) -> dict[str, np.ndarray]:
        room = {"items": rows, "users": user_rows}
        return {k: _padded(x, room[k]) for k, x in self.vectors.items()}

    def learned_from(self) -> dict[str, Any]:
        """{data, hash} of the split, for bundles; of merged data `parts` {name: hash}, too."""
        parts = splits.part_hashes(self.split, self.dataset)
        told = {"data": self.dataset.name, "hash": self.split.hash}
        return told | ({"parts": parts} if parts else {})

    def linked(self, catalogue: dict[str, Any]) -> dict[str, Any]:
        """`catalogue` with the train interactions, from which graphs are made."""
        train = {"items": self.split.train.values, "users": self.split.train.rows}
        return {**catalogue, "train": train}

    def counted(self, catalogue: dict[str, Any]) -> dict[str, Any]:
        """`catalogue` with what the floors count: train interactions and the words of items."""
        found = words(self.dataset)
        text = {} if found is None else {"words": {"items": found.rows, "words": found.values}}
        return self.linked(catalogue) | text


def load_data(
    path: str | Path | Dataset | Sequence[str | Path | Dataset],
    options: DataOptions = DataOptions(),
) -> Data:
    """A folder (or a Dataset) with its split, leakage checked; of repeated pairs the last counts.

    Several of them become one data set with nothing shared (pipelines/merging.py).
    Raises pipelines.schema.DataError for anything wrong with the files.
    """
    paths = path if isinstance(path, (list, tuple)) else [path]
    dataset = merge([p if isinstance(p, Dataset) else sources.load(p, options.part) for p in paths])
    before = len(dataset.items)
    dataset = interactions.drop_duplicates(dataset)  # the history is masked: a repeat has no rank
    if len(dataset.items) < before:
        log.warning("%d repeated (user, item) rows: the last counts", before - len(dataset.items))
    for modality in options.require:
        dataset = interactions.filter_items(dataset, _has(dataset, modality))
    if options.k_core:
        dataset = interactions.k_core(dataset, options.k_core, options.k_core)
    split = splits.make_split(dataset, options.split, options.split_seed, options.tie_seed)
    return Data(dataset, split, options)


def _has(dataset: Dataset, modality: str) -> np.ndarray:
    if modality in dataset.present:
        return dataset.present[modality]
    if modality in dataset.columns:
        return np.array([bool(value) for value in dataset.columns[modality]])
    has = sorted({*dataset.present, *dataset.columns})
    raise DataError(f"require: {dataset.name} has no '{modality}'; its items have {has}.")


def prepare(data: Data, sources_wanted: str) -> Data:
    """With content features, decoded and computed, when a model asks for `content` or `both`.

    Vectors of the folders that the options name (zoo/embed.py) are put in for any model.
    """
    if "embedded" not in data.dataset.source:
        for folder in data.options.features:
            data = replace(data, dataset=embedded(folder, data.dataset))
        _check_embedded(data)
    if sources_wanted == "id":
        return data
    dataset, problems = content.with_features(data.dataset, text=data.options.text)
    _tell(problems)
    return replace(data, dataset=dataset)


def sized(data: Data) -> Data:
    """With each modality's features divided by their root mean square, unless that is near one.

    Initialisers and rates of learning expect the size of standardised features (items.py); rows of
    length one, as encoders give them and `hashed` has them, are twenty times smaller, and learnt
    that much more slowly. One number a modality: its neighbours stay, and its zeros. What was done
    stands in `source["divided_by"]`.
    """
    own = data.dataset
    found = {m: _size(own, m) for m in own.features}
    found = {m: size for m, size in found.items() if size and not NEAR_ONE[0] < size < NEAR_ONE[1]}
    if not found:
        return data
    features = own.features | {m: own.features[m] / np.float32(s) for m, s in found.items()}
    source = own.source | {"divided_by": found}
    dataset = replace(own, features=features, source=source)
    return replace(data, dataset=dataset, before=data.before or own)


def _size(dataset: Dataset, modality: str) -> float:
    """Root mean square of the features' rows, of those that are not zero; 0 where all are."""
    x, facts = dataset.features[modality], dataset.source.get("embedded", {}).get(modality, {})
    rows = x.reshape(len(x) * facts.get(ROWS, 1), -1) if x.size else np.zeros((0, 1), x.dtype)
    rows = rows[rows.any(1)]
    return float(np.sqrt(np.mean(np.square(rows), dtype=np.float64))) if len(rows) else 0.0


def _check_embedded(data: Data) -> None:
    """Raise DataError for vectors of encoders that learned from another split's interactions."""
    for name, facts in data.dataset.source.get("embedded", {}).items():
        learned = facts.get("preprocessing", {}).get("learned_from", {})
        if (whose := split_otherwise(learned, data)) is not None:
            raise DataError(
                f"the '{name}' vectors are of encoders that learned from another split of "
                f"{whose}: they may know what is held out here. Pretrain and embed "
                "with the same options of data and split."
            )


def split_otherwise(theirs: dict[str, Any], data: Data) -> str | None:
    """The data set whose interactions `theirs`, the split record of a bundle, divides otherwise
    than `data`; None where there is none. Merged data are compared part by part."""
    mine, whose = data.learned_from(), theirs.get("data", "")
    here, there = ({x.get("data"): x.get("hash")} | x.get("parts", {}) for x in (mine, theirs))
    for name, found in here.items():
        if there.get(name, found) != found:
            return name
    unknown = "parts" not in theirs and whose != data.dataset.name  # older bundles have none
    if unknown and data.dataset.name in whose.split("+") and _divided_otherwise(theirs, data):
        return data.dataset.name
    return None


def _divided_otherwise(theirs: dict[str, Any], data: Data) -> bool:
    """Whether protocol or options, as far as the record has them, are others than those here."""
    there = theirs.get("options", {}) | {k: theirs[k] for k in ("name", "protocol") if k in theirs}
    here = asdict(data.options) | {"name": data.split.name, "protocol": data.split.protocol}
    both = [k for k in DIVIDING if k in there]
    return any(json.dumps(there[k]) != json.dumps(here[k]) for k in both)  # JSON has lists


def _tell(problems: list[content.Problem]) -> None:
    for problem in problems[:5]:
        log.warning("masked: row %d, %s: %s", *problem)
    if problems:
        log.warning("%d contents could not be read and are masked as missing", len(problems))


def with_raw(data: Data, encoding: Encoding) -> Data:
    """With the content of `encoding` as the encoders read it. The features of these modalities
    go: what the encoders make takes their places."""
    if encoding.kind == "side":
        data = prepare(data, "id")  # the folders that the options name
        there = data.dataset.present
        found = {m: (layered(data.dataset, m), there[m], []) for m in encoding.modalities}
    elif encoding.kind == "small":
        found = raw_content(data.dataset, encoding.modalities, **how_raw(encoding))
    else:
        found = tower_inputs(data.dataset, encoding.kind, encoding.modalities)
    features, present = dict(data.dataset.features), dict(data.dataset.present)
    for name, (_, there, problems) in found.items():
        _tell(problems)
        features[name] = np.zeros((len(there), 0), np.float32)
        present[name] = there
    dataset = replace(data.dataset, features=features, present=present)
    raw = {name: rows for name, (rows, *_) in found.items()}
    return replace(data, dataset=dataset, raw=raw, before=data.before or data.dataset)


def as_loaded(data: Data) -> Data:
    """Without what another model's fit has put in: codes, vectors, raw content."""
    own = data.before or data.dataset
    return replace(data, dataset=own, codes={}, vectors={}, raw={}, before=None)


def with_text(data: Data, usual: str) -> Data:
    """With the `usual` features of words, where its options do not say how many columns of LSA, and
    none are there yet."""
    if data.options.text != "lsa" or "text" in data.dataset.features:
        return data
    return replace(data, options=replace(data.options, text=usual))


def with_codes(data: Data, usual: str) -> Data:
    """With the semantic ids that its options name, or the usual ones."""
    found = coding.coded(data.dataset, data.options.codes or usual, data.options.text)
    for name, (codes, _) in found.items():
        log.warning(coding.told(name, codes, data.split.test.positives.values))
    return replace(data, codes=found)


def with_vectors(data: Data, run: Pretrained | str | Path) -> Data:
    """With the user and item vectors of a trained run, frozen: what its index scores by.

    Raises ValueError for a run on other items or another split, or of a model without vectors.
    """
    bundle = run if isinstance(run, Pretrained) else from_pretrained(run)
    vectors = bundle.vectors(data.dataset, data.split)
    if "users" not in vectors:
        raise ValueError(
            f"{bundle.config['model']} keeps no vectors of users; expected those of items and "
            "users, as graph models have them (zoo train graphsage)."
        )
    return replace(data, vectors=vectors)


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    """x at `rows` rows: tables end in padding, more of it or less."""
    return np.pad(x[:rows], ((0, max(0, rows - len(x))), *[(0, 0)] * (x.ndim - 1)))
