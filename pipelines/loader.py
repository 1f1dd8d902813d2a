"""source -> shuffle -> map -> batch -> prefetch, with a savable place.

The element is a whole batch: Grain hands out batch numbers, the map gathers the rows, and the
place to resume from is one integer.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from pipelines.schema import SEQUENCE_KEYS, DataError, Dataset, Events, Ragged, Split
from pipelines.transforms import Packed, in_widths


class BatchRows:
    """Random access to the row numbers of batch i, shuffled anew each epoch by (seed, epoch).

    The last batch of an epoch is filled with -1. With several processes each sees its slice.
    With `stack` an element is that many batches: int [stack, batch].
    """

    def __init__(
        self,
        rows: int,
        batch: int,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        stack: int | None = None,
    ):
        if batch % processes:
            raise DataError(f"batch {batch} does not divide over {processes} processes.")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.process, self.processes, self.stack = process, processes, stack
        self.per_epoch = -(-rows // batch)
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
        return np.concatenate([order, np.full(self.per_epoch * self.batch - self.rows, -1)])

    def __len__(self) -> int:
        return self.per_epoch << 31  # epochs without end; the caller counts steps

    def __getitem__(self, i: int) -> np.ndarray:
        if self.stack is None:
            return self._batch(int(i))
        return np.stack([self._batch(int(i) * self.stack + j) for j in range(self.stack)])

    def _batch(self, i: int) -> np.ndarray:
        epoch, nth = divmod(i, self.per_epoch)
        rows = self._order(epoch)[nth * self.batch : (nth + 1) * self.batch]
        share = self.batch // self.processes
        return rows[self.process * share : (self.process + 1) * share]


class Mixed:
    """Random access to batches of several sources in one order, shuffled anew each epoch.

    Element i is (which source, its batch): every batch of every source once an epoch.
    """

    def __init__(self, sources: list[BatchRows], seed: int = 0):
        self.sources, self.seed, self.stack = sources, seed, None
        self.per_epoch = sum(source.per_epoch for source in sources)
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def _shuffled(self, epoch: int) -> np.ndarray:
        """int [per_epoch, 2]: which source, and which of its batches of the epoch."""
        every = [(k, n) for k, source in enumerate(self.sources) for n in range(source.per_epoch)]
        return np.random.default_rng((self.seed, epoch)).permutation(np.array(every))

    def __len__(self) -> int:
        return self.per_epoch << 31

    def __getitem__(self, i: int) -> tuple[int, np.ndarray]:
        epoch, n = divmod(int(i), self.per_epoch)
        which, nth = self._order(epoch)[n]
        return int(which), self.sources[which][epoch * self.sources[which].per_epoch + int(nth)]


class Arrays:
    """Rows that stand in memory, under the face of transforms.Packed: len() and take()."""

    abreast = 1

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows (int, any shape) of every array; row -1 is all padding."""
        filled = rows >= 0
        safe = np.where(filled, rows, 0)
        wide = {k: filled.reshape(*rows.shape, *[1] * (a.ndim - 1)) for k, a in self.arrays.items()}
        return {k: np.where(wide[k], a[safe], 0).astype(a.dtype) for k, a in self.arrays.items()}


class Loader:
    """Training batches with a place: iterate it; `place()` and `resume(place)` are exact.

    rows: a list of them, of several widths, gives batches of as many columns in all, each of one
    width. options: `process` and `processes`, this one's share of the rows; `stack`, batches an
    element. `examples` are batches of padding, one a width, the widest last, and `shares` how many
    of the batches are of each.
    """

    def __init__(
        self, rows: Packed | Arrays | list[Packed], batch: int, seed: int = 0, **options: int
    ):
        many = rows if isinstance(rows, list) else [rows]
        if not any(len(rows) for rows in many):
            raise DataError(
                "no training pairs: every training history has fewer than two items. "
                "Check the split, or lower k_core."
            )
        sizes = [batch * rows.abreast for rows in many]
        sources = [
            BatchRows(len(rows), size, seed, **options)
            for rows, size in zip(many, sizes, strict=True)
        ]
        self.source = sources[0] if len(many) == 1 else Mixed(sources, seed)
        self.per_epoch, self.stack = self.source.per_epoch, self.source.stack
        self.shares = [source.per_epoch / self.per_epoch for source in sources]
        self.examples = [
            rows.take(np.full(self._shape(size, source), -1))
            for rows, size, source in zip(many, sizes, sources, strict=True)
        ]
        self.example = self.examples[-1]
        take = many[0].take if len(many) == 1 else lambda element: many[element[0]].take(element[1])
        dataset = grain.MapDataset.source(self.source).map(take)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        self._iterator = iter(dataset.to_iter_dataset(options))

    def _shape(self, batch: int, source: BatchRows) -> tuple[int, ...]:
        share = batch // source.processes
        return (share,) if self.stack is None else (self.stack, share)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self._iterator

    def place(self) -> dict[str, Any]:
        """JSON-able; names the batch that comes next."""
        return dict(self._iterator.get_state())

    def resume(self, place: dict[str, Any]) -> None:
        """Continue with the batch that `place` names."""
        self._iterator.set_state(place)


def sequence_loader(
    split: Split,
    batch: int = 64,
    length: int = 50,
    seed: int = 0,
    scheme: str = "next",
    widths: tuple[int, ...] = (),
    **processes: int,
) -> Loader:
    """Packed training batches [batch, length] of the split's training histories (schema.py).

    widths: ascending, the last of them `length` (transforms.ladder): short histories stand in
    narrower rows, batches of [batch (length // width), width].
    """
    if len(widths) < 2:
        return Loader(Packed(split.train, length, scheme), batch, seed, **processes)
    return Loader(in_widths(split.train, length, widths, scheme), batch, seed, **processes)


def pair_loader(split: Split, batch: int = 2048, seed: int = 0, **options: int) -> Loader:
    """Training batches [batch, 1] of single interactions: each is a target without a history."""
    users = split.train.rows
    ones, zeros = np.ones((len(users), 1), np.int32), np.zeros((len(users), 1), np.int32)
    targets = split.train.values.astype(np.int32)[:, None]
    columns = (zeros, targets, ones, zeros, users[:, None])
    return Loader(Arrays(dict(zip(SEQUENCE_KEYS, columns, strict=True))), batch, seed, **options)


def event_batches(events: Events, length: int, batch: int = 512) -> Iterator[dict[str, np.ndarray]]:
    """Batches of EVENT_KEYS, `positives`, `weight`, and `event` (its number in `events`).

    Events are taken by length of history and padded to a power of two, so that few shapes are
    compiled and little is spent on padding; the last batch of a width is filled up with weight 0.
    """
    width = _round_width(np.maximum(events.history.lengths, 1))
    p = int(events.positives.lengths.max(initial=1))
    for w in np.unique(width):
        rows = np.flatnonzero(width == w)
        rows = rows[np.argsort(events.history.lengths[rows], kind="stable")]
        for i in range(0, len(rows), batch):
            yield _event_batch(events, rows[i : i + batch], min(int(w), length), int(w), batch, p)


def _round_width(lengths: np.ndarray) -> np.ndarray:
    return 2 ** np.ceil(np.log2(np.maximum(lengths, 8))).astype(np.int64)


def _event_batch(
    events: Events, rows: np.ndarray, length: int, width: int, batch: int, p: int
) -> dict[str, np.ndarray]:
    out = requests(events.history.take(rows), events.users[rows], length, width)
    out["positives"] = events.positives.take(rows).padded(p)
    out["event"] = rows.astype(np.int32)
    out["weight"] = np.ones(len(rows), np.float32)
    fill = batch - len(rows)
    return {k: np.pad(a, ((0, fill),) + ((0, 0),) * (a.ndim - 1)) for k, a in out.items()}


def requests(
    histories: Ragged, users: np.ndarray, length: int, width: int | None = None
) -> dict[str, np.ndarray]:
    """EVENT_KEYS for these histories: the newest `length` items as input, all of them excluded."""
    kept = np.minimum(histories.lengths, length)
    filled = np.arange(length) < kept[:, None]
    width = int(histories.lengths.max(initial=1)) if width is None else width
    out = {
        "items": histories.padded(length).astype(np.int32),
        "segments": filled.astype(np.int32),
        "positions": np.where(filled, np.arange(length), 0).astype(np.int32),
        "users": np.where(filled, users[:, None], 0).astype(np.int32),
        "query": np.maximum(kept - 1, 0).astype(np.int32),
        "exclude": histories.padded(width).astype(np.int32),
    }
    return out if histories.times is None else out | _clock(histories, kept, filled)


def _clock(histories: Ragged, kept: np.ndarray, filled: np.ndarray) -> dict[str, np.ndarray]:
    """Times as schema.py has them; what follows the last item is unknown: its own time stands."""
    times = histories.padded_times(filled.shape[1])
    following = np.minimum(np.arange(1, filled.shape[1] + 1), (kept - 1)[:, None])
    following = np.where(filled, np.take_along_axis(times, np.maximum(following, 0), axis=1), 0)
    return {"times": times, "target_times": following}


def catalogue(dataset: Dataset, split: Split, rows: int, user_rows: int) -> dict[str, Any]:
    """Per-item arrays of `rows` rows: valid, popularity (train counts), features, present;
    and `users`, the train counts of `user_rows` users, which sizes a table of them."""
    n = dataset.n_items + 1
    if rows < n:
        raise DataError(
            f"a catalogue of {n - 1} items and the padding item needs {n} rows, not {rows}."
        )

    def grown(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, rows - n),) + ((0, 0),) * (x.ndim - 1))

    counts = split.train.lengths.astype(np.float32)
    return {
        "valid": grown(np.arange(n) > 0),
        "popularity": grown(np.bincount(split.train.values, minlength=n).astype(np.float32)),
        "features": {m: grown(x.astype(np.float32)) for m, x in dataset.features.items()},
        "present": {m: grown(x) for m, x in dataset.present.items() if m in dataset.features},
        "users": np.pad(counts, (0, user_rows - len(counts))),
    }


def candidates(split: Split, rows: int) -> np.ndarray | None:
    """bool [rows]: who competes, where the split names fewer than all items."""
    if split.candidates is None:
        return None
    return np.pad(split.candidates, (0, rows - len(split.candidates)))
