"""Make a shipped bundle of a finished run: test metrics in, titles and other people's data out.

python benchmarks/ship.py RUN NAME [--data FOLDER] [--titles]
Writes checkpoints/pretrained/NAME.
"""

import argparse
from pathlib import Path

from checkpoints.bundle import load_bundle, save_bundle
from zoo import api
from zoo.saving import card

SHIPPED = Path(__file__).parent.parent / "checkpoints" / "pretrained"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--titles", action="store_true", help="keep them: the data is our own")
    args = parser.parse_args()
    bundle = load_bundle(args.run / "bundle")
    test = api.evaluate(api.from_pretrained(args.run), args.data).metrics
    results = {**bundle.evaluation, "test": test}
    model, split = bundle.config["model"], bundle.split
    folder = save_bundle(
        SHIPPED / args.name,
        config=bundle.config,
        params=bundle.params,
        item_ids=bundle.item_ids,
        item_columns=bundle.item_columns if args.titles else {},
        features=bundle.catalogue,
        feature_manifest=bundle.features,
        split=split,
        evaluation=results,
        card=card(model, bundle.config, split, results),
    )
    print(folder.relative_to(SHIPPED.parent.parent), {k: round(v, 4) for k, v in test.items()})


if __name__ == "__main__":
    main()
