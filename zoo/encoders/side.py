"""A side network: a small one beside the layers of an encoder that is never run again.

IISAN (Fu et al. 2024, arXiv 2404.02059): the hidden states of a frozen encoder are kept once, one
vector a layer, and a gated sum climbs them,

    s_l = μ_l Side_l(LN h_l) + (1 - μ_l) s_{l-1},   μ_l = σ(a learned number),   s_{-1} = 0
    Side_l(h) = h + W_up GELU(W_down h + b),     W_up = 0 at the start

so nothing is propagated back through the encoder, and a step costs what its few rows cost.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.end_to_end import ContentEncoder

Array = jax.Array
BOTTLENECK = 64


class SideNetwork(nn.Module):
    """Vectors [b,width] of kept states [b,k,d]: the sum above, mapped to `width`."""

    width: int
    bottleneck: int = BOTTLENECK

    @nn.compact
    def __call__(self, states: Array) -> Array:
        x = states.astype(jnp.float32)
        gates = jax.nn.sigmoid(self.param("gates", nn.initializers.zeros, (x.shape[1],)))
        zero = nn.initializers.zeros
        total = jnp.zeros_like(x[:, 0])
        for i in range(x.shape[1]):
            h = nn.LayerNorm(use_bias=False, use_scale=False, name=f"norm_{i}")(x[:, i])
            y = nn.gelu(nn.Dense(self.bottleneck, name=f"down_{i}")(h))
            h = h + nn.Dense(h.shape[-1], use_bias=False, kernel_init=zero, name=f"up_{i}")(y)
            total = gates[i] * h + (1 - gates[i]) * total
        out = nn.Dense(self.width, name="out")(total)
        return nn.LayerNorm(use_bias=False, use_scale=False, name="norm")(out)


def side_encoder(shape: tuple[int, ...], width: int) -> ContentEncoder:
    """Of raw float [n,k,d], shape (k, d): `zoo embed --pooling layers` makes them."""
    if len(shape) != 2:
        raise ValueError(
            f"a side network reads one vector a layer, [items, layers, width]; found rows {shape}. "
            "Make them with zoo embed --pooling layers."
        )
    module = SideNetwork(width)

    def init(key: Array, raw: Array) -> Any:
        return module.init(key, raw)["params"]

    def apply(params: Any, raw: Array, key: Array | None) -> Array:
        del key
        return module.apply({"params": params}, raw)

    return ContentEncoder(init, apply, width)
