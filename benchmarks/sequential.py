"""Sequential models side by side: the zoo, RecTools, RecBole, PyTorch, alternating; ratios.

    python benchmarks/sequential.py --data DATA/amazon-beauty --competitor-python ENV/bin/python

Each measurement is a process of its own. Before the rounds every competitor is tuned, one setting
after the other, and the rounds use its best. README.md tells how to make its environment.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = {
    "zoo": HERE / "zoo_sequential.py",
    "rectools": HERE / "competitors" / "rectools_sasrec.py",
    "torch": HERE / "competitors" / "torch_sasrec.py",
    "recbole": HERE / "competitors" / "recbole_bert4rec.py",
}
# Coordinate search: the first value is the start, the others are tried in this order.
TUNED = {
    "rectools": {
        "keep-memory": (True, False),
        "batch": (128, 256, 64),
        "workers": (0, 1),
        "ranking": ("torch", "implicit"),
    },
    "torch": {"keep-memory": (True, False), "batch": (256, 512, 128), "compile": (False, True)},
    "recbole": {"keep-memory": (True, False), "batch": (256, 512, 128), "workers": (0, 1)},
}
# glibc gives big blocks back after every step and the kernel clears them again; these keep them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
RATES = {
    "examples_per_s": "examples/s",
    "recommend_users_per_s": "users/s top-k",
    "evaluate_users_per_s": "users/s metrics",
}


def measure(name: str, setting: dict, args: argparse.Namespace, **common) -> dict:
    """One process: its result, with its setting. Raises RuntimeError with its last words."""
    flags = {**common, **setting}
    environment = dict(os.environ) | (KEEP_MEMORY if flags.pop("keep-memory", False) else {})
    python = sys.executable if name == "zoo" else args.competitor_python
    command = [python, PROGRAMS[name], "--data", args.data, *as_flags(flags)]
    cores = sorted(os.sched_getaffinity(0))[: common["threads"]]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RuntimeError(f"{name} {flags} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "setting": {**common, **setting}}


def as_flags(flags: dict) -> Iterable[str]:
    """--key value; a True alone, a False not at all."""
    for key, value in flags.items():
        if value is True:
            yield f"--{key}"
        elif value is not False:
            yield from (f"--{key}", str(value))


def tune(name: str, args: argparse.Namespace, common: dict) -> tuple[dict, list[dict]]:
    """The best setting of a competitor found by coordinate search, and every trial."""
    best, trials = {key: values[0] for key, values in TUNED[name].items()}, []
    short = {"users": args.tune_users, "eval-users": 4 * args.tune_users}

    def trial(setting: dict) -> dict:
        trials.append(measure(name, setting, args, **common | short))
        print(line(trials[-1]), flush=True)
        return trials[-1]

    top = trial(best)
    for key, values in TUNED[name].items():
        rate = "recommend_users_per_s" if key == "ranking" else "examples_per_s"
        for value in values[1:]:
            tried = trial({**best, key: value})
            if tried[rate] > top[rate]:
                best, top = {**best, key: value}, tried
    return best, trials


def line(result: dict) -> str:
    """One row of the report."""
    setting = dict(result["setting"])
    loss = " ".join((setting.pop("model"), setting.pop("loss")))
    setting = {k: v for k, v in setting.items() if k not in ("users", "eval-users")}
    rates = "  ".join(f"{result[rate]:8.0f} {words}" for rate, words in RATES.items())
    chosen = " ".join(f"{key}={value}" for key, value in setting.items())
    return f"{result['name']:9} {loss:16} {rates}  {result['peak_mib']:6.0f} MiB  {chosen}"


def summary(runs: list[dict]) -> list[dict]:
    """Per loss, cores and competitor: medians, and the ratios zoo / competitor of each round."""
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for result in runs:
        key = (result["setting"]["loss"], result["setting"]["threads"], result["beside"])
        groups.setdefault(key, {}).setdefault(result["name"], []).append(result)
    return [
        {"loss": loss, "cores": cores, "competitor": name}
        | {rate: compared(sides["zoo"], sides[name], rate) for rate in (*RATES, "peak_mib")}
        for (loss, cores, name), sides in groups.items()
    ]


def compared(zoo: list[dict], other: list[dict], key: str) -> dict[str, object]:
    """Medians of both sides and of their ratios, with the range of the ratios."""
    ratios = [a[key] / b[key] for a, b in zip(zoo, other, strict=True)]
    return {
        "zoo": statistics.median(a[key] for a in zoo),
        "competitor": statistics.median(b[key] for b in other),
        "ratio": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
    }


def told(row: dict) -> str:
    """The summary row in words."""
    words = [f"{row['loss']}, {row['cores']} cores, zoo / {row['competitor']}:"]
    for rate in (*RATES, "peak_mib"):
        low, high = row[rate]["range"]
        words.append(f"  {rate:22} {row[rate]['ratio']:6.2f}  ({low:.2f} to {high:.2f})")
    return "\n".join(words)


def hardware() -> dict[str, object]:
    """Processor, cores and memory of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [text.split(":", 1)[1].strip() for text in lines if text.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def command() -> str:
    """How this was started, paths cut to their names."""
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *words])


def run(args: argparse.Namespace) -> dict:
    """Tune, then alternate; everything that was measured."""
    report = {"command": command(), "hardware": hardware(), "tuning": [], "best": [], "runs": []}
    for loss in args.losses:
        for threads in args.cores:
            common = {"loss": loss, "threads": threads, "users": args.users}
            common |= {"model": args.model, "eval-users": args.eval_users}
            best = {"zoo": {}}
            for name in args.competitors:
                best[name], trials = tune(name, args, common)
                report["tuning"] += trials
            report["best"].append({"loss": loss, "cores": threads, **best})
            for _ in range(args.rounds):
                for name in args.competitors:
                    for who in ("zoo", name) if args.zoo else (name,):
                        result = measure(who, best[who], args, **common) | {"beside": name}
                        report["runs"].append(result)
                        print(line(result), flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sequences.txt")
    parser.add_argument("--competitor-python", required=True, help="see benchmarks/README.md")
    parser.add_argument("--competitors", nargs="+", default=["rectools", "torch"])
    parser.add_argument("--losses", nargs="+", default=["softmax", "bce"])
    parser.add_argument("--cores", nargs="+", type=int, default=[len(os.sched_getaffinity(0))])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=0, help="training users a run; 0: one epoch")
    parser.add_argument("--eval-users", type=int, default=0, help="test users; 0: all")
    parser.add_argument("--model", default="sasrec", help="sasrec, or with rectools hstu, bert4rec")
    parser.add_argument("--tune-users", type=int, default=1024)
    parser.add_argument("--no-zoo", dest="zoo", action="store_false", help="competitors alone")
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    args = parser.parse_args()
    report = run(args)
    if args.zoo:
        report["summary"] = summary(report["runs"])
        print(*map(told, report["summary"]), sep="\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
