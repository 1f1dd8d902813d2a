"""A made-up catalogue spelled in codes, histories, and a random T5, by its names (numpy only).

Both sides of decode.py make them from the same seed, so that their lists can be compared.
"""

import numpy as np

LEVELS, SIZE = 4, 256
START, PAD = LEVELS * SIZE, LEVELS * SIZE + 1  # tokens behind those of the codes
SHAPE = {"width": 128, "layers": 4, "heads": 6, "head_width": 64, "inner": 1024}
BUCKETS = 32


def codes(items: int, seed: int = 0) -> np.ndarray:
    """int32 [items, LEVELS], all rows different; a code's share of its level falls like
    rank^-0.5, so that prefixes branch as widely as those of learnt codes."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((0, LEVELS), np.int32)
    while len(rows) < items:
        more = (SIZE * rng.random((items + 1000, LEVELS)) ** 2).astype(np.int32)
        rows = np.unique(np.concatenate([rows, more]), axis=0)
    return rng.permutation(rows)[:items]


def histories(users: int, items: int, length: int, seed: int = 1) -> np.ndarray:
    """int32 [users, length]: items numbered from 1."""
    shape = (users, length)
    return np.random.default_rng(seed).integers(1, items + 1, shape, np.int32)


def weights(seed: int = 2) -> dict[str, np.ndarray]:
    """float32 arrays by the names that T5 checkpoints use; variances as T5 starts with."""
    rng = np.random.default_rng(seed)
    d, h, e = SHAPE["width"], SHAPE["heads"], SHAPE["head_width"]
    found = {"shared.weight": rng.normal(size=(PAD + 1, d))}

    def attention(name: str) -> None:
        for key, variance in {"q": 1 / (d * e), "k": 1 / d, "v": 1 / d}.items():
            found[f"{name}.{key}.weight"] = rng.normal(0, variance**0.5, (h * e, d))
        found[f"{name}.o.weight"] = rng.normal(0, (h * e) ** -0.5, (d, h * e))

    for stack, parts in {"encoder": ("Self",), "decoder": ("Self", "EncDec")}.items():
        for block in range(SHAPE["layers"]):
            at = f"{stack}.block.{block}.layer"
            for i, part in enumerate(parts):
                attention(f"{at}.{i}.{part}Attention")
            inner, ffn = SHAPE["inner"], f"{at}.{len(parts)}.DenseReluDense"
            found[f"{ffn}.wi.weight"] = rng.normal(0, d**-0.5, (inner, d))
            found[f"{ffn}.wo.weight"] = rng.normal(0, inner**-0.5, (d, inner))
            for i in range(len(parts) + 1):
                found[f"{at}.{i}.layer_norm.weight"] = np.ones(d)
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[bias] = rng.normal(0, d**-0.5, (BUCKETS, h))
        found[f"{stack}.final_layer_norm.weight"] = np.ones(d)
    return {name: array.astype(np.float32) for name, array in found.items()}
