"""A folder in the three-table form, or MovieLens latest-small, as ArrayRecord with TFDS.

    path = prepare("my-folder", "prepared")            # or prepare("ml-latest-small", "prepared")
    data = sources.from_tfds(read(path, "interactions"), item="item_id", rating=None)

Three tables are written: `interactions` (one event a record, as tfds' own MovieLens), `histories`
(one user a record, much faster to read) and `items` (text, decoded images and sounds). Licence,
citation and the sha256 of every input stand in the metadata. TensorFlow is not needed;
tensorflow-datasets is imported when a function is called.
"""

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipelines import content, sources
from pipelines.datasets.official import OFFICIAL
from pipelines.datasets.records import RECORDS, Plan, features
from pipelines.schema import DataError, Dataset

TABLES = tuple(RECORDS)


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

    `source` is a folder that `sources.load` reads, else a name in OFFICIAL, which is downloaded
    and held against its checksum. Images are decoded to `size` = (h, w), sounds to `seconds` at
    `rate`, mono int16. DataError for a table that does not exist, a folder that is not there, or
    a table already prepared from other files or with other sizes.
    """
    unknown = set(tables) - set(TABLES)
    if unknown:
        raise DataError(f"tables {sorted(unknown)}: expected some of {list(TABLES)}.")
    path = Path(source).expanduser().resolve()
    official = None if path.exists() else OFFICIAL.get(str(source))
    dataset = None if official else sources.load(path)
    name = path.stem if path.is_file() else path.name
    plan = Plan(name, dataset, official, citation, tuple(size), rate, seconds)
    for table in tables:
        builder = builder_class()(plan=plan, config=table, data_dir=out, file_format="array_record")
        _refuse_stale(Path(builder.data_dir), plan)
        builder.download_and_prepare(file_format="array_record")
    return Path(out) / plan.folder


def _refuse_stale(there: Path, plan: Plan) -> None:
    """DataError if `there` holds a table of other inputs: tfds itself would keep it in silence."""
    tfds = _tfds()
    if not (there / "dataset_info.json").is_file():
        return
    found = dict(tfds.builder_from_directory(there).info.metadata)
    differ = [key for key, value in plan.metadata.items() if found.get(key) != value]
    if differ:
        raise DataError(
            f"{there}: was prepared with other {differ}: expected "
            f"{ {key: plan.metadata[key] for key in differ} }, found "
            f"{ {key: found.get(key) for key in differ} }. Delete it or take another `out`."
        )


def read(path: str | Path, table: str = "interactions") -> Any:
    """The records of a prepared table: a random-access sequence of dicts, for Grain as it is.

    DataError where `path` holds no such table.
    """
    tfds = _tfds()
    return tfds.builder_from_directory(_version(path, table)).as_data_source("train")


def about(path: str | Path, table: str = "interactions") -> dict[str, Any]:
    """Licence, sha256 of the inputs, sizes, citation: what stands in the table's metadata."""
    tfds = _tfds()
    info = tfds.builder_from_directory(_version(path, table)).info
    return {**info.metadata, "citation": info.citation}


def _version(path: str | Path, table: str) -> Path:
    versions = sorted((Path(path) / table).glob("*/dataset_info.json"))
    if not versions:
        raise DataError(f"{path}: no prepared table '{table}'; make it with prepare(source, out).")
    return versions[-1].parent


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install 'mmrec-zoo[data]'") from error
    return tensorflow_datasets


@cache
def builder_class() -> type:
    """The TFDS builder; made on first use, because its base class is heavy to import."""
    tfds = _tfds()

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
                features=features(self.plan, self.builder_config.name, tfds.features),
                homepage=official.homepage if official else None,
                citation=self.plan.citation or (official.citation if official else None),
                license=self.plan.metadata["licence"],
                metadata=tfds.core.MetadataDict(self.plan.metadata),
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
