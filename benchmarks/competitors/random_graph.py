"""Interactions of a made-up world with long tails on both sides, of any size (numpy only)."""

import numpy as np

SIZES = {  # users, items, train interactions
    "tiktok": (9_308, 6_710, 59_541),
    "sports": (35_598, 18_357, 218_409),
    "million": (1_000_000, 1_000_000, 20_000_000),
}
WIDTHS = {"image": 128, "text": 768}  # features of an item


def interactions(users: int, items: int, edges: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(users, items) int32 [edges], numbered from 1, each pair once, in random order.

    Activity of users falls like rank^-0.4, popularity of items like rank^-0.7.
    """
    rng = np.random.default_rng(seed)
    named = rng.permutation(users), rng.permutation(items)  # rank -> number
    keys = np.zeros(0, np.int64)
    while len(keys) < edges:
        more = int(1.2 * (edges - len(keys))) + 100
        u = named[0][(users * rng.random(more) ** (1 / (1 - 0.4))).astype(np.int64)]
        i = named[1][(items * rng.random(more) ** (1 / (1 - 0.7))).astype(np.int64)]
        keys = np.sort(np.concatenate([keys, u * np.int64(items) + i]))
        keys = keys[np.append(True, keys[1:] != keys[:-1])]
    rng.shuffle(keys)
    u, i = np.divmod(keys[:edges], items)
    return (u + 1).astype(np.int32), (i + 1).astype(np.int32)


def features(items: int, seed: int = 0) -> dict[str, np.ndarray]:
    """{modality: float32 [items, width]}, standard normal."""
    rng = np.random.default_rng(seed)
    return {m: rng.standard_normal((items, width), np.float32) for m, width in WIDTHS.items()}
