"""The quickstart: make a world, train on it, compare with floors and optimum, explain, report."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines import render, synthetic
from pipelines.loader import requests
from pipelines.schema import DataError, Ragged
from pipelines.words import of_text
from zoo import __version__, api
from zoo.knockout import knock_out
from zoo.quickstart_page import page
from zoo.reasons import Evidence, evidence, reasons
from zoo.run import Fitted
from zoo.serve import Pretrained
from zoo.settings import Settings, recorded

MODEL = "sasrec"
FIELDS = {
    **{"items": "both", "fuse": "gate", "hidden": 128, "modality_dropout": 0.2},
    **{"max_len": 20, "dropout": 0.1},
}
EPOCHS, BATCH, RATE = 16, 32, 2e-3  # chosen on validation, as FIELDS
FLOORS = ("popularity", "text-knn", "item-knn", "knn+markov", "markov", "sr-graph", "sr-graph+text")
METRICS = ("recall@10", "ndcg@10")
PEOPLE, LISTED, SHOWN = 3, 5, 7  # users explained, recommendations each, history items shown
STYLE_WORDS = {word: style for style, words in render.SYNONYMS.items() for word in words}


def quickstart(
    out: str | Path,
    epochs: int | None = None,
    seed: int = 0,
    report: Callable[[int, int, dict[str, float]], None] = lambda step, steps, metrics: None,
    quiet: bool = False,
    world: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run all of it; files go to OUT/world, OUT/run (bundle inside) and OUT/report.html.

    `report(step, steps, metrics)` hears of training; `quiet` keeps standard output empty; `world`
    are settings of pipelines.synthetic.world. The same call again resumes what is unfinished.
    Returns a JSON-able summary. ValueError when OUT holds a quickstart of other settings.
    """
    begun, out, say = time.monotonic(), Path(out), Console(quiet=quiet, highlight=False)
    settings = Settings(epochs=epochs or EPOCHS, seed=seed, batch=BATCH, rate=RATE)
    check_free(out, settings)
    say.print("[b]1[/b]  a world: pictures, words, sounds, and who took what")
    made, data = make_world(out / "world", {"seed": seed, **(world or {})})
    say.print(f"[b]2[/b]  training {MODEL} on {data.dataset.n_users:,} histories")
    losses: list[tuple[int, float]] = []
    heard = _listening(report, losses)
    fitted, data = api.fit(MODEL, data, out / "run", settings, report=heard, **FIELDS)
    say.print("[b]3[/b]  measuring: floors, optimum, knock-outs")
    bundle = api.from_pretrained(out / "run")
    result = {
        "report": str(out / "report.html"),
        "bundle": str(out / "run" / "bundle"),
        **measured(made, data, bundle),
        "recommendations": explained(data, fitted, bundle, seed),
        "steps": fitted.steps,
        "epochs": settings.epochs,
        "seed": seed,
        "split_hash": data.split.hash,
        "params_sha256": fitted.params_sha256,
        "training_seconds": round(fitted.seconds, 2),
        "seconds": round(time.monotonic() - begun, 2),
        "made_on": hardware(),
        "command": f"zoo quickstart --out {out} --epochs {settings.epochs} --seed {seed}",
    }
    document = page(result, fitted.history, losses, _content(data), _about(data))
    (out / "report.html").write_text(document, encoding="utf-8")
    _tell(say, result)
    return json.loads(json.dumps(result))


def check_free(out: Path, settings: Settings) -> None:
    """Raise ValueError when OUT/run is a run of other settings: its world must stay as it is."""
    path = out / "run" / "run.json"
    if not path.exists():
        return
    theirs, mine = json.loads(path.read_text()), json.loads(json.dumps(recorded(settings)))
    other = [f"{k} {theirs.get(k)}, not {v}" for k, v in mine.items() if theirs.get(k) != v]
    if other:
        raise ValueError(f"{out} holds a quickstart of {'; '.join(other)}. Choose another --out.")


def make_world(folder: Path, settings: dict[str, Any]) -> tuple[synthetic.World, api.Data]:
    """A synthetic world, written as PNG, WAV and CSV files and read back from them."""
    made = synthetic.world(**settings)
    data = api.load_data(synthetic.save(made, folder))
    if list(data.dataset.item_ids) != list(made.dataset.item_ids):
        raise DataError(f"{folder}: the items read are not those written; delete it and run again.")
    return made, data


def _listening(report: Callable, losses: list[tuple[int, float]]) -> Callable:
    def heard(step: int, steps: int, metrics: dict[str, float]) -> None:
        if "loss" in metrics:
            losses.append((step, metrics["loss"]))
        report(step, steps, metrics)

    return heard


def measured(made: synthetic.World, data: api.Data, bundle: Pretrained) -> dict[str, Any]:
    """Test metrics of the bundle, its strata and knock-outs, of the floors and of the optimum."""
    full = api.evaluate(bundle, data, ks=(10,))
    table = api.floors(data, FLOORS)
    optimum = {
        part: synthetic.bayes_metrics(made, data.split, 10, part) for part in ("valid", "test")
    }
    return {
        "model": _chosen(full.metrics),
        "floors": {name: _chosen(table[name]["metrics"]) for name in FLOORS},
        "optimum": _chosen(optimum["test"]),
        "strata": {
            name: {"events": row["events"], **_chosen(row)}
            for name, row in full.strata.items()
            if row["events"]
        },
        "knock_outs": _knock_outs(data, bundle),
        "validation": {
            "floors": {name: _chosen(table[name]["validation"]) for name in FLOORS},
            "optimum": _chosen(optimum["valid"]),
        },
    }


def _chosen(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(float(metrics[name]), 6) for name in METRICS}


def _knock_outs(data: api.Data, bundle: Pretrained) -> dict[str, dict[str, float]]:
    """The same parameters with one modality taken away from every item."""
    found = {}
    for modality in (*sorted(bundle.catalogue["features"]), "id"):
        less = _without(bundle.catalogue, modality)
        result = api.evaluate(bundle, data, ks=(10,), catalogue=less)
        found[f"without {modality}"] = _chosen(result.metrics)
    return found


def _without(catalogue: dict[str, Any], modality: str) -> dict[str, Any]:
    """An item has its ID by having been seen in training (items.py): without counts, none has."""
    if modality == "id":
        return {**catalogue, "popularity": np.zeros(len(catalogue["valid"]), np.float32)}
    return knock_out(catalogue, modality)


def explained(
    data: api.Data, fitted: Fitted, bundle: Pretrained, seed: int
) -> list[dict[str, Any]]:
    """A few test users drawn by `seed`: history, what came next, recommendations with reasons.

    Raises RuntimeError unless the bundle recommends exactly what the fitted model does.
    """
    test, ids = data.split.test, bundle.item_ids
    rows = np.random.default_rng(seed).choice(len(test), min(PEOPLE, len(test)), replace=False)
    histories = [test.history[row] for row in rows]
    lists = bundle.recommend_batch([[ids[i] for i in row] for row in histories], LISTED)
    _check_same(fitted, bundle, histories, lists)
    known = evidence_of(data, bundle)
    return [
        {
            "user": str(data.dataset.user_ids[test.users[row]]),
            "history": [{"item": ids[i], "title": name(known, i)} for i in history],
            "next": {"item": ids[target], "title": name(known, target)},
            "recommended": [
                {
                    "item": line.item,
                    "title": line.title or line.item,
                    "score": round(line.score, 4),
                    "hit": line.item == ids[target],
                    "reasons": reasons(known, history, bundle.numbers([line.item])[0]),
                }
                for line in lines
            ],
        }
        for row, history, lines in zip(rows, histories, lists, strict=True)
        for target in [int(test.positives[row][0])]
    ]


def name(known: Evidence, item: int) -> str:
    """The title, or the id of an item without one."""
    return str(known.titles[item])


def _check_same(fitted: Fitted, bundle: Pretrained, histories: list, lists: list) -> None:
    width = max(bundle.max_len, max(len(row) for row in histories))
    batch = requests(
        Ragged.of(histories), np.zeros(len(histories), np.int32), bundle.max_len, width
    )
    index = jax.jit(fitted.recommender.index)(fitted.params, fitted.catalogue)
    recommend = jax.jit(fitted.recommender.recommend, static_argnums=3)
    before = np.asarray(recommend(fitted.params, index, batch, LISTED)[0])
    after = [bundle.numbers([line.item for line in lines]) for lines in lists]
    if before.tolist() != after:
        raise RuntimeError(
            f"the bundle recommends {after}, the model before saving {before.tolist()}; "
            "expected the same lists."
        )


def evidence_of(data: api.Data, bundle: Pretrained) -> Evidence:
    """Training steps, style words of titles and texts, and the bundle's item vectors."""
    columns = data.dataset.columns
    titles = [t or i for t, i in zip(columns["title"], bundle.item_ids, strict=True)]
    texts = [of_text(f"{a} {b}") for a, b in zip(columns["title"], columns["text"], strict=True)]
    words = [frozenset(STYLE_WORDS[w] for w in text if w in STYLE_WORDS) for text in texts]
    train, vectors = data.split.train, np.asarray(bundle.index["table"])
    return evidence(train.values, train.offsets, words, vectors, titles)


def _content(data: api.Data) -> Callable[[str], tuple[str, str]]:
    """Item id to the files of its picture and its sound."""
    ids, columns = data.dataset.item_ids, data.dataset.columns
    files = {
        str(i): (a, b) for i, a, b in zip(ids, columns["image"], columns["audio"], strict=True)
    }
    return files.__getitem__


def _about(data: api.Data) -> str:
    dataset = data.dataset
    having = ", ".join(f"{int(x.sum())} with {m}" for m, x in sorted(dataset.present.items()))
    return (
        f"{dataset.n_items:,} items ({having}), {dataset.n_users:,} people, "
        f"{len(dataset.items):,} interactions"
    )


def hardware() -> str:
    """Devices, cores and versions: what a figure in seconds means nothing without."""
    devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    return (
        f"{jax.device_count()} x {devices}, {os.cpu_count()} {platform.machine()} cores, Python "
        f"{platform.python_version()}, jax {jax.__version__}, mmrec-zoo {__version__}"
    )


def _tell(say: Console, result: dict[str, Any]) -> None:
    """The summary for a terminal."""
    table = Table("", *METRICS, "of the optimum", box=None, pad_edge=False)
    best = result["optimum"]["recall@10"]
    rows = {**result["floors"], f"{MODEL} (bundle)": result["model"], "optimum": result["optimum"]}
    for label, row in rows.items():
        values = (f"{row[metric]:.4f}" for metric in METRICS)
        table.add_row(label, *values, f"{row['recall@10'] / best:.0%}")
    say.print("", table, "")
    for person in result["recommendations"]:
        say.print(f"[b]{person['user']}[/b] had", _titles(person["history"][-SHOWN:]))
        for line in person["recommended"]:
            mark = "  [green]<- came next[/green]" if line["hit"] else ""
            say.print(f"  {line['title']}  [dim]{line['score']:.2f}[/dim]{mark}")
            say.print(*(f"     [dim]{reason}[/dim]" for reason in line["reasons"][:2]), sep="\n")
        say.print(f"  [dim]came next: {person['next']['title']}[/dim]\n")
    say.print(f"{result['seconds']:.0f} s, {result['steps']} steps. Report: {result['report']}")
    known = ",".join(item["item"] for item in result["recommendations"][0]["history"][-3:])
    run = Path(result["bundle"]).parent
    say.print(f"Next: zoo recommend {run} --history {known} --k 5", soft_wrap=True)


def _titles(items: list[dict[str, str]]) -> str:
    return "; ".join(item["title"] for item in items)
