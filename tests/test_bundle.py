"""The bundle: what goes in comes out; every way of being wrong is produced and named."""

import json
import os
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from checkpoints import bundle as bundles
from checkpoints.bundle import BundleError, load_bundle, save_bundle
from checkpoints.digest import file_digest
from checkpoints.manifest import FILES, MANIFEST, MAX_BYTES, MAX_FILES

ITEM_IDS = np.array(["", "B001", "7", "Ünï"], object)
PARAMS = {
    "trunk": {"dense": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}},
    "scale": np.float32(2.5) * np.ones((), np.float32),
    "half": np.ones(3, ml_dtypes.bfloat16),
}
FEATURES = {
    "valid": np.array([False, True, True, True]),
    "features": {"text": np.arange(8, dtype=np.float32).reshape(4, 2)},
}


def contents(**changes) -> dict:
    kept = dict(
        config={"model": "sasrec", "fields": {"dim": 4}, "n_rows": 4},
        params=PARAMS,
        item_ids=ITEM_IDS,
        item_columns={"price": np.array([0.0, 1.5, 2.5, 3.5]), "new": np.array([False, True] * 2)},
        titles=["", "Soap", None, "Crème"],
        features=FEATURES,
        feature_manifest={"text": {"encoder": "e5", "revision": "abc"}},
        split={"name": "leave-one-out", "hash": "00ff"},
        evaluation={"ndcg@10": 0.25},
        card="# Soap\n\nÜber alles.\n",
        codes={"codes": np.arange(8, dtype=np.int32).reshape(4, 2)},
    )
    return kept | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_bundle(tmp_path / "soap", **contents())


def assert_trees_equal(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def relist(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed: the work of a forger."""
    edit(folder, lambda manifest: manifest["files"].update({name: file_digest(folder / name)}))


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rename_entry(folder: Path, old: str, new: str) -> None:
    edit(folder, lambda manifest: manifest["files"].update({new: manifest["files"][old]}))


def test_what_goes_in_comes_out(folder):
    found, given = load_bundle(folder), contents()
    assert_trees_equal(found.params, PARAMS)
    assert_trees_equal(found.catalogue, FEATURES)
    assert_trees_equal(found.codes, given["codes"])
    assert found.item_ids.tolist() == ITEM_IDS.tolist()
    assert found.item_columns["title"].tolist() == given["titles"]
    for name, column in given["item_columns"].items():
        assert found.item_columns[name].dtype == column.dtype
        np.testing.assert_array_equal(found.item_columns[name], column)
    assert (found.config, found.split) == (given["config"], given["split"])
    assert (found.features, found.evaluation) == (given["feature_manifest"], given["evaluation"])
    assert (found.card, found.folder) == (given["card"], folder)


def test_files_are_those_documented_and_the_same_each_time(folder, tmp_path):
    assert {path.name for path in folder.iterdir()} == set(FILES)
    again = save_bundle(tmp_path / "again", **contents())
    assert (again / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    bare = save_bundle(tmp_path / "bare", **contents(codes=None, titles=None, item_columns=None))
    assert load_bundle(bare).codes is None
    assert load_bundle(bare).item_columns == {}


def test_strided_and_foreign_arrays_are_stored_right(tmp_path):
    table = np.arange(24, dtype=np.float32).reshape(4, 6)
    params = {
        "transposed": table.T,
        "strided": table[::2, ::3],
        "big_endian": table.astype(">f4"),
        "jax": jax.numpy.asarray(table).T,
        "empty": np.zeros((0, 4), np.float32),
    }
    found = load_bundle(save_bundle(tmp_path / "b", **contents(params=params))).params
    for name, array in params.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], np.asarray(array))


def test_arrays_go_to_the_callers_shardings(folder):
    devices = np.asarray(jax.devices()[:4]).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    whole, columns = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "model"))
    shardings = {"trunk": {"dense": {"kernel": columns}}, "scale": whole, "half": whole}
    params = load_bundle(folder, shardings).params
    assert params["trunk"]["dense"]["kernel"].sharding == columns
    assert_trees_equal(params, PARAMS)
    assert load_bundle(folder, whole).params["half"].sharding == whole


@pytest.mark.parametrize("name", [name for name in FILES if name != MANIFEST])
def test_damage_to_any_file_is_named(folder, name):
    path, data = folder / name, bytearray((folder / name).read_bytes())
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=f"{name}: expected {len(data)} bytes, found"):
        load_bundle(folder)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: expected sha256 .*, found .*again"):
        load_bundle(folder)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}: expected a file .*, found none"):
        load_bundle(folder)


def test_all_damage_is_told_at_once(folder):
    (folder / "config.json").unlink()
    (folder / "README.md").write_text("other")
    with pytest.raises(BundleError, match="README.md: expected .*; config.json: expected a file"):
        load_bundle(folder)


def test_files_beside_the_manifest_are_left_alone(folder):
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "params.pkl").write_bytes(b"\x80\x04")
    assert load_bundle(folder).config["model"] == "sasrec"


@pytest.mark.parametrize(
    "name",
    ["../outside.json", "/etc/hostname", "a/../../outside.json", "..", "C:\\x", "", "a\x00b"],
)
def test_a_name_that_leaves_the_folder_is_refused(folder, name):
    (folder.parent / "outside.json").write_bytes((folder / "config.json").read_bytes())
    rename_entry(folder, "config.json", name)
    with pytest.raises(BundleError, match="expected a file inside the bundle"):
        load_bundle(folder)


def test_a_name_of_any_length_or_letters_is_refused(folder):
    for name in ("x" * 5000, "\ud800"):
        rename_entry(folder, "config.json", name)
        with pytest.raises(BundleError, match="expected a file inside the bundle"):
            load_bundle(folder)


def test_a_link_that_leaves_the_folder_is_refused(folder):
    outside = folder.parent / "outside.json"
    os.rename(folder / "config.json", outside)
    (folder / "config.json").symlink_to(outside)
    with pytest.raises(BundleError, match="config.json is a link to .*outside.json"):
        load_bundle(folder)


def test_a_folder_that_is_a_link_out_is_refused(folder):
    os.mkdir(folder.parent / "elsewhere")
    os.rename(folder / "config.json", folder.parent / "elsewhere" / "config.json")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    rename_entry(folder, "config.json", "sub/config.json")
    with pytest.raises(BundleError, match="sub/config.json is a link to"):
        load_bundle(folder)


def test_a_link_without_end_is_refused(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(BundleError, match="config.json"):
        load_bundle(folder)


def test_links_inside_and_a_linked_bundle_are_fine(folder):
    os.rename(folder / "config.json", folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert load_bundle(link).config["model"] == "sasrec"


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda m: m.update(version=2), "version 1 to 1, found 2. A newer bundle"),
        (lambda m: m.update(version="1"), "version 1 to 1, found '1'"),
        (lambda m: m.update(format="other"), "format 'mmrec-zoo bundle', found 'other'"),
        (lambda m: m.pop("files"), "expected `files` of at most"),
        (lambda m: m.update(files={str(i): {} for i in range(MAX_FILES + 1)}), "found 257"),
        (lambda m: m["files"].update({"a": 7}), "expected {bytes, sha256} for 'a', found 7"),
        (lambda m: m["files"].update({"a": {"bytes": 1, "sha256": "00"}}), "for 'a'"),
        (lambda m: m["files"].pop("model.safetensors"), r"does not list \['model.safetensors'\]"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(folder, change, expected):
    edit(folder, change)
    with pytest.raises(BundleError, match=expected):
        load_bundle(folder)


@pytest.mark.parametrize(
    "data, expected",
    [
        (b" " * (MAX_BYTES + 1), "at most 1048576 bytes, found 1048577"),
        (b"{", "expected JSON"),
        (b"[]", "expected a JSON object, found list"),
        (b"[" * 100_000, "expected JSON"),
        (b"\xff\xfe\x00", "expected JSON"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(folder, data, expected):
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=expected):
        load_bundle(folder)


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BundleError, match="expected manifest.json, found none"):
            load_bundle(path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "items.parquet", "codes.npz", "config.json", "README.md"]
)
def test_rubbish_with_the_right_hash_is_refused(folder, name):
    (folder / name).write_bytes(b"\xff rubbish " * 20)
    relist(folder, name)
    with pytest.raises(BundleError, match=f"{name}: expected"):
        load_bundle(folder)


class Bomb:
    """Unpickling this ends the process."""

    def __reduce__(self):
        return sys.exit, ("unpickled",)


def test_nothing_is_unpickled(folder):
    np.savez(folder / "codes.npz", codes=np.array([Bomb()], object))
    relist(folder, "codes.npz")
    with pytest.raises(BundleError, match="codes.npz: expected arrays of numbers"):
        load_bundle(folder)


def test_names_that_clash_in_the_weights_are_refused(folder):
    one = np.ones(1, np.float32)
    for names in (("a", "a/b"), ("a/b/c", "a/b")):
        save_file(dict.fromkeys(names, one), folder / "model.safetensors")
        relist(folder, "model.safetensors")
        with pytest.raises(BundleError, match="model.safetensors: .*(goes through|both)"):
            load_bundle(folder)


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(params={"a/b": np.ones(2)}), "'a/b': expected a non-empty str without '/'"),
        (dict(params={"a": {3: np.ones(2)}}), "a/3: expected a non-empty str"),
        (dict(params={"a": {"w": np.array(["x"])}}), "a/w is <U1: expected an array of numbers"),
        (dict(codes={"c": np.array([{}], object)}), "c is object: expected an array of numbers"),
        (dict(config={"model": object()}), "config.json: expected a JSON-able dict"),
        (dict(split=None), "split.json: expected a dict, found NoneType"),
        (dict(titles=["one"]), "expected 4 rows, column 'title' has 1"),
        (dict(item_ids=["", "a", 7, "b"]), r"item_ids\[2\] is 7: expected a str"),
        (dict(item_columns={"item_id": [1, 2, 3, 4]}), "'item_id' is given beside"),
        (dict(item_columns={"x": ["a", 1, 2.0, {}]}), "column 'x': one type a column"),
    ],
)
def test_what_cannot_be_stored_leaves_the_old_bundle(folder, change, expected):
    with pytest.raises(BundleError, match=expected):
        save_bundle(folder, **contents(**change))
    assert load_bundle(folder).evaluation == {"ndcg@10": 0.25}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_bundle_is_replaced_whole(folder):
    (folder / "leftover.txt").write_text("old")
    save_bundle(folder, **contents(evaluation={"ndcg@10": 0.5}, codes=None))
    assert load_bundle(folder).evaluation == {"ndcg@10": 0.5}
    assert {path.name for path in folder.iterdir()} == set(FILES) - {"codes.npz"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_rename_that_fails_puts_the_old_bundle_back(folder, monkeypatch):
    rename = os.rename

    def full(source, target):
        if Path(target) == folder and Path(source).name != folder.name:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(bundles.os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        save_bundle(folder, **contents(evaluation={}))
    assert load_bundle(folder).evaluation == {"ndcg@10": 0.25}


def test_another_folder_is_not_overwritten(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.md").write_text("years")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        save_bundle(thesis, **contents())
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        save_bundle(tmp_path / "file", **contents())
    (tmp_path / "empty").mkdir()
    assert load_bundle(save_bundle(tmp_path / "empty", **contents())).config["n_rows"] == 4


def test_a_path_with_pattern_letters_loads(tmp_path):
    folder = save_bundle(tmp_path / "lr=[0.1]*" / "b", **contents())
    assert sorted(load_bundle(folder).item_columns) == ["new", "price", "title"]
