"""What semantic ids are worth: usage, entropy, prefixes, collisions, purity, neighbours, error."""

from typing import Any

import numpy as np

from zoo.semantic_ids import groups

ASKED = 2000  # rows whose nearest neighbour is looked for
HELD = 1 << 26  # distances held at once


def quality(
    codes: np.ndarray,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    x: np.ndarray | None = None,
    decoded: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The report on codes int[n,c]; optional arrays add what they allow.

    By level: `used` codes, `perplexity` exp(-sum p ln p), `largest` load. By depth: distinct
    `prefixes`. `colliding`: items in groups of more than one, `largest_group` its largest.
    labels [n]: `purity` of level 1, sum over codes of the commonest label's count / n, `shuffled`
    the same for permuted labels; weights [n], interactions, add `purity_weighted`.
    targets int[t], rows of test items: `targets_colliding`, their share. x [n,d]: `neighbours`, by
    depth the share of items (2,000 drawn) whose nearest neighbour has the same prefix; with
    decoded [n,d] `error`, mean squared error over variance.
    """
    codes = np.asarray(codes)
    size = np.bincount(groups(codes))[groups(codes)]
    report: dict[str, Any] = {
        "items": len(codes),
        "levels": [_load(level) for level in codes.T],
        "prefixes": [len(np.unique(codes[:, : d + 1], axis=0)) for d in range(codes.shape[1])],
        "colliding": int((size > 1).sum()),
        "largest_group": int(size.max()),
    }
    if targets is not None:
        report["targets_colliding"] = float((size[targets] > 1).mean())
    if labels is not None:
        report |= _purities(codes[:, 0], labels, weights, np.random.default_rng(seed))
    if x is not None:
        report["neighbours"] = _agreement(codes, np.asarray(x), np.random.default_rng(seed))
    if x is not None and decoded is not None:
        spread = ((x - x.mean(0)) ** 2).mean()
        report["error"] = float(((x - np.asarray(decoded)) ** 2).mean() / spread)
    return report


def _load(level: np.ndarray) -> dict[str, float]:
    counts = np.unique(level, return_counts=True)[1]
    p = counts / counts.sum()
    return {
        "used": len(counts),
        "perplexity": float(np.exp(-(p * np.log(p)).sum())),
        "largest": int(counts.max()),
    }


def _purities(
    level: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None,
    rng: np.random.Generator,
) -> dict[str, float]:
    label = np.unique(np.asarray(labels), return_inverse=True)[1].reshape(-1)
    shuffled = rng.permutation(label)
    out = {"purity": _purity(level, label), "shuffled": _purity(level, shuffled)}
    if weights is not None:
        out["purity_weighted"] = _purity(level, label, np.asarray(weights, np.float64))
    return out


def _purity(level: np.ndarray, label: np.ndarray, weights: np.ndarray | None = None) -> float:
    weights = np.ones(len(level)) if weights is None else weights
    table = np.zeros((level.max() + 1, label.max() + 1))
    np.add.at(table, (level, label), weights)
    return float(table.max(1).sum() / weights.sum())


def _agreement(codes: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> list[float]:
    asked = rng.permutation(len(x))[:ASKED]
    each = max(1, HELD // len(x))
    blocks = [asked[i : i + each] for i in range(0, len(asked), each)]
    same = codes[asked] == codes[np.concatenate([_neighbours(x, rows) for rows in blocks])]
    return np.logical_and.accumulate(same, axis=1).mean(0).tolist()


def _neighbours(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int[r]: the nearest other row of x [n,d] to each of `rows`."""
    distances = (x**2).sum(1)[None] - 2 * x[rows] @ x.T
    distances[np.arange(len(rows)), rows] = np.inf  # oneself
    return distances.argmin(1)


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines to print."""
    out = [f"{report['items']} items, {report['prefixes'][-1]} distinct ids"]
    for i, (level, prefixes) in enumerate(zip(report["levels"], report["prefixes"], strict=True)):
        out.append(
            f"level {i + 1}: {level['used']} codes used, perplexity {level['perplexity']:.1f}, "
            f"largest {level['largest']}; {prefixes} distinct prefixes"
        )
    out.append(f"{report['colliding']} items collide, largest group {report['largest_group']}")
    if "targets_colliding" in report:
        out.append(f"{report['targets_colliding']:.2%} of test targets collide")
    if "purity" in report:
        out.append(f"purity of level 1 {report['purity']:.3f}, shuffled {report['shuffled']:.3f}")
    if "purity_weighted" in report:
        out.append(f"purity by interactions {report['purity_weighted']:.3f}")
    if "neighbours" in report:
        shares = "/".join(f"{share:.3f}" for share in report["neighbours"])
        out.append(f"nearest neighbour has the same prefix, by depth: {shares}")
    return out + ([f"reconstruction error {report['error']:.3f}"] if "error" in report else [])
