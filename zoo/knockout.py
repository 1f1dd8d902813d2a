"""Take a modality away from a trained model: what does it lose?"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from zoo.mesh import path_name
from zoo.recommender import Catalogue, Params


def knock_out(catalogue: Catalogue, modality: str, how: str = "zero", seed: int = 0) -> Catalogue:
    """The catalogue without what a modality says: what does the model lose, untrained for it?

    how `zero`: features 0 and absent everywhere; `permute`: features, with their presence and, of
    several rows an item, the mask of these, dealt anew among the valid items. Raises ValueError
    for an unknown modality or way.
    """
    features = catalogue.get("features", {})
    if modality not in features:
        raise ValueError(f"no modality '{modality}' to knock out; there are {sorted(features)}.")
    x, here = np.asarray(features[modality]), np.asarray(catalogue["present"][modality])
    rows = dict(catalogue.get("rows", {}))
    if how == "zero":
        x, here = np.zeros_like(x), np.zeros_like(here)
    elif how == "permute":
        ids = np.flatnonzero(np.asarray(catalogue["valid"]))
        order = np.arange(len(x))
        order[ids] = np.random.default_rng(seed).permutation(ids)
        x, here = x[order], here[order]
        rows |= {modality: np.asarray(rows[modality])[order]} if modality in rows else {}
    else:
        raise ValueError(f"how is '{how}'; expected 'zero' or 'permute'.")
    return {
        **catalogue,
        "features": {**features, modality: x},
        "present": {**catalogue["present"], modality: here},
        **({"rows": rows} if rows else {}),
    }


def knock_out_parameters(params: Params, pattern: str) -> Params:
    """`params` with every array at 0 whose path matches, such as r"items/id/table" for the IDs.

    Raises ValueError when no path matches the regex in full.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    hit = [bool(re.fullmatch(pattern, name)) for name in names]
    if not any(hit):
        raise ValueError(f"no parameter matches '{pattern}'; there are {', '.join(names)}.")
    leaves, tree = jax.tree.flatten(params)
    zeroed = [jnp.zeros_like(x) if h else x for x, h in zip(leaves, hit, strict=True)]
    return jax.tree.unflatten(tree, zeroed)
