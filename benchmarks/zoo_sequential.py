"""The zoo's side, timed: one training epoch and full-ranking evaluation; prints JSON.

Called by sequential.py with the same options as the programs in competitors/. A step is `rows`
packed rows, as many as the `--batch` users fill on average.
"""

import json
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from pipelines.loader import event_batches
from pipelines.schema import Events, Split
from zoo.api import Data, Settings, load_data
from zoo.evaluation import evaluate
from zoo.fitting import Run
from zoo.mesh import make_mesh

sys.path.append(str(Path(__file__).resolve().parent / "competitors"))
import harness  # noqa: E402

OBJECTIVES = {"softmax": "ce", "bce": "bce", "sampled": "sampled"}


def packed_rows(split: Split, args) -> int:
    """Rows a step, so that a step holds the targets of about `--batch` users."""
    targets = np.minimum(np.maximum(split.train.lengths - 1, 0), args.length)
    return max(1, round(args.batch * targets[targets > 0].mean() / args.length))


def asked(data: Data, args) -> Data:
    """With the first `--eval-users` test events alone; 0 keeps all."""
    test, rows = data.split.test, np.arange(args.eval_users or len(data.split.test))
    events = Events(test.users[rows], test.history.take(rows), test.positives.take(rows))
    return replace(data, split=replace(data.split, test=events))


def build(data: Data, args) -> Run:
    fields = {"width": args.width, "layers": args.layers, "heads": args.heads}
    fields |= {"max_len": args.length, "dropout": args.dropout, "negatives": args.negatives}
    fields |= {"objective": OBJECTIVES[args.loss]} | same_as_rectools(args)
    settings = Settings(batch=packed_rows(data.split, args), seed=args.seed)
    return Run(args.model, fields, data.split, data.catalogue(), settings, make_mesh(1))


def same_as_rectools(args) -> dict[str, object]:
    """Sizes and scores as RecTools has them: its heads share the width, its scores are products."""
    if args.model == "hstu":
        inner = args.width // args.heads
        return {
            "qk_width": inner,
            "v_width": inner,
            "time_bias": "none",
            "similarity": "dot",
            "temperature": 1.0,
            "embedding_dropout": args.dropout,
        }
    return {"rate": harness.HIDDEN, "last": 0.0} if args.model == "bert4rec" else {}


def train(run: Run, args) -> tuple[object, dict[str, float]]:
    """Warm up (compile included), then time the rest of one epoch or `--users` users' worth."""
    state = jax.block_until_ready(
        run.stepper.advance(run.stepper.fresh(), args.warmup, lambda step, metrics: None)
    )
    wanted = harness.steps(args) if args.users else run.loader.per_epoch - args.warmup
    harness.check_timed(wanted, args)
    seen = []
    started, cpu = time.perf_counter(), time.process_time()
    state = run.stepper.advance(
        state, args.warmup + wanted, lambda step, metrics: seen.append(metrics)
    )
    state = jax.block_until_ready(state)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return state, {
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "timed_steps": len(seen),
        "examples_per_s": sum(metrics["targets"] for metrics in seen) / seconds,
        "last_loss": seen[-1]["loss"],
    }


def recommend(run: Run, top, index, params, args) -> None:
    """Top-k of every test user, the history masked, brought to the host."""
    batches = event_batches(run.split.test, args.length, run.settings.evaluate_batch)
    catalogue_index = index(params, run.catalogue)
    jax.device_get([top(params, catalogue_index, batch, args.k) for batch in batches])


def metrics(run: Run, params, args) -> dict[str, float]:
    """Full-ranking metrics of every test user."""
    batches = event_batches(run.split.test, args.length, run.settings.evaluate_batch)
    return evaluate(run.recommender, params, run.catalogue, batches, ks=(args.k,)).metrics


def timed(work, *arguments) -> tuple[object, float]:
    """Result and seconds of the second of two calls; the first compiles."""
    work(*arguments)
    started = time.perf_counter()
    return work(*arguments), time.perf_counter() - started


def main() -> None:
    args = harness.parser(__doc__.splitlines()[0]).parse_args()
    data = asked(load_data(args.data), args)
    with jax.set_mesh(make_mesh(1)):
        run = build(data, args)
        state, result = train(run, args)
        result |= {"name": "zoo", "rows": run.settings.batch, "peak_train_mib": harness.peak_mib()}
        users = len(data.split.test)
        top = jax.jit(run.recommender.recommend, static_argnums=3)
        index = jax.jit(run.recommender.index)
        _, seconds = timed(recommend, run, top, index, state.params, args)
        result["recommend_users_per_s"] = users / seconds
        found, seconds = timed(metrics, run, state.params, args)
        result["evaluate_users_per_s"] = users / seconds
    result |= {
        key: float(found[key]) for key in (f"hit@{args.k}", f"ndcg@{args.k}") if key in found
    }
    result |= {"peak_mib": harness.peak_mib()}
    print(json.dumps(result | {"versions": {name: version(name) for name in ("jax", "flax")}}))


if __name__ == "__main__":
    main()
