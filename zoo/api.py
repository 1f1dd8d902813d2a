"""The door for Python: load data, build, fit, evaluate, save, load back, recommend."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from checkpoints.store import params_sha256
from pipelines import loader as loaders
from pipelines.content import content_sha256
from pipelines.schema import Dataset
from zoo import counted, evaluation
from zoo.data import (
    Data,
    DataOptions,
    as_loaded,
    load_data,
    prepare,
    sized,
    with_codes,
    with_raw,
    with_text,
    with_vectors,
)
from zoo.encoders.small import Encoding
from zoo.fitting import fit as fit_split
from zoo.graft import Names
from zoo.models import Entry, build, entry, fields, from_nothing, reads, reads_codes
from zoo.names import at_least
from zoo.recommender import Recommender
from zoo.result import Result
from zoo.run import Fitted
from zoo.saving import save
from zoo.serve import Pretrained, Recommendation, from_pretrained
from zoo.settings import Settings, claim, settings_for
from zoo.transfer import flops_of, pretrained_for

__all__ = [
    "Data",
    "DataOptions",
    "Encoding",
    "Pretrained",
    "Recommendation",
    "Recommender",
    "Settings",
    "build",
    "control",
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
ENDLESS = 10**9  # evaluations without a better one


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
    encoding: Encoding | None = None,
    names: Names = (),
    **chosen: Any,
) -> tuple[Fitted, Data]:
    """Train a model of the register on data; with `out`, resumable, and a bundle at OUT/bundle.
    A floor is counted; fields that are not given are chosen on validation.

    graft: a pretrained run or bundle; its parameters take the place of fresh ones, by name or as
    the table `names` has it (graft.py): what that renames is the caller's word.
    vectors: a run whose user and item vectors the model reads, frozen. adapt: how the graft is
    adapted, such as "lora:8" (recipes.py); the rest of it stays as it was. encoding: the content
    that the model encodes itself, by encoders that learn with it (end_to_end.py).
    Returns the fitted model and the data as the model saw it (content features included).
    """
    known = entry(model)
    if names and graft is None:
        raise ValueError("names are of a graft's parameters: name one (graft).")
    data = data if isinstance(data, Data) else load_data(data)
    _check_codes(model, data, chosen)
    if known.family == "floor":
        _check_floor(model, (settings, graft, vectors, adapt, encoding))
        return _count(model, data, out, chosen)
    _warn_of_time(model, known, data, chosen)
    encoding = encoding if encoding and encoding.modalities else None
    read = reads(model, chosen)
    if encoding:
        _check_encoding(model, known, read, chosen, encoding)
    data = prepare(as_loaded(data), "id")
    if reads_codes(model, chosen):  # codes are of the content, whoever encodes it
        data = with_codes(data if encoding else prepare(data, read), known.codes)
    data = with_text(data, known.text) if read != "id" else data
    data = prepare(with_raw(data, encoding) if encoding else data, read)
    data = data if known.family == "graph" else sized(data)  # graph models as published
    data = with_vectors(data, vectors) if vectors is not None else data
    catalogue = data.catalogue(mesh)
    catalogue = data.linked(catalogue) if known.family == "graph" else catalogue
    told = (model, graft, data, adapt, encoding, bool(names), chosen)
    start = pretrained_for(*told) if graft is not None else None
    about = _about(data, catalogue, read) | ({"encoding": asdict(encoding)} if encoding else {})
    how = (out, settings, mesh, report, start, adapt, about, encoding, names)
    fitted = fit_split(model, data.split, catalogue, *how, **chosen)
    if out is not None:
        more = {"adapt": adapt, "encoding": encoding, "before": flops_of(graft)}
        save(Path(out) / "bundle", model, chosen, fitted, data, **more)
    return fitted, data


def control(
    model: str,
    data: Data | Dataset | str | Path,
    graft: Pretrained | str | Path,
    fitted: Fitted,
    out: str | Path | None = None,
    settings: Settings | None = None,
    mesh: Mesh | None = None,
    report=lambda step, steps, metrics: None,
    vectors: Pretrained | str | Path | None = None,
    encoding: Encoding | None = None,
    **chosen: Any,
) -> tuple[Fitted, Data]:
    """What pretraining is compared with: the same model from nothing, trained for as many flops as
    the graft and `fitted`, which started from it, took together (flops.py).

    The other arguments are those of that fit; all of the model trains, to the end, and validation
    chooses. Raises ValueError for a graft that does not say its flops.
    """
    before, chosen = computed_before(model, graft, chosen), from_nothing(model, chosen)
    own = settings or settings_for(model)
    own = replace(own, steps=None, flops=before + fitted.flops, patience=ENDLESS)
    more = {"vectors": vectors, "encoding": encoding}
    return fit(model, data, out, own, mesh, report, **more, **chosen)


def computed_before(model: str, graft: Pretrained | str | Path, chosen: dict[str, Any]) -> float:
    """The flops of a graft. Raises ValueError where `control` would, before anything is trained."""
    from_nothing(model, chosen)
    before = flops_of(graft)
    if before is None:
        raise ValueError(
            "the graft does not say how much it computed, so that nothing can be trained as long: "
            "pretrain it anew."
        )
    return before


def _count(
    floor: str, data: Data, out: str | Path | None, given: dict[str, Any]
) -> tuple[Fitted, Data]:
    if out is not None:
        claim(Path(out), {"model": floor, "fields": given, "split": data.split.hash})
    fitted, chosen = counted.count(floor, data, given)
    if out is not None:
        save(Path(out) / "bundle", floor, chosen, fitted, data)
    return fitted, data


def _check_codes(model: str, data: Data, chosen: dict[str, Any]) -> None:
    if data.options.codes and not reads_codes(model, chosen):
        raise ValueError(
            f"{model} reads no codes here: leave '{data.options.codes}' out, or take a generative "
            "model, sasrec with --model.items codes, or unisrec with --model.item-input codes."
        )


def _check_floor(model: str, of_training: tuple) -> None:
    if any(x is not None for x in of_training):
        raise ValueError(
            f"{model} counts instead of training: it takes no settings, graft, vectors, adapt or "
            "encoding, only its own fields; without those they are chosen on validation."
        )


def _check_encoding(
    model: str, known: Entry, read: str, chosen: dict[str, Any], encoding: Encoding
) -> None:
    own = fields(model)
    if known.family == "graph" and {"knn", "item_layers"} & set(own):
        raise ValueError(
            f"{model} makes item graphs of its features before it learns: it takes features "
            "(zoo embed), not an encoder that learns with it."
        )
    if chosen.get("train_features", own.get("train_features", (bool, False))[1]):
        raise ValueError(
            f"{model} learns a copy of its features, which an encoder would never reach: give "
            "--model.no-train-features."
        )
    if read == "id":
        raise ValueError(
            f"{model} reads no content here, so an encoder would learn nothing: take "
            "--model.items content or both, or a model that reads content."
        )
    objective = chosen.get("objective", own.get("objective", ("", ""))[1])
    if not encoding.refresh and objective != "in-batch":
        raise ValueError(
            f"{model} compares with items that no batch names, and refresh 0 never encodes them: "
            "give --encode.refresh a number of steps, or take --model.objective in-batch."
        )


def _warn_of_time(model: str, known: Entry, data: Data, chosen: dict[str, Any]) -> None:
    """Say what stands in where a model reads order or times and the data have none."""
    ordered = known.family in ("sequential", "generative")
    if ordered and known.targets not in ("rest", "whole") and not data.split.ordered:
        log.warning("%s splits sets: their file order is taken for time", data.split.protocol)
    (_, bias) = fields(model).get("time_bias", (None, None))
    if chosen.get("time_bias", bias) == "auto" and data.dataset.times is None:
        log.warning("%s has no times: %s reads positions alone", data.dataset.name, model)


def _about(data: Data, catalogue: dict[str, Any], read: str) -> dict[str, Any]:
    """What decides what a model reads of an item, where that is not the usual: options, and what
    came of them. Of features that the run computes, what they are made of: another processor rounds
    them otherwise, and a run may go on there."""
    usual, options = DataOptions(), data.options
    own = data.dataset.features if read != "id" else {}
    computed = [m for m in own if m in data.dataset.source.get("computed", ())]
    given = {m: x for m, x in own.items() if m not in computed}
    found = {k: catalogue.get(k) for k in ("codes", "vectors", "raw")} | {"features": given}
    read = {k: params_sha256(x) for k, x in found.items() if x}
    read |= {"content": content_sha256(data.dataset, computed)} if computed else {}
    named = {k: getattr(options, k) for k in ("text", "features", "codes")}
    named = {k: v for k, v in named.items() if v != getattr(usual, k)}
    if sizes := data.dataset.source.get("divided_by"):  # three digits: processors round otherwise
        named["divided_by"] = {m: f"{size:.3g}" for m, size in sizes.items()}
    return named | ({"read": read} if read else {})


def evaluate(
    model: Pretrained | Fitted | tuple[Recommender, Any] | str | Path,
    data: Data | str | Path,
    split: str = "test",
    ks: Sequence[int] = (5, 10, 20),
    mask: bool = True,
    max_len: int | None = None,
    catalogue: dict[str, Any] | None = None,
    batch: int = 512,
) -> Result:
    """Full-ranking metrics of a bundle (or its folder or name), of what `fit` returned, or of
    (recommender, params), on `valid` or `test`. max_len: events of a history that (recommender,
    params) reads."""
    at_least(1, batch=batch)
    model = from_pretrained(model) if isinstance(model, str | Path) else model
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
        if max_len is None:
            raise ValueError(
                "(recommender, params) does not say how long histories it reads: name max_len, as "
                "the model was built (50 unless it was told another), or give what fit returned."
            )
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
    return counted.floors(data if isinstance(data, Data) else load_data(data), names, mask)
