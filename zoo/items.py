"""One item representation for all models: ID, content features or both; the missing is masked.

An item is a set of modalities, and its ID is one of them: present for items that training has
seen, absent for cold ones, so that a cold item is represented by its content alone.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.layers import Table
from zoo.names import check

Array = jax.Array
SOURCES, FUSES = ("id", "content", "both"), ("sum", "gate")
# From standardised features to vectors of the size of an ID row (sd 0.02): a usual kernel makes
# them fifty times as large, which drowns the ID and saturates the softmax at the first step.
init_content = nn.initializers.variance_scaling(0.02**2, "fan_in", "normal")


class Items(nn.Module):
    """Item ids to vectors. sources: `id`, `content` or `both`; fuse: `sum` or `gate`.

    `modality_dropout` hides each modality (the ID included) of each item with this probability
    while training, unless it is the item's last one.
    """

    width: int = 64
    sources: str = "id"
    modalities: tuple[str, ...] | None = None  # None: all that the catalogue has
    fuse: str = "sum"
    hidden: int = 0  # 0: a linear map from features; else one hidden layer of this width
    modality_dropout: float = 0.0

    def __post_init__(self):
        check(items=(self.sources, SOURCES), fuse=(self.fuse, FUSES))
        super().__post_init__()

    def names(self, catalogue: dict) -> tuple[str, ...]:
        """The modalities this module reads, in order."""
        has = sorted(catalogue.get("features", {}))
        wanted = tuple(has) if self.modalities is None else self.modalities
        absent = [m for m in wanted if m not in has]
        if self.sources != "id" and (absent or not wanted):
            raise ValueError(
                f"items='{self.sources}' needs content features "
                f"{list(wanted) or '(any)'}; the catalogue has {has}. "
                "Add features to the data or use items='id'."
            )
        content = () if self.sources == "id" else wanted
        return content if self.sources == "content" else ("id", *content)

    @nn.compact
    def __call__(self, catalogue: dict, ids: Array | None = None, train: bool = False) -> Array:
        """Vectors [..., d] of `ids` [...], or of the whole catalogue [n,d]; row 0 is zero."""
        names = self.names(catalogue)
        take = (lambda x: x) if ids is None else (lambda x: jnp.take(x, ids, axis=0))
        parts = {name: self._part(name, catalogue, take) for name in names}
        present = {name: self._present(name, catalogue, take) for name in names}
        if train and self.modality_dropout > 0 and len(names) > 1:
            present = self._hide(present)
        return self._fuse(parts, present)

    def _part(self, name: str, catalogue: dict, take) -> Array:
        if name == "id":
            return take(Table(len(catalogue["valid"]), self.width, name="id")())
        x = take(catalogue["features"][name]).astype(jnp.float32)
        if self.hidden:
            x = nn.gelu(nn.Dense(self.hidden, name=f"{name}_in")(x))
        return nn.Dense(self.width, use_bias=False, kernel_init=init_content, name=name)(x)

    @staticmethod
    def _present(name: str, catalogue: dict, take) -> Array:
        if name == "id":
            return take(catalogue["valid"] & (catalogue["popularity"] > 0))
        return take(catalogue["valid"] & catalogue["present"][name])

    def _hide(self, present: dict[str, Array]) -> dict[str, Array]:
        keys = jax.random.split(self.make_rng("dropout"), len(present))
        kept = {
            name: p & jax.random.bernoulli(key, 1 - self.modality_dropout, p.shape)
            for key, (name, p) in zip(keys, present.items(), strict=True)
        }
        any_kept = jnp.any(jnp.stack(list(kept.values())), axis=0)
        return {name: jnp.where(any_kept, kept[name], p) for name, p in present.items()}

    def _fuse(self, parts: dict[str, Array], present: dict[str, Array]) -> Array:
        mask = jnp.stack(list(present.values()), axis=-1)  # ... m
        x = jnp.stack(list(parts.values()), axis=-2)  # ... m d
        if self.fuse == "gate":
            logits = nn.Dense(1, name="gate")(x)[..., 0]
            weights = jax.nn.softmax(jnp.where(mask, logits, -1e9)) * mask
        else:
            weights = mask.astype(x.dtype)
        return jnp.einsum("...m,...md->...d", weights, x)
