"""What a batch and a dataset are: keys, dtypes, shapes, padding id 0; checks one."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class DataError(ValueError):
    """Bad input data. The message says what was expected, what was found, where, what to do."""


def seconds(differences: np.ndarray) -> np.ndarray:
    """int32: whole seconds; what exceeds 68 years counts as 68 years."""
    limit = np.iinfo(np.int32).max
    return np.clip(differences, -limit, limit).astype(np.int32)


@dataclass(frozen=True)
class Ragged:
    """Rows of different length in two flat arrays: row r is values[offsets[r]:offsets[r+1]]."""

    values: np.ndarray  # [e]
    offsets: np.ndarray  # int64 [rows+1]
    times: np.ndarray | None = None  # [e], seconds; None where the source has no times

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows]."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """int32 [e]: which row each value stands in."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    def take(self, rows: np.ndarray) -> "Ragged":
        """The named rows, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return self.at(np.repeat(self.offsets[:-1][rows], lengths) + within, offsets)

    def at(self, where: np.ndarray, offsets: np.ndarray) -> "Ragged":
        """Other rows, of the values (and times) that stand at `where`."""
        times = None if self.times is None else self.times[where]
        return Ragged(self.values[where], offsets, times)

    def padded(self, width: int) -> np.ndarray:
        """[rows, width]: the last `width` values of each row, left-aligned, 0 behind them."""
        where, filled = self._newest(width)
        values = self.values[where] if len(self.values) else np.zeros(where.shape)
        return np.where(filled, values, 0).astype(self.values.dtype)

    def padded_times(self, width: int) -> np.ndarray:
        """int32 [rows, width]: seconds from the first kept value to each, 0 behind them."""
        where, filled = self._newest(width)
        times = self.times[where] if len(self.times) else np.zeros(where.shape)
        return seconds(np.where(filled, times - times[:, :1], 0))

    def _newest(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the last `width` values of each row stand, and which columns they fill."""
        kept = np.minimum(self.lengths, width)
        columns = np.arange(width)
        filled = columns < kept[:, None]
        return np.where(filled, (self.offsets[1:] - kept)[:, None] + columns, 0), filled

    @staticmethod
    def of(rows: list, dtype: Any = np.int32) -> "Ragged":
        """From a list of sequences."""
        lengths = np.array([len(row) for row in rows], np.int64)
        values = np.concatenate([np.asarray(row, dtype) for row in rows] or [np.zeros(0, dtype)])
        return Ragged(values.astype(dtype), np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True)
class Dataset:
    """Three tables with inner ids from 1; id 0 is padding in every table.

    `users`, `items` (and `times`, `ratings`, `labels` where the source has them) are parallel
    columns of the interactions, in file order. Item arrays have n_items + 1 rows, row 0 empty.
    """

    name: str
    users: np.ndarray  # int32 [e], 1..n_users
    items: np.ndarray  # int32 [e], 1..n_items
    user_ids: np.ndarray  # object (str) [n_users+1], external ids
    item_ids: np.ndarray  # object (str) [n_items+1], external ids
    times: np.ndarray | None = None  # int64 or float64 [e], seconds; None: file order is the order
    ratings: np.ndarray | None = None  # float32 [e]
    labels: np.ndarray | None = None  # int8 [e], 0 train, 1 validation, 2 test
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # object [n_items+1]: title, ...
    features: dict[str, np.ndarray] = field(default_factory=dict)  # float32 [n_items+1, f]
    present: dict[str, np.ndarray] = field(default_factory=dict)  # bool [n_items+1]
    user_columns: dict[str, np.ndarray] = field(default_factory=dict)  # object [n_users+1]
    source: dict[str, Any] = field(default_factory=dict)  # folder, licence, files and their sha256

    def __repr__(self) -> str:
        own = f"{self.n_users} users, {self.n_items} items, {len(self.items)} interactions"
        return f"Dataset({self.name}: {own}; features {sorted(self.features)})"

    @property
    def n_users(self) -> int:
        return len(self.user_ids) - 1

    @property
    def n_items(self) -> int:
        return len(self.item_ids) - 1


@dataclass(frozen=True)
class Events:
    """What is asked of a recommender: these users, with this past, want these items."""

    users: np.ndarray  # int32 [n], 0 where the user is unknown to training
    history: Ragged  # item ids, oldest first; also what is masked
    positives: Ragged  # the held-out items, at least one a row

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Split:
    """A named, hashed division of a dataset. Row u of `train` is user u's training history."""

    name: str  # leave-one-out, random, labels, global-time, cold-items
    protocol: str  # loo-full-v1, mm-random-v1, global-time-v1, cold-items-v1
    train: Ragged  # n_users + 1 rows, row 0 empty; item ids in order
    valid: Events
    test: Events
    hash: str  # sha256 of everything above
    ordered: bool = True  # False where histories are sets
    candidates: np.ndarray | None = None  # bool [n_items+1]; None: every item
    notes: dict[str, Any] = field(default_factory=dict)  # tie seed, order=file, dropped users

    def __repr__(self) -> str:
        return f"Split({self.protocol} {self.hash[:8]}: {len(self.test)} test events)"


# A training batch of sequences, several users packed in a row (b rows, l columns, all int32):
#   items      input item ids, 0 = padding
#   targets    [b,l] the item that came next, 0 = none (carries no loss)
#   segments   1, 2, ... for the histories of the row, 0 = padding
#   positions  place in the history, counted from 0 at its first item
#   users      inner user id at each column
# and, where the source has times and the target comes last (schemes next and last),
#   times         seconds since the first item of the segment
#   target_times  seconds until the target, on the same clock
# The scheme says what a segment is and what its targets are:
#   next   a history without its last item, and at every column the item that came next
#   last   every prefix of every history, and only what came after it: targets [b,s] of the
#          row's segments, and ends [b,s], the columns of their last items
#   cloze  a whole history; targets are the items themselves, for the model to hide and guess
#   rest   for every item of every history the other items of it, the newest that fit, as a set:
#          targets [b,s], the left-out items, and ends [b,s], as in `last`
#   whole  as `rest`, but nothing is left out: the target is one of the items it is asked from, as
#          some published code has it; for comparison
SEQUENCE_KEYS = ("items", "targets", "segments", "positions", "users")

# A batch of events or requests (b rows, one history each, left-aligned, all int32 but weight):
#   items, segments, positions, users   [b,l] as above
#   query      [b]    column of the last item: its state is the query
#   exclude    [b,h]  items that must not be recommended, 0 = none
#   positives  [b,p]  held-out items, 0 = none (absent when serving)
#   weight     [b]    float32, 0 for rows that only fill the batch
EVENT_KEYS = ("items", "segments", "positions", "users", "query", "exclude")


def check_batch(batch: dict[str, np.ndarray], keys: tuple[str, ...]) -> None:
    """Raise DataError unless `batch` has the keys as int32 arrays of agreeing shape."""
    missing = [key for key in keys if key not in batch]
    if missing:
        raise DataError(f"batch lacks {missing}; it has {sorted(batch)}. Make it with loader.py.")
    for key in keys:
        if batch[key].dtype != np.int32:
            raise DataError(f"batch['{key}'] is {batch[key].dtype}; expected int32.")
        if len(batch[key]) != len(batch["items"]):
            raise DataError(
                f"batch['{key}'] has {len(batch[key])} rows, batch['items'] {len(batch['items'])}."
            )
