"""Several data sets as one, to pretrain on: users and items side by side, nothing shared."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipelines.schema import DataError, Dataset


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """One data set of all users and items; external ids become `NAME:ID`.

    Columns that one set lacks are '' there, modalities that it lacks are absent there. Times are
    kept where all sets have them; source["merged"] has the names. Raises DataError when two sets
    have features of one modality and different width, or the same name.
    """
    if len(datasets) == 1:
        return datasets[0]
    names = [d.name for d in datasets]
    if len(set(names)) < len(names):
        raise DataError(f"data sets to merge have the names {names}; expected different ones.")
    users = np.cumsum([0] + [d.n_users for d in datasets])
    items = np.cumsum([0] + [d.n_items for d in datasets])
    timed = all(d.times is not None for d in datasets)
    return Dataset(
        name="+".join(names),
        users=_joined([d.users + o for d, o in zip(datasets, users[:-1], strict=True)]),
        items=_joined([d.items + o for d, o in zip(datasets, items[:-1], strict=True)]),
        user_ids=_ids(datasets, lambda d: d.user_ids),
        item_ids=_ids(datasets, lambda d: d.item_ids),
        times=np.concatenate([d.times for d in datasets]) if timed else None,
        columns=_rows(datasets, lambda d: d.columns, lambda n, _: np.full(n, "", object)),
        features=_features(datasets),
        present=_rows(datasets, lambda d: d.present, lambda n, _: np.zeros(n, bool)),
        source={d.name: d.source for d in datasets} | {"merged": names},
    )


def parted(merged: Dataset, datasets: Sequence[Dataset]) -> list[Dataset]:
    """The data sets again, each with its rows of the merged one's features."""
    starts = np.cumsum([1] + [d.n_items for d in datasets])
    out = []
    for d, start in zip(datasets, starts[:-1], strict=True):
        rows = np.concatenate([[0], np.arange(start, start + d.n_items)])
        features = {m: x[rows] for m, x in merged.features.items()}
        out.append(
            replace(d, features=features, present={m: x[rows] for m, x in merged.present.items()})
        )
    return out


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int32)


def _ids(datasets: Sequence[Dataset], of: Callable) -> np.ndarray:
    named = [[f"{d.name}:{x}" for x in of(d)[1:]] for d in datasets]
    return np.array([of(datasets[0])[0], *(x for part in named for x in part)], object)


def _rows(datasets: Sequence[Dataset], of: Callable, empty: Callable) -> dict[str, np.ndarray]:
    """Per-item arrays one below the other, row 0 once; `empty(n, example)` where a set has none."""
    out = {}
    for key in dict.fromkeys(k for d in datasets for k in of(d)):
        example = next(of(d)[key] for d in datasets if key in of(d))
        parts = [of(d).get(key, empty(d.n_items + 1, example)) for d in datasets]
        out[key] = np.concatenate([parts[0][:1], *(part[1:] for part in parts)])
    return out


def _features(datasets: Sequence[Dataset]) -> dict[str, np.ndarray]:
    widths: dict[str, set[int]] = {}
    for d in datasets:
        for modality, x in d.features.items():
            widths.setdefault(modality, set()).add(x.shape[1])
    mixed = {m: sorted(w) for m, w in widths.items() if len(w) > 1}
    if mixed:
        raise DataError(
            f"features of different width cannot stand in one table: {mixed}. Compute them by "
            "one encoder for all data sets."
        )
    empty = lambda n, x: np.zeros((n, x.shape[1]), np.float32)  # noqa: E731
    return _rows(datasets, lambda d: d.features, empty)
