"""The tables of models that encode raw content: end to end, adapted, and what it costs."""

from statistics import mean, pstdev

from kept import RESULTS, best_floor, load, spread, stratum

HOSTS = {
    "two_tower": {"IDs": "towers-id", "features": "towers-both"},
    "sasrec": {"IDs": "content/sasrec-id", "features": "content/sasrec-features"},
}
OWN = {"end to end": "whole", "end to end, pretrained": "pretrained"}
METHODS = ("kept", "prompt", "adapter", "lora", "side", "pretrained")
HEAD = "recall@10 | ndcg@10 | warm, cold recall@10 | seeds"


def reaches(told: dict) -> str:
    """The cells that HEAD names."""
    rows, seeds = told["rows"], len(told["rows"])
    r10, n10 = (spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))
    warm, cold = (sum(stratum(r, c) for r in rows) / seeds for c in (False, True))
    return f"{r10} | {n10} | {warm:.4f}, {cold:.4f} | {seeds}"


def tail(told: dict) -> str:
    """Minutes of training and commits."""
    minutes = sum(r["train_seconds"] for r in told["rows"]) / len(told["rows"]) / 60
    return f"{minutes:.0f} min | {', '.join(sorted({r['commit'] for r in told['rows']}))}"


def end_to_end() -> str:
    """IDs, features, encoders that learn with the model, and after pretraining."""
    lines = [
        f"| ml-latest-small | items | {HEAD} | train | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for host, known in HOSTS.items():
        for name, file in (known | {k: f"content/{host}-{v}" for k, v in OWN.items()}).items():
            told = load(file)
            if told is not None:
                lines.append(f"| {host} | {name} | {reaches(told)} | {tail(told)} |")
    how = "`python benchmarks/reach.py HOST-whole --data FOLDER`, `-pretrained`, `-features`, `-id`"
    return "\n".join([*lines, "", f"{how}; {_hardware()}. {_beaten(_files())}".rstrip()])


def _beaten(files: list[str]) -> str:
    """Whether the best counting model stands above all of the runs, on their split."""
    runs = [told for told in map(load, files) if told]
    floor, value = best_floor(runs[0]["split_hash"])
    under = [told["summary"]["ndcg@10"][0] < value for told in runs]
    what = f"{floor}, ndcg@10 {value:.4f}, on split `{runs[0]['split_hash'][:8]}`"
    return f"{sum(under)} of {len(under)} rows stay below {what}."


def _files() -> list[str]:
    own = [f"content/{host}-{name}" for host in HOSTS for name in OWN.values()]
    return own + [file for known in HOSTS.values() for file in known.values()]


def _hardware() -> str:
    return "; ".join(sorted({told["hardware"] for told in map(load, _files()) if told}))


def adaptation() -> str:
    """What of a pretrained encoder trains on: what it reaches and what it costs."""
    costs = (load("end_to_end") or {}).get("steps", {"rows": {}})["rows"]
    lines = [
        f"| two_tower, encoders | {HEAD} | parameters that train | working memory, MiB "
        "| ms a step (range) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        told = load(f"content/two_tower-{name}")
        cost = costs.get("distinct items" if name == "pretrained" else name)
        if told is None or cost is None:
            continue
        called = "full" if name == "pretrained" else name
        spent = f"{cost['trainable']:,} | {cost['temp_mib']:.0f} | {_ms(cost)}"
        lines.append(f"| {called} | {reaches(told)} | {spent} |")
    if len(lines) == 2:
        return "Not run yet: no figures."
    how = "`python benchmarks/reach.py two_tower-METHOD`, costs `python benchmarks/end_to_end.py`."
    beaten = _beaten([f"content/two_tower-{name}" for name in METHODS])
    return "\n".join([*lines, "", f"{how} {beaten}"])


def steps() -> str:
    """Each item once or as often as it is named, activations kept or computed again."""
    costs = (load("end_to_end") or {}).get("steps", {"rows": {}})["rows"]
    names = [name for name in costs if "item" in name or "occurrence" in name]
    if not names:
        return "Not run yet: no figures."
    lines = ["| a training step encodes | working memory, MiB | ms (range) |", "|---|---|---|"]
    lines += [f"| {n} | {costs[n]['temp_mib']:.0f} | {_ms(costs[n])} |" for n in names]
    return "\n".join(
        [*lines, "", "`python benchmarks/end_to_end.py --data FOLDER/ml-latest-small`."]
    )


def _ms(cost: dict) -> str:
    low, high = cost["range"]
    return f"{cost['ms_per_step']:.0f} ({low:.0f}–{high:.0f})"


def published() -> str:
    """Items that training never saw, by their titles: a published encoder beside LSA."""
    lines = [
        "| amazon-beauty, cold items | vectors | recall@10 | ndcg@10 | seeds | train | commit |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    paths = sorted((RESULTS / "content").glob("*-beauty.json"))
    for path in paths:
        told, (host, vectors) = load(f"content/{path.stem}"), path.stem.split("-")[:2]
        seeds = len(told["rows"])
        cells = " | ".join(spread(told["summary"][k], seeds) for k in ("recall@10", "ndcg@10"))
        lines.append(f"| {host} | {vectors} | {cells} | {seeds} | {tail(told)} |")
    lines += neighbours()
    if len(lines) == 2:
        return "A published encoder beside LSA on items that training never saw: not run yet."
    split = told["split_hash"]
    name, floor = best_floor(split, "recall@10")
    reached = [load(f"content/{p.stem}")["summary"]["recall@10"][0] for p in paths]
    verdict = f"{sum(r < floor for r in reached)} of {len(reached)} rows stay below it"
    return "\n".join(
        [
            *lines,
            "",
            f"Titles alone, split `{split[:8]}`, all items ranked; {name} reaches {floor:.4f}: "
            f"{verdict}. `python benchmarks/reach.py HOST-minilm-beauty --encoder FOLDER`; the "
            "neighbours: `python benchmarks/cold.py`.",
        ]
    )


def neighbours() -> list[str]:
    """Rows of cold.py: the same neighbours in other vectors, without training."""
    return [
        f"| text neighbours | {name} | {row['recall@10']:.4f} | {row['ndcg@10']:.4f} | – | – | "
        f"{one['commit']} |"
        for one in (load("cold") or {}).values()
        for name, row in one["rows"].items()
    ]


def worlds() -> str:
    """What losing a modality costs the model, beside what the law of the world says."""
    told = (load("worlds") or {}).get("two_tower")
    if told is None:
        return "Not run yet: no figures."
    names = list(next(iter(told["seeds"].values()))["law"])
    heads = ["whole" if name == "all" else f"without {name}" for name in names]
    lines = [f"| recall@10, synthetic world | {' | '.join(heads)} |"]
    lines.append("|---|" + "---|" * len(names))
    for who, called in (("law", "the law"), ("model", "two_tower"), ("cold", "its cold items")):
        rows = [one[who] for one in told["seeds"].values()]
        pairs = [[float(f([r[n] for r in rows])) for f in (mean, pstdev)] for n in names]
        lines.append(f"| {called} | {' | '.join(spread(pair, len(rows)) for pair in pairs)} |")
    floors = [one["floors"] for one in told["seeds"].values()]
    means = {name: mean(one[name] for one in floors) for name in floors[0]}
    top = max(means, key=means.get)
    reached = mean(one["model"]["all"] for one in told["seeds"].values())
    verdict = "**above**" if reached > means[top] else "below"
    shown = ", ".join(f"{name} {means[name]:.4f}" for name in ("popularity", "ease"))
    lines += [
        "",
        f"Floors, whole: {shown}, {top} {means[top]:.4f}; two_tower is {verdict} that one.",
    ]
    how = f"`{told['command']}`; {told['hardware']['cpu']}, cores: {told['hardware']['cores']}; "
    return "\n".join([*lines, "", f"{how}{len(rows)} seeds, commit {told['commit']}."])


def sound() -> str:
    """Five folds of ESC-10."""
    told = (load("sound") or {}).get("esc10")
    if told is None:
        return "ESC-10: not run yet, no figures."
    tests = ", ".join(f"{one['test']:.3f}" for one in told["folds"].values())
    return (
        f"ESC-10, a small AST from nothing: {told['accuracy']:.3f} ± {told['sd']:.3f} of the clips "
        f"are told right over {len(told['folds'])} of 5 folds ({tests}; chance .100), the epoch "
        f"chosen on another fold. `{told['command']}`, commit {told['commit']}."
    )


def beside() -> str:
    """zoo embed beside Sentence Transformers, a ViT beside PyTorch's."""
    told = load("embed")
    if told is None:
        return "`zoo embed` beside PyTorch: not run yet."
    lines = [
        "| encoder | rows | zoo, rows/s | PyTorch, rows/s | ratio (range) | largest difference |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in told.items():
        ms = {side: one["row"][side]["ms"] for side in ("zoo", "torch")}
        speed = {side: 1e3 * one["rows"] / x["median"] for side, x in ms.items()}
        low, high = ms["torch"]["range"]
        far = one["max_abs_error"]
        called = {"text": "MiniLM, titles", "image": "ViT-S/16, 224 x 224"}[name]
        lines.append(
            f"| {called} | {one['rows']} | {speed['zoo']:.0f} | {speed['torch']:.0f} | "
            f"{ms['torch']['over_zoo']:.2f} ({low:.2f} to {high:.2f}) | {far:.1e} |"
        )
    how = "; ".join(f"`{one['command']}`, commit {one['commit']}" for one in told.values())
    return "\n".join([*lines, "", how + "."])


CONTENT_BLOCKS = {
    "end-to-end": end_to_end,
    "adaptation": adaptation,
    "steps": steps,
    "published": published,
    "worlds": worlds,
    "sound": sound,
    "beside": beside,
}
