"""A folder in the three-table form, or MovieLens latest-small, as ArrayRecord with TFDS.

    path = prepare("my-folder", "prepared")            # or prepare("ml-latest-small", "prepared")
    data = sources.from_tfds(read(path, "interactions"), item="item_id", rating=None)

Three tables are written: `interactions` (one event a record, as tfds' own MovieLens), `histories`
(one user a record, much faster to read) and `items` (text, decoded images and sounds). Licence,
citation and the sha256 of every input stand in the metadata. TensorFlow is not needed;
tensorflow-datasets is imported when a function is called.
"""

import hashlib
import logging
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import content, sources
from pipelines.interactions import time_order
from pipelines.schema import DataError, Dataset

logger = logging.getLogger("pipelines")

TABLES = ("interactions", "histories", "items")
NUMBERS = {"timestamp": "times", "rating": "ratings"}  # key of a record -> column of a data set


@dataclass(frozen=True)
class Official:
    """Where a public data set is to be had, and what it must be."""

    url: str
    size: int  # bytes
    sha256: str
    folder: str  # inside the archive
    optional: tuple[str, ...]  # which of NUMBERS it has
    columns: tuple[str, ...]  # of its item table
    homepage: str
    licence: str
    citation: str


OFFICIAL = {
    "ml-latest-small": Official(
        url="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        size=978202,
        sha256="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        folder="ml-latest-small",
        optional=("timestamp", "rating"),
        columns=("title", "genres"),
        homepage="https://grouplens.org/datasets/movielens/latest/",
        licence="research use with acknowledgement; redistribution under the same conditions; no "
        "commercial use without permission of GroupLens; no endorsement by GroupLens or UMN",
        citation="@article{harper2015movielens, title={The MovieLens Datasets: History and "
        "Context}, author={Harper, F. Maxwell and Konstan, Joseph A.}, journal={ACM Transactions "
        "on Interactive Intelligent Systems}, volume={5}, number={4}, year={2015}, "
        "doi={10.1145/2827872}}",
    )
}


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
        return self.name.replace("-", "_").lower()

    @property
    def optional(self) -> tuple[str, ...]:
        if self.dataset is None:
            return self.official.optional
        return tuple(k for k, v in NUMBERS.items() if getattr(self.dataset, v) is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.official.columns if self.dataset is None else tuple(self.dataset.columns)

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


def prepare(
    source: str | Path,
    out: str | Path,
    tables: Sequence[str] = TABLES,
    citation: str = "",
    size: tuple[int, int] = content.SIZE,
    rate: int = content.RATE,
    seconds: float = content.SECONDS,
) -> Path:
    """Write the tables under out/<name>; returns that folder. Equal tables there are kept.

    `source` is a folder that `sources.load` reads, or a name in OFFICIAL, which is downloaded and
    held against its checksum. Images are decoded to `size` = (h, w), sounds to `seconds` at
    `rate`, mono int16. DataError for a table that does not exist, a folder that is not there, or
    a table already prepared from other files or with other sizes.
    """
    unknown = set(tables) - set(TABLES)
    if unknown:
        raise DataError(f"tables {sorted(unknown)}: expected some of {list(TABLES)}.")
    official = OFFICIAL.get(str(source))
    dataset = None if official else sources.load(source)
    name = str(source) if official else Path(source).expanduser().resolve().stem
    plan = Plan(name, dataset, official, citation, tuple(size), rate, seconds)
    for table in tables:
        builder = builder_class()(plan=plan, config=table, data_dir=out, file_format="array_record")
        _refuse_stale(Path(builder.data_dir), plan)
        builder.download_and_prepare(file_format="array_record")
    return Path(out) / plan.folder


def _refuse_stale(there: Path, plan: Plan) -> None:
    """DataError if `there` holds a table of other inputs: tfds itself would keep it in silence."""
    import tensorflow_datasets as tfds

    if not (there / "dataset_info.json").is_file():
        return
    found = dict(tfds.builder_from_directory(there).info.metadata)
    differ = [key for key, value in plan.metadata().items() if found.get(key) != value]
    if differ:
        raise DataError(
            f"{there}: was prepared with other {differ}: expected "
            f"{ {key: plan.metadata()[key] for key in differ} }, found "
            f"{ {key: found.get(key) for key in differ} }. Delete it or take another `out`."
        )


def read(path: str | Path, table: str = "interactions") -> Any:
    """The records of a prepared table: a random-access sequence of dicts, for Grain as it is.

    DataError where `path` holds no such table.
    """
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(_version(path, table)).as_data_source("train")


def about(path: str | Path, table: str = "interactions") -> dict[str, Any]:
    """Licence, sha256 of the inputs, sizes, citation: what stands in the table's metadata."""
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(_version(path, table)).info
    return {**info.metadata, "citation": info.citation}


def _version(path: str | Path, table: str) -> Path:
    versions = sorted((Path(path) / table).glob("*/dataset_info.json"))
    if not versions:
        raise DataError(f"{path}: no prepared table '{table}'; make it with prepare(source, out).")
    return versions[-1].parent


@cache
def builder_class() -> type:
    """The TFDS builder; made on first use, because its base class is heavy to import."""
    import tensorflow_datasets as tfds

    class ThreeTables(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Interactions, histories and items of one folder."""

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=table) for table in TABLES]
        url_infos = {
            o.url: tfds.download.checksums.UrlInfo(o.size, o.sha256, Path(o.url).name)
            for o in OFFICIAL.values()
        }

        def __init__(self, *, plan: Plan, **options: Any):
            self.plan, self.name = plan, plan.folder
            super().__init__(**options)

        def _info(self) -> Any:
            official = self.plan.official
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{self.plan.name}: {self.builder_config.name}",
                features=_features(self.plan, self.builder_config.name, tfds.features),
                homepage=official.homepage if official else None,
                citation=self.plan.citation or (official.citation if official else None),
                license=self.plan.metadata()["licence"],
                metadata=tfds.core.MetadataDict(self.plan.metadata()),
                disable_shuffling=True,  # the order of the file is part of the data
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            dataset = self.plan.dataset
            if dataset is None:
                archive = dl_manager.download(self.plan.official.url)
                dataset = _load_zip(Path(archive), self.plan.official.folder)
            return {"train": self._generate_examples(dataset)}

        def _generate_examples(self, dataset: Dataset) -> Iterator[tuple[int, dict]]:
            yield from enumerate(RECORDS[self.builder_config.name](dataset, self.plan))

    return ThreeTables


def _load_zip(archive: Path, folder: str) -> Dataset:
    """The data set of a folder inside a zip (tfds' own extraction needs TensorFlow)."""
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(archive) as file:
        file.extractall(place)
        return sources.load(Path(place) / folder)


def _features(plan: Plan, table: str, kinds: Any) -> Any:
    """The keys, dtypes and shapes of a record."""
    numbers = {"timestamp": np.int64, "rating": np.float32}
    numbers = {key: numbers[key] for key in plan.optional}
    if table == "interactions":
        return kinds.FeaturesDict({"user_id": kinds.Text(), "item_id": kinds.Text(), **numbers})
    if table == "histories":
        many = {key: kinds.Sequence(kinds.Scalar(dtype)) for key, dtype in numbers.items()}
        ids = {"user_id": kinds.Text(), "item_id": kinds.Sequence(kinds.Text())}
        return kinds.FeaturesDict({**ids, **many})
    keys = {"item_id": kinds.Text(), **dict.fromkeys(_texts(plan.columns), kinds.Text())}
    if "image" in plan.columns:
        keys |= {
            "image": kinds.Tensor(shape=(*plan.size, 3), dtype=np.uint8),
            "has_image": np.bool_,
        }
    if "audio" in plan.columns:  # tfds' Audio needs TensorFlow
        shape = (round(plan.rate * plan.seconds),)
        keys |= {"audio": kinds.Tensor(shape=shape, dtype=np.int16), "has_audio": np.bool_}
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
