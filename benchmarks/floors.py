"""Every floor on the real data, beside the value it has to reproduce within .0002.

    python benchmarks/floors.py --data FOLDER --out benchmarks/results/floors.json [NAME ...]

NAME is a data folder (amazon-beauty, ml-100k, ...); all by default. Parameters are chosen on
validation anew. A file that is already there keeps the rows that are not measured again; with
--missing only rows that it lacks are measured.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipelines import interactions, sources, splits
from pipelines.words import words
from zoo.floor_table import floor_table

ORDERED = ("hit@5", "ndcg@5", "hit@10", "ndcg@10", "hit@20", "ndcg@20")
SETS = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
FIRST = ("hit@1", *ORDERED)


class Row(NamedTuple):
    """One measured table: what data, which protocol, and what its floors must come to."""

    data: str
    split: str
    expected: dict[str, str]  # floor -> values of `metrics`, by slashes
    metrics: tuple[str, ...] = ORDERED
    part: str | None = None
    mask: bool = True
    select_mask: bool = True
    cold_only: bool = False
    posters: bool = False  # items with a poster, then the 5-core
    reuse: bool = False  # a second reading: parameters of the first leave-one-out row of the data


ROWS = (
    Row(
        "amazon-beauty",
        "leave-one-out",
        {
            "popularity-leaky": ".0080/.0044/.0152/.0068/.0217/.0084",
            "popularity": ".0074/.0041/.0115/.0054/.0201/.0075",
            "markov": ".0515/.0391/.0668/.0440/.0823/.0480",
            "item-knn": ".0461/.0334/.0644/.0393/.0860/.0447",
            "knn+markov": ".0579/.0427/.0753/.0483/.0979/.0540",
            "sr-graph": ".0609/.0456/.0825/.0525/.1080/.0590",
            "text-knn": ".0518/.0377/.0704/.0437/.0973/.0506",
            "sr-graph+text": ".0736/.0525/.1037/.0621/.1390/.0711",
            "ease": "",
        },
    ),
    Row(
        "amazon-beauty",
        "leave-one-out",
        {
            "item-knn": ".0401/.0277/.0582/.0335/.0791/.0387",
            "sr-graph": ".0574/.0421/.0782/.0488/.1038/.0553",
            "text-knn": ".0507/.0365/.0685/.0423/.0955/.0492",
            "sr-graph+text": ".0664/.0466/.0965/.0563/.1336/.0657",
        },
        mask=False,
        reuse=True,
    ),
    Row(
        "amazon-beauty",
        "cold-items",
        {
            "text-knn": ".0594/.0436/.0738/.0483/.1022/.0554",
            "sr-graph+text": ".0183/.0084/.0428/.0162/.0655/.0219",
        },
        reuse=True,
    ),
    Row(
        "amazon-beauty",
        "cold-items",
        {
            "text-knn": ".1256/.0969/.1378/.1009/.1479/.1035",
            "sr-graph+text": ".1402/.1047/.1835/.1188/.2337/.1314",
        },
        cold_only=True,
        reuse=True,
    ),
    Row(
        "amazon-instruments",
        "leave-one-out",
        {
            "popularity": ".0063/.0370/.0211/.0638/.0298/.0955/.0377",
            "markov": ".0479/.0812/.0656/.0961/.0704/.1183/.0760",
            "sr-graph": ".0809/.1087/.0943/.1280/.1006/.1562/.1077",
            "text-knn": ".0284/.0663/.0484/.0855/.0545/.1103/.0608",
            "sr-graph+text": ".0811/.1118/.0961/.1316/.1024/.1621/.1100",
        },
        FIRST,
        mask=False,
        select_mask=False,
    ),
    Row(
        "amazon-instruments",
        "leave-one-out",
        {
            "sr-graph": ".0930/.1178/.1057/.1383/.1123/.1665/.1194",
            "sr-graph+text": ".0923/.1184/.1055/.1377/.1117/.1709/.1200",
            "ease": "",
        },
        FIRST,
        reuse=True,
    ),
    Row(
        "amazon-instruments", "cold-items", {"text-knn": "", "sr-graph+text": ""}, FIRST, reuse=True
    ),
    Row(
        "amazon-instruments",
        "cold-items",
        {"text-knn": "", "sr-graph+text": ""},
        FIRST,
        cold_only=True,
        reuse=True,
    ),
    Row(
        "ml-100k",
        "leave-one-out",
        {
            "popularity": "//.0764/.0380",
            "sr-graph": ".1230/.0831/.1962/.1065/.3043/.1337",
            "text-knn": "//.0297/.0186",
            "sr-graph+text": "",
            "ease": "",
        },
    ),
    Row(
        "ml-100k",
        "global-time",
        {
            "popularity": ".0361/.0214/.0645/.0305/.1093/.0417",
            "sr-graph": ".1081/.0700/.1820/.0937/.2879/.1203",
            "sr-graph+text": ".1086/.0705/.1816/.0940/.2870/.1205",
            "text-knn": ".0109/.0073/.0172/.0094/.0316/.0130",
        },
    ),
    Row(
        "ml-latest-small",
        "leave-one-out",
        {
            "popularity": "//.0415/.0225",
            "sr-graph": ".0934/.0638/.1393/.0785/.2082/.0956",
            "text-knn": "//.0557/.0354",
            "sr-graph+text": "//.1328/.0735",
            "ease": "",
        },
        posters=True,
    ),
    Row(
        "ml-latest-small",
        "global-time",
        {
            "popularity": ".0206/.0129/.0319/.0165/.0527/.0217",
            "sr-graph": ".0775/.0522/.1101/.0627/.1536/.0735",
            "sr-graph+text": ".0809/.0554/.1169/.0669/.1605/.0779",
            "text-knn": ".0328/.0219/.0440/.0255/.0653/.0309",
        },
        posters=True,
    ),
    Row(
        "tiktok",
        "labels",
        {
            "popularity": ".0465/.0596/.0221/.0254",
            "cf-graph": ".0593/.0869/.0317/.0387",
            "image-knn": ".0113/.0421/.0057/.0137",
            "audio-knn": ".0082/.0362/.0046/.0118",
            "cf-graph+image": ".0514/.0811/.0279/.0354",
            "cf-graph+audio": ".0496/.0759/.0273/.0339",
            "ease": ".0606/.0887/.0329/.0400",
        },
        SETS,
    ),
    Row(
        "amazon-graph",
        "labels",
        {
            "popularity": ".0295/.0463/.0151/.0194",
            "cf-graph": ".0566/.0858/.0318/.0392",
            "ease": ".0553/.0811/.0313/.0379",
        },
        SETS,
        part="baby",
    ),
    Row(
        "ml-100k",
        "labels",
        {
            "popularity": ".0859/.1395/.2175/.2156",
            "cf-graph": ".1240/.2115/.3005/.3047",
            "text-features-knn": ".0249/.0459/.0756/.0776",
            "cf-graph+text-features": ".1234/.2099/.3005/.3046",
            "ease": ".1235/.2112/.2976/.3030",
        },
        SETS,
        part="ml100k_logs_33_33_33",
    ),
    Row(
        "ml-100k",
        "labels",
        {
            "popularity": ".1118/.1704/.1469/.1581",
            "cf-graph": ".1857/.2786/.2306/.2490",
            "ease": ".2258/.3398/.2814/.3055",
        },
        SETS,
        part="ml100k_75_12_13",
    ),
    Row(
        "amazon-sports",
        "leave-one-out",
        {
            "popularity-leaky": ".0056/.0041/.0094/.0053/.0192/.0078",
            "popularity": ".0057/.0041/.0091/.0052/.0151/.0067",
            "markov": ".0285/.0208/.0369/.0235/.0464/.0259",
            "item-knn": ".0237/.0171/.0324/.0199/.0450/.0230",
            "knn+markov": ".0306/.0223/.0411/.0257/.0558/.0294",
            "sr-graph": ".0354/.0252/.0483/.0293/.0671/.0340",
            "text-knn": ".0237/.0157/.0362/.0197/.0537/.0241",
            "sr-graph+text": ".0400/.0280/.0584/.0340/.0831/.0402",
        },
    ),
    Row(
        "amazon-sports",
        "leave-one-out",
        {
            "item-knn": ".0201/.0145/.0287/.0172/.0419/.0205",
            "sr-graph": ".0276/.0196/.0415/.0241/.0596/.0286",
            "text-knn": ".0232/.0154/.0347/.0191/.0531/.0238",
            "sr-graph+text": ".0326/.0228/.0491/.0281/.0740/.0343",
        },
        mask=False,
        reuse=True,
    ),
    Row(
        "amazon-sports",
        "cold-items",
        {
            "text-knn": ".0162/.0113/.0381/.0181/.0583/.0232",
            "sr-graph+text": ".0011/.0005/.0151/.0048/.0196/.0060",
        },
        reuse=True,
    ),
    Row(
        "amazon-sports",
        "cold-items",
        {
            "text-knn": ".0758/.0534/.0834/.0558/.0909/.0578",
            "sr-graph+text": ".0844/.0575/.1126/.0666/.1470/.0753",
        },
        cold_only=True,
        reuse=True,
    ),
    Row(
        "amazon-graph",
        "labels",
        {
            "popularity": ".0183/.0300/.0101/.0131",
            "cf-graph": ".0700/.0978/.0405/.0476",
            "text-knn": ".0364/.0543/.0191/.0237",
            "cf-graph+text": ".0811/.1137/.0460/.0543",
            "ease": ".0692/.0949/.0404/.0470",
        },
        SETS,
        part="sports",
    ),
)


def measure(row: Row, root: Path, fixed: dict[str, dict] | None = None) -> dict[str, Any]:
    """One entry of the result file; `fixed` parameters are not chosen again."""
    data = sources.load(root / row.data, row.part)
    if row.posters:
        data = interactions.k_core(interactions.filter_items(data, data.present["image"]))
    split = splits.make_split(data, row.split)
    cold = (
        np.isin(np.arange(data.n_items + 1), split.notes["cold_items"]) if row.cold_only else None
    )
    start = time.perf_counter()
    table = floor_table(
        split,
        data.n_items,
        words(data),
        data.features,
        data.present,
        ks=(1, 5, 10, 20),
        floors=tuple(row.expected),
        mask=row.mask,
        select_mask=row.select_mask,
        test_candidates=cold,
        fixed=fixed,
    )
    return {
        **_identity(row),
        "protocol": split.protocol,
        "split_hash": split.hash,
        "order": split.notes.get("order"),
        "users": data.n_users,
        "items": data.n_items,
        "test_events": len(split.test),
        "seconds": time.perf_counter() - start,
        "floors": {name: _compared(row, name, table[name]) for name in row.expected},
    }


def _identity(row: Row) -> dict[str, Any]:
    return {
        "data": row.data,
        "part": row.part,
        "split": row.split,
        "filter": "posters + 5-core" if row.posters else None,
        "mask": ("history" if row.metrics != SETS else "train") if row.mask else "none",
        "candidates": "cold items" if row.cold_only else "all items",
    }


def _compared(row: Row, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    values = dict(zip(row.metrics, row.expected[name].split("/"), strict=False))
    expected = {k: float(v) for k, v in values.items() if v}
    off = [abs(entry["metrics"][k] - v) for k, v in expected.items()]
    return {**entry, "expected": expected, "largest_difference": max(off) if off else None}


def _line(name: str, floor: dict[str, Any], metrics: tuple[str, ...]) -> str:
    values = "/".join(f"{floor['metrics'][k]:.4f}"[1:] for k in metrics)
    off = floor["largest_difference"]
    told = "not specified" if off is None else f"off by {off:.5f}"
    return f"  {name:24s} {values}  {told}  {floor['chosen']}  {floor['cpu_seconds']:.1f} cpu s"


def main() -> None:
    """Measure, print, and write the result file after every row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="data folders; all by default")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--missing", action="store_true", help="only rows the file lacks")
    args = parser.parse_args()
    known = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for row in ROWS:
        others = [old for old in known if any(old[k] != v for k, v in _identity(row).items())]
        there = len(others) < len(known)
        if (args.names and row.data not in args.names) or (args.missing and there):
            continue
        entry = measure(row, args.data, chosen_before(row, others))
        known = [*others, entry]
        _print(row, entry)
        write(args.out, known)


def chosen_before(row: Row, rows: list[dict[str, Any]]) -> dict[str, dict]:
    """For second readings (the other mask, cold items): what the data's first row has chosen."""
    if not row.reuse:
        return {}
    first = next(r for r in ROWS if (r.data, r.split) == (row.data, "leave-one-out"))
    found = [old for old in rows if all(old[k] == v for k, v in _identity(first).items())]
    if not found:
        raise SystemExit(f"measure leave-one-out on {row.data} first: its parameters are taken.")
    return {name: floor["chosen"] for name, floor in found[0]["floors"].items()}


def _print(row: Row, entry: dict[str, Any]) -> None:
    print({k: v for k, v in entry.items() if k not in ("floors", "split_hash")})
    for name, floor in entry["floors"].items():
        print(_line(name, floor, row.metrics), flush=True)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The result file: how it was made, then one entry a row of ROWS."""
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "default")
    head = {
        "command": "python benchmarks/floors.py --data DATA --out benchmarks/results/floors.json",
        "hardware": "CPU, 2 cores",
        "blas_threads": threads,
        "note": "seconds are wall-clock on a machine shared with other work; cpu_seconds are not",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
