"""Made-up item vectors in clusters of clusters, of any number (numpy only)."""

import numpy as np

FITS = {  # what quantize.py asks of both sides
    "rows": 200_000,
    "width": 64,
    "levels": 3,
    "size": 256,
    "steps": 10,  # of Lloyd's
    "batches": 100,  # of mini-batches
    "batch": 4096,
}


def vectors(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, width]: three levels of 64 centres, each half as wide, and noise."""
    rng = np.random.default_rng(seed)
    x = 0.25 * rng.standard_normal((rows, width), np.float32)
    for level in range(3):
        centres = 0.5**level * rng.standard_normal((64, width), np.float32)
        x += centres[rng.integers(0, 64, rows)]
    return x
