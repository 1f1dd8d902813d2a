"""Image encoders: ViT, DINOv2 and the vision towers of CLIP and SigLIP, at any resolution.

Pixels are float32 [b,h,w,c], normalised as the weights expect. Every encoder returns a dict:
`tokens` [b,l,d], `hidden_states` [layers+1,b,l,d], `pooled`, the vector of the image, and more.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from zoo.encoders.blocks import MLP, Array, EncoderStack, Outputs, attention_mask
from zoo.layers import Attention, init_normal


def bicubic(source: int, target: int, a: float = -0.75) -> np.ndarray:
    """float32[target,source] weights of cubic convolution (Keys 1981), samples at pixel centres.

    Borders repeat and nothing is smoothed when shrinking; jax.image.resize has a = -0.5 and
    smooths, which are other numbers.
    """
    at = (np.arange(target) + 0.5) * source / target - 0.5
    near = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)[None, :]  # target 4
    x = np.abs(at[:, None] - near)
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    weights = np.zeros((target, source), np.float64)
    rows = np.broadcast_to(np.arange(target)[:, None], near.shape)
    np.add.at(weights, (rows, near.clip(0, source - 1)), np.where(x <= 1, inner, outer))
    return weights.astype(np.float32)


def resize_positions(table: Array, grid: tuple[int, int]) -> Array:
    """[h*w,d]: the vectors of a square grid [g*g,d] resampled to `grid`, row by row."""
    side = int(round(table.shape[0] ** 0.5))
    if grid == (side, side):
        return table
    square = table.reshape(side, side, -1)
    rows, columns = jnp.asarray(bicubic(side, grid[0])), jnp.asarray(bicubic(side, grid[1]))
    return jnp.einsum("yh,xw,hwd->yxd", rows, columns, square).reshape(-1, table.shape[1])


def patches(pixels: Array, size: int) -> Array:
    """[b,l,size*size*c]: square patches of [b,h,w,c], row by row; a rest at the edges is left."""
    b, height, width, c = pixels.shape
    if min(height, width) < size:
        raise ValueError(
            f"pixels are {pixels.shape}: expected [b,h,w,c] of at least {size} a side."
        )
    h, w = height // size, width // size
    x = pixels[:, : h * size, : w * size].reshape(b, h, size, w, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * w, size * size * c)


class AttentionPool(nn.Module):
    """SigLIP's head: one learned query reads the tokens; y + MLP(LN y) (Set Transformer's PMA)."""

    heads: int
    inner: int
    activation: str
    epsilon: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        b, length, width = tokens.shape
        query = jnp.broadcast_to(self.param("query", init_normal, (width,)), (b, 1, width))
        attention = Attention(self.heads, dtype=self.dtype, name="attention")
        y = attention(query, tokens, attention_mask(None, length))
        z = nn.LayerNorm(self.epsilon, dtype=jnp.float32, name="norm")(y)
        return (y + MLP(self.inner, self.activation, self.dtype, name="ffn")(z))[:, 0]


class VisionTransformer(nn.Module):
    """ViT (arXiv 2010.11929): patches, a class token, positions, pre-norm blocks, a last LayerNorm.

    image        side of the pictures whose positions are stored; others are interpolated
    class_token  one is put first (all but SigLIP)
    patch_bias, first_norm, tokens_normed   CLIP: no bias, a LayerNorm before the blocks, and the
                 last one for the pooled token alone
    pooling      `cls`, `pooler` (ViT: tanh(W cls + b)), `attention` (SigLIP), `mean` of the patches
    projection   the width of `pooled`, without bias (CLIP), or None
    """

    image: int = 224
    patch: int = 16
    width: int = 768
    stack: EncoderStack = EncoderStack()
    class_token: bool = True
    patch_bias: bool = True
    first_norm: bool = False
    tokens_normed: bool = True
    pooling: str = "cls"
    projection: int | None = None

    def example(self) -> tuple[Array, ...]:
        """Inputs of one black picture."""
        return (jnp.zeros((1, self.image, self.image, 3)),)

    @nn.compact
    def __call__(self, pixels: Array, train: bool = False) -> Outputs:
        """pixels float[b,h,w,c]."""
        epsilon = self.stack.epsilon
        x = self._embed(pixels)
        if self.first_norm:
            x = nn.LayerNorm(epsilon, dtype=jnp.float32, name="first_norm")(x)
        x, states = self.stack(x, attention_mask(None, x.shape[1]), train)
        normed = nn.LayerNorm(epsilon, dtype=jnp.float32, name="norm")(x)
        out = {"tokens": normed if self.tokens_normed else x, "hidden_states": states}
        out["unprojected"] = out["pooled"] = self._pool(normed)
        if self.projection is not None:
            project = nn.Dense(self.projection, use_bias=False, name="projection")
            out["pooled"] = project(out["unprojected"])
        return out

    def _embed(self, pixels: Array) -> Array:
        first, side = int(self.class_token), self.image // self.patch
        project = nn.Dense(
            self.width, use_bias=self.patch_bias, dtype=self.stack.dtype, name="patches"
        )
        x = project(patches(pixels, self.patch))
        table = self.param("positions", init_normal, (first + side * side, self.width))
        grid = (pixels.shape[1] // self.patch, pixels.shape[2] // self.patch)
        x = x + resize_positions(table[first:], grid)[None]
        if self.class_token:
            cls = self.param("cls", init_normal, (self.width,)) + table[0]
            x = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, self.width)), x], axis=1)
        return x

    def _pool(self, tokens: Array) -> Array:
        """[b,d] of the normed tokens."""
        if self.pooling == "attention":
            s = self.stack
            pool = AttentionPool(s.heads, s.inner, s.activation, s.epsilon, s.dtype, name="pool")
            return pool(tokens)
        if self.pooling == "mean":
            return tokens[:, int(self.class_token) :].mean(1)
        if self.pooling not in ("cls", "pooler") or not self.class_token:
            raise ValueError(
                f"pooling={self.pooling!r} with class_token={self.class_token}: choose attention "
                "or mean, or with a class token cls or pooler."
            )
        if self.pooling == "pooler":
            return jnp.tanh(nn.Dense(self.width, name="pooler")(tokens[:, 0]))
        return tokens[:, 0]
