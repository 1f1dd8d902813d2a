"""Small maps on histories: cut into windows, pack several in a row."""

import numpy as np

from pipelines.schema import Ragged


def windows(histories: Ragged, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut each history of n items into stretches of at most `length` (input, next item) pairs.

    Windows are aligned to the end of the history, so the newest one is full and every pair is
    used once. Returns (user, start in histories.values, pairs), int64 [w] each.
    """
    pairs = np.maximum(histories.lengths - 1, 0)
    count = -(-pairs // length)
    user = np.repeat(np.arange(len(histories)), count)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)  # 0 = oldest
    first = pairs[user] - (count[user] - 1) * length  # the oldest window takes the rest
    size = np.where(nth == 0, first, length)
    start = histories.offsets[:-1][user] + np.where(nth == 0, 0, first + (nth - 1) * length)
    return user, start, size


def best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put each size, in order, into the fullest row that still holds it.

    Returns (row, column, nth in its row), int64 [w] each.
    """
    free: list[list[int]] = [[] for _ in range(length + 1)]  # rows by space left
    row, column, nth = (np.zeros(len(sizes), np.int64) for _ in range(3))
    held: list[int] = []
    for i, size in enumerate(sizes.tolist()):
        room = next((r for r in range(size, length + 1) if free[r]), None)
        if room is None:
            room, target = length, len(held)
            held.append(0)
        else:
            target = free[room].pop()
        row[i], column[i], nth[i] = target, length - room, held[target]
        held[target] += 1
        free[room - size].append(target)
    return row, column, nth


def pack(
    histories: Ragged, length: int, align: str = "left", seed: int = 0
) -> dict[str, np.ndarray]:
    """Histories to rows of `length` columns with segment ids: SEQUENCE_KEYS, int32 [rows, length].

    Positions count from the window's first item (`left`) or so that its last item stands at
    length-1 (`right`, as a left-padded window has it).
    """
    user, start, size = windows(histories, length)
    order = np.random.default_rng(seed).permutation(len(user))
    user, start, size = user[order], start[order], size[order]
    row, column, nth = best_fit(size, length)
    rows = int(row.max()) + 1 if len(row) else 0
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    place = np.repeat(row * length + column, size) + within
    source = np.repeat(start, size) + within
    shift = np.repeat(length - size, size) if align == "right" else 0
    columns = {
        "items": histories.values[source],
        "targets": histories.values[source + 1],
        "segments": np.repeat(nth + 1, size),
        "positions": within + shift,
        "users": np.repeat(user, size),
    }
    out = {key: np.zeros(rows * length, np.int32) for key in columns}
    for key, values in columns.items():
        out[key][place] = values
    return {key: values.reshape(rows, length) for key, values in out.items()}
