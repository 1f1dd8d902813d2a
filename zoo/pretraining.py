"""Encoders pretrained on the content of a data set alone, held-out items told apart (of
co-consumption: held-out users), one folder.

The folder's bundle is a graft for `zoo train ... --encode.modalities ... --graft RUN`: the
encoders' parameters take the place of fresh ones (content_objectives.py has the objectives).
Content of cold items may be read here, since a catalogue knows it; interactions are read only by
`co-consumption`, and those of training only.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from checkpoints.bundle import save_bundle
from checkpoints.store import params_sha256
from pipelines.loader import Arrays, Loader
from pipelines.schema import DataError
from zoo import mesh as meshes
from zoo.content_objectives import OBJECTIVES, objective
from zoo.data import Data, with_raw
from zoo.encoders.own import word_ids_sha256
from zoo.encoders.small import Encoding, encoders
from zoo.names import unknown
from zoo.optim import optimizer
from zoo.run import Fitted, run_through, within_flops
from zoo.settings import Settings, recorded
from zoo.stepper import Stepper

HELD_OUT = 0.1  # of the examples
LEAST = 20  # examples
KS = (1, 5, 10)
SETTINGS = Settings(epochs=30, batch=128, rate=1e-3, warmup=50, select="score", patience=5)


@dataclass
class ContentRun:
    """What run_through asks of a run."""

    settings: Settings
    steps: int
    every: int
    stepper: Stepper
    loader: Loader
    recommender: Any
    validate: Callable[[Any], dict[str, float]]
    max_len: int = 0


def pretrain_content(
    name: str,
    data: Data,
    out: str | Path,
    encoding: Encoding,
    settings: Settings = SETTINGS,
    mesh: Mesh | None = None,
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, metrics: None,
    width: int = 64,
) -> tuple[Fitted, dict[str, Any]]:
    """Pretrain by one of OBJECTIVES; OUT/bundle is the graft, OUT resumes.

    width: of the space in which views are compared. Chosen by the loss on held-out items, of
    co-consumption on the pairs of held-out users. Returns the run and what was measured: that loss
    and, where two modalities are compared, retrieval of one by the other among the held-out items,
    {image>text: {recall@1, ...}}, ties at their middle, with what chance gives. Raises ValueError
    for an unknown name, DataError where too few items have the content.
    """
    if name not in OBJECTIVES:
        raise unknown("unknown objective", name, OBJECTIVES)
    if not encoding.modalities:
        raise ValueError("there is nothing to pretrain: name modalities (--encode.modalities).")
    if encoding.kind != "small":
        raise ValueError(f"pretraining makes small encoders; --encode.kind is '{encoding.kind}'.")
    read = ("image", "text") if name == "autoregressive" else encoding.modalities
    data = with_raw(data, replace(encoding, modalities=read))
    mesh = mesh or meshes.make_mesh(1)
    meshes.check_batch_fits(settings.batch, mesh)
    catalogue = _catalogue(data, mesh)
    train, held = _parts(name, data, settings.seed)
    made = encoders(encoding, catalogue["raw"])
    model = objective(name, made, width, encoding.patch, encoding.bands)
    with jax.set_mesh(mesh):
        run = within_flops(partial(_run, model, catalogue, train, held), settings, mesh)
        mine = {"objective": name, "data": data.dataset.name, "width": width, **recorded(settings)}
        mine |= {"encoding": asdict(encoding), "raw": params_sha256(data.raw)}
        mine |= _learned_from(name, data)
        fitted = run_through(run, out, mine, report)
        told = {"score": fitted.best["score"]}
        told |= {"trained_on": len(train["items"]), "held_out": len(held["items"])}
        if model.view is not None and "others" not in train:
            told["retrieval"] = _retrieval(model, fitted, held["items"])
    _save(Path(out) / "bundle", name, encoding, fitted, data, told)
    return fitted, told


def _learned_from(name: str, data: Data) -> dict[str, str]:
    """The split whose training interactions were read; {} where none were."""
    return {"split": data.split.hash} if name == "co-consumption" else {}


def _catalogue(data: Data, mesh: Mesh | None = None) -> dict[str, Any]:
    made = data.catalogue(mesh)
    words = int(data.raw["text"]["ids"].max()) + 1 if "text" in data.raw else 0
    kept = {k: made[k] for k in ("valid", "present", "raw")}
    kept |= {"alike": {m: _numbered(raw) for m, raw in made["raw"].items()}}
    known = np.arange(meshes.table_rows(words, mesh)) < words
    return kept | {"vocabulary": known.astype(np.int8)}


def _numbered(raw: Any) -> np.ndarray:
    """int32 [n]: a number a row, the same where the content is."""
    leaves, known = [np.asarray(x) for x in jax.tree.leaves(raw)], {}
    rows = (hashlib.sha256(b"".join(x[i].tobytes() for x in leaves)) for i in range(len(leaves[0])))
    return np.array([known.setdefault(row.digest(), len(known)) for row in rows], np.int32)


def _parts(name: str, data: Data, seed: int) -> tuple[dict[str, np.ndarray], ...]:
    """What a batch is drawn from, {items [p]} or {items [p], others [p]}: to train on, held out."""
    present = np.stack([data.dataset.present[m] for m in data.raw])
    some, whole = present.any(0), present.all(0)
    if name == "co-consumption":
        users, items = data.split.train.rows, data.split.train.values
        ends = np.flatnonzero((users[1:] == users[:-1]) & some[items[1:]] & some[items[:-1]])
        rows, groups = {"items": items[ends], "others": items[ends + 1]}, users[ends]
    else:
        rows = {"items": np.flatnonzero(some if name == "masked" else whole)}
        groups = rows["items"]
    if len(rows["items"]) < LEAST:
        raise DataError(
            f"{data.dataset.name}: '{name}' finds {len(rows['items'])} examples with "
            f"{', '.join(data.raw)}; expected at least {LEAST}."
        )
    names = np.unique(groups)  # items, or users: a pair of one may be another's, too
    order = np.random.default_rng(seed).permutation(names)
    held = np.isin(groups, order[: max(2, int(HELD_OUT * len(order)))])
    parts = np.flatnonzero(~held), np.flatnonzero(held)
    return tuple({k: x[part].astype(np.int32) for k, x in rows.items()} for part in parts)


def _run(model, catalogue, train, held, settings: Settings, mesh: Mesh) -> ContentRun:
    s = settings
    loader = Loader(Arrays(train), s.batch, s.seed)
    steps = s.steps or s.epochs * loader.per_epoch
    every = s.evaluate_every or min(steps, loader.per_epoch)
    chain = (s.rate, steps, s.warmup, s.schedule, s.weight_decay, s.clip, s.b2)
    made = optimizer(*chain, accumulate=s.accumulate, l2=s.l2)
    stepper = Stepper(model, made, loader, catalogue, mesh, s.seed)
    batches = _whole_batches(held, s.batch)
    loss = jax.jit(lambda p, c, b: model.loss(p, c, b, jax.random.key(0))[0])

    def validate(params: Any) -> dict[str, float]:
        """The loss on what is held out, with fixed noise; `score` is its negative."""
        values = [float(loss(params, stepper.catalogue, batch)) for batch in batches]
        return {"score": -float(np.mean(values))}

    return ContentRun(s, steps, every, stepper, loader, model, validate)


def _whole_batches(held: dict[str, np.ndarray], batch: int) -> list[dict[str, np.ndarray]]:
    """Held-out examples in batches of one size, those of the end filled up from the beginning."""
    rows = np.resize(np.arange(len(held["items"])), (-(-len(held["items"]) // batch), batch))
    return [{k: x[row] for k, x in held.items()} for row in rows]


def _retrieval(model: Any, fitted: Fitted, held: np.ndarray) -> dict[str, dict[str, float]]:
    """Recall of the item's other view among those of all held-out items, and by chance."""
    view = jax.jit(model.view)
    rows = np.array_split(held, -(-len(held) // 256))
    parts = [view(fitted.params, fitted.catalogue, jnp.asarray(ids)) for ids in rows]
    views = {m: np.concatenate([np.asarray(x[m]) for x in parts]) for m in parts[0]}
    found = {"chance": {f"recall@{k}": min(1.0, k / len(held)) for k in KS}}
    for a in views:
        for b in (m for m in views if m != a):
            scores = views[a] @ views[b].T
            own = np.diagonal(scores)[:, None]
            rank = (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2
            found[f"{a}>{b}"] = {f"recall@{k}": float((rank < k).mean()) for k in KS}
    return found


def _save(folder: Path, name: str, encoding: Encoding, fitted: Fitted, data: Data, told) -> None:
    """A bundle without items to recommend: encoders, and which content they were trained on."""
    config = {"objective": name, "encoding": asdict(encoding), "steps": fitted.steps}
    config |= {"flops": fitted.flops}
    config |= {"word_ids_sha256": word_ids_sha256(data.raw), **_learned_from(name, data)}
    save_bundle(
        folder,
        config=config,
        params={"encoders": meshes.fetch(fitted.params["encoders"])},
        item_ids=data.dataset.item_ids,
        features={"valid": np.arange(data.dataset.n_items + 1) > 0},
        feature_manifest={},
        split=data.learned_from(),
        evaluation=told,
        card=f"# Encoders pretrained by {name} on {data.dataset.name}\n",
    )
