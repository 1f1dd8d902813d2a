"""Published weights as our parameters: a name table over safetensors files, both sides checked.

A file from elsewhere is not trusted: safetensors only, so nothing in it can run; the names of
shards stay in the folder; the size of every tensor is compared with ours before it is read.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  numpy learns bfloat16 from it
import numpy as np
from safetensors import SafetensorError, safe_open

from checkpoints.maps import MAPS
from checkpoints.maps.family import Rules

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Transform = Callable[[np.ndarray], np.ndarray]
Put = Callable[[str, np.ndarray], Any]  # (our path, the whole array) -> what is kept of it


class ConvertError(ValueError):
    """Weights that cannot become our parameters. Says what was expected, found, and where."""


class Converted(NamedTuple):
    """The nested dict of arrays, and the published names that a rule leaves out."""

    params: dict[str, Any]
    ignored: tuple[str, ...]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _patch(x: np.ndarray) -> np.ndarray:
    """A convolution over patches [o,c,...k] as a dense layer over flat patches [k*c,o]."""
    return np.moveaxis(x, (0, 1), (-1, -2)).reshape(-1, x.shape[0])


# kind -> what may follow the module's name -> the end of our path, and the transform. torch keeps
# a dense layer as [out,in]; gamma and beta are the names of old releases.
KINDS: dict[str, dict[str, tuple[str, Transform]]] = {
    "dense": {r"[._]weight": ("/kernel", np.transpose), r"[._]bias": ("/bias", _same)},
    "norm": {r"\.(?:weight|gamma)": ("/scale", _same), r"\.(?:bias|beta)": ("/bias", _same)},
    "table": {r"\.weight": ("/table", _same)},
    "patch": {r"\.weight": ("/kernel", _patch), r"\.bias": ("/bias", _same)},
    "array": {"": ("", np.squeeze)},  # [1,1,d] is d
    "any": {"": ("", _same)},
    "zeros": {},  # no tensor: fills what the source does without
}


def rules_of(model_type: str) -> Rules:
    """The table of a `model_type` in config.json. Raises ConvertError naming those there are."""
    if not isinstance(model_type, str) or model_type not in MAPS:
        raise ConvertError(
            f"no name table for model_type {model_type!r}; there are {', '.join(sorted(MAPS))}. "
            "A table is one file in checkpoints/maps."
        )
    return MAPS[model_type]


def _kept(path: str, x: np.ndarray) -> np.ndarray:
    return x


def convert(
    folder: str | Path, rules: Rules, shapes: Mapping[str, Any], put: Put | None = None
) -> Converted:
    """Our parameters from the weights in `folder`, tensor by tensor: one copy in memory.

    Args:
      folder: holds model.safetensors, or model.safetensors.index.json and its shards.
      rules: the table of the source (`rules_of`).
      shapes: nested dict of leaves with `shape` and `dtype`, as jax.eval_shape gives it. Where it
        has `blocks` (one array for all layers) for a rule's `block_3`, row 3 is filled.
      put: where a parameter goes as soon as it is whole, onto devices for example: the host then
        holds only what is still being filled. None: all stay numpy.

    Raises ConvertError that lists, all at once, the published tensors without a rule, those
    without a place among `shapes`, those of another shape, and our parameters that nothing fills.
    """
    filling, ignored = _Filling(dict(_leaves(shapes)), put or _kept), []
    for shard, names in _shards(Path(folder)).items():
        with _opened(shard) as file:
            for name in names:
                found = destinations(name, rules)
                if found is None:
                    filling.faults.append(f"{name}: published, no rule uses it")
                elif not found[0]:
                    ignored.append(name)
                else:
                    filling.take(name, file, *found)
    filling.zero([to for _, to, kind in rules if kind == "zeros"])
    sides = filling.faults, filling.unfilled()
    if any(sides):
        raise ConvertError(
            f"{folder}: {len(sides[0])} of its tensors and {len(sides[1])} of our parameters do "
            "not match:\n  "
            + "\n  ".join(line for side in sides for line in _some(side))
            + "\nIs config.json that of these weights? Else the table in checkpoints/maps lacks "
            "a rule."
        )
    return Converted(_nested(filling.arrays), tuple(ignored))


def _some(lines: list[str], most: int = 20) -> list[str]:
    """The first ones, and how many more there are."""
    return lines[:most] + [f"... and {len(lines) - most} more"] * (len(lines) > most)


def destinations(name: str, rules: Rules) -> tuple[tuple[str, ...], Transform] | None:
    """Our paths for a published tensor and its transform; no path: left out; None: no rule."""
    for pattern, to, kind in rules:
        for end, (leaf, transform) in KINDS[kind].items():
            if match := re.fullmatch(f"{pattern}{end}", name):
                paths = (to,) if isinstance(to, str) else to or ()
                return tuple(match.expand(path) + leaf for path in paths), transform
    return None


def tensor_names(folder: str | Path) -> list[str]:
    """The published names in a folder of weights, without reading them. Raises ConvertError."""
    return sorted(name for names in _shards(Path(folder)).values() for name in names)


@dataclass
class _Filling:
    """Our arrays while they are filled; `rows` says which layers of a stacked one are there."""

    want: dict[str, Any]
    put: Put
    arrays: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, set[int]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def take(self, name: str, file: Any, paths: tuple[str, ...], transform: Transform) -> None:
        """Read one published tensor into its places, unless the sizes say it has none."""
        shape = tuple(file.get_slice(name).get_shape())
        places = [self._place(path) for path in paths]
        lost = [path for path, place in zip(paths, places, strict=True) if place is None]
        if lost:
            self.faults.append(f"{name} {shape}: published, but the model has no {lost[0]}")
        elif math.prod(shape) != sum(math.prod(shape_of) for _, _, shape_of in places):
            self.faults.append(f"{name} {shape}: published, ours {_said(places)}")
        else:
            whole = file.get_tensor(name)
            parts = [whole] if len(places) == 1 else np.split(whole, len(places))
            for part, place in zip(parts, places, strict=True):
                self._put(name, transform(part), *place)

    def _place(self, path: str) -> tuple[str, int | None, tuple[int, ...]] | None:
        """(path, layer, shape) of ours, the layer None where layers are not stacked."""
        if path in self.want:
            return path, None, tuple(self.want[path].shape)
        layer = re.search(r"/block_(\d+)/", path)
        stacked = re.sub(r"/block_\d+/", "/blocks/", path)
        if layer is None or stacked not in self.want:
            return None
        shape = tuple(self.want[stacked].shape)
        return (stacked, int(layer[1]), shape[1:]) if int(layer[1]) < shape[0] else None

    def _put(self, name: str, x: np.ndarray, path: str, layer: int | None, shape: tuple) -> None:
        squeezed = tuple(n for n in shape if n != 1)
        if x.shape != shape and (x.shape != squeezed or len(squeezed) == len(shape)):
            self.faults.append(f"{name}: published {x.shape} once transposed, {path} is {shape}")
            return
        if (layer or 0) in self.rows.setdefault(path, set()):
            self.faults.append(f"{name}: published, but {path} is filled already")
            return
        self.rows[path].add(layer or 0)
        if path not in self.arrays:
            self.arrays[path] = np.empty(self.want[path].shape, self.want[path].dtype)
        self.arrays[path][... if layer is None else layer] = x.reshape(shape)
        if len(self.rows[path]) == self._layers(path):
            self.arrays[path] = self.put(path, self.arrays[path])

    def _layers(self, path: str) -> int:
        """Of how many parts a parameter is filled."""
        return self.want[path].shape[0] if "/blocks/" in path else 1

    def zero(self, patterns: list[str]) -> None:
        """Fill with zeros what no tensor filled and a pattern names."""
        for path, leaf in self.want.items():
            if path not in self.rows and any(re.fullmatch(one, path) for one in patterns):
                self.arrays[path] = self.put(path, np.zeros(leaf.shape, leaf.dtype))
                self.rows[path] = set(range(self._layers(path)))

    def unfilled(self) -> list[str]:
        """A line for each of our parameters that is empty, or has layers that are."""
        lines = []
        for path, leaf in self.want.items():
            there, layers = len(self.rows.get(path, ())), self._layers(path)
            if there < layers:
                lines.append(f"{path} {tuple(leaf.shape)}: ours, {there} of {layers} filled")
        return lines


def _said(places: list[tuple[str, int | None, tuple[int, ...]]]) -> str:
    return ", ".join(f"{path} {shape}" for path, _, shape in places)


def _shards(folder: Path) -> dict[Path, list[str]]:
    """The files of weights and the names in each, in the order of the file."""
    if (folder / WEIGHTS).is_file():
        with _opened(folder / WEIGHTS) as file:
            return {folder / WEIGHTS: sorted(file.keys())}
    if not (folder / INDEX).is_file():
        raise ConvertError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}: expected weights as safetensors. "
            "Other formats can run code when they are read; convert them where you trust them."
        )
    shards: dict[Path, list[str]] = {}
    for name, file in sorted(_weight_map(folder / INDEX).items()):
        if not isinstance(file, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
            raise ConvertError(f"{folder / INDEX}: {name} is in {file!r}: expected a file here.")
        shards.setdefault(folder / file, []).append(name)
    for shard, names in shards.items():
        _check_shard(shard, names)
    return shards


def _weight_map(index: Path) -> dict[str, Any]:
    try:
        table = json.loads(index.read_bytes())["weight_map"]
        return dict(table.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConvertError(f"{index}: expected JSON with a weight_map, found {error!r}.") from error


def _check_shard(shard: Path, names: list[str]) -> None:
    with _opened(shard) as file:
        there = set(file.keys())
    if there != set(names):
        odd = sorted(there ^ set(names))
        raise ConvertError(
            f"{shard}: the index and the shard differ in {len(odd)} tensors: {odd[:3]}. "
            "Fetch the weights again."
        )


def _opened(path: Path) -> Any:
    """An open safetensors file; the library checks that its header fits its size."""
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ConvertError(
            f"{path}: expected a whole safetensors file: {error}. Fetch the weights again."
        ) from error


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return tree
