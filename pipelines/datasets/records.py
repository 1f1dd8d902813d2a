"""What a record of the three tables holds: keys, dtypes, metadata, and the records themselves."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import content
from pipelines.datasets.official import Official
from pipelines.interactions import time_order
from pipelines.schema import Dataset

logger = logging.getLogger("pipelines")

NUMBERS = {"timestamp": "times", "rating": "ratings"}  # key of a record -> column of a data set


@dataclass(frozen=True)
class Plan:
    """What is to be written: a data set in memory or an official one still to be fetched."""

    name: str
    dataset: Dataset | None
    official: Official | None
    citation: str
    size: tuple[int, int]
    rate: int
    seconds: float

    @property
    def folder(self) -> str:
        """Its name for tfds and on disk."""
        return re.sub(r"\W", "_", self.name).lower()

    @property
    def optional(self) -> tuple[str, ...]:
        if self.dataset is None:
            return self.official.optional
        return tuple(k for k, v in NUMBERS.items() if getattr(self.dataset, v) is not None)

    def dtype(self, key: str) -> np.dtype:
        """Of a number in the records; the times of some sources have fractions of a second."""
        if self.dataset is None:
            return np.dtype({"timestamp": np.int64, "rating": np.float32}[key])
        return getattr(self.dataset, NUMBERS[key]).dtype

    @property
    def columns(self) -> tuple[str, ...]:
        return self.official.columns if self.dataset is None else tuple(self.dataset.columns)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Licence, inputs and what a reader of the records must know."""
        own = {"rate": self.rate, "seconds": self.seconds, "image_size": list(self.size)}
        if self.dataset is None:
            files = {Path(self.official.url).name: self.official.sha256}
            return {"licence": self.official.licence, "files": files, **own}
        licence = self.dataset.source.get("licence") or "none stated in the folder"
        files = {**self.dataset.source.get("files", {}), **_content_digests(self.dataset)}
        return {"licence": licence, "files": files, **own}


def _content_digests(dataset: Dataset) -> dict[str, str]:
    """{'image': sha256, 'audio': sha256} over all files of the column, in item order."""
    digests = {}
    for column in ("image", "audio"):
        total = hashlib.sha256()
        for path in dataset.columns.get(column, ()):
            total.update(Path(path).read_bytes() if path else b"")
        if column in dataset.columns:
            digests[column] = total.hexdigest()
    return digests


def features(plan: Plan, table: str, kinds: Any) -> Any:
    """The keys, dtypes and shapes of a record."""
    numbers = {key: plan.dtype(key) for key in plan.optional}
    if table == "interactions":
        return kinds.FeaturesDict({"user_id": kinds.Text(), "item_id": kinds.Text(), **numbers})
    if table == "histories":
        many = {key: kinds.Sequence(kinds.Scalar(dtype)) for key, dtype in numbers.items()}
        ids = {"user_id": kinds.Text(), "item_id": kinds.Sequence(kinds.Text())}
        return kinds.FeaturesDict({**ids, **many})
    keys = {"item_id": kinds.Text(), **dict.fromkeys(_texts(plan.columns), kinds.Text())}
    if "image" in plan.columns:
        keys |= {
            "image": kinds.Tensor(shape=(*plan.size, 3), dtype=np.uint8, encoding="bytes"),
            "has_image": np.bool_,
        }
    if "audio" in plan.columns:  # tfds' Audio needs TensorFlow
        shape = (round(plan.rate * plan.seconds),)
        keys |= {
            "audio": kinds.Tensor(shape=shape, dtype=np.int16, encoding="bytes"),
            "has_audio": np.bool_,
        }
    return kinds.FeaturesDict(keys)


def _texts(columns: Sequence[str]) -> list[str]:
    return [name for name in columns if name not in ("image", "audio", "video")]


def _interactions(dataset: Dataset, plan: Plan) -> Iterator[dict[str, Any]]:
    """One event a record, in file order."""
    for row, (user, item) in enumerate(zip(dataset.users, dataset.items, strict=True)):
        numbers = {key: getattr(dataset, NUMBERS[key])[row] for key in plan.optional}
        yield {"user_id": dataset.user_ids[user], "item_id": dataset.item_ids[item], **numbers}


def _histories(dataset: Dataset, plan: Plan) -> Iterator[dict[str, Any]]:
    """One user a record, events oldest first."""
    order = time_order(dataset)
    order = order[np.argsort(dataset.users[order], kind="stable")]
    counts = np.bincount(dataset.users, minlength=dataset.n_users + 1)
    for user, rows in enumerate(np.split(order, np.cumsum(counts)[:-1])):
        if len(rows):
            items = list(dataset.item_ids[dataset.items[rows]])
            numbers = {key: getattr(dataset, NUMBERS[key])[rows] for key in plan.optional}
            yield {"user_id": dataset.user_ids[user], "item_id": items, **numbers}


def _items(dataset: Dataset, plan: Plan) -> Iterator[dict[str, Any]]:
    """One item a record, in the order of inner ids; absent content is zero and says so."""
    for start in range(1, dataset.n_items + 1, 256):
        rows = range(start, min(start + 256, dataset.n_items + 1))
        block = {"item_id": dataset.item_ids[start:]}
        block |= {name: dataset.columns[name][start:] for name in _texts(plan.columns)}
        if "image" in plan.columns:
            files = list(dataset.columns["image"][rows])
            block["image"], block["has_image"], bad = content.decode_images(files, plan.size)
            _tell(bad)
        if "audio" in plan.columns:
            files = list(dataset.columns["audio"][rows])
            wave, block["has_audio"], bad = content.decode_sounds(files, plan.rate, plan.seconds)
            _tell(bad)
            block["audio"] = np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)
        for i in range(len(rows)):
            yield {key: values[i] for key, values in block.items()}


def _tell(problems: list[content.Problem]) -> None:
    for problem in problems:
        logger.warning("%s left out: %s", problem.where, problem.why)


RECORDS = {"interactions": _interactions, "histories": _histories, "items": _items}
