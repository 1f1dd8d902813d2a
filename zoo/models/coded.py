"""Items as the embeddings of their codes: one table a level, few rows for however many items."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.experts import present, read
from zoo.layers import Table
from zoo.models.generative import one_vocabulary
from zoo.names import check

Array = jax.Array
POOLS = ("mean", "sum")


class CodedItems(nn.Module):
    """Mean (or sum) of an embedding a code, for items that have codes; an ID added if `with_id`.

    VQ-Rec's item (Hou et al. 2023, arXiv 2210.12316, eq. 3): `catalogue["codes"]` int32[n,c] are
    digits of a product quantisation of the content, below `codebook`; an item with a digit below
    0 has none.
    """

    width: int = 64
    codebook: int = 256
    with_id: bool = False
    pool: str = "mean"

    def __post_init__(self):
        check(pool=(self.pool, POOLS))
        super().__post_init__()

    def there(self, catalogue: dict, ids: Array | None = None) -> Array:
        """bool[...]: items that have something to be represented by."""
        coded = self._coded(catalogue, ids)
        return coded | present(catalogue, "id", ids) if self.with_id else coded

    @nn.compact
    def __call__(self, catalogue: dict, ids: Array | None = None, train: bool = False) -> Array:
        """Vectors [...,d] of `ids` [...], or of the whole catalogue [n,d]; row 0 is zero."""
        codes = read(_codes(catalogue), ids)  # ... c
        levels = codes.shape[-1]
        books = Table(levels * self.codebook, self.width, name="codes")()
        first = self.codebook * jnp.arange(levels).reshape((1,) * (codes.ndim - 1) + (levels,))
        # An item without codes reads anything, and is masked.
        rows = jnp.take(books, codes + first, axis=0, mode="clip")
        x = jnp.sum(rows, axis=-2) / (levels if self.pool == "mean" else 1)
        x = jnp.where(self._coded(catalogue, ids)[..., None], x, 0)
        if self.with_id:
            table = Table(len(catalogue["valid"]), self.width, name="id")()
            x = x + seen_rows(table, catalogue, ids)
        return x

    @staticmethod
    def _coded(catalogue: dict, ids: Array | None) -> Array:
        has = jnp.all(jnp.asarray(_codes(catalogue)) >= 0, axis=-1)
        return read(catalogue["valid"] & has, ids)


def seen_rows(table: Array, catalogue: dict, ids: Array | None) -> Array:
    """Rows of an ID table, zero for items that training has not seen."""
    return jnp.where(present(catalogue, "id", ids)[..., None], read(table, ids), 0)


def with_one_table(catalogue: dict, parts: int = 1, *, codebook: int) -> dict:
    """The catalogue with one vocabulary's `codes` int32[n,c] in place of all by name."""
    if not isinstance(catalogue.get("codes"), dict):
        return catalogue
    _, codes, _ = one_vocabulary(catalogue)
    if (most := int(codes.max())) >= codebook:
        raise ValueError(
            f"a code is {most} and codebook {codebook}: take --model.codebook {most + 1}."
        )
    return {k: v for k, v in catalogue.items() if k != "sizes"} | {"codes": codes}


def _codes(catalogue: dict) -> Array:
    if "codes" not in catalogue:
        raise ValueError(
            "items as codes read catalogue['codes'], int32[n,c] digits of each item; the "
            f"catalogue has {sorted(catalogue)}. Quantise the content first, or use 'content'."
        )
    return catalogue["codes"]
