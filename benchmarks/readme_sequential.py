"""Blocks of the sequential family: speed beside others, long histories, what is carried over."""

import json
import math

from kept import RESULTS, commits, load, minutes, spread, stratum, summary, verdict

BESIDE = {"SASRec": "sequential", "HSTU": "sequential-hstu", "BERT4Rec": "sequential-bert4rec"}
RATES = {
    "examples_per_s": "training examples/s",
    "evaluate_users_per_s": "full ranking with metrics, users/s",
    "recommend_users_per_s": "top 10, users/s",
    "peak_mib": "peak memory, MiB",
}


def speed() -> str:
    """Sequential models beside others, alternating in one run each."""
    lines = ["| amazon-beauty | loss | zoo | other | ratio (range) |", "|---|---|---|---|---|"]
    how = []
    for model, name in BESIDE.items():
        told = load(name)
        for row in told["summary"] if told else ():
            lines += [_speed_line(model, row, key) for key in RATES]
        if told:
            where = told["hardware"]
            machine = f"{where['cpu']}, {where['cores']} cores, Python {where['python']}"
            how.append(f"{model}: `{told['command']}`; {machine}.")
    return "\n".join([*lines, "", *how, "Each competitor runs at the best of its tried settings."])


def _speed_line(model: str, row: dict, key: str) -> str:
    x, (low, high) = row[key], row[key]["range"]
    return (
        f"| {model}: {RATES[key]}, beside {row['competitor']} | {row['loss']} | {x['zoo']:,.0f} | "
        f"{x['competitor']:,.0f} | {x['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
    )


def length() -> str:
    """What a longer history costs SASRec and HSTU."""
    told = load("length")
    rows = {(r["model"], r["length"]): r for r in told["rows"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    lengths = sorted({events for _, events in rows})
    lines = [
        f"| processor ms a step, peak MiB | {' | '.join(f'{n:,} events' for n in lengths)} |",
        "|---|" + "---|" * len(lengths),
    ]
    for name in names:
        cells = [rows[name, n] for n in lengths]
        cells = [f"{x['cpu_ms']:,.0f}, {x['peak_mib']:,.0f}" for x in cells]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _measured(told), *_tails(told.get("tails"))])


def allocator() -> str:
    """What a training step takes with freed memory given back and kept."""
    told = load("allocator")
    lines = [
        "| ms a step, peak MiB | given back | kept | times as fast (range) |",
        "|---|---|---|---|",
    ]
    for row in told["rows"]:
        cells = [f"{row[k]['ms']:.0f}, {row[k]['peak_mib']:,.0f}" for k in ("as_it_is", "kept")]
        low, high = row["range"]
        how = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {how} |")
    command = "`python benchmarks/allocator.py --data FOLDER`"
    return "\n".join(
        [*lines, "", f"{command}; {told['hardware']}, one used, commit {told['commit']}."]
    )


def _measured(told: dict) -> str:
    machine = f"{told['hardware']['cpu']}, {told['cores']} cores"
    return f"`{told['command']}`; {machine}, commit {told['commit']}."


def _tails(told: dict | None) -> list[str]:
    """Histories of many lengths, in rows of one width and of several."""
    if told is None:
        return []
    lines = ["", "| an epoch of histories of many lengths, processor s | rows of one width | of "
             "several | ratio (range) |", "|---|---|---|---|"]  # fmt: skip
    for row in told["rows"]:
        one, several = (row[f"{how}_cpu_ms"] / 1e3 for how in ("one", "several"))
        low, high = row["range"]
        cells = f"{one:.1f} | {several:.1f} | {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {row['model']}, up to {row['length']:,} events | {cells} |")
    row = told["rows"][0]
    widths = ", ".join(map(str, row["widths"]))
    how = f"{row['mean_length']:.0f} events on average; rows of {widths}. {_measured(told)}"
    return [*lines, "", how]


def transfer() -> str:
    """Pretraining on content, then fine-tuning, beside the same model without and IDs alone."""
    lines = [
        "| experiment | recall@10 | ndcg@10 | unmasked | warm, cold, short recall@10 | "
        "best floor, ndcg@10 | 10^12 operations | seeds | train | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lost = ["", "| ndcg@10 | whole | without |", "|---|---|---|"]
    for path in sorted((RESULTS / "transfer").glob("*.json")):
        told = json.loads(path.read_text())
        ways = {"": told["rows"]}
        if "control" in told["rows"][0]:
            whole = [{**row, "train_seconds": _seconds(row)} for row in told["rows"]]
            control = [row["control"] for row in told["rows"]]
            ways = {", pretrained": whole, ", from nothing": control}
        for how, rows in ways.items():
            lines.append(_transfer_line(path.stem + how, told, rows))
            lost.append(_lost_line(path.stem + how, rows))
    how = "`python benchmarks/reach.py EXPERIMENT --data FOLDER`; AMD EPYC, 2 cores. Short: "
    how += (
        "histories of at most five. Operations: of the matrix products of all training. Without: "
    )
    how += "what is left when a modality is taken away, or dealt anew among the items, untrained."
    return "\n".join([*lines, *lost, "", how])


def _seconds(row: dict) -> float:
    return row["train_seconds"] + row.get("pretrain_seconds", 0.0)


def _transfer_line(name: str, told: dict, rows: list[dict]) -> str:
    seeds, totals = len(rows), summary(rows)
    mean = lambda of: sum(of(row) for row in rows) / seeds  # noqa: E731
    r10, n10 = (spread(totals[k], seeds) for k in ("recall@10", "ndcg@10"))
    warm, cold = (mean(lambda row, c=c: stratum(row, c)) for c in (False, True))
    short = mean(lambda row: row["strata"]["history <=5"].get("recall@10", 0.0))
    parts = ", ".join("–" if math.isnan(x) else f"{x:.4f}" for x in (warm, cold, short))
    unmasked = mean(lambda row: row["test_unmasked"]["ndcg@10"])
    computed = mean(lambda row: row["flops"] + row.get("pretrain_flops", 0.0)) / 1e12
    return (
        f"| {name} | {r10} | {n10} | {unmasked:.4f} | {parts} | "
        f"{verdict({**told, 'summary': totals})} | {computed:,.0f} | {seeds} | "
        f"{minutes(rows):.0f} min | {commits(rows)} |"
    )


def _lost_line(name: str, rows: list[dict]) -> str:
    mean = lambda of: sum(of(row) for row in rows) / len(rows)  # noqa: E731
    whole, names = mean(lambda row: row["test"]["ndcg@10"]), rows[0]["without"]
    lost = {m: mean(lambda row, m=m: row["without"][m]["ndcg@10"]) for m in names}
    left = ", ".join(f"{m} {value:.4f}" for m, value in lost.items())
    return f"| {name} | {whole:.4f} | {left or '–'} |"


UNTOLD = ("evaluate_every", "patience")  # of what is set
# What each trial was to better: the longest start of its name says it.
KEPT = {"hstu": "hstu-beauty", "bert4rec": "bert4rec-beauty", "bce": "sasrec-bce-beauty"}
KEPT |= {"sports": "sasrec-sports", "sasrec": "sasrec-beauty"}
KEPT |= {"bsarec": "bsarec-decayed-beauty", "text": "bsarec-text-beauty"}
KEPT |= {f"sasrec-{data}": f"transfer/sasrec-{data}" for data in ("instruments", "movies")}
FROM_NOTHING = ("unisrec", "mp4sr")  # beside their controls
KEPT |= {model: f"transfer/{model}-instruments" for model in FROM_NOTHING}


def _kept(trial: str) -> tuple[str, float] | None:
    """What a trial was to better, and what that reached on validation."""
    starts = [k for k in KEPT if trial.startswith(f"try-{k}-")]
    if not starts or "tiktok" in trial:
        return None
    name = KEPT[max(starts, key=len)]
    row = load(name)["rows"][0]
    called = name.split("/")[-1]
    if trial.split("-")[1] in FROM_NOTHING:
        called, row = f"{called}, from nothing", row["control"]
    return called, row["valid"]["ndcg@10"]


def tried() -> str:
    """Settings of next-item models that were tried on validation, beside those that were kept."""
    lines = ["| trial | what is set | validation ndcg@10 | beside | its | commit |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in load("searches") or []:
        if (kept := _kept(row["name"])) is None:
            continue
        made, (name, its) = row["experiment"], kept
        given = {**made.get("fields", {}), **made["settings"]}
        given = ", ".join(f"{k} {v}" for k, v in given.items() if k not in UNTOLD)
        lines.append(
            f"| {row['name']} | {given} | {row['valid']['ndcg@10']:.4f} | {name} | {its:.4f} | "
            f"{commits([row])} |"
        )
    how = "`python benchmarks/reach.py TRIAL --data FOLDER --seeds 0`; AMD EPYC, 2 cores."
    return "\n".join([*lines, "", how])


SEQUENTIAL_BLOCKS = {"speed": speed, "length": length, "tried": tried, "allocator": allocator}
if (RESULTS / "transfer").exists():
    SEQUENTIAL_BLOCKS["transfer"] = transfer
