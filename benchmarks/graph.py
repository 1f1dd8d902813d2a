"""Graph models side by side with plain PyTorch, alternating in one run; cost against edges; scale.

    python benchmarks/graph.py beside --competitor-python ENV/bin/python
    python benchmarks/graph.py edges
    python benchmarks/graph.py scale

Each mode writes its key of results/graph.json. The worlds are made up, of the sizes of tiktok and
Amazon Sports or larger (competitors/random_graph.py); what counts is time, not accuracy. A step is
everything: shuffled batch, unseen negatives, loss, gradient, Adam. `beside` measures each model as
a process of its own, held to the same cores, after choosing PyTorch's best setting in the same run.
Processor times stand beside wall times: on a machine that does other work they tell more.

A product waits for memory, so on graphs larger than the cache huge pages help (Linux with glibc):
GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which `beside` gives to both sides.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sequential import KEEP_MEMORY, as_flags, command, hardware

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "graph.json"
sys.path.append(str(HERE / "competitors"))
PROGRAMS = {"lightgcn": "torch_graph.py", "lgmrec": "torch_lgmrec.py"}
# PyTorch twice: its own gradient of a sparse product, and one written by hand that knows the
# transpose. Each is tuned by a coordinate search: the first value is the start.
SIDES = {"torch": {"autograd": True}, "by hand": {"autograd": False}}
TUNED = {
    "keep-memory": (True, False),
    "sampler": ("keys", "table"),
    "huge-pages": (True, False),
    "patient": (True, False),
}
ZOO = {"huge-pages": True}
LAYOUTS = {"lightgcn": {"layout": ("csr", "coo")}, "lgmrec": {}}
ENVIRONMENT = {
    "keep-memory": KEEP_MEMORY,
    "huge-pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    # Threads of PyTorch that wait by spinning hold the core which another program keeps busy.
    "patient": {"OMP_WAIT_POLICY": "PASSIVE"},
}
RATES = ("ms_per_step", "cpu_ms_per_step", "peak_mib")
FAILED = (
    "Tried for the sparse product on CPU and no faster than the compressed-row kernel: tables cut "
    "into slices of their width, rows of equal length as a sum of gathers, gather and batched dot, "
    "sorted segment sums, nodes sorted by degree, columns in blocks. The kernel shares its rows "
    "among the threads of the process, so cutting rows into parts gains nothing on one device. "
    "Tried for the step and no faster: the last layer's rows of the batch alone, their gradients "
    "added in place to the products (no dense mean, no dense gradient of it). Compressing the last "
    "layer's edges to those rows costs about as much as the product. A loop in C that fetches "
    "ahead would be faster; the zoo has no compiled code of its own. "
    "What helped: an exact draw of negatives in place of rejection in a loop, and huge pages on "
    "graphs larger than the cache. The products are most of a step, and wait for memory."
)


def measure(who: str, model: str, setting: dict, args: argparse.Namespace, **common) -> dict:
    """One process on `threads` cores. Raises RuntimeError with its last words."""
    flags = common | setting
    environment = dict(os.environ)
    for name, variables in ENVIRONMENT.items():
        environment |= variables if flags.pop(name, False) else {}
    if who == "zoo":
        words = [sys.executable, Path(__file__), "zoo", "--model", model]
    else:
        words = [args.competitor_python, "-W", "ignore", HERE / "competitors" / PROGRAMS[model]]
        flags |= {"steps": args.steps} if args.steps else {}
    cores = sorted(os.sched_getaffinity(0))[-flags.pop("cores") :]
    done = subprocess.run(
        [str(word) for word in (*words, *as_flags(flags))],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError(f"{who} {flags} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result = json.loads(done.stdout.splitlines()[-1]) | {"setting": common | setting}
    result |= {"model": model, "load": round(os.getloadavg()[0], 1)}
    rates = "  ".join(f"{result[rate]:8.2f} {rate}" for rate in RATES)
    chosen = " ".join(f"{k}={v}" for k, v in result["setting"].items())
    print(f"{model} {result['name']:6} {rates}  load {result['load']}  {chosen}", flush=True)
    return result


def tune(
    model: str, fixed: dict, args: argparse.Namespace, common: dict
) -> tuple[dict, list[dict]]:
    """PyTorch's best setting by coordinate search, and every trial."""
    tuned = LAYOUTS[model] | TUNED
    best = fixed | {key: values[0] for key, values in tuned.items()}
    best |= {"threads": common["cores"]}
    trials = [measure("torch", model, best, args, **common)]
    top = trials[0]
    for key, values in (*tuned.items(), ("threads", (None, 1))):
        for value in values[1:]:
            if best[key] == value:
                continue
            trials.append(measure("torch", model, {**best, key: value}, args, **common))
            if trials[-1]["ms_per_step"] < top["ms_per_step"]:
                best, top = {**best, key: value}, trials[-1]
    return best, trials


def beside(args: argparse.Namespace) -> None:
    """Tune PyTorch at the first size, then alternate at every size; each writes its own key.

    How many threads are best depends on the size: it is tried again at each.
    """
    for cores in args.cores:
        common, best, trials = {"cores": cores, "epochs": args.epochs}, {}, []
        for side, fixed in SIDES.items():
            best[side], tried = tune(args.model, fixed, args, common | {"size": args.sizes[0]})
            trials += tried
        for size in args.sizes:
            found = alternated(args, common | {"size": size}, best)
            print(json.dumps(found["summary"]), flush=True)
            write(f"{args.model}_{size}_{cores}_cores", found | {"tuning": trials})


def alternated(args: argparse.Namespace, common: dict, best: dict[str, dict]) -> dict:
    """{summary, runs} of rounds in which the zoo and both sides of PyTorch take turns."""
    runs = {"zoo": [], **{side: [] for side in best}}
    if common["size"] != args.sizes[0]:
        best = {k: threads(args, x, common) for k, x in best.items()}
    for _ in range(args.rounds):
        for who, found in runs.items():
            name, setting = ("zoo", ZOO) if who == "zoo" else ("torch", best[who])
            found.append(measure(name, args.model, setting, args, **common))
    row = {"model": args.model, **common, "best": best}
    row |= {rate: ratios(runs, rate) for rate in RATES}
    return {"summary": row, "runs": runs}


def threads(args: argparse.Namespace, setting: dict, common: dict) -> dict:
    """The setting with the best of one thread, one a core, and one a core that spins."""
    tried = [{**setting, "threads": 1}]
    if common["cores"] > 1:
        more = {**setting, "threads": common["cores"]}
        tried += [{**more, "patient": True}, {**more, "patient": False}]
    times = [measure("torch", args.model, x, args, **common)["ms_per_step"] for x in tried]
    return tried[times.index(min(times))]


def ratios(runs: dict[str, list[dict]], rate: str) -> dict[str, object]:
    """Medians of all sides, and of theirs over the zoo's within each round, with the range."""
    result = {who: statistics.median(r[rate] for r in rows) for who, rows in runs.items()}
    for who in SIDES:
        each = [t[rate] / z[rate] for t, z in zip(runs[who], runs["zoo"], strict=True)]
        result[f"{who} over zoo"] = [statistics.median(each), min(each), max(each)]
    return result


def world(size: str):
    """(split, catalogue) of a made-up world, with two modalities where it is small."""
    import numpy as np
    import random_graph

    from pipelines.schema import Events, Ragged, Split
    from zoo.mesh import table_rows

    n_users, n_items, edges = random_graph.SIZES[size]
    users, items = random_graph.interactions(n_users, n_items, edges)
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=n_users + 1)
    train = Ragged(items[order], np.concatenate([[0], np.cumsum(counts)]))
    none = Events(np.zeros(0, np.int32), Ragged.of([]), Ragged.of([]))
    rows, user_rows = table_rows(n_items), table_rows(n_users)
    valid = (np.arange(rows) > 0) & (np.arange(rows) <= n_items)
    content = {} if size == "million" else random_graph.features(n_items)
    place = ((1, rows - n_items - 1), (0, 0))
    catalogue = {
        "valid": valid,
        "popularity": np.bincount(items, minlength=rows).astype(np.float32),
        "users": np.pad(counts, (0, user_rows - len(counts))).astype(np.float32),
        "features": {m: np.pad(x, place) for m, x in content.items()},
        "present": {m: valid for m in content},
        "train": {"users": users[order], "items": items[order]},
    }
    return Split("random", "mm-random-v1", train, none, none, "made up", False), catalogue


def zoo(args: argparse.Namespace) -> dict:
    """One process: an epoch to warm up, then timed epochs, all as `fit` makes them."""
    import jax

    from zoo.fitting import Run
    from zoo.mesh import make_mesh
    from zoo.settings import settings_for

    split, catalogue = world(args.size)
    settings = settings_for(args.model, epochs=args.epochs + 1, evaluate_every=None)
    mesh, losses, seconds, cpu = make_mesh(1), [], [], []
    with jax.set_mesh(mesh):
        run = Run(args.model, {}, split, catalogue, settings, mesh)
        state, per_epoch = run.stepper.fresh(), run.loader.per_epoch
        for epoch in range(args.epochs + 1):
            losses.clear()
            begun, used = time.perf_counter(), time.process_time()
            hear = lambda step, metrics: losses.append(metrics["loss"])  # noqa: E731
            state = jax.block_until_ready(run.stepper.advance(state, (epoch + 1) * per_epoch, hear))
            seconds.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - used)
    return {
        "name": "zoo",
        "ms_per_step": 1e3 * min(seconds[1:]) / per_epoch,
        "cpu_ms_per_step": 1e3 * min(cpu[1:]) / per_epoch,
        "epoch_seconds": seconds[1:],
        "last_loss": statistics.mean(losses),
        "peak_mib": peak_mib(),
        "versions": {"jax": jax.__version__},
    }


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def timed(name: str, work, *arguments, times: int = 3) -> dict[str, float]:
    """{name_ms, name_cpu_ms}: the least wall time and the least processor time of some calls,
    compiled beforehand. On a busy machine the second tells more."""
    import jax

    compiled, wall, cpu = jax.jit(work).lower(*arguments).compile(), [], []
    for _ in range(times):
        begun, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*arguments))
        wall.append(1e3 * (time.perf_counter() - begun))
        cpu.append(1e3 * (time.process_time() - used))
    return {f"{name}_ms": round(min(wall), 3), f"{name}_cpu_ms": round(min(cpu), 3)}


def edges(args: argparse.Namespace) -> dict:
    """Cost of building, of one product and of three layers with gradient against edges: the
    number of nodes grows with the edges, ten edges a node on each side, width 64."""
    import jax
    import jax.numpy as jnp
    import random_graph

    from zoo import graph as graphs
    from zoo.edges import interaction_graph

    rows = []
    for count in args.edges:
        n = 128 * round(count / 1280)
        users, items = random_graph.interactions(n - 1, n - 1, count)
        begun = time.perf_counter()
        graph = interaction_graph(users, items, n, n)
        built = time.perf_counter() - begun
        graph = jax.device_put(graph)
        x = jax.random.normal(jax.random.key(0), (2, n, 64))

        def loss(x, graph):
            return sum(jnp.vdot(y, y) for y in graphs.light_mean(graph, x[0], x[1], 3))

        row = {"edges": count, "nodes": 2 * n, "build_s": round(built, 3)}
        row |= timed("compressed", graphs._compressed, graph.forward, x[1])
        if count <= args.segments:
            row |= timed("segments", graphs._segments, graph.forward, x[1])
        row |= timed("three_layers_and_gradient", jax.grad(loss), x, graph, times=2)
        rows.append(row | {"peak_mib": peak_mib(), "load": round(os.getloadavg()[0], 1)})
        print(json.dumps(rows[-1]), flush=True)
    plot(rows)
    return {"rows": rows}


def plot(rows: list[dict]) -> None:
    """results/graph.png: processor time against edges, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    curves = {
        "three_layers_and_gradient_cpu_ms": "three layers and their gradient (12 products)",
        "segments_cpu_ms": "one product, sorted segments",
        "compressed_cpu_ms": "one product, compressed rows",
    }
    for key, words in curves.items():
        there = [row for row in rows if key in row]
        axes.loglog(
            [r["edges"] for r in there], [r[key] for r in there], "o-", markersize=5, label=words
        )
    axes.set_xlabel("edges (ten a node on each side, width 64)")
    axes.set_ylabel("milliseconds of processor time")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(OUT.with_suffix(".png"), dpi=120)


def scale(args: argparse.Namespace) -> dict:
    """A million users, a million items, 2e7 edges: build, propagate once, train one step."""
    import jax
    import numpy as np

    from zoo.graph import light_mean
    from zoo.models import build
    from zoo.optim import optimizer
    from zoo.train import create, make_step

    result, begun = {"load": round(os.getloadavg()[0], 1)}, time.perf_counter()

    def told(name: str, value: float | None = None) -> None:
        nonlocal begun
        result[name] = round(time.perf_counter() - begun if value is None else value, 3)
        result[f"{name}_peak_mib"] = peak_mib()
        print(name, result[name], peak_mib(), flush=True)
        begun = time.perf_counter()

    split, catalogue = world(args.size)
    told("make_the_world_s")
    recommender, chain = build("lightgcn"), optimizer(1e-3)
    catalogue = recommender.prepare(catalogue, 1)
    told("build_graph_s")
    graph = catalogue["graph"]
    result |= {"users": len(graph.forward.starts), "items": len(graph.backward.starts)}
    result["edges"] = int(np.sum(graph.forward.weights != 0))
    catalogue = jax.device_put(catalogue)
    graph, rng = catalogue["graph"], np.random.default_rng(0)
    users = np.repeat(np.arange(len(split.train), dtype=np.int32), split.train.lengths)
    pick = rng.integers(0, len(users), 2048)
    batch = {"users": users[pick][:, None], "targets": split.train.values[pick][:, None]}
    state = jax.jit(lambda c: create(recommender, chain, c, batch))(catalogue)
    told("initialise_s")
    free = state.params["free"]
    mean = lambda g, p: light_mean(g, p["users"]["table"], p["items"]["table"], 3)  # noqa: E731
    result |= timed("three_layers", mean, graph, free, times=1)
    told("three_layers_and_compile_s")
    step = jax.jit(make_step(recommender, chain), donate_argnums=0)
    step = step.lower(state, catalogue, batch).compile()
    told("compile_step_s")
    used = time.process_time()
    state, metrics = jax.block_until_ready(step(state, catalogue, batch))
    told("training_step_s")
    result["training_step_cpu_s"] = round(time.process_time() - used, 3)
    return result | {"loss": float(metrics["loss"])}


def write(key: str, found: dict) -> None:
    """Put what was found under `key` of results/graph.json, beside what other modes wrote."""
    report = json.loads(OUT.read_text()) if OUT.exists() else {}
    report["tried"] = FAILED
    tunables = {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "")}
    report[key] = {"command": command(), "hardware": hardware(), **tunables, **found}
    OUT.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("beside", "edges", "scale", "zoo"))
    parser.add_argument("--competitor-python", help="see benchmarks/README.md")
    parser.add_argument("--model", choices=PROGRAMS, default="lightgcn")
    parser.add_argument("--sizes", nargs="+", default=["tiktok", "sports"])
    parser.add_argument("--size", default=None, help="of the one world in modes zoo and scale")
    parser.add_argument("--cores", nargs="+", type=int, default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="timed; the fastest one counts")
    parser.add_argument("--steps", type=int, help="of PyTorch's epochs, None: all of them")
    parser.add_argument("--edges", nargs="+", type=int, default=[10**5, 10**6, 10**7])
    parser.add_argument("--segments", type=int, default=10**6, help="no segment sums above it")
    args = parser.parse_args()
    args.size = args.size or {"scale": "million"}.get(args.mode, "tiktok")
    if args.mode == "zoo":
        print(json.dumps(zoo(args)))
        return
    if args.mode == "beside" and not args.competitor_python:
        parser.error("beside needs --competitor-python, see benchmarks/README.md")
    if args.mode == "beside":
        beside(args)
    else:
        write(args.mode, {"edges": edges, "scale": scale}[args.mode](args))


if __name__ == "__main__":
    main()
