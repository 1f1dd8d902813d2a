"""What benchmarks/reach.py counts as a hit where papers compare the strings of codes."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from reach import alike  # noqa: E402


def by_hand(codes: np.ndarray) -> list[int]:
    """The same by following every chain of items that share a string in one vocabulary."""
    group = list(range(len(codes)))
    for _ in codes:
        for i, a in enumerate(codes):
            for j, b in enumerate(codes):
                if any(np.array_equal(x, y) for x, y in zip(a, b, strict=True)):
                    group[i] = group[j] = min(group[i], group[j])
    return group


def test_items_of_one_string_are_one():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one = rng.integers(0, 3, (12, 2))
        assert alike(one).tolist() == by_hand(one[:, None])
        two = rng.integers(0, 4, (9, 2, 2))
        assert alike(two).tolist() == by_hand(two)
    apart = np.arange(10).reshape(5, 2)
    assert alike(apart).tolist() == list(range(5))
