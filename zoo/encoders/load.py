"""A published encoder from its folder: config.json, safetensors, and the functions to call."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from checkpoints.convert import convert, rules_of, tensor_names
from checkpoints.hub import encoder_folder
from zoo import mesh as meshes
from zoo.encoders.published import towers
from zoo.names import unknown

Array = jax.Array
Outputs = dict[str, Array]


class Encoder(NamedTuple):
    """Towers by modality, and their parameters under the same names.

    apply["text"](params, ids int[b,l], mask bool[b,l])
    apply["image"](params, pixels float[b,h,w,c])
    apply["audio"](params, mel float[b,time,bands] or, of Wav2Vec2, wave float[b,samples])
    apply["video"](params, pixels float[b,t,h,w,c])

    return the dict of what the tower computes, `pooled` [b,d] in it. Pure functions: jit, grad
    and adaptation by parameter names work on them. `params` of CLIP and SigLIP also has
    logit_scale (its logarithm) and of SigLIP logit_bias.
    """

    modules: dict[str, Any]
    params: dict[str, Any]
    config: dict[str, Any]
    apply: dict[str, Callable[..., Outputs]]


def encoder(
    path: str | Path, revision: str | None = None, mesh: Mesh | None = None, **stack: Any
) -> Encoder:
    """The encoder in a folder of config.json and safetensors, as Hugging Face lays it out, or in
    its repository "owner/name" there, at `revision` (a branch, tag or commit).

    `stack` are fields of EncoderStack: dtype, dropout, scan, remat. Parameters are float32: numpy
    arrays, or, with a mesh, on its devices by the rules of mesh.py, each as soon as it is read.
    Pooling and unit length are those of modules.json where the folder has one (Sentence
    Transformers). Raises ValueError naming the file, what was expected and what was found.
    """
    folder = encoder_folder(path, revision)
    config = read_config(folder)
    rules = rules_of(config.get("model_type"))
    head = any(re.search(r"pooler\.dense|fc_norm", name) for name in tensor_names(folder))
    try:
        modules = towers(config, head=head, **stack)
        modules = {name: one.clone(**sentence_fields(folder)) for name, one in modules.items()}
        wanted = shapes(modules)
    except (KeyError, TypeError, AttributeError, ArithmeticError, IndexError) as error:
        raise ValueError(
            f"{folder}/config.json does not describe a {config['model_type']}: {error!r}. Expected "
            "the fields that Hugging Face writes for it, whole numbers as sizes, heads that divide "
            "the width. Fetch it again."
        ) from error
    params = convert(folder, rules, wanted, mesh and onto(mesh, wanted)).params
    return Encoder(modules, params, config, {m: _apply(m, one) for m, one in modules.items()})


def onto(mesh: Mesh, wanted: Any) -> Callable[[str, np.ndarray], Array]:
    """What puts a parameter of the tree `wanted` onto the mesh: (its path, the array) -> Array."""
    paths = jax.tree_util.tree_leaves_with_path(meshes.shardings(wanted, mesh))
    places = {meshes.path_name(path): place for path, place in paths}
    return lambda path, x: jax.make_array_from_callback(x.shape, places[path], lambda at: x[at])


def which(known: Iterable[str], modality: str | None, folder: Path) -> str:
    """The modality that is asked for; None: the only one there, else text. ValueError: unknown."""
    known = list(known)
    modality = modality or (known[0] if len(known) == 1 else "text")
    if modality not in known:
        raise unknown(f"{folder} has no tower for the modality", modality, known)
    return modality


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json. Raises ValueError naming the file."""
    if not (folder / "config.json").is_file():
        found = "holds no config.json" if folder.is_dir() else "is no folder here"
        raise ValueError(f"{folder} {found}: expected a folder of a published model.")
    return read_json(folder / "config.json")


def sentence_fields(folder: Path) -> dict[str, Any]:
    """`pooling` and `normalize` of Bert as modules.json has them; {} without that file.

    Raises ValueError for what Bert does not have: another pooling, or a layer behind it.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in read_json(file, list)]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(f"{file}: Transformer, Pooling and Normalize are supported, not {kinds}.")
    modes = read_json(folder / "1_Pooling" / "config.json")
    chosen = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(chosen) != 1 or chosen[0] not in known:
        raise ValueError(f"{folder}/1_Pooling/config.json: one of {list(known)}, not {chosen}.")
    return {"pooling": known[chosen[0]], "normalize": "Normalize" in kinds}


def read_json(file: Path, kind: type = dict) -> Any:
    """The JSON object (or another kind) in a file. Raises ValueError naming the file."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON: {error}. Fetch it again.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{file}: expected a JSON {kind.__name__}, found {type(value).__name__}.")
    return value


def shapes(modules: dict[str, Any]) -> dict[str, Any]:
    """The parameters' shapes of towers, and of the scale of CLIP and SigLIP, without computing."""
    tree = {name: _shapes(module) for name, module in modules.items()}
    if len(modules) > 1:
        names = ["logit_scale"] + ["logit_bias"] * modules["text"].projection_bias
        tree |= {name: jax.ShapeDtypeStruct((), jnp.float32) for name in names}
    return tree


def _shapes(module: Any) -> dict[str, Any]:
    return jax.eval_shape(module.init, jax.random.key(0), *module.example())["params"]


def _apply(modality: str, module: Any) -> Callable[..., Outputs]:
    def apply(params: Any, *inputs: Array, **options: Any) -> Outputs:
        return module.apply({"params": params[modality]}, *inputs, **options)

    return apply
