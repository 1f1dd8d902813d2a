"""The door for Python: load data, build, fit, evaluate, save, load back, recommend."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints.bundle import save_bundle
from checkpoints.store import params_sha256
from pipelines import content, interactions, sources, splits
from pipelines import loader as loaders
from pipelines.merging import merge
from pipelines.schema import DataError, Dataset, Split
from pipelines.words import words
from zoo import coding, evaluation
from zoo import mesh as meshes
from zoo.adapt import merged
from zoo.embed import embedded, space_differences
from zoo.fitting import Fitted
from zoo.fitting import fit as fit_split
from zoo.floor_table import floor_table
from zoo.models import build, entry, fields
from zoo.recommender import Recommender
from zoo.serve import Pretrained, Recommendation, from_pretrained
from zoo.settings import Settings, settings_for

__all__ = [
    "Data",
    "DataOptions",
    "Pretrained",
    "Recommendation",
    "Recommender",
    "Settings",
    "build",
    "evaluate",
    "fit",
    "floors",
    "from_pretrained",
    "load_data",
    "prepare",
    "save",
    "settings_for",
]
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
    text: str = "lsa"  # features of words: `lsa`, or `hashed`, the same space in every data set
    codes: str | None = None  # semantic ids of generative models (zoo/coding.py); None: rkmeans,
    # of rpg opq
    features: tuple[str, ...] = ()  # folders of `zoo embed`, one a modality


@dataclass(frozen=True)
class Data:
    """A data set with its split; what every model is trained and measured on."""

    dataset: Dataset
    split: Split
    options: DataOptions = DataOptions()
    codes: dict[str, Any] = field(default_factory=dict)  # semantic ids, where a model spells them
    vectors: dict[str, np.ndarray] = field(default_factory=dict)  # of another run: items, users

    def catalogue(self, mesh: Mesh | None = None) -> dict[str, Any]:
        """Per-item (and per-user) arrays for a model, numpy, padded to a round number of rows."""
        rows = meshes.table_rows(self.dataset.n_items, mesh)
        user_rows = meshes.table_rows(self.dataset.n_users, mesh)
        made = loaders.catalogue(self.dataset, self.split, rows, user_rows)
        made |= coding.arrays(self.codes, rows) if self.codes else {}
        return made | ({"vectors": self._vectors(rows, user_rows)} if self.vectors else {})

    def _vectors(self, rows: int, user_rows: int) -> dict[str, np.ndarray]:
        room = {"items": rows, "users": user_rows}
        return {k: _padded(x, room[k]) for k, x in self.vectors.items()}

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
    if sources_wanted == "id":
        return data
    dataset, problems = content.with_features(data.dataset, text=data.options.text)
    for problem in problems[:5]:
        log.warning("masked: %s", problem)
    if problems:
        log.warning("%d contents could not be read and are masked as missing", len(problems))
    return replace(data, dataset=dataset)


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    """x at `rows` rows: tables end in padding, more of it or less."""
    return np.pad(x[:rows], ((0, max(0, rows - len(x))), (0, 0)))


def with_vectors(data: Data, run: Pretrained | str | Path) -> Data:
    """With the user and item vectors of a trained run, frozen: what its index scores by.

    Raises ValueError for a run on other items or another split, or of a model without vectors.
    """
    bundle = run if isinstance(run, Pretrained) else from_pretrained(run)
    bundle.check_same_items(data.dataset)
    if bundle.split["hash"] != data.split.hash:
        raise ValueError(
            f"the vectors were trained on split {bundle.split['hash'][:12]}, this one is "
            f"{data.split.hash[:12]}: they would know what is held out here."
        )
    found = meshes.fetch(bundle.index) if "vectors" not in bundle.catalogue else {}
    if not {"table", "users"} <= set(found):
        raise ValueError(
            f"{bundle.config['model']} keeps {sorted(found)}; expected vectors of items and "
            "users, as graph models have them (zoo train graphsage)."
        )
    vectors = {"items": np.asarray(found["table"]), "users": np.asarray(found["users"])}
    return replace(data, vectors=vectors)


def _about(data: Data, catalogue: dict[str, Any]) -> dict[str, Any]:
    """What decides what a model reads of an item, where that is not the usual: options, and what
    came of them."""
    usual, options = DataOptions(), data.options
    read = {k: params_sha256(catalogue[k]) for k in ("codes", "vectors") if k in catalogue}
    named = {k: getattr(options, k) for k in ("text", "features", "codes")}
    named = {k: v for k, v in named.items() if v != getattr(usual, k)}
    return {k: list(v) if k == "features" else v for k, v in named.items()} | (
        {"read": read} if read else {}
    )


def with_codes(data: Data, usual: str = "rkmeans") -> Data:
    """With the semantic ids that its options name, or the usual ones."""
    found = coding.coded(data.dataset, data.options.codes or usual, data.options.text)
    for name, (codes, _) in found.items():
        log.warning(coding.told(name, codes, data.split.test.positives.values))
    return replace(data, codes=found)


def _wanted(model: str, chosen: dict[str, Any]) -> str:
    """Whether a model reads `id` alone, `content` or `both`."""
    known = fields(model)
    if "items" in known:
        return chosen.get("items", known["items"][1])
    return "both" if "modalities" in known else "id"


def fit(
    model: str,
    data: Data | Dataset | str | Path,
    out: str | Path | None = None,
    settings: Settings | None = None,
    mesh: Mesh | None = None,
    report=lambda step, steps, metrics: None,
    graft: Pretrained | str | Path | None = None,
    vectors: Pretrained | str | Path | None = None,
    adapt: str | None = None,
    **chosen: Any,
) -> tuple[Fitted, Data]:
    """Train a model of the register on data; with `out`, resumable, and a bundle at OUT/bundle.

    graft: a pretrained run or bundle; its parameters take the place of fresh ones (graft.py).
    vectors: a run whose user and item vectors the model reads, frozen. adapt: how the graft is
    adapted, such as "lora:8" (recipes.py); the rest of it stays as it was.
    Returns the fitted model and the data as the model saw it (content features included).
    """
    known = entry(model)
    if known.family == "floor":
        raise ValueError(f"{model} counts instead of training: see `zoo floors`.")
    data = data if isinstance(data, Data) else load_data(data)
    ordered = known.family in ("sequential", "generative") and known.targets != "rest"
    if ordered and not data.split.ordered:
        log.warning("%s splits sets: their file order is taken for time", data.split.protocol)
    data = prepare(data, _wanted(model, chosen))
    data = replace(data, codes={}, vectors={})  # those of another model's fit
    if known.family == "generative":
        data = with_codes(data, "opq" if model == "rpg" else "rkmeans")
    data = with_vectors(data, vectors) if vectors is not None else data
    catalogue = data.catalogue(mesh)
    catalogue = data.linked(catalogue) if known.family == "graph" else catalogue
    start = pretrained_for(model, graft, data, adapt) if graft is not None else None
    how = (out, settings, mesh, report, start, adapt, _about(data, catalogue))
    fitted = fit_split(model, data.split, catalogue, *how, **chosen)
    if out is not None:
        save(Path(out) / "bundle", model, chosen, fitted, data, adapt=adapt)
    return fitted, data


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
    if data.codes:
        _check_codes(bundle, data)
    if bundle.config.get("adapt") in (None, adapt):
        return bundle.params
    return merged(bundle.recommender, bundle.params)


def _check_codes(bundle: Pretrained, data: Data) -> None:
    """Raise ValueError where a graft spells the same items in other codes."""
    if bundle.split.get("data") != data.dataset.name:
        log.warning("the graft's codes are of %s: one tokenizer is taken to have made both sets",
                    bundle.split.get("data"))  # fmt: skip
        return
    theirs = bundle.bundle.codes or {}
    mine = data.catalogue()["codes"]
    same = [np.array_equal(theirs.get(f"codes.{name}"), x) for name, x in mine.items()]
    if not all(same):
        raise ValueError(
            f"the graft spells the items of {data.dataset.name} in other codes than "
            f"{sorted(mine)}: its code vectors mean nothing here. Name the codes it was trained "
            "on (--codes)."
        )


def evaluate(
    model: Pretrained | Fitted | tuple[Recommender, Any],
    data: Data | str | Path,
    split: str = "test",
    ks: Sequence[int] = (5, 10, 20),
    mask: bool = True,
    max_len: int = 50,
    catalogue: dict[str, Any] | None = None,
    batch: int = 512,
) -> evaluation.Result:
    """Full-ranking metrics of a bundle, of what `fit` returned, or of (recommender, params), on
    `valid` or `test`."""
    if isinstance(model, Pretrained):
        data = data if isinstance(data, Data) else load_data(data, model.data_options())
        model.check_same_items(data.dataset)
        recommender, params = model.recommender, model.params
        catalogue, max_len = catalogue or model.catalogue, model.max_len
    elif isinstance(model, Fitted):
        data = data if isinstance(data, Data) else load_data(data)
        recommender, params, max_len = model.recommender, model.params, model.max_len
        catalogue = catalogue or model.catalogue
    else:
        recommender, params = model
        data = data if isinstance(data, Data) else load_data(data)
        catalogue = catalogue or recommender.prepare(data.linked(data.catalogue()), 1)
    if split not in ("valid", "test"):
        raise ValueError(f"split is '{split}'; expected 'valid' or 'test'.")
    events = data.split.valid if split == "valid" else data.split.test
    return evaluation.evaluate(
        recommender,
        params,
        catalogue,
        loaders.event_batches(events, max_len, batch),
        ks=tuple(ks),
        mask=mask,
        candidates=loaders.candidates(data.split, len(catalogue["valid"])),
    )


def floors(
    data: Data | str | Path, names: Sequence[str] | None = None, mask: bool = True
) -> dict[str, Any]:
    """The floors on this data: exact counts, open parameters chosen on validation."""
    data = data if isinstance(data, Data) else load_data(data)
    dataset = data.dataset
    return floor_table(
        data.split,
        dataset.n_items,
        words=words(dataset),
        features=dataset.features,
        present=dataset.present,
        floors=names,
        mask=mask,
    )


def save(
    folder: str | Path,
    model: str,
    chosen: dict[str, Any],
    fitted: Fitted,
    data: Data,
    titles: bool = True,
    results: dict[str, Any] | None = None,
    adapt: str | None = None,
) -> Path:
    """Write the bundle of a fitted model: everything that serving needs, hashes included."""
    uses_content, graph = _wanted(model, chosen) != "id", entry(model).family == "graph"
    catalogue = data.linked(meshes.fetch(fitted.catalogue))
    kept = ("valid", "popularity") + (("features", "present") if uses_content else ())
    kept += ("users",) if graph or chosen.get("user") == "id" else ()
    kept += ("train",) if graph else ()
    kept += ("vectors",) if data.vectors else ()
    columns = {"title": data.dataset.columns["title"]} if _titled(data, titles) else {}
    known = fields(model)
    config = {
        "model": model,
        "fields": {k: chosen.get(k, default) for k, (_, default) in known.items()},
        "steps": fitted.steps,
        **({"adapt": adapt} if adapt else {}),
    }
    split = {
        "name": data.split.name,
        "protocol": data.split.protocol,
        "hash": data.split.hash,
        "data": data.dataset.name,
        "options": asdict(data.options),
    }
    evaluation_row = {"valid": fitted.best, **(results or {})}
    params = meshes.fetch(fitted.params)
    found = data.catalogue() if data.codes else {}
    codes = {f"{k}.{v}": x for k in ("codes", "sizes") for v, x in found.get(k, {}).items()}
    if jax.process_index():  # several hosts: the first one writes
        return Path(folder)
    return save_bundle(
        folder,
        config=config,
        params=params,
        item_ids=data.dataset.item_ids,
        item_columns=columns,
        features={k: catalogue[k] for k in kept},
        feature_manifest=_manifest(data) if uses_content else {},
        split=split,
        evaluation=evaluation_row,
        card=card(model, config, split, evaluation_row),
        codes=codes or None,
    )


def _titled(data: Data, titles: bool) -> bool:
    return titles and "title" in data.dataset.columns


def _manifest(data: Data) -> dict[str, Any]:
    made = {m: {"made_by": x} for m, x in data.dataset.source.get("embedded", {}).items()}
    return {
        m: {"width": int(x.shape[1]), "present": int(data.dataset.present[m].sum())}
        | made.get(m, {})
        for m, x in data.dataset.features.items()
    }


def card(model: str, config: dict, split: dict, results: dict) -> str:
    """The bundle's README: what it is, what it learned from, what it reached."""
    lines = [f"# {model}", "", entry(model).summary + f" ({entry(model).paper}).", ""]
    lines += [f"Data: {split['data']}, split {split['name']} ({split['protocol']}),"]
    lines += [f"split hash `{split['hash']}`; trained for {config['steps']} steps.", ""]
    lines += ["| split | metric | value |", "|---|---|---|"]
    for name, metrics in results.items():
        lines += [f"| {name} | {k} | {v:.4f} |" for k, v in metrics.items() if "@" in k]
    lines += ["", "```python", "import zoo", "bundle = zoo.from_pretrained(FOLDER)"]
    return "\n".join([*lines, "bundle.recommend(history, k=10)", "```", ""])
