"""The door for the shell: a thin face of api.py. Heavy imports wait until a command needs them."""

import dataclasses
import difflib
import logging
import sys
from pathlib import Path
from typing import Any

from zoo.allocator import keep_freed_memory
from zoo.arguments import DataArgs, behind, parse, positional
from zoo.console import SHOWN, Bar, rounded, show, tell

COMMANDS = {
    "quickstart": "make a small world, train on it, compare, save, load back, recommend",
    "train": "train MODEL --data DIR --out RUN: fit a model; the same command resumes it",
    "pretrain": "pretrain MODEL | OBJECTIVE --data DIR --out RUN: a model's stage, or encoders",
    "fuse": "fuse RUN_OR_BUNDLE --data DIR --out DIR: with a counting floor as its prior",
    "merge": "merge RUN --out DIR: what LoRA learned inside the kernels, or content as vectors",
    "evaluate": "evaluate RUN_OR_BUNDLE --data DIR: full-ranking metrics and strata",
    "recommend": "recommend RUN_OR_BUNDLE --history A,B,C --k 10",
    "floors": "floors --data DIR: popularity, counting and EASE on the same protocol",
    "embed": "embed --data DIR --encoder FOLDER --out FEATURES: items through an encoder",
    "tokenize": "tokenize --data DIR --out CODES.json: items as semantic ids",
    "models": "list the models, their papers and fields",
    "data": "data describe | validate | prepare DIR",
}
MENDED = (ValueError, OSError, RuntimeError, LookupError, ArithmeticError, ModuleNotFoundError)
TRAIN = ("quickstart", "train", "pretrain")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status. What a user can mend is one line, status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from zoo import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        print(f"zoo: no command '{argv[0]}'{f'; did you mean {near[0]}?' if near else ''}\n")
        print(usage())
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if argv[0] in TRAIN:
        keep_freed_memory()
    try:
        return globals()[f"_{argv[0]}"](argv[1:])
    except MENDED as error:
        print(f"zoo {argv[0]}: {error}", file=sys.stderr)
        return 2


def usage() -> str:
    """What `zoo --help` prints."""
    lines = ["zoo: multimodal recommenders in JAX", "", "usage: zoo COMMAND [options]", ""]
    lines += [f"  {name:<11} {what}" for name, what in COMMANDS.items()]
    return "\n".join([*lines, "", "zoo COMMAND --help shows a command's options."])


def _parse(kind: type, argv: list[str], command: str) -> Any:
    return parse(kind, argv, command, COMMANDS[command.split()[0]])


def _train(argv: list[str]) -> int:
    from zoo.cli_train import train_command

    return train_command(argv)


def _pretrain(argv: list[str]) -> int:
    from zoo.cli_train import pretrain_command

    return pretrain_command(argv)


def _evaluate(argv: list[str]) -> int:
    name = positional(argv, "RUN_OR_BUNDLE", "evaluate")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class EvaluateArgs(DataArgs):
        split: str = "test"
        """valid or test."""
        no_mask: bool = False
        """Rank the items of the history too."""
        batch: int = 512
        prior: str | None = None
        """A floor that serves (zoo models) as the model's prior; auto: what follows or goes with
        what, spread over text; best: of those that serve, on validation."""

    args = _parse(EvaluateArgs, behind(argv), "evaluate RUN_OR_BUNDLE")
    from zoo import api

    bundle = api.from_pretrained(name)
    data = api.load_data(args.data, args.options(bundle.data_options()))
    model, prior = bundle, bundle.config.get("prior")
    options = {"mask": not args.no_mask, "batch": args.batch}
    if args.prior:
        from zoo.prior import prior_of, reading

        both = prior_of(bundle, data, None if args.prior == "auto" else args.prior)
        model = (both.recommender, both.params)
        options |= {"catalogue": bundle.catalogue, "max_len": reading(bundle, data)}
        prior = both.told
    result = api.evaluate(model, data, args.split, **options)
    told = {
        "model": bundle.config["model"],
        **({"prior": prior} if prior else {}),
        "split": args.split,
        "protocol": data.split.protocol,
        "split_hash": data.split.hash,
        "same_split_as_training": data.split.hash == bundle.split["hash"],
        "mask": "none" if args.no_mask else "history",
        "events": result.n_events,
    }
    strata = {name: rounded(row) for name, row in result.strata.items()}
    if args.json:
        return tell({**told, "metrics": rounded(result.metrics), "strata": strata}, True)
    tell(told, False)
    whole = {"all": {"events": result.n_events, **result.metrics}}
    rows = [
        [name, row["events"], *(row.get(m, "–") for m in SHOWN)]
        for name, row in (whole | strata).items()
    ]
    return show(("events of", "how many", *SHOWN), rows)


def _recommend(argv: list[str]) -> int:
    name = positional(argv, "RUN_OR_BUNDLE", "recommend")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class RecommendArgs:
        history: str
        """The data's own item ids, oldest first, with commas between them."""
        k: int = 10
        times: str | None = None
        """When each happened, in seconds, with commas between them: for models that read times."""
        allowed: Path | None = None
        """A file of item ids, one a line: only these compete."""
        json: bool = False

    args = _parse(RecommendArgs, behind(argv), "recommend RUN_OR_BUNDLE")
    from zoo.serve import from_pretrained

    history = [item.strip() for item in args.history.split(",") if item.strip()]
    times = None if args.times is None else [_seconds(t) for t in args.times.split(",")]
    if args.allowed and not args.allowed.is_file():
        raise ValueError(
            f"--allowed: there is no file {args.allowed}; expected item ids, one a line."
        )
    allowed = args.allowed.read_text().split("\n") if args.allowed else None
    allowed = allowed and [item.strip() for item in allowed if item.strip()]
    lines = from_pretrained(name).recommend(history, args.k, times, allowed)
    if not args.json:
        for place, x in enumerate(lines, 1):
            print(f"{place:>3}  {x.item:<16} {x.score:9.4f}  {x.title}")
        return 0
    told = [{"item": x.item, "score": round(x.score, 5), "title": x.title} for x in lines]
    return tell({"history": history, "recommendations": told}, True)


def _seconds(told: str) -> float:
    try:
        return float(told)
    except ValueError as error:
        raise ValueError(f"--times has '{told}'; expected seconds as numbers.") from error


def _fuse(argv: list[str]) -> int:
    name = positional(argv, "RUN_OR_BUNDLE", "fuse")
    from zoo.cli_floors import fuse_command

    return fuse_command(name, behind(argv))


def _merge(argv: list[str]) -> int:
    name = positional(argv, "RUN_OR_BUNDLE", "merge")
    from zoo.cli_floors import merge_command

    return merge_command(name, behind(argv))


def _floors(argv: list[str]) -> int:
    from zoo.cli_floors import floors_command

    return floors_command(argv)


def _embed(argv: list[str]) -> int:
    from zoo.cli_content import embed_command

    return embed_command(argv)


def _tokenize(argv: list[str]) -> int:
    from zoo.cli_content import tokenize_command

    return tokenize_command(argv)


def _models(argv: list[str]) -> int:
    @dataclasses.dataclass(frozen=True)
    class ModelsArgs:
        json: bool = False

    args = _parse(ModelsArgs, argv, "models")
    from zoo.models import MODELS, fields

    table = {
        name: {
            "family": e.family,
            "paper": e.paper,
            "summary": e.summary,
            "fields": {k: v for k, (_, v) in fields(name).items()},
        }
        for name, e in MODELS.items()
    }
    if args.json:
        return tell({"models": table}, True)
    for name, row in table.items():
        print(f"{name:<16} {row['family']:<11} {row['summary']} ({row['paper']})")
    return 0


def _data(argv: list[str]) -> int:
    actions = ("describe", "validate", "prepare")
    if not argv or argv[0] not in actions:
        print("usage: zoo data describe | validate | prepare --data DIR [--out DIR] [--json]")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    action = argv[0]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class PlainArgs:
        data: Path
        part: str | None = None
        out: Path = Path("data/prepared")
        """prepare: where the ArrayRecord files go."""
        json: bool = False

    rest = ["--data", *argv[1:]] if len(argv) > 1 and not argv[1].startswith("-") else argv[1:]
    args = _parse(PlainArgs, rest, f"data {action}")
    from pipelines import interactions, raw, sources

    if action == "prepare":
        from pipelines.datasets.three_tables import prepare

        return tell({"prepared": str(prepare(args.data, args.out))}, args.json)
    dataset = sources.load(args.data, args.part)
    if action == "describe":
        described = interactions.describe(dataset)
        return tell({"data": dataset.name, "source": dataset.source, **described}, args.json)
    findings = interactions.validate(dataset) + raw.unreadable(dataset)
    tell({"data": dataset.name, "findings": findings}, args.json)
    return 1 if findings else 0


def _quickstart(argv: list[str]) -> int:
    @dataclasses.dataclass(frozen=True)
    class QuickstartArgs:
        out: Path = Path("runs/quickstart")
        epochs: int | None = None
        """None: enough to come near the optimum."""
        seed: int = 0
        json: bool = False

    args = _parse(QuickstartArgs, argv, "quickstart")
    from zoo.quickstart import quickstart

    with Bar("train", "recall@10") as bar:
        result = quickstart(args.out, args.epochs, args.seed, bar, quiet=args.json)
    return tell(result, True) if args.json else 0


if __name__ == "__main__":
    sys.exit(main())
