"""Constrained beam search beside Hugging Face `generate`, in one run; its cost and its scaling.

    python benchmarks/decode.py tune --competitor-python ENV/bin/python
    python benchmarks/decode.py beside --competitor-python ENV/bin/python
    python benchmarks/decode.py scale

Each mode writes its key of results/decode.json. One T5 with the same random weights on both sides
(width 128, 4 + 4 layers, 6 heads of 64, inner 1,024: TIGER as published), 4 levels of 256 codes,
histories of 20 items of 4 tokens, beam 20, batch 32. A batch is everything from the histories to
20 items each. Both sides are processes that stay, held to the same cores, and take turns batch by
batch; `tune` chooses the setting of Hugging Face's side on smaller batches. Processor times stand
beside wall times: on a machine that does other work they tell more.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from reach import COMMIT
from sequential import KEEP_MEMORY, as_flags, command, hardware

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "decode.json"
sys.path.append(str(HERE / "competitors"))
# Coordinate search: the first value is the start, the others are tried in this order.
TUNED = {
    "keep-memory": (True, False),
    "tables": ("lists", "tensors"),
    "attention": ("sdpa", "eager"),
    "threads": (None, 1),
    "compile": (False, True),
}
# Threads of PyTorch that wait by spinning hold the core which another program keeps busy.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
BASE = {"items": 12_000, "beam": 20, "batch": 32}
LISTED = ("items", "scores")
WAYS = {"hf": ("prefix", "vectorised", "free"), "zoo": ("recommend", "free")}


class Side:
    """A process that stays: `ask(work)` makes it do a piece of work and tell the milliseconds."""

    def __init__(self, words: list, flags: dict, cores: int):
        flags = {key: value for key, value in flags.items() if value is not None}
        kept = KEEP_MEMORY if flags.pop("keep-memory", False) else {}
        held = sorted(os.sched_getaffinity(0))[-cores:]
        self.process = subprocess.Popen(
            [str(word) for word in (*words, *as_flags(flags))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | PATIENT | kept,
            preexec_fn=lambda: os.sched_setaffinity(0, held),
        )
        self.ready = self.heard()

    def ask(self, way: str) -> dict:
        self.process.stdin.write(way + "\n")
        self.process.stdin.flush()
        return self.heard()

    def heard(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            words = " ".join(self.process.args)
            raise RuntimeError(f"{words} ended with {self.process.wait()}; its words stand above")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def sides(args: argparse.Namespace, setting: dict, **sizes: int) -> dict[str, Side]:
    """Both programs, started."""
    ours = [sys.executable, Path(__file__), "zoo"]
    return {"zoo": Side(ours, sizes, args.cores), "hf": hugging_face(args, setting, **sizes)}


def hugging_face(args: argparse.Namespace, setting: dict, **sizes: int) -> Side:
    words = [args.competitor_python, "-W", "ignore", HERE / "competitors" / "hf_t5.py"]
    return Side(words, sizes | setting, args.cores)


def tune(args: argparse.Namespace) -> dict:
    """The best setting of Hugging Face's side by coordinate search, and every trial."""
    best, trials = {key: values[0] for key, values in TUNED.items()}, []

    def trial(setting: dict) -> dict[str, float]:
        side = hugging_face(args, setting, **BASE | {"batch": args.tune_batch})
        side.ask("prefix")
        found = [side.ask("prefix") for _ in range(args.rounds)]
        side.close()
        told = {key: min(f[key] for f in found) for key in ("ms", "cpu_ms", "peak_mib")}
        trials.append({"setting": setting, **rounded(told), **load()})
        print(json.dumps(trials[-1]), flush=True)
        write("tune", {"best": best, "batch": args.tune_batch, "trials": trials})
        return told

    top = trial(best)
    for key, values in TUNED.items():
        tried, unit = {**best, key: values[1]}, "ms" if key == "threads" else "cpu_ms"
        told = trial(tried)
        if told[unit] < top[unit]:
            best, top = tried, told
    return {"best": best, "batch": args.tune_batch, "trials": trials}


def beside(args: argparse.Namespace) -> dict:
    """Both sides at the sizes of BASE and `--items`, taking turns; ratios with their range."""
    setting = {} if args.untuned else json.loads(OUT.read_text())["tune"]["best"]
    sizes = BASE | {"items": args.items}
    both, asked = sides(args, setting, **sizes), WAYS | {"hf": args.ways or WAYS["hf"]}
    agree = agreement(both["zoo"].ask("lists"), both["hf"].ask("lists"))
    print(json.dumps(agree), flush=True)
    if agree["same_places"] < 0.99 or agree["furthest_score"] > 1e-4:
        raise RuntimeError(f"the two sides do not do the same work: {agree}")
    for name, ways in asked.items():
        for way in ways:
            both[name].ask(way)
    runs = {f"{name} {way}": [] for name, ways in asked.items() for way in ways}
    for _ in range(args.rounds):
        for key, found in runs.items():
            name, way = key.split()
            found.append(rounded(both[name].ask(way)) | load())
            print(key, json.dumps(found[-1]), flush=True)
    for side in both.values():
        side.close()
    ready = {name: side.ready for name, side in both.items()}
    return {"sizes": sizes, "setting": setting, "agreement": agree} | {
        "summary": {key: summary(runs, key) for key in runs},
        "made": ready,
        "runs": runs,
    }


def agreement(ours: dict, theirs: dict) -> dict[str, float]:
    """Share of equal items, place by place, and the largest difference of log-probabilities."""
    items, scores = ([np.array(side[key]) for side in (ours, theirs)] for key in LISTED)
    return {
        "lists": len(items[0]),
        "same_places": float((items[0] == items[1]).mean()),
        "furthest_score": float(np.abs(scores[0] - scores[1]).max()),
    }


def summary(runs: dict[str, list[dict]], key: str, zoo: str = "zoo recommend") -> dict[str, object]:
    """Medians of one way, and its time over that of the zoo in the same round."""
    found = {}
    for unit in ("ms", "cpu_ms"):
        own = [run[unit] for run in runs[key]]
        ratios = [a / b[unit] for a, b in zip(own, runs[zoo], strict=True)]
        found[unit] = {
            "median": round(statistics.median(own), 1),
            "over_zoo": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    return found | {"peak_mib": max(run["peak_mib"] for run in runs[key])}


def load() -> dict[str, float]:
    return {"load": round(os.getloadavg()[0], 1)}


def rounded(found: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4 if abs(value) < 10 else 1) for key, value in found.items()}


def params_of(shapes: object) -> object:
    """random_codes.weights in the tree of the zoo's parameters; every name is used once. Rows of
    codes stand there over sqrt(width): Speller multiplies what it reads, T5 divides its output."""
    import jax
    import random_codes

    arrays = random_codes.weights()
    codes = arrays.pop("shared.weight") * random_codes.SHAPE["width"] ** -0.5
    arrays |= {"codes": codes[: random_codes.START], "start": codes[random_codes.START]}

    def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = name_of([part.key for part in path if part.key != "speller"])
        array = arrays.pop(name)
        array = array.T if path[-1].key == "kernel" else array
        if array.shape != shape.shape:
            raise ValueError(f"{name} is {array.shape}; the zoo has {shape.shape}")
        return array

    params = jax.tree_util.tree_map_with_path(leaf, shapes)
    if arrays:
        raise ValueError(f"weights without a place in the zoo: {sorted(arrays)}")
    return params


def name_of(path: list[str]) -> str:
    """T5's name of a parameter of zoo/encoders/t5.py; those of the speller keep their own."""
    if len(path) == 1:
        return path[0]
    stack, *rest = path
    if rest[0] == "norm":
        return f"{stack}.final_layer_norm.weight"
    if rest[0] == "relative":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    number, part = rest[0].removeprefix("block_"), rest[1]
    sublayer = {"attention": 0, "memory": 1, "ffn": 2 if stack == "decoder" else 1}
    at = f"{stack}.block.{number}.layer.{sublayer[part.split('_')[0]]}"
    if part.endswith("norm"):
        return f"{at}.layer_norm.weight"
    if part.startswith("ffn"):
        return f"{at}.DenseReluDense.w{part[4]}.weight"
    kind = {"attention": "SelfAttention", "memory": "EncDecAttention"}[part]
    return f"{at}.{kind}.{rest[2][0]}.weight"


class Zoo:
    """TIGER over a made-up catalogue; each method gives a compiled call without arguments."""

    def __init__(self, items: int, beam: int, batch: int, params: object = None):
        import jax
        import random_codes

        from zoo.encoders.t5 import T5Stack
        from zoo.models.generative import with_trie
        from zoo.models.tiger import tiger

        shape, self.beam, self.rows = dict(random_codes.SHAPE), beam, batch
        self.decoder = T5Stack(**shape, cross=True, both_ways=False)
        shape["decoder_layers"] = shape["layers"]
        self.model = tiger(**shape, by_token=True, causal=False, beam=beam)
        codes = random_codes.codes(items)
        codes = np.concatenate([np.full((1, codes.shape[1]), -1, np.int32), codes])
        sizes = (random_codes.SIZE,) * random_codes.LEVELS
        begun = time.perf_counter()
        catalogue = with_trie(
            {"codes": {"made": codes}, "sizes": {"made": sizes}, "valid": codes[:, 0] >= 0}
        )
        self.built = round(time.perf_counter() - begun, 2)
        history = random_codes.histories(batch, items, 20)
        self.batch = {
            "items": history,
            "segments": np.ones_like(history),
            "query": np.full(batch, history.shape[1] - 1, np.int32),
        }
        if params is None:
            key = jax.random.key(0)
            first = lambda c, b: self.model.init(key, c, b)  # noqa: E731
            params = params_of(jax.eval_shape(first, catalogue, self.batch))
        self.params = jax.device_put(params)
        self.index = jax.device_put(self.model.index(params, catalogue))
        self.batch = jax.device_put(self.batch)

    def recommend(self, k: int | None = None) -> Callable:
        work = partial(self.model.recommend, k=k or self.beam)
        return compiled(work, self.params, self.index, self.batch)

    def encode(self) -> Callable:
        return compiled(self.model.encode, self.params, self.index, self.batch)

    def free(self) -> Callable:
        """Everything but the constraint: a plain top-k over all codes of a level."""
        import random_codes

        from zoo.decode import search_freely

        def work(params, index, batch):
            step = self.step(params, index, batch)
            found = search_freely(step, random_codes.LEVELS, self.beam, self.rows)
            return found.tokens, found.scores

        return compiled(work, self.params, self.index, self.batch)

    def lists(self) -> Callable:
        """The lists of `generate(renormalise=True)`: what Hugging Face's lists compare to."""
        from zoo.decode import generate

        def work(params, index, batch):
            step, k = self.step(params, index, batch), self.beam
            return generate(step, index["trie"], k, self.rows, k, renormalise=True)

        return compiled(work, self.params, self.index, self.batch)

    def step(self, params: dict, index: dict, batch: dict) -> Callable:
        """decode.Step of these histories, written with the decoder alone."""
        import jax
        import jax.numpy as jnp
        import random_codes

        query, own = self.model.encode(params, index, batch), params.get("speller", params)
        seen, size = jnp.repeat(query["seen"], random_codes.LEVELS, axis=2), random_codes.SIZE

        def work(past, tokens, level):
            rows = jax.lax.dynamic_slice_in_dim(own["codes"], size * level, size)
            if level == 0:
                x = jnp.broadcast_to(own["start"], (self.rows, 1, 1, len(own["start"])))
            else:
                x = own["codes"][tokens + size * (level - 1)][:, :, None]
            held = (x * x.shape[-1] ** 0.5, query["memory"], seen, past)
            h, past = self.decoder.apply({"params": own["decoder"]}, *held, method="decode")
            logits = jnp.einsum("bwd,vd->bwv", h[:, :, 0], rows)
            return jax.nn.log_softmax(logits), past

        return work


def compiled(work: Callable, *arguments: object) -> Callable:
    """`work` of these arguments, compiled and run once, waiting for its result at each call."""
    import jax

    made = jax.jit(work).lower(*arguments).compile()
    call = lambda: jax.block_until_ready(made(*arguments))  # noqa: E731
    call()
    return call


def timed(call: Callable) -> dict[str, float]:
    begun, used = time.perf_counter(), time.process_time()
    call()
    ms = 1e3 * (time.perf_counter() - begun)
    return {"ms": ms, "cpu_ms": 1e3 * (time.process_time() - used)}


def zoo(args: argparse.Namespace) -> None:
    """One batch for every line of stdin, as competitors/hf_t5.py has it."""
    import jax
    from turns import serve

    side = Zoo(args.items, args.beam, args.batch)
    works = {way: getattr(side, way)() for way in WAYS["zoo"]}
    listed = side.lists()

    def lists() -> dict[str, list]:
        return {k: np.asarray(x).tolist() for k, x in zip(LISTED, listed(), strict=True)}

    ready = {"built": {"trie_s": side.built}, "versions": {"jax": jax.__version__}}
    serve(works | {"lists": lists}, ready)


def scale(args: argparse.Namespace) -> dict:
    """The zoo alone: one size moved at a time from BASE; written after each."""
    axes = {"batch": (1, 128), "items": (10**6, 1_000, 100_000), "beam": (10, 50)}
    sizes = [BASE] + [BASE | {key: value} for key, values in axes.items() for value in values]
    rows, params = [], None
    for size in sizes:
        side = Zoo(**size, params=params)
        params, trie = side.params, side.index["trie"]
        begun = time.perf_counter()
        calls = {"recommend": side.recommend()} | extra(side, size)
        row = {"sizes": size, "trie_s": side.built, "branching": trie.branching}
        row["compile_s"] = round(time.perf_counter() - begun, 1)
        run = {way: [] for way in calls}
        for _ in range(args.rounds):
            for way, call in calls.items():
                run[way].append(timed(call))
        rows.append(row | medians(run) | load() | {"peak_mib": peak_mib()})
        write("scale", {"rounds": args.rounds, "rows": rows})
        print(json.dumps(rows[-1]), flush=True)
    return {"rounds": args.rounds, "rows": rows}


def medians(run: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Of each way, wall and processor time."""
    return {
        way: {
            unit: round(statistics.median(f[unit] for f in found), 1) for unit in ("ms", "cpu_ms")
        }
        for way, found in run.items()
    }


def extra(side: Zoo, size: dict) -> dict[str, Callable]:
    """Parts of the time at BASE: the encoder alone, and no constraint."""
    return {"encode": side.encode(), "free": side.free()} if size == BASE else {}


def peak_mib() -> float:
    """Largest resident set of this process so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def write(key: str, found: dict, out: Path = OUT) -> None:
    """Put what was found under `key` of results/decode.json, beside what other modes wrote."""
    report = json.loads(out.read_text()) if out.exists() else {}
    report[key] = {"command": command(), "hardware": hardware(), "commit": COMMIT, **found}
    out.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("tune", "beside", "scale", "zoo"))
    parser.add_argument("--competitor-python", help="see benchmarks/README.md")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", help="of Hugging Face's side; all unless named")
    parser.add_argument("--untuned", action="store_true", help="Hugging Face as it comes")
    parser.add_argument("--tune-batch", type=int, default=4)
    for name, value in BASE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    if args.mode == "zoo":
        zoo(args)
        return
    if args.mode != "scale" and not args.competitor_python:
        parser.error(f"{args.mode} needs --competitor-python, see benchmarks/README.md")
    found = {"tune": tune, "beside": beside, "scale": scale}[args.mode](args)
    key = args.mode if args.mode != "beside" else f"beside_{args.items}"
    write(key + "_untuned" * args.untuned, found)


if __name__ == "__main__":
    main()
