"""What the models reach: train over seeds, choose on validation, score the test split once.

python benchmarks/reach.py EXPERIMENT --data FOLDER_OF_DATA_SETS [--seeds 0 1 2] [--runs DIR]
Each finished seed is written to benchmarks/results/EXPERIMENT.json at once. Searches (`try-...`)
see validation only and go to benchmarks/results/searches.json, a row a run.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from experiments import EXPERIMENTS
from kept import summary

RESULTS = Path(__file__).parent / "results"
CURVE = (1, 2, 3, 6, 11, 21, 51, 101, 151)  # epochs done, where the curve is kept


def hardware() -> str:
    """Processor and cores, as a table row names them."""
    model = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores"


RAN = (
    "zoo",
    "pipelines",
    "benchmarks/experiments.py",
    "benchmarks/graph_experiments.py",
    "benchmarks/content_experiments.py",
)  # what a row depends on


def commit() -> str:
    """The commit that ran; '+' when tracked files differ from it."""
    run = lambda *a: subprocess.run(a, capture_output=True, text=True).stdout.strip()  # noqa: E731
    dirty = run("git", "status", "--porcelain", "--untracked-files=no", *RAN)
    return run("git", "rev-parse", "--short", "HEAD") + ("+" if dirty else "")


COMMIT = commit()  # of the code that is loaded, not of what HEAD is when it ends


def without_meaning(data, how: str, seed: int):
    """The same data with every item's content `shuffled` to another item, or with `none`."""
    from zoo import api

    data = api.prepare(data, "both")
    n, own = data.dataset.n_items, data.dataset
    if how == "none":
        present = {k: np.zeros_like(x) for k, x in own.present.items()}
        return replace(data, dataset=replace(own, present=present))
    order = np.concatenate([[0], np.random.default_rng(seed).permutation(n) + 1])
    moved = {k: x[order] for k, x in own.features.items()}
    present = {k: x[order] for k, x in own.present.items()}
    return replace(data, dataset=replace(own, features=moved, present=present))


def pretrained(
    experiment: dict, data, seed: int, out: Path | None, root: Path
) -> tuple[Path, dict[str, float]]:
    """The pretrained run that a seed starts from, and what it took.

    experiment["pretrain"]: settings, and `data`, the folders beside this one's (default: itself),
    `of`, the experiment that pretrains alike, whose run is taken where it is kept, or `objective`:
    the encoders alone (those of its `encoding`, else the experiment's), by the content of these
    items.
    """
    from zoo import api
    from zoo.pretraining import SETTINGS, pretrain_content

    plan = experiment["pretrain"]
    kept = out and out.with_name(f"{plan['of']}-{seed}") if "of" in plan else out
    folder = Path(kept or tempfile.mkdtemp()) / "pretrained"
    if "objective" in plan:
        own = replace(SETTINGS, seed=seed, **plan["settings"])
        encoding = encoding_of({**experiment, **plan})
        what = (plan["objective"], data, folder, encoding, own)
        fitted, told = pretrain_content(*what)
        print(json.dumps(told), flush=True)
        return folder, _taken(fitted)
    settings = api.settings_for(experiment["model"], seed=seed, **plan["settings"])
    fields = {**experiment.get("fields", {}), "stage": "pretrain"}
    others = [root / name for name in plan.get("data", ())]
    source = api.load_data(others, data.options) if others else data
    fitted, _ = api.fit(experiment["model"], source, folder, settings, **fields)
    return folder, _taken(fitted)


def _taken(fitted) -> dict[str, float]:
    return {"pretrain_seconds": fitted.seconds, "pretrain_flops": fitted.flops}


def with_vectors(experiment: dict, data, encoder: Path | None, out: Path | None):
    """The data with its content through an encoder, and what made the vectors.

    experiment["embed"]: what `zoo embed` is told. A kept folder is found again: it is part of what
    a run is.
    """
    from zoo.embed import embed

    if encoder is None:
        raise SystemExit("this experiment reads a published encoder: name its folder (--encoder)")
    folder = str(out or tempfile.mkdtemp())
    told = embed(data.dataset, encoder, folder, **experiment["embed"])
    facts = json.loads((Path(folder) / "manifest.json").read_text())["facts"]
    files = {k: facts[k] for k in ("encoder_files", "preprocessing", "pooling", "modality")}
    options = replace(data.options, features=(folder,))
    return replace(data, options=options), files | {"width": told["width"]}


def with_own_ids(experiment: dict, data, kept: Path | None):
    """The data with the ids that `zoo tokenize` makes of its features.

    experiment["tokenize"]: what that is told.
    """
    from zoo.tokenize import tokenize

    out = kept or Path(tempfile.mkdtemp()) / "ids.json"
    if not out.exists():
        told = tokenize(data, out, **experiment["tokenize"])
        print(json.dumps(told, default=str), flush=True)
    return replace(data, options=replace(data.options, codes=str(out)))


def with_layers(run: Path, data, modalities: tuple[str, ...]):
    """The data with every layer of a pretraining run's encoders as features."""
    from zoo.embed import embed

    folders = tuple(str(run.parent / f"layers-{name}") for name in modalities)
    for name, folder in zip(modalities, folders, strict=True):
        embed(data.dataset, run, folder, modality=name, pooling="layers")
    return replace(data, options=replace(data.options, features=folders))


def encoding_of(experiment: dict):
    """What the model encodes itself; None: it reads features."""
    from zoo import api

    plan = experiment.get("encoding")
    return None if plan is None else api.Encoding(**plan)


def with_ids(experiment: dict, data, seed: int, out: Path | None):
    """The run whose vectors a seed reads, and the data with the ids made of them.

    experiment["vectors"]: model, its fields and settings, and what `zoo tokenize` is told; "ids":
    the same where nothing but the ids is read.
    """
    from zoo import api
    from zoo.tokenize import tokenize

    plan = experiment.get("vectors") or experiment["ids"]
    folder = Path(out or tempfile.mkdtemp()) / "vectors"
    settings = api.settings_for(plan["model"], seed=seed, **plan["settings"])
    api.fit(plan["model"], data, folder, settings, **plan["fields"])
    tokenize(data, folder / "ids.json", run=folder, seed=seed, **plan["tokenize"])
    options = replace(data.options, codes=str(folder / "ids.json"))
    return folder if "vectors" in experiment else None, replace(data, options=options)


def one(
    experiment: dict, data, seed: int, out: Path | None, root: Path, scored: bool = True
) -> dict:
    """Train one seed; validation and, if `scored`, test metrics, masked and not, with strata."""
    from zoo import api

    settings = api.settings_for(experiment["model"], seed=seed, **experiment.get("settings", {}))
    fields = experiment.get("fields", {})
    graft, before = None, {}
    if "pretrain" in experiment:
        graft, before = pretrained(experiment, data, seed, out, root)
        if experiment.get("encoding", {}).get("kind") == "side":
            data, graft = with_layers(graft, data, experiment["encoding"]["modalities"]), None
    if "content" in experiment:
        data = without_meaning(data, experiment["content"], seed)
    own = {"vectors", "ids"} & set(experiment)
    vectors, data = with_ids(experiment, data, seed, out) if own else (None, data)
    began = time.monotonic()

    losses, summed = [], {}

    def report(step, steps, metrics):
        losses.extend([metrics["loss"]] if "loss" in metrics else [])
        if settings.select in metrics:
            summed[step] = {"loss": round(sum(losses), 4)}
            losses.clear()
            value = round(metrics[settings.select], 5)
            print({"step": step, **summed[step], settings.select: value}, flush=True)

    given = {"report": report, "graft": graft, "vectors": vectors, **fields}
    given |= {"encoding": encoding_of(experiment), "adapt": experiment.get("adapt")}
    fitted, seen = api.fit(experiment["model"], data, out, settings, **given)
    row = {
        "seed": seed,
        **trained(fitted),
        "curve": curve(fitted, settings.select, summed),
        **before,
        "commit": COMMIT,
    }
    if scored:
        row |= tested(experiment, fitted, seen)
    if scored and experiment.get("control"):
        folder = out and out.with_name(f"{out.name}-control")
        given = {"encoding": encoding_of(experiment), **fields}
        control, seen = api.control(
            experiment["model"], data, graft, fitted, folder, settings, report=report, **given
        )
        found = {"curve": curve(control, settings.select, {}), "commit": COMMIT}
        row["control"] = trained(control) | found | tested(experiment, control, seen)
    return row | {"wall_seconds": time.monotonic() - began}


def curve(fitted, select: str, summed: dict[int, dict]) -> list[dict]:
    """Some of the evaluations, those before a run was resumed too, with the loss where it was
    heard."""
    told = [
        {"step": row["step"], **summed.get(row["step"], {}), select: round(row[select], 5)}
        for row in fitted.history
    ]
    return [told[n - 1] for n in CURVE if n <= len(told)]


def trained(fitted) -> dict:
    """How a run went."""
    return {
        "steps": fitted.steps,
        "chosen_step": fitted.best["step"],
        "valid": {k: v for k, v in fitted.best.items() if k != "step"},
        "train_seconds": fitted.seconds,
        "flops": fitted.flops,
        "examples_per_second": fitted.examples_per_second,
        "params_sha256": fitted.params_sha256,
    }


def tested(experiment: dict, fitted, seen) -> dict:
    """Test metrics, masked and not, with strata and what the experiment asks for."""
    from zoo import api

    test = api.evaluate(fitted, seen)
    unmasked = api.evaluate(fitted, seen, mask=False)
    lost = {"without": without_each(fitted, seen)} if experiment.get("knockouts") else {}
    lost |= {"test_strings": by_string(fitted, seen)} if experiment.get("strings") else {}
    fields = experiment.get("fields", {})
    lost |= spelled_in_vain(experiment["model"], fields, fitted, seen)
    return {
        "test": test.metrics,
        "test_unmasked": unmasked.metrics,
        **lost,
        "strata": test.strata,
    }


def without_each(fitted, data) -> dict[str, dict[str, float]]:
    """Test metrics of a trained model whose items lack one modality, or have another item's, and
    of one without its IDs."""
    from zoo import api
    from zoo.knockout import knock_out, knock_out_parameters

    def told(model, catalogue=None):
        metrics = api.evaluate(model, data, catalogue=catalogue).metrics
        return {k: metrics[k] for k in ("recall@10", "ndcg@10")}

    found = {}
    for name in sorted(fitted.catalogue.get("features", {})):
        found[name] = told(fitted, knock_out(fitted.catalogue, name))
        found[f"{name} dealt anew"] = told(fitted, knock_out(fitted.catalogue, name, "permute"))
    if "id" in fitted.params["items"]:
        nameless = knock_out_parameters(fitted.params, r"items/id/table")
        found["id"] = told(replace(fitted, params=nameless))
    return found


def spelled_in_vain(model: str, chosen: dict, fitted, data) -> dict[str, float]:
    """{invalid_share} on the test events of a model whose search is held to nothing, else {}."""
    from pipelines.loader import event_batches
    from zoo.evaluation import invalid_share
    from zoo.models import fields

    known = {k: default for k, (_, default) in fields(model).items()} | chosen
    if known.get("held", True):
        return {}
    batches = event_batches(data.split.test, fitted.max_len)
    asked = (fitted.recommender, fitted.params, fitted.catalogue, batches, known["beam"])
    return {"invalid_share": invalid_share(*asked)}


def alike(codes: np.ndarray) -> np.ndarray:
    """int[n]: of each item the first that has its codes int[n,c], or, of int[n,v,c], its codes in
    one of the v vocabularies."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = len(codes)
    words = [
        np.unique(x, axis=0, return_inverse=True)[1]
        for x in codes.reshape(n, -1, codes.shape[-1]).swapaxes(0, 1)
    ]
    nodes = np.concatenate([n * (v + 1) + word.reshape(-1) for v, word in enumerate(words)])
    size = n * (len(words) + 1)
    links = csr_array(
        (np.ones(len(nodes)), (np.tile(np.arange(n), len(words)), nodes)), (size, size)
    )
    group = connected_components(links, directed=False)[1][:n]
    _, first, own = np.unique(group, return_index=True, return_inverse=True)
    return first[own.reshape(-1)]


def by_string(fitted, data) -> dict[str, float]:
    """Test metrics, history in the ranking, of a model that spells items, where any item of the
    target's codes is a hit: what papers report that compare strings of codes. Lists are those of
    items, so that their strings, each once, may be fewer than k."""
    import jax.numpy as jnp

    from zoo import api

    codes = np.array(fitted.catalogue["codes"])
    without = codes[..., 0] < 0  # each alone
    codes[without] = -1 - np.arange(without.sum())[:, None]
    same = alike(codes)

    def recommend(params, index, batch, k):
        items, scores = fitted.recommender.recommend(params, index, batch, k)
        items = jnp.take(jnp.asarray(same), items)
        before = jnp.tril(items[:, :, None] == items[:, None, :], -1).any(-1)
        return jnp.where(before, 0, items), jnp.where(before, -jnp.inf, scores)

    test = data.split.test
    asked = replace(test.positives, values=same[test.positives.values].astype(np.int32))
    split = replace(data.split, test=replace(test, positives=asked))
    strings = replace(fitted, recommender=fitted.recommender._replace(recommend=recommend))
    return api.evaluate(strings, replace(data, split=split), mask=False).metrics


def search(args: argparse.Namespace, experiment: dict, data) -> None:
    """One run of a search: its validation metrics, and nothing of the test split."""
    path = RESULTS / "searches.json"
    for seed in args.seeds:
        out = args.runs / f"{args.experiment}-{seed}" if args.runs else None
        row = one(experiment, data, seed, out, args.data, scored=False)
        rows = json.loads(path.read_text()) if path.exists() else []
        rows.append({"name": args.experiment, "experiment": experiment, **row})
        path.write_text(json.dumps(rows, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--encoder", type=Path, default=None, help="a published one's folder")
    args = parser.parse_args()
    from zoo import api
    from zoo.allocator import keep_freed_memory

    keep_freed_memory()
    experiment = EXPERIMENTS[args.experiment]
    options = api.DataOptions(**experiment.get("options", {}))
    data = api.load_data(args.data / experiment["data"], options)
    made_by, kept = {}, args.runs and args.runs / args.experiment
    if "embed" in experiment:
        folder = kept and kept.with_name(f"{kept.name}-features")
        data, made_by = with_vectors(experiment, data, args.encoder, folder)
    if "tokenize" in experiment:
        data = with_own_ids(experiment, data, kept and kept.with_name(f"{kept.name}-ids.json"))
    if args.experiment.startswith("try-"):
        return search(args, experiment, data)
    path = RESULTS / experiment.get("folder", "") / f"{args.experiment}.json"
    done = json.loads(path.read_text())["rows"] if path.exists() else []
    for seed in args.seeds:
        out = args.runs / f"{args.experiment}-{seed}" if args.runs else None
        row = one(experiment, data, seed, out, args.data)
        done = sorted([r for r in done if r["seed"] != seed] + [row], key=lambda r: r["seed"])
        told = {
            "experiment": experiment,
            **({"vectors": made_by} if made_by else {}),
            "command": f"python benchmarks/reach.py {args.experiment} --data DATA"
            + (" --encoder FOLDER" if made_by else ""),
            "protocol": data.split.protocol,
            "split_hash": data.split.hash,
            "hardware": hardware(),
            "summary": summary(done),
            "rows": done,
        }
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(told, indent=1))
        print(json.dumps({"seed": seed, **row["test"]}), flush=True)


if __name__ == "__main__":
    main()
