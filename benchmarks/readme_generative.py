"""README blocks of the models that spell items: their ids, one trunk's items, two ways to train."""

import json

from kept import RESULTS, commits, load, minutes, spread, stratum, verdict


def _runs(names: tuple[str, ...]) -> list[tuple[str, dict]]:
    return [(name, told) for name in names if (told := load(name))]


def spelled() -> str:
    """What models that spell items reach, one row an experiment."""
    from zoo.models import MODELS

    lines = [
        "| experiment | recall@10 | ndcg@10 | history in the ranking: items | strings | "
        "warm, cold recall@10 | best floor, ndcg@10 | seeds | split | train | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        told = json.loads(path.read_text())
        if "experiment" in told and MODELS[told["experiment"]["model"]].family == "generative":
            lines.append(_spelled_line(path.stem, told))
    how = "`python benchmarks/reach.py EXPERIMENT --data FOLDER`; AMD EPYC, 2 cores."
    return "\n".join([*lines, "", how])


def _spelled_line(name: str, told: dict) -> str:
    rows, seeds = told["rows"], len(told["rows"])
    r10, n10 = (spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))

    def mean(key: str) -> str:
        if key not in rows[0]:
            return "–"
        both = (sum(row[key][k] for row in rows) / seeds for k in ("recall@10", "ndcg@10"))
        return ", ".join(f"{value:.4f}" for value in both)

    warm, cold = (sum(stratum(r, c) for r in rows) / seeds for c in (False, True))
    return (
        f"| {name} | {r10} | {n10} | {mean('test_unmasked')} | {mean('test_strings')} | "
        f"{warm:.4f}, {cold:.4f} | {verdict(told)} | {seeds} | "
        f"`{told['split_hash'][:8]}` | {minutes(rows):.0f} min | {commits(rows)} |"
    )


ITEMS = {
    "sasrec-beauty": "its ID",
    "sasrec-content-beauty": "a content vector of 64 columns",
    "sasrec-words-beauty": "a content vector of 768 columns",
    "sasrec-text-beauty": "its ID and those 768 columns",
    "sasrec-codes-beauty": "the sum of its codes",
    "tiger-letter-beauty": "its codes, spelled",
}


def represented() -> str:
    """An item as an ID, a content vector, the sum of its codes or their sequence."""
    lines = [
        "| an item is | experiment | recall@10 | ndcg@10 | cold recall@10 | best floor, ndcg@10 | "
        "seeds | train |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, told in _runs(tuple(ITEMS)):
        rows, seeds = told["rows"], len(told["rows"])
        r10, n10 = (spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))
        cold = sum(stratum(r, True) for r in rows) / seeds
        lines.append(
            f"| {ITEMS[name]} | {name} | {r10} | {n10} | {cold:.4f} | {verdict(told)} | {seeds} | "
            f"{minutes(rows):.0f} min |"
        )
    return "\n".join(lines)


WAYS = {
    "tiger-positions-movies": "every place at one pass a user",
    "tiger-prefixes-movies": "every prefix encoded anew, code by code",
}


def recipes() -> str:
    """The published way to train beside one pass a user, at equal examples."""
    lines = [
        "| ml-latest-small | experiment | validation ndcg@10 after 1, 2, 3, 6 epochs, best | "
        "recall@10 | ndcg@10 | best floor, ndcg@10 | seeds | examples/s | train |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in _runs(tuple(WAYS)):
        rows, seeds = told["rows"], len(told["rows"])
        curves = [[p["ndcg@10"] for p in r["curve"][:4]] + [r["valid"]["ndcg@10"]] for r in rows]
        curve = [sum(at) / seeds for at in zip(*curves, strict=True)]
        own = (spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))
        rate = f"{sum(r['examples_per_second'] for r in rows) / seeds:.0f}"
        lines.append(
            f"| {WAYS[name]} | {name} | {', '.join(f'{v:.4f}' for v in curve)} | "
            f"{' | '.join(own)} | {verdict(told)} | {seeds} | {rate} | {minutes(rows):.0f} min |"
        )
    return "\n".join(lines)


GENERATIVE_BLOCKS = {"spelled": spelled, "represented": represented, "recipes": recipes}
