"""The shell's commands that train: train MODEL, pretrain MODEL."""

from pathlib import Path
from typing import Any

from zoo.arguments import parse, positional, train_args
from zoo.console import Bar, rounded, tell

TOLD = {
    "train": "fit a model; the same command resumes it",
    "pretrain": "a model's stage, which other runs start from",
}


def train_command(argv: list[str]) -> int:
    """zoo train."""
    from zoo.models import MODELS

    return _fit(argv, "train", list(MODELS))


def pretrain_command(argv: list[str]) -> int:
    """zoo pretrain: a model's stage, or encoders from content alone."""
    from zoo.cli_content import OBJECTIVES, content_command
    from zoo.models import MODELS, fields

    if argv and argv[0] in OBJECTIVES:
        return content_command(argv[0], argv[1:])
    if argv and argv[0] in ("-h", "--help"):
        print("of encoders, from content alone: zoo pretrain " + " | ".join(OBJECTIVES))
    return _fit(argv, "pretrain", [k for k in MODELS if "stage" in fields(k)], stage="pretrain")


def _fit(argv: list[str], command: str, names: list[str], **preset: Any) -> int:
    name = positional(argv, "MODEL", command)
    from zoo.models import MODELS, entry
    from zoo.names import unknown

    if name in ("-h", "--help"):
        print(f"usage: zoo {command} MODEL --data DIR --out RUN [options]")
        print("models: " + ", ".join(names))
        print(f"zoo {command} MODEL --help shows a model's options.")
        return 0
    if command == "pretrain" and name not in MODELS:
        from zoo.cli_content import OBJECTIVES

        raise unknown("nothing to pretrain is called", name, [*OBJECTIVES, *names])
    if entry(name).family == "floor" and command == "train":
        from zoo.cli_floors import count_command

        return count_command(name, argv[1:])
    if name not in names:
        raise ValueError(f"{name} has no pretraining stage; these have: {', '.join(names)}.")
    args = parse(train_args(name, **preset), argv[1:], f"{command} {name}", TOLD[command])
    from zoo import api
    from zoo import mesh as meshes
    from zoo.graft import names_of

    chosen = args.chosen()
    if (args.control or args.names) and not args.graft:
        raise ValueError("--control and --names are of a pretrained run: name it (--graft).")
    api.build(name, **chosen)  # bad fields are told before any data is read
    names = names_of(args.names)
    if args.control:
        api.computed_before(name, args.graft, chosen)
        if args.control.resolve() == args.out.resolve():
            raise ValueError(f"--control and --out are both {args.out}: name another folder.")
    mesh = meshes.make_mesh(args.mesh.data, args.mesh.model)
    data = api.load_data([args.data, *args.more_data], args.options())
    with Bar(f"{command} {name}", args.select) as bar:
        settings = args.settings()
        more = {"graft": args.graft, "vectors": args.vectors, "adapt": args.adapt}
        more |= {"encoding": args.encode, "names": names}
        fitted, seen = api.fit(name, data, args.out, settings, mesh, bar, **more, **chosen)
    result = {"model": name, **_fitted(args.out, fitted, seen, args.select)}
    if args.control:
        own = (args.graft, fitted, args.control, settings, mesh)
        with Bar(f"control of {name}", args.select) as bar:
            fitted, seen = api.control(name, data, *own, bar, args.vectors, args.encode, **chosen)
        result["control"] = _fitted(args.control, fitted, seen, args.select)
    return tell(result, args.json)


def _fitted(out: Path, fitted: Any, data: Any, select: str) -> dict[str, Any]:
    return {
        "run": str(out),
        "bundle": str(out / "bundle"),
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 3),
        "flops": fitted.flops,
        "examples_per_second": round(fitted.examples_per_second, 1),
        "best": {**rounded(fitted.best), "select": select},
        "params_sha256": fitted.params_sha256,
        "split_hash": data.split.hash,
    }
