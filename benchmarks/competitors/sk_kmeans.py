"""scikit-learn's residual k-means, level after level; one fit for every line of stdin.

sample, plusplus: Lloyd's, from rows at random or k-means++; batches: its MiniBatchKMeans.
"""

import argparse
from collections.abc import Callable

import numpy as np
import sklearn
from random_vectors import FITS, vectors
from sklearn.cluster import KMeans, MiniBatchKMeans
from turns import serve


def residual(x: np.ndarray, make: Callable[[int], KMeans], levels: int) -> dict[str, float]:
    """Fit the levels; the mean squared distance that they leave."""
    for level in range(levels):
        found = make(level).fit(x)
        x = x - found.cluster_centers_[found.labels_]
    return {"left": float((x * x).sum(1).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in FITS.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    x = vectors(args.rows, args.width)
    same = {"n_clusters": args.size, "n_init": 1, "tol": 0}
    lloyd = {"max_iter": args.steps, "algorithm": "lloyd", **same}
    # max_iter counts passes over the rows; none of the early stops.
    passes = max(1, args.batches * args.batch // args.rows)
    batches = {"batch_size": args.batch, "max_iter": passes, "max_no_improvement": None, **same}
    batches["init"] = "random"
    works = {
        "sample": lambda i: KMeans(init="random", random_state=i, **lloyd),
        "plusplus": lambda i: KMeans(init="k-means++", random_state=i, **lloyd),
        "batches": lambda i: MiniBatchKMeans(random_state=i, **batches),
    }
    served = {k: lambda make=make: residual(x, make, args.levels) for k, make in works.items()}
    serve(served, {"versions": {"scikit-learn": sklearn.__version__}})


if __name__ == "__main__":
    main()
