"""Content through an encoder beside PyTorch, in one run: equal weights, equal content.

    python benchmarks/embed.py text --data DATA/amazon-beauty --encoder MINILM \\
        --competitor-python ENV/bin/python
    python benchmarks/embed.py image --competitor-python ENV/bin/python

text: `zoo embed` on every item's text, from reading the weights to the written features, its
compilations included, beside SentenceTransformer.encode on the same texts, its model loaded
before. image: a ViT-S/16 on ready pictures, both compiled and warmed up. Each side takes every
batch size once, and its best one in turns. Writes results/embed.json.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from decode import Side, load, rounded, summary, write

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "embed.json"
sys.path.append(str(HERE / "competitors"))
BATCHES = {"text": (32, 64), "image": (2, 4, 8, 16, 32, 64)}  # of both sides
PICTURES = 128


def zoo(args: argparse.Namespace) -> None:
    """One pass for every line of stdin, as competitors/torch_encoders.py has it."""
    import jax
    from turns import serve

    works = texts(args) if args.texts else pictures(args)
    serve(works, {"versions": {"jax": jax.__version__}})


def texts(args: argparse.Namespace) -> dict:
    from zoo.embed import embed

    dataset = catalogue(args)

    def work(batch: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            embed(dataset, args.encoder, folder, modality="text", batch=batch)
            shutil.copy(Path(folder) / "text_feat.npy", args.texts.with_suffix(".zoo.npy"))

    return {f"text-{batch}": lambda batch=batch: work(batch) for batch in BATCHES["text"]}


def catalogue(args: argparse.Namespace):
    """The data set, or so many of its items as are asked for."""
    from pipelines import interactions, sources

    dataset = sources.load(args.data)
    return interactions.filter_items(dataset, np.arange(dataset.n_items + 1) <= args.items)


def pictures(args: argparse.Namespace) -> dict:
    import jax

    from zoo.encoders.load import encoder

    made, x = encoder(args.encoder), np.load(args.pictures)
    params = jax.device_put(made.params)
    run = jax.jit(lambda p, part: made.apply["image"](p, part)["pooled"])

    def work(batch: int) -> None:
        done = [run(params, x[at : at + batch]) for at in range(0, len(x), batch)]
        np.save(args.pictures.with_suffix(".zoo.npy"), np.concatenate(done))

    return {f"image-{batch}": lambda batch=batch: work(batch) for batch in BATCHES["image"]}


def beside(args: argparse.Namespace, folder: Path) -> dict:
    """Both sides at the best of their batch sizes, in turns."""
    flags = given(args, folder)
    torch = [args.competitor_python, "-W", "ignore", HERE / "competitors" / "torch_encoders.py"]
    both = {"torch": Side(torch, flags | {"threads": args.cores}, args.cores)}
    more = {"data": args.data, "items": args.items} if args.mode == "text" else {}
    both["zoo"] = Side([sys.executable, Path(__file__), "zoo"], flags | more, args.cores)
    tried = {
        name: {b: tries(side, args.mode, b) for b in BATCHES[args.mode]}
        for name, side in both.items()
    }
    best = {name: min(found, key=found.get) for name, found in tried.items()}
    runs = {name: [] for name in both}
    for _ in range(args.rounds):
        for name, side in both.items():
            told = rounded(side.ask(f"{args.mode}-{best[name]}")) | load()
            print(name, json.dumps(told), flush=True)
            runs[name].append(told)
    for side in both.values():
        side.close()
    row = {name: summary(runs, name, "zoo") for name in runs}
    return {"best_batch": best, "tried_ms": tried, **apart(args, folder), "row": row, "runs": runs}


def given(args: argparse.Namespace, folder: Path) -> dict:
    """What both sides read, written down."""
    if args.mode == "image":
        x = np.random.default_rng(0).standard_normal((PICTURES, 224, 224, 3), np.float32)
        np.save(folder / "pictures.npy", x)
        return {"encoder": folder / "vit", "pictures": folder / "pictures.npy"}
    from zoo.encoders.inputs import item_texts

    said = item_texts(catalogue(args))[1:]
    (folder / "texts.json").write_text(json.dumps([text for text in said if text]))
    return {"encoder": args.encoder, "texts": folder / "texts.json"}


def tries(side: Side, mode: str, batch: int) -> float:
    """Milliseconds of the second pass at a batch size, where the first compiles for all."""
    if mode == "image":
        side.ask(f"{mode}-{batch}")
    return round(side.ask(f"{mode}-{batch}")["ms"], 1)


def apart(args: argparse.Namespace, folder: Path) -> dict:
    """How many rows there are, and how far the two sides' vectors lie apart."""
    name = "texts" if args.mode == "text" else "pictures"
    ours, theirs = (np.load(folder / f"{name}.{side}.npy") for side in ("zoo", "torch"))
    ours = ours[np.abs(ours).max(1) > 0]
    return {"rows": len(theirs), "max_abs_error": float(np.abs(ours - theirs).max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("text", "image", "zoo"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--texts", type=Path, help="of the zoo's side")
    parser.add_argument("--pictures", type=Path, help="of the zoo's side")
    parser.add_argument("--competitor-python", help="see benchmarks/README.md")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=10**9, help="text: the first ones only")
    args = parser.parse_args()
    if args.mode == "zoo":
        return zoo(args)
    with tempfile.TemporaryDirectory() as folder:
        write(args.mode, beside(args, Path(folder)), OUT)


if __name__ == "__main__":
    main()
