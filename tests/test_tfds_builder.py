"""Three tables through TFDS and back: the records are the folder's, without TensorFlow."""

import hashlib
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipelines import content, sources, synthetic
from pipelines.datasets import three_tables
from pipelines.datasets.official import Official
from pipelines.schema import DataError

pytest.importorskip("tensorflow_datasets", reason="needs `pip install mmrec-zoo[data]`")
pytest.importorskip("array_record", reason="needs `pip install mmrec-zoo[data]`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    world = synthetic.world(n_items=30, n_users=25, length=(3, 8), missing=0.2, image_size=16)
    return synthetic.save(world, tmp_path_factory.mktemp("data") / "tiny-world")


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    return three_tables.prepare(
        folder, out, citation="@misc{tiny}", size=(16, 16), rate=8000, seconds=0.25
    )


def test_interactions_come_back_as_they_were(folder, prepared):
    records = three_tables.read(prepared, "interactions")
    data = sources.load(folder)
    back = sources.from_tfds(records, item="item_id", rating=None)
    np.testing.assert_array_equal(back.user_ids[back.users], data.user_ids[data.users])
    np.testing.assert_array_equal(back.item_ids[back.items], data.item_ids[data.items])
    np.testing.assert_array_equal(back.times, data.times)


def test_histories_are_one_user_a_record(folder, prepared):
    records, data = three_tables.read(prepared, "histories"), sources.load(folder)
    assert len(records) == data.n_users == 25
    record = records[7]
    rows = data.users == 8
    assert record["user_id"].decode() == data.user_ids[8]
    assert [i.decode() for i in record["item_id"]] == list(data.item_ids[data.items[rows]])
    np.testing.assert_array_equal(record["timestamp"], data.times[rows])


def test_items_carry_text_pixels_sound_and_what_is_missing(folder, prepared):
    records, data = three_tables.read(prepared, "items"), sources.load(folder)
    images, has_image, _ = content.decode_images(data.columns["image"], (16, 16))
    sounds, has_audio, _ = content.decode_sounds(data.columns["audio"], 8000, 0.25)
    assert len(records) == 30 and not has_image.all() and not has_audio.all()
    for row, record in enumerate(records, 1):
        assert record["item_id"].decode() == data.item_ids[row]
        assert record["title"].decode() == data.columns["title"][row]
        assert (record["has_image"], record["has_audio"]) == (has_image[row], has_audio[row])
        np.testing.assert_array_equal(record["image"], images[row])
        assert record["audio"].dtype == np.int16
        np.testing.assert_allclose(record["audio"] / 32768, sounds[row], atol=1e-4)


def test_metadata_names_licence_citation_and_checksums(folder, prepared):
    about = three_tables.about(prepared, "items")
    assert about["licence"] == "CC0" and about["citation"] == "@misc{tiny}"
    assert about["rate"] == 8000
    for name in ("items.csv", "interactions.csv"):
        assert about["files"][name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert len(about["files"]["image"]) == len(about["files"]["audio"]) == 64
    assert list(prepared.rglob("*.array_record*"))


def test_what_is_prepared_is_kept(folder, prepared):
    files = {path: path.stat().st_mtime_ns for path in prepared.rglob("*.array_record*")}
    again = three_tables.prepare(folder, prepared.parent, size=(16, 16), rate=8000, seconds=0.25)
    assert again == prepared
    assert files == {path: path.stat().st_mtime_ns for path in prepared.rglob("*.array_record*")}


def test_a_table_of_other_inputs_is_not_kept_in_silence(folder, prepared):
    with pytest.raises(DataError, match="other .*image_size.*found.*16, 16.*Delete"):
        three_tables.prepare(folder, prepared.parent, ("items",), size=(8, 8))


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Official:
    """A small archive in the form of the official one, behind a local web address."""
    path = tmp_path / "ml-latest-small.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ml-latest-small/ratings.csv", RATINGS)
        file.writestr("ml-latest-small/movies.csv", MOVIES)
    data = path.read_bytes()
    known = three_tables.OFFICIAL["ml-latest-small"]
    serve = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}/{path.name}"
    small = replace(known, url=url, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(three_tables.OFFICIAL, "ml-latest-small", small)
    three_tables.builder_class.cache_clear()
    yield small
    three_tables.builder_class.cache_clear()
    server.shutdown()
    server.server_close()


RATINGS = "userId,movieId,rating,timestamp\n1,10,4.5,964982703\n1,7,3.0,964981247\n2,10,1.0,9\n"
MOVIES = 'movieId,title,genres\n7,"Sabrina, or so",Comedy|Romance\n10,GoldenEye,Action\n'


def test_an_official_archive_is_fetched_and_unpacked(archive, tmp_path):
    path = three_tables.prepare("ml-latest-small", tmp_path / "out")
    records = list(three_tables.read(path, "interactions"))
    assert [(r["user_id"], r["item_id"]) for r in records] == [
        (b"1", b"10"),
        (b"1", b"7"),
        (b"2", b"10"),
    ]
    assert [r["rating"] for r in records] == [4.5, 3.0, 1.0]
    history = three_tables.read(path, "histories")[0]
    assert list(history["item_id"]) == [b"7", b"10"]  # oldest first
    assert three_tables.read(path, "items")[0]["title"] == b"Sabrina, or so"
    about = three_tables.about(path)
    assert about["files"] == {"ml-latest-small.zip": archive.sha256}
    assert "GroupLens" in about["licence"] and "Harper" in about["citation"]


def test_another_archive_than_the_registered_one_is_refused(archive, tmp_path, monkeypatch):
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    wrong = replace(archive, sha256="0" * 64)
    monkeypatch.setitem(three_tables.OFFICIAL, "ml-latest-small", wrong)
    with pytest.raises(NonMatchingChecksumError):
        three_tables.prepare("ml-latest-small", tmp_path / "out")


def test_the_official_checksum_is_registered():
    movielens = three_tables.OFFICIAL["ml-latest-small"]
    registered = three_tables.builder_class().url_infos[movielens.url]
    assert (registered.size, registered.checksum) == (movielens.size, movielens.sha256)


def test_times_with_fractions_keep_them(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "interactions.csv").write_text(
        "user_id,item_id,timestamp\nu,a,1.25\nu,b,0.5\nv,b,2.0\n"
    )
    path = three_tables.prepare(tmp_path / "in", tmp_path, ("interactions", "histories"))
    assert [r["timestamp"] for r in three_tables.read(path)] == [1.25, 0.5, 2.0]
    assert list(three_tables.read(path, "histories")[0]["timestamp"]) == [0.5, 1.25]


def test_errors_say_what_to_do(folder, prepared, tmp_path):
    with pytest.raises(DataError, match="expected some of.*histories"):
        three_tables.prepare(folder, tmp_path, tables=("films",))
    with pytest.raises(DataError, match="no prepared table 'items'.*prepare"):
        three_tables.read(tmp_path, "items")
    with pytest.raises(DataError, match="no such folder"):
        three_tables.prepare(tmp_path / "nowhere", tmp_path)


def test_importing_costs_no_tfds():
    code = (
        "import sys; import pipelines.datasets.three_tables;"
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
