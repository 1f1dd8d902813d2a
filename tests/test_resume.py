"""A run killed with SIGKILL at random moments ends bit-equal to one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import zoo
from pipelines.sources import from_arrays
from zoo.fitting import Run
from zoo.flops import matmul_flops
from zoo.mesh import make_mesh
from zoo.settings import identity

STEPS, EVERY = 60, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small three-table folder: interactions alone."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(120):
        for t, item in enumerate(rng.permutation(80)[: rng.integers(5, 20)]):
            lines.append(f"u{user},i{item},{1000 + t}")
    path = tmp_path_factory.mktemp("data")
    (path / "interactions.csv").write_text("\n".join(lines) + "\n")
    return path


def command(data: Path, out: Path, **options) -> list[str]:
    told = [f"--{key}={value}" for key, value in {"steps": STEPS, **options}.items()]
    fixed = ["--batch=4", f"--evaluate-every={EVERY}", "--patience=99", "--model.width=16"]
    code = "from zoo.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    where = ["train", "sasrec", f"--data={data}", f"--out={out}", "--json"]
    return [sys.executable, "-c", code, *where, *fixed, *told]


def evaluations(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def killed(words: list[str], out: Path, after: int, delay: float) -> bool:
    """Start, and kill -9 `delay` seconds after `after` evaluations; False if it ended before."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and evaluations(out) < after:
        time.sleep(0.005)
    time.sleep(delay)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL) if alive else None
    process.communicate()
    return alive


def finished(words: list[str]) -> dict:
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # exactly one JSON object


def test_killed_five_times_ends_bit_equal(folder, tmp_path):
    whole = finished(command(folder, tmp_path / "whole"))
    out, dice = tmp_path / "killed", random.Random(7)
    words = command(folder, out)
    kills = 0
    for _ in range(5):
        seen = evaluations(out)
        kills += killed(words, out, seen + dice.randint(0, 2), dice.random() * 0.3)
    broken = finished(words)
    assert kills >= 3, "the run was over before it could be killed"
    assert broken["params_sha256"] == whole["params_sha256"]
    assert broken["best"] == whole["best"] and broken["steps"] == STEPS
    again = finished(words)  # a finished run is not trained again
    assert again["params_sha256"] == whole["params_sha256"]
    assert again["seconds"] == broken["seconds"]


def test_another_run_in_the_same_folder_is_refused(folder, tmp_path):
    finished(command(folder, tmp_path / "run", steps=6))
    other = command(folder, tmp_path / "run", steps=6, seed=1)
    done = subprocess.run(other, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "seed is 0 there, 1 here" in done.stderr and "--out" in done.stderr


def test_a_setting_that_came_later_is_told_where_it_is_set_and_learns_otherwise(tmp_path):
    """Runs of before there was an l2 or a b2 go on; one that sets it is another run."""
    rng = np.random.default_rng(0)
    rows = {"users": np.repeat(np.arange(20), 6), "items": rng.integers(0, 30, 120)}
    data = zoo.load_data(from_arrays(**rows, name="few"))
    digests = set()
    for n, more in enumerate(({}, {"l2": 0.1}, {"b2": 0.5})):
        settings = zoo.settings_for("sasrec", steps=3, batch=2, **more)
        fields = {"width": 8, "layers": 1, "max_len": 8}
        fitted, _ = zoo.fit("sasrec", data, tmp_path / str(n), settings, **fields)
        told = json.loads((tmp_path / str(n) / "run.json").read_text())
        assert {k: told[k] for k in ("l2", "b2") if k in told} == more
        digests.add(fitted.params_sha256)
    assert len(digests) == 3
    with pytest.raises(ValueError, match="l2 is unset there, 0.1 here"):
        settings = zoo.settings_for("sasrec", steps=3, batch=2, l2=0.1)
        zoo.fit("sasrec", data, tmp_path / "0", settings, **fields)


def test_a_field_of_another_default_than_older_runs_had_is_another_run(tmp_path):
    """BERT4Rec counted from the left before it could count from the right, and run.json is mute."""
    rng = np.random.default_rng(0)
    rows = {"users": np.repeat(np.arange(20), 6), "items": rng.integers(0, 30, 120)}
    data = zoo.load_data(from_arrays(**rows, name="few"))
    settings = zoo.settings_for("bert4rec", steps=1, batch=2)
    small = {"width": 8, "layers": 1, "max_len": 8}
    zoo.fit("bert4rec", data, tmp_path / "old", settings, **small, align="left")
    told = json.loads((tmp_path / "old" / "run.json").read_text())
    assert told["fields"] == small  # as a run of before has it
    zoo.fit("bert4rec", data, tmp_path / "old", settings, **small, align="left")  # goes on
    with pytest.raises(ValueError, match="fields.align is unset there, 'right' here"):
        zoo.fit("bert4rec", data, tmp_path / "old", settings, **small)
    with pytest.raises(ValueError, match="counted from the left, this model's from the right"):
        zoo.fit("bert4rec", data, None, settings, graft=tmp_path / "old", **small)

    fields = lambda model, **given: identity(model, given, data.split, settings)["fields"]  # noqa: E731
    assert fields("unisrec") == {"dropout": 0.1}  # runs that do not say so had .5
    assert fields("unisrec", dropout=0.5) == {}


def test_rows_of_several_widths_have_an_executable_each_and_resume(tmp_path):
    """A few long histories among short ones; stopped half-way the run ends as one that was not."""
    rng = np.random.default_rng(1)
    lengths = [240, 250, *rng.integers(5, 20, 120)]
    rows = {"users": np.repeat(np.arange(len(lengths)), lengths)}
    rows["items"] = np.concatenate([rng.permutation(300)[:n] for n in lengths])
    rows["times"] = np.concatenate([np.arange(n) for n in lengths])
    data = zoo.load_data(from_arrays(**rows, name="tail"))
    catalogue = data.catalogue()
    settings = zoo.settings_for("sasrec", steps=8, batch=2, evaluate_every=4)
    fields = {"width": 8, "layers": 1, "max_len": 256}
    mesh = make_mesh(1)
    with jax.set_mesh(mesh):
        stepper = Run("sasrec", fields, data.split, catalogue, settings, mesh).stepper
    shapes = [x["items"].shape for x in stepper.loader.examples]
    assert shapes == [(8, 64), (2, 256)]
    each = [matmul_flops(stepper._traced[shape].jaxpr) for shape in shapes]
    assert each[0] < stepper.flops < each[1] and sum(stepper.loader.shares) == 1
    np.testing.assert_allclose(stepper.flops, np.dot(each, stepper.loader.shares))
    how = (data, tmp_path / "run", settings, mesh)

    def stop(step, steps, metrics):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.fit("sasrec", *how, stop, **fields)
    broken = zoo.fit("sasrec", *how, **fields)[0]
    whole = zoo.fit("sasrec", data, None, settings, mesh, **fields)[0]
    assert broken.params_sha256 == whole.params_sha256 and broken.steps == 8
