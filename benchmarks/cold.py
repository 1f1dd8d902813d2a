"""Items that training never saw, found by their nearest neighbours in several content vectors.

    python benchmarks/cold.py --data DATA/amazon-beauty --encoder FOLDER

The same counting model (`text-knn`: ten neighbours an item by cosine, newest items first) over the
words themselves, over their LSA, and over the vectors of a published encoder (`zoo embed`). It
learns nothing, so what differs is what the vectors know. Writes results/cold.json.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from decode import write

from pipelines.words import words
from zoo import api
from zoo.embed import embed
from zoo.floor_table import floor_table

OUT = Path(__file__).parent / "results" / "cold.json"
SPLIT = api.DataOptions(split="cold-items")


def reached(data: api.Data, name: str) -> dict[str, float]:
    """Test metrics of the neighbours in the words, or in the features, of the items' text."""
    of = data.dataset
    more = {"words": words(of), "features": of.features, "present": of.present, "floors": (name,)}
    return floor_table(data.split, of.n_items, **more)[name]["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    args = parser.parse_args()
    plain, folder = api.load_data(args.data, SPLIT), tempfile.mkdtemp()
    told = embed(plain.dataset, args.encoder, folder, modality="text")
    encoded = api.load_data(args.data, replace(SPLIT, features=(folder,)))
    wide = api.load_data(args.data, replace(SPLIT, text="lsa:768"))
    rows = {
        "words": reached(plain, "text-knn"),
        "lsa": reached(api.prepare(plain, "content"), "text-features-knn"),
        "lsa768": reached(api.prepare(wide, "content"), "text-features-knn"),
        "minilm": reached(api.prepare(encoded, "content"), "text-features-knn"),
    }
    found = {"split_hash": plain.split.hash, "width": told["width"], "rows": rows}
    write(plain.dataset.name, found, OUT)
    for name, row in rows.items():
        print(name, {k: round(row[k], 4) for k in ("recall@10", "ndcg@10")})


if __name__ == "__main__":
    main()
