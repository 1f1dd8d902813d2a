"""The mesh and the rules from names to shardings: one table, regex -> PartitionSpec."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "model")
LANES = 128  # rows of a table are padded to whole lanes

# Parameter path, joined by '/', to the mesh axes of its last dimensions (a leading layer axis of
# scanned blocks stays whole). First match wins; optimizer moments have the path of their
# parameter inside their own. Attention and feed-forward split as in Megatron-LM (arXiv
# 1909.08053): columns first, rows after, so that one sum a sub-layer crosses devices.
RULES: tuple[tuple[str, P], ...] = (
    (r"(.*/)?(items?(/id)?|users?)/table", P(AXES, None)),  # big: rows over every device
    (r".*/(attention|memory)/(query|key|value)/kernel", P(None, "model")),
    (r".*/attention/(query|key|value)/bias", P("model")),
    (r".*/ffn[/_](in|gate)/kernel", P(None, "model")),
    (r".*/ffn/(in|gate)/bias", P("model")),
    (r".*/((attention|memory|ffn)/|ffn_)out/kernel", P("model", None)),
    (r".*", P()),  # everything else is small: a copy on each device
)


def make_mesh(
    data: int | None = None, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data` x `model` devices with the axes 'data' and 'model'.

    data None: all that `model` leaves. Fewer than there are: the first ones. Raises ValueError.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or (data is not None and data < 1):
        raise ValueError(f"mesh is data={data} x model={model}; both must be at least 1.")
    if data is None and len(devices) % model:
        raise ValueError(
            f"model={model} does not divide the {len(devices)} devices: "
            f"choose a divisor of {len(devices)}, or name data as well."
        )
    data = len(devices) // model if data is None else data
    if data * model > len(devices):
        raise ValueError(
            f"a mesh of data={data} x model={model} needs {data * model} devices; there are "
            f"{len(devices)}. Lower one of them, or set jax_num_cpu_devices to try it on a CPU."
        )
    kinds = (AxisType.Auto,) * 2  # the default differs between JAX versions
    return jax.make_mesh((data, model), AXES, axis_types=kinds, devices=devices[: data * model])


def check_batch_fits(batch_size: int, mesh: Mesh) -> None:
    """Raise ValueError unless the rows of a batch divide over the data axis."""
    data = mesh.shape["data"]
    if batch_size % data:
        near = [n for n in (batch_size // data * data, round_up(batch_size, data)) if n]
        raise ValueError(
            f"a batch of {batch_size} rows does not divide over data={data} devices: "
            f"use a batch of {' or '.join(map(str, near))}, or a mesh with fewer data devices."
        )


def shard_batch(
    batch: dict[str, np.ndarray], mesh: Mesh, stacked: bool = False
) -> dict[str, jax.Array]:
    """Host arrays with rows first (second where batches are `stacked`) to the mesh, rows over
    'data'.

    With several processes each gives its own share of the rows. Raises ValueError when they do
    not divide.
    """
    rows = NamedSharding(mesh, P(None, "data") if stacked else P("data"))
    for array in batch.values():
        check_batch_fits(array.shape[stacked] * jax.process_count(), mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, rows)
    return {k: jax.make_array_from_process_local_data(rows, x) for k, x in batch.items()}


def fetch(tree: Any) -> Any:
    """The arrays of `tree` as numpy, whole, on every process. All processes must call it."""

    def one(x):
        whole = not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
        return np.asarray(x) if whole else np.asarray(process_allgather(x, tiled=True))

    return jax.tree.map(one, tree)


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, P]] = RULES) -> Any:
    """A NamedSharding for every array of `tree` (shapes, as from jax.eval_shape), by its path.

    A dimension over 'model' that does not divide stays whole; a dimension over every device must
    divide. An array with fewer dimensions than its rule (a factored moment) stays whole. Raises
    ValueError for a path without a rule, and for a table that does not divide.
    """

    def one(path, leaf):
        name = path_name(path)
        return NamedSharding(mesh, _fit(name, leaf.shape, _rule(name, rules), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def path_name(path: tuple) -> str:
    """A key path joined by '/': params/trunk/block_0/attention/query/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rule(name: str, rules: Sequence[tuple[str, P]]) -> P:
    for pattern, spec in rules:
        if re.fullmatch(pattern, name):
            return spec
    raise ValueError(
        f"no sharding rule covers '{name}'; the rules are {[pattern for pattern, _ in rules]}. "
        "Add one, such as (r'.*/kernel', P()) for a copy on each device."
    )


def _fit(name: str, shape: tuple[int, ...], spec: P, mesh: Mesh) -> P:
    """The rule's spec for the last dimensions of this shape."""
    if len(shape) < len(spec):
        return P()
    lead = len(shape) - len(spec)
    axes = [_axis(name, n, axis, mesh) for n, axis in zip(shape[lead:], spec, strict=True)]
    return P(*[None] * lead, *axes) if any(axes) else P()


def _axis(name: str, size: int, axis: str | tuple[str, ...] | None, mesh: Mesh):
    if axis is None:
        return None
    parts = int(np.prod([mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis)]))
    if size % parts == 0:
        return axis
    if axis == "model":
        return None
    raise ValueError(
        f"'{name}' has {size} rows, which do not divide over {parts} devices: pad it to "
        f"{round_up(size, LANES * parts)} rows (mesh.table_rows) and mask the padding."
    )


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least n."""
    return -(-n // multiple) * multiple


def table_rows(n_items: int, mesh: Mesh | None = None) -> int:
    """Rows of a table of n_items and the padding row: a multiple of 128 a device."""
    return round_up(n_items + 1, LANES * (1 if mesh is None else mesh.size))
