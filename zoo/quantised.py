"""What a fitted quantiser makes of vectors: their codes, and how near the last level's others are.

The same for the items it was fitted on (tokenize.py) and for those that come later
(append_codes.py).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from zoo import quantize
from zoo.kmeans import squared_distances
from zoo.mesh import path_name
from zoo.rqvae import RQVAE, nested


class Quantised(NamedTuple):
    """What a method made of vectors [n,d]."""

    codes: np.ndarray  # int32 n c, collisions and all
    decoded: np.ndarray  # n d, what the codes stand for
    apart: np.ndarray  # n v, squared distances of what is left to the last level's rows
    arrays: dict[str, np.ndarray]  # what encodes new items


def by_codebooks(fitted: quantize.Quantiser, x: np.ndarray) -> Quantised:
    """By the sum of rows of codebooks, which residual and product quantisation both are."""
    codes = quantize.encode(fitted, x)
    apart = quantize.last_distances(quantize.standard(fitted, x), codes, fitted.codebooks)
    codes, decoded, apart = map(np.asarray, (codes, quantize.decode(fitted, codes), apart))
    return Quantised(codes, decoded, apart, fitted._asdict())


def by_rqvae(
    module: RQVAE, params: Any, shift: np.ndarray, scale: np.ndarray, x: np.ndarray
) -> Quantised:
    """By an RQ-VAE of columns less `shift` over `scale` (each [d])."""
    z = ((x - shift) / scale).astype(np.float32)
    made = jax.device_get(jax.jit(module.apply)({"params": params}, z))
    apart = np.asarray(squared_distances(made["residuals"][:, -1], params["codebooks"][-1]))
    named = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    arrays = {"shift": shift, "scale": scale, **{path_name(path): leaf for path, leaf in named}}
    return Quantised(made["codes"], made["x_hat"] * scale + shift, apart, arrays)


def again(
    arrays: dict[str, np.ndarray], hidden: tuple[int, ...] | None, x: np.ndarray
) -> Quantised:
    """Vectors x [n,d] by what `Quantised.arrays` holds. hidden: of the RQ-VAE; None: it is none."""
    if hidden is None:
        return by_codebooks(quantize.Quantiser(**arrays), x)
    levels, size, width = arrays["codebooks"].shape
    module = RQVAE(x.shape[1], tuple(hidden), width, levels, size)
    params = nested({k: v for k, v in arrays.items() if k not in ("shift", "scale")})
    return by_rqvae(module, params, arrays["shift"], arrays["scale"], x)
