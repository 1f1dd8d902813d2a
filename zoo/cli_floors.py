"""The shell's commands about floors, floors, train FLOOR and fuse; and merge, which like fuse makes
a bundle of a bundle."""

import dataclasses
from pathlib import Path

from zoo.arguments import DataArgs, parse
from zoo.console import SHOWN, rounded, show, tell


def floors_command(argv: list[str]) -> int:
    """zoo floors."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FloorsArgs(DataArgs):
        only: tuple[str, ...] = ()
        """A subset of the floors, by name."""
        no_mask: bool = False
        """Rank the items of the history too."""

    args = parse(FloorsArgs, argv, "floors", "popularity, counting and EASE on the same protocol")
    from zoo import api
    from zoo.counted import SERVED

    data = api.load_data(args.data, args.options())
    table = api.floors(data, args.only or None, mask=not args.no_mask)
    result = {"data": data.dataset.name, "protocol": data.split.protocol}
    result |= {"split_hash": data.split.hash}
    if args.json:
        return tell({**result, "floors": table}, True)
    missing = table.pop("missing", {})
    tell(result | ({"missing": missing} if missing else {}), False)
    by = "ndcg@10" if data.split.ordered else "recall@20"
    best = sorted(table.items(), key=lambda one: -one[1]["validation"][by])
    best = [(k if k in SERVED else f"{k} (table only)", row) for k, row in best]
    rows = [[k, row["validation"][by], *(row["metrics"][m] for m in SHOWN)] for k, row in best]
    return show(("floor", f"valid {by}", *SHOWN), rows)


def count_command(name: str, argv: list[str]) -> int:
    """zoo train FLOOR."""
    from zoo.models import entry, fields

    own = [(k, kind | None, None) for k, (kind, _) in fields(name).items()]
    model_args = dataclasses.make_dataclass("ModelArgs", own, frozen=True)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class CountArgs(DataArgs):
        out: Path
        model: model_args = model_args()
        """What is not given is chosen on validation."""

    args = parse(CountArgs, argv, f"train {name}", entry(name).summary)
    from zoo import api

    data = api.load_data(args.data, args.options())
    chosen = {k: v for k, v in vars(args.model).items() if v is not None}
    fitted, data = api.fit(name, data, args.out, **chosen)
    best = rounded(fitted.best if args.json else {k: fitted.best[k] for k in SHOWN})
    result = {"model": name, "bundle": str(args.out / "bundle"), "best": best}
    result |= {"seconds": round(fitted.seconds, 3), "split_hash": data.split.hash}
    return tell(result, args.json)


def fuse_command(name: str, argv: list[str]) -> int:
    """zoo fuse."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class FuseArgs(DataArgs):
        out: Path
        floor: str = "auto"
        """A floor that serves (zoo models); auto: what follows or goes with what, spread over
        text; best: of those that serve, on validation."""
        keep: int | None = None
        """Neighbours of an item that the floor keeps: fewer make a smaller bundle."""

    args = parse(FuseArgs, argv, "fuse RUN_OR_BUNDLE", "a model with a floor as its prior")
    from checkpoints.store import params_sha256
    from zoo import api
    from zoo.prior import prior_of, save_with_prior
    from zoo.settings import claim

    bundle = api.from_pretrained(name)
    data = api.load_data(args.data, args.options(bundle.data_options()))
    mine = {
        "model": bundle.config["model"],
        "params": params_sha256(bundle.params),
        "floor": args.floor,
        **({} if args.keep is None else {"keep": args.keep}),
    }
    claim(args.out, {**mine, "split": data.split.hash})
    both = prior_of(bundle, data, None if args.floor == "auto" else args.floor, args.keep)
    folder = save_with_prior(args.out / "bundle", bundle, data, both)
    names = ("floor", "chosen", "how", "weight", "metric", "alone", "floor_alone", "grid")
    told = {k: getattr(both, k) for k in names}
    return tell({"bundle": str(folder), **told}, args.json)


def merge_command(name: str, argv: list[str]) -> int:
    """zoo merge."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MergeArgs:
        out: Path
        items: bool = False
        """Each item's content as one vector, too: smaller, and closed to new items."""
        json: bool = False

    about = "what LoRA learned inside the kernels, or content as vectors"
    args = parse(MergeArgs, argv, "merge RUN_OR_BUNDLE", about)
    from checkpoints.store import params_sha256
    from zoo.merge import check_merged, save_merged
    from zoo.serve import from_pretrained
    from zoo.settings import claim

    bundle = from_pretrained(name)
    check_merged(bundle, args.items)
    mine = {"model": bundle.config["model"], "merged": params_sha256(bundle.params)}
    mine |= {"items": True} if args.items else {}
    claim(args.out, {**mine, "split": bundle.split["hash"]})
    folder = save_merged(args.out / "bundle", bundle, args.items)
    return tell({"bundle": str(folder)}, args.json)
