"""The training store: Orbax manager for {state, data place, run}, digests, restore on any mesh.

    folder/run.json        the configuration of the run
    folder/metrics.jsonl   one JSON object a line
    folder/steps/<step>/   what Orbax wrote (state, place, run), sealed by digests.json

A step exists once it is sealed. Orbax renames a finished save into place, then every file is
hashed and the digests are written last; whatever lacks them was cut short and is passed over.
"""

import json
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from checkpoints.digest import SEAL, DigestError, faults, read_seal, seal, tree_path, write_json
from checkpoints.digest import params_sha256 as params_sha256

logger = logging.getLogger(__name__)

ITEMS = ("state", "place", "run")


class CheckpointError(RuntimeError):
    """A save or restore that cannot be trusted. The message names the step, the file, the way."""


class Store:
    """Keeps the last `keep_last` steps and the best one. Saves run in the background.

    With several processes every one makes the same calls on a shared folder; the first one
    seals and prunes.
    """

    def __init__(self, folder: str | Path, keep_last: int = 2):
        if keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; expected at least 1.")
        self.folder = Path(folder).absolute()
        self.keep_last = keep_last
        self._steps = self.folder / "steps"
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._pending: Future | None = None

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Created on first use: looking into a folder must not write there.
        self._steps.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(
            self._steps, options=ocp.CheckpointManagerOptions(max_to_keep=None), item_names=ITEMS
        )

    def save(self, step: int, state: Any, place: dict, run: dict, best: bool = False) -> None:
        """Copy `state` off the devices and write it in the background; `wait` for the outcome.

        Args:
          step: larger than every step kept so far.
          state: pytree of arrays.
          place: the data loader's place, JSON-able.
          run: configuration, best metric, history; JSON-able.
          best: this step is the best so far; it is kept until another one is.

        Raises CheckpointError where an earlier save failed or a good step is in the way,
        TypeError where `place` or `run` is not JSON-able.
        """
        self.wait()
        _check_json("place", place)
        _check_json("run", run)
        self._clear_way(step)
        facts = {"step": step, "best": best, "arrays": _signature(state)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            place=ocp.args.JsonSave(place),
            run=ocp.args.JsonSave(run),
        )
        try:
            self._manager.save(step, args=args)
        except OSError as error:
            raise self._failed(step, error) from error
        self._pending = self._sealer.submit(self._finish, step, facts)

    def wait(self) -> None:
        """Block until the save under way is sealed; raise CheckpointError if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
            _sync("sealed")

    def close(self) -> None:
        """Wait, then release Orbax's threads. The store cannot be used afterwards."""
        try:
            self.wait()
        finally:
            self._sealer.shutdown()
            if "_manager" in self.__dict__:
                self._manager.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The sealed steps, oldest first. Their files are not read here; `restore` does."""
        return [step for step in self._folders() if self._facts(step)]

    def latest(self) -> int | None:
        """The newest sealed step, None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The newest sealed step that was saved with best=True, None where there is none."""
        return max((step for step in self.steps() if self._facts(step)["best"]), default=None)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict, dict, int]:
        """(state, place, run, step), the arrays placed in the caller's shardings.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with shardings (of any mesh); a leaf
            without one goes to the first local device.
          step: None for the newest good one; damaged steps are passed over with a warning in
            the log.

        Raises CheckpointError where no good step is found, the named step is missing or
        damaged, or the saved arrays are not those asked for.
        """
        self.wait()
        step = self._newest_good() if step is None else self._checked(step)
        _compare(self._facts(step)["arrays"], _signature(abstract_state), step)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(_placed, abstract_state)),
            place=ocp.args.JsonRestore(),
            run=ocp.args.JsonRestore(),
        )
        found = self._manager.restore(step, args=args)
        return found.state, found.place, found.run, step

    def _folders(self) -> list[int]:
        names = (path.name for path in self._steps.glob("*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def _facts(self, step: int) -> dict[str, Any] | None:
        try:
            return read_seal(self._steps / str(step))
        except DigestError:
            return None

    def _checked(self, step: int) -> int:
        if step not in self._folders():
            raise CheckpointError(f"no step {step} in {self._steps}; found {self._folders()}.")
        if damage := faults(self._steps / str(step)):
            raise CheckpointError(
                f"step {step} in {self._steps} is damaged: {'; '.join(damage)}. "
                f"Name another of {self._folders()}, or none to take the newest good one."
            )
        return step

    def _newest_good(self) -> int:
        found = [f"{path.name}: unfinished save" for path in self._unfinished()]
        for step in reversed(self._folders()):
            damage = faults(self._steps / str(step))
            if not damage:
                return step
            logger.warning("step %d in %s is passed over: %s", step, self._steps, "; ".join(damage))
            found.append(f"{step}: {'; '.join(damage)}")
        raise CheckpointError(
            f"no good checkpoint in {self._steps}; found {found or 'nothing'}. "
            "Name the folder of a run that has one, or start from scratch in an empty folder."
        )

    def _unfinished(self) -> list[Path]:
        return sorted(self._steps.glob("*.orbax-checkpoint-tmp*"))

    def _clear_way(self, step: int) -> None:
        # A resumed run meets what it passed over: damaged later steps and cut-short saves.
        later = [found for found in self._folders() if found >= step]
        good = [found for found in later if not faults(self._steps / str(found))]
        if good:
            raise CheckpointError(
                f"cannot save step {step}: {self._steps} holds the good steps {good}. "
                "To train again from an earlier step, copy it to a new folder, or delete these."
            )
        _sync("judged")
        if jax.process_index() == 0:
            for path in [*self._unfinished(), *(self._steps / str(found) for found in later)]:
                logger.warning("%s is removed: it was damaged or never finished", path)
                _remove(path)
        _sync("cleared")
        self._manager.reload()

    def _finish(self, step: int, facts: dict[str, Any]) -> None:
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                seal(self._steps / str(step), facts)
        except Exception as error:
            raise self._failed(step, error) from error
        if jax.process_index() == 0:
            self._prune()

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        self.__dict__.pop("_manager", None)  # it would raise the same error at every later call
        free = shutil.disk_usage(self.folder).free / 1e9
        return CheckpointError(
            f"step {step} could not be saved in {self._steps} ({free:.2f} GB free): {error}. "
            f"Make room and go on; the newest complete step is {self.latest()}."
        )

    def _prune(self) -> None:
        kept = {*self.steps()[-self.keep_last :], self.best()}
        for step in self._folders():
            if step not in kept:
                _remove(self._steps / str(step))


def write_run(folder: str | Path, run: dict[str, Any]) -> Path:
    """Write `run` (JSON-able: the configuration) to run.json, whole or not at all."""
    _check_json("run", run)
    path = Path(folder) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, run)
    return path


def append_metrics(folder: str | Path, row: dict[str, Any]) -> None:
    """Append one JSON line to metrics.jsonl. A line torn by a kill is closed first."""
    _check_json("row", row)
    path = Path(folder) / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        torn = False
        if file.tell():
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


def _check_json(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be JSON-able (dict, list, str, int, float, bool, None): {error}. "
            "Turn arrays into lists and numpy numbers into int or float."
        ) from error


def _signature(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tree_path(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _compare(saved: dict[str, str], asked: dict[str, str], step: int) -> None:
    names = sorted(saved.keys() | asked.keys())
    differ = [name for name in names if saved.get(name) != asked.get(name)]
    if differ:
        lines = [f"{n}: saved {saved.get(n)}, asked {asked.get(n)}" for n in differ[:10]]
        raise CheckpointError(
            f"step {step} holds other arrays than asked for ({len(differ)} differ):\n  "
            + "\n  ".join(lines)
            + "\nRestore with the model, sizes and optimizer that run.json names."
        )


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _remove(path: Path) -> None:
    (path / SEAL).unlink(missing_ok=True)  # first: half a removal must not pass for a step
    shutil.rmtree(path)


def _sync(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"store: {name}")
