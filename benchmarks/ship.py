"""Make a shipped bundle of a finished run: test metrics in, titles and other people's data out.

python benchmarks/ship.py RUN NAME [--data FOLDER] [--titles]
Writes checkpoints/pretrained/NAME.
"""

import argparse
from pathlib import Path

from checkpoints.bundle import load_bundle
from zoo import api
from zoo.saving import save_again

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
    what = (bundle, bundle.config, bundle.params, results)
    folder = save_again(SHIPPED / args.name, *what, titles=args.titles)
    print(folder.relative_to(SHIPPED.parent.parent), {k: round(v, 4) for k, v in test.items()})


if __name__ == "__main__":
    main()
