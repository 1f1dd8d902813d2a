"""Several hosts: the same run with two real processes of four devices as with one of eight."""

import json
import socket
import subprocess
import sys

import numpy as np

RUN = """
import json, sys
import jax
rank, hosts, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8 // hosts)
if hosts > 1:
    jax.distributed.initialize(f"localhost:{port}", hosts, rank)
import numpy as np
from pipelines import sources
from zoo import api
from zoo import mesh as meshes
rng = np.random.default_rng(0)
items = np.concatenate([rng.permutation(50)[:8] for _ in range(64)])
dataset = sources.from_arrays(users=np.repeat(np.arange(64), 8), items=items)
data = api.load_data(dataset, api.DataOptions(split="leave-one-out"))
settings = api.settings_for("sasrec", steps=6, batch=8, evaluate_every=3)
fields = {"width": 16, "max_len": 12, "layers": 1, "dropout": 0.0}
mesh = meshes.make_mesh(4, 2)
fitted, _ = api.fit("sasrec", data, out, settings, mesh, **fields)
leaves = {meshes.path_name(p): np.asarray(x).ravel()[:64].tolist()
          for p, x in jax.tree_util.tree_leaves_with_path(meshes.fetch(fitted.params))}
told = {"rank": rank, "steps": fitted.steps, "best": fitted.best, "params": leaves}
print("TOLD " + json.dumps(told), flush=True)
"""


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


def ran(hosts: int, out) -> list[dict]:
    """What each process of a run told."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(rank), str(hosts), str(port), str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(hosts)
    ]
    ends = [process.communicate(timeout=400) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(text.split("TOLD ", 1)[1]) for text, _ in ends]


def test_two_processes_train_save_and_resume_as_one(tmp_path):
    (one,) = ran(1, tmp_path / "one")
    first, second = ran(2, tmp_path / "two")
    assert first["params"] == second["params"] and first["best"] == second["best"]
    assert one["best"]["ndcg@10"] == first["best"]["ndcg@10"]
    for name, values in one["params"].items():
        if name.endswith("key/bias"):
            continue  # softmax cancels it: its gradient is rounding, which Adam makes large
        np.testing.assert_allclose(first["params"][name], values, atol=2e-6)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2
    again = ran(2, tmp_path / "two")  # the finished run is restored by both
    assert again[0]["params"] == first["params"] and again[0]["steps"] == 6
