"""Where bundles come from: a folder, a shipped name, the Hub's cache; clear words otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints import hub
from checkpoints.bundle import load_bundle, save_bundle
from checkpoints.hub import HubError, resolve, shipped

REPOSITORY = Path(__file__).parents[1]


def small_bundle(folder: Path) -> Path:
    return save_bundle(
        folder,
        config={"model": "popularity"},
        params={"w": np.ones(2, np.float32)},
        item_ids=["", "a"],
        features={"valid": np.array([False, True])},
        feature_manifest={},
        split={},
        evaluation={},
        card="# A small one\n",
    )


@pytest.fixture
def pretrained(tmp_path, monkeypatch) -> Path:
    """A package that ships two bundles, and a folder that is none."""
    folder = tmp_path / "pretrained"
    for name in ("sasrec-beauty", "lgmrec-tiktok"):
        small_bundle(folder / name)
    (folder / "draft").mkdir()
    monkeypatch.setattr(hub, "PRETRAINED", folder)
    return folder


def test_a_folder_is_itself(tmp_path):
    folder = small_bundle(tmp_path / "mine")
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder


def test_a_relative_folder_is_what_the_caller_sees(tmp_path, monkeypatch):
    small_bundle(tmp_path / "mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert load_bundle(resolve("../mine")).config == {"model": "popularity"}


def test_shipped_names(pretrained):
    assert shipped() == {
        "lgmrec-tiktok": pretrained / "lgmrec-tiktok",
        "sasrec-beauty": pretrained / "sasrec-beauty",
    }
    assert resolve("sasrec-beauty") == pretrained / "sasrec-beauty"


def test_every_bundle_that_is_shipped_loads():
    for name, folder in shipped().items():
        assert load_bundle(resolve(name)).folder == folder


def test_a_folder_that_is_no_bundle_does_not_hide_a_shipped_name(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sasrec-beauty").mkdir()
    assert resolve("sasrec-beauty") == pretrained / "sasrec-beauty"


def test_an_unknown_name_gets_the_nearest(pretrained):
    with pytest.raises(HubError, match="no bundle 'sasrec-beuaty'.*Nearest names: sasrec-beauty"):
        resolve("sasrec-beuaty")
    with pytest.raises(HubError, match="Nearest names: lgmrec-tiktok, sasrec-beauty"):
        resolve("zzz")


@pytest.mark.parametrize(
    "name",
    ["../pretrained/none", "../sasrec-beauty", "sasrec-beauty/../draft", "/nowhere/x", ""],
)
def test_a_name_never_becomes_a_path(pretrained, tmp_path, monkeypatch, name):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(HubError, match="no bundle"):
        resolve(name)


def test_a_folder_without_manifest_says_so(tmp_path):
    with pytest.raises(HubError, match="exists but holds no manifest.json"):
        resolve(tmp_path)


def test_a_revision_needs_the_hub(pretrained):
    with pytest.raises(HubError, match="has no revisions; leave out revision='v2'"):
        resolve("sasrec-beauty", revision="v2")


def test_without_the_package_it_says_what_to_install(pretrained, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it raises ImportError
    with pytest.raises(HubError, match=r"'someone/soap' .*pip install 'mmrec-zoo\[hub\]'"):
        resolve("someone/soap")


def offline(cache: Path, body: str) -> subprocess.CompletedProcess:
    """The real client, told to stay offline, with this cache."""
    imports = "from checkpoints.hub import resolve\nfrom checkpoints.bundle import load_bundle\n"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", imports + body],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )


def cached(cache: Path, name: str, commit: str, bundle: Path | None) -> Path:
    """A bundle as the client keeps it: snapshots/<commit>/<file> -> ../../blobs/<file>."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (snapshot, root / "refs", root / "blobs"):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    for path in bundle.iterdir() if bundle else ():
        path.rename(root / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    return snapshot


def test_a_cached_repository_loads_offline(tmp_path):
    pytest.importorskip("huggingface_hub", reason="the hub extra: pip install 'mmrec-zoo[hub]'")
    bundle = small_bundle(tmp_path / "soap")
    snapshot = cached(tmp_path / "cache", "someone/soap", "a" * 40, bundle)
    cached(tmp_path / "cache", "someone/other", "b" * 40, None)
    done = offline(
        tmp_path / "cache",
        "print(load_bundle(resolve('someone/soap')).folder)\n"
        f"print(resolve('someone/soap', revision='{'a' * 40}'))\n"
        "for name in ('someone/other', 'someone/missing'):\n"
        "    try:\n"
        "        resolve(name)\n"
        "    except LookupError as error:\n"
        "        print(error)\n",
    )
    assert done.returncode == 0, done.stderr
    loaded, pinned, other, missing = done.stdout.splitlines()[:2] + [
        next(line for line in done.stdout.splitlines() if line.startswith(start))
        for start in ("'someone/other'", "there is no folder someone/missing")
    ]
    assert loaded == pinned == str(snapshot)
    assert "holds no manifest.json" in other
    assert "could not be fetched from the Hugging Face Hub" in missing and "no folder" in missing


def test_a_blob_outside_the_cache_is_refused(tmp_path):
    """The cache's links are let through to its blobs, and nowhere else."""
    bundle = small_bundle(tmp_path / "soap")
    snapshot = cached(tmp_path / "cache", "someone/soap", "a" * 40, bundle)
    assert load_bundle(snapshot).params["w"].tolist() == [1, 1]
    outside = tmp_path / "config.json"
    outside.write_bytes((snapshot / "config.json").read_bytes())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(outside)
    with pytest.raises(ValueError, match="config.json is a link to"):
        load_bundle(snapshot)
