"""Histories to training rows: cut into segments by a scheme, several packed in a row."""

import numpy as np

from pipelines.schema import DataError, Ragged, seconds

ALIGN = ("left", "right")
SCHEMES = ("next", "last", "cloze", "rest", "whole")  # schema.py says what each one means
ONE_TARGET = ("last", "rest", "whole")  # one a segment, not one a column


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


def prefixes(histories: Ragged, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every prefix that something followed, of at most the `length` newest items; as `windows`."""
    pairs = np.maximum(histories.lengths - 1, 0)
    user = np.repeat(np.arange(len(histories)), pairs)
    whole = np.arange(1, len(user) + 1) - np.repeat(np.cumsum(pairs) - pairs, pairs)
    size = np.minimum(whole, length)
    return user, histories.offsets[:-1][user] + whole - size, size


def others(histories: Ragged, length: int, itself: bool = False) -> tuple[np.ndarray, ...]:
    """For every item of every history of two or more, the other items (and `itself`), the `length`
    newest.

    Returns (user, start, size, target), int64 [w] each; target: where the item itself stands in
    histories.values. A segment is the `size` values from start on, counted without the target
    unless `itself` is asked for.
    """
    n = histories.lengths * (histories.lengths > 1)
    user = np.repeat(np.arange(len(histories)), n)
    first = histories.offsets[:-1][user]
    target = first + np.arange(len(user)) - np.repeat(np.cumsum(n) - n, n)
    room = n[user] - (not itself)
    size = np.minimum(room, length)
    return user, first + room - size, size, target


def best_fit(
    sizes: np.ndarray, length: int, most: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put each size, in order, into the fullest row that still holds it and fewer than `most`.

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
        if most is None or held[target] < most:
            free[room - size].append(target)
    return row, column, nth


class Packed:
    """Histories in rows of `length` columns with segment ids; rows are made when asked for.

    schema.py says what a row holds. `align` counts positions from the segment's first item
    (`left`) or so that its last one stands at `length` - 1 (`right`: as in a left-padded window).
    Of segments cut to `length`, those of more than `above` and at most `width` stand in rows of
    `width` columns; None: all of them. Raises DataError for an unknown scheme.
    """

    def __init__(
        self,
        histories: Ragged,
        length: int,
        scheme: str = "next",
        align: str = "left",
        seed: int = 0,
        width: int | None = None,
        above: int = 0,
    ):
        if scheme not in SCHEMES:
            raise DataError(f"scheme is '{scheme}'; expected one of {', '.join(SCHEMES)}.")
        if align not in ALIGN:
            raise DataError(f"align is '{align}'; expected one of {', '.join(ALIGN)}.")
        self.histories, self.length, self.window = histories, length, length
        self.scheme, self.right = scheme, align == "right"
        segments = self._segments()
        if width is not None:
            some = (segments[2] > above) & (segments[2] <= width)
            segments = tuple(x[some] for x in segments)
            self.length = length = width
        user, start, size, target = segments
        order = np.random.default_rng(seed).permutation(len(user))
        user, start, size, self.target = user[order], start[order], size[order], target[order]
        self.most = self._most(size)
        row, column, nth = best_fit(size, length, self.most)
        starts = np.concatenate([[0], np.cumsum(np.bincount(row))])
        starts = np.append(starts, starts[-1])  # the last row is empty: row -1 of `take`
        self._held = Ragged(np.argsort(row, kind="stable"), starts.astype(np.int64))
        self.user, self.start, self.size, self.column, self.nth = user, start, size, column, nth

    def __len__(self) -> int:
        return len(self._held) - 1

    @property
    def abreast(self) -> int:
        """How many of these rows are as many columns as a row of the whole length."""
        return self.window // self.length

    def _segments(self) -> tuple[np.ndarray, ...]:
        """(user, start, size, target), int64 [w]: the target stands behind the segment but in
        `rest`, where the segment is counted without it, and in `whole`, where it may be inside."""
        if self.scheme in ("rest", "whole"):
            return others(self.histories, self.length, self.scheme == "whole")
        room = self.length - (self.scheme == "cloze")
        cut = prefixes if self.scheme == "last" else windows
        user, start, size = cut(self.histories, room)
        size = size + (self.scheme == "cloze")  # the last target is an item of the segment, too
        return user, start, size, start + size

    def _most(self, size: np.ndarray) -> int | None:
        """Room for targets a row: a quarter above what an average row needs."""
        if self.scheme not in ONE_TARGET or not len(size):
            return None
        return min(int(np.ceil(1.25 * self.length / size.mean())), self.length)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of these rows (int [...]), int32 [..., length]; row -1 is all padding."""
        held = self._held.take(rows.reshape(-1))
        row, segment = held.rows.astype(np.int64), held.values
        size, first = self.size[segment], self.start[segment]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        place = np.repeat(row * self.length + self.column[segment], size) + within
        columns = {
            "segments": np.repeat(self.nth[segment] + 1, size),
            "positions": within + (np.repeat(self.window - size, size) if self.right else 0),
            "users": np.repeat(self.user[segment], size),
            **self._events(self._places(segment, within), np.repeat(first, size)),
        }
        shape = (*rows.shape, self.length)
        out = {key: _laid(values, place, shape) for key, values in columns.items()}
        if self.scheme in ONE_TARGET:
            place, shape = row * self.most + self.nth[segment], (*rows.shape, self.most)
            out["ends"] = _laid(self.column[segment] + size - 1, place, shape)
            out["targets"] = _laid(self.histories.values[self.target[segment]], place, shape)
        return out

    def _places(self, segment: np.ndarray, within: np.ndarray) -> np.ndarray:
        """Where in histories.values the columns of these segments stand, one after the other."""
        size = self.size[segment]
        source = np.repeat(self.start[segment], size) + within
        if self.scheme == "rest":
            source += source >= np.repeat(self.target[segment], size)
        return source

    def _events(self, source: np.ndarray, first: np.ndarray) -> dict[str, np.ndarray]:
        """What stands at each filled column: items, their targets, their times."""
        values, times = self.histories.values, self.histories.times
        out = {"items": values[source]}
        if self.scheme not in ONE_TARGET:
            out["targets"] = values[source + (self.scheme == "next")]
        if times is not None and self.scheme in ("next", "last"):
            out["times"] = seconds(times[source] - times[first])
            out["target_times"] = seconds(times[source + 1] - times[first])
        return out


def ladder(length: int, narrowest: int = 64) -> tuple[int, ...]:
    """Widths of rows, ascending, each a quarter of the next one, rounded down."""
    widths = [length]
    while widths[0] // 4 >= narrowest:
        widths.insert(0, widths[0] // 4)
    return tuple(widths)


def in_widths(
    histories: Ragged, length: int, widths: tuple[int, ...], scheme: str = "next"
) -> list[Packed]:
    """The histories' rows, each segment in a row of the narrowest width that holds it, so that
    attention costs what histories are long. Widths without a segment are left out."""
    steps = zip((0, *widths[:-1]), widths, strict=True)
    found = [Packed(histories, length, scheme, width=w, above=least) for least, w in steps]
    return [rows for rows in found if len(rows)] or found[-1:]


def _laid(values: np.ndarray, place: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int32 zeros of `shape` with `values` at the flat `place`."""
    out = np.zeros(int(np.prod(shape)), np.int32)
    out[place] = values
    return out.reshape(shape)


def pack(
    histories: Ragged, length: int, align: str = "left", seed: int = 0, scheme: str = "next"
) -> dict[str, np.ndarray]:
    """All rows of `Packed` at once: int32 [rows, length]."""
    rows = Packed(histories, length, scheme, align, seed)
    return rows.take(np.arange(len(rows)))
