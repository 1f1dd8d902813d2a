"""A history that grows, one event at a time, and the times of its events."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from pipelines.schema import DataError, Ragged, seconds

if TYPE_CHECKING:
    from zoo.serve import Pretrained, Recommendation


class Session:
    """One user's history while it grows. Where the model is `incremental` an event is read once,
    until the history has outgrown the model's positions; then, and for other models (and such as
    read the times of what came next), the newest events are encoded again for every list.
    """

    def __init__(self, bundle: "Pretrained"):
        self.bundle, self.history, self.times = bundle, [], []
        self._reader = bundle.reader
        self._memory = None if self._reader is None else self._reader.begin(bundle.index, 1)
        self._query = None

    @property
    def reads_once(self) -> bool:
        """Whether the next list costs one event, not the history."""
        return self._reader is not None and len(self.history) <= self.bundle.max_len

    def append(self, item: str, time: float | None = None) -> None:
        """One more event, by the catalogue's own id; time: in seconds, for models that read it, and
        then of every event. DataError for an unknown id, where some events have no time, and where
        times go back; ValueError for a model that reads times and is given none."""
        b = self.bundle
        if self.history and (time is None) != (not self.times):
            raise DataError(
                f"{len(self.times)} of {len(self.history)} events so far have a time: give one "
                "with every event, or with none."
            )
        if time is not None:
            _check_times(np.array([*self.times[-1:], _number(time)]))
        ids = jnp.asarray(b.numbers([item]), jnp.int32)
        if self._reader is not None and len(self.history) < b.max_len:
            clock = None if time is None else seconds(np.array([time - (self.times or [time])[0]]))
            self._query, self._memory = b._extend(b.params, b.index, self._memory, ids, clock)
        self.history.append(str(item))  # last: an event that could not be read is not kept
        self.times += [] if time is None else [time]

    def recommend(
        self, k: int = 10, allowed: Sequence[str] | None = None
    ) -> "list[Recommendation]":
        """The k best items (of those `allowed`) not in the history so far, best first."""
        b = self.bundle
        numbers = b.numbers(self.history)
        if not self.reads_once:
            return b.recommend(self.history, k, self.times or None, allowed)
        index = b._among(allowed)
        b._check_k(k, [numbers], index)
        exclude = b._requests([numbers])["exclude"]
        items, scores = b._best(b.params, index, self._query, k, exclude)
        return b._lines(items, scores)[0]


def timed(histories: Ragged, times: Sequence[Sequence[float]] | None) -> Ragged:
    """Histories with their times; DataError unless there is one for every item, in order."""
    if times is None:
        return histories
    given = Ragged.of(list(times), np.float64)
    if len(given) != len(histories) or np.any(given.lengths != histories.lengths):
        raise DataError(
            f"times: {given.lengths.tolist()} for histories of {histories.lengths.tolist()} items; "
            "expected one time an item."
        )
    for row in range(len(given)):
        _check_times(given[row])
    return replace(histories, times=given.values)


def _check_times(times: np.ndarray) -> None:
    """Raise DataError for times that are no numbers, or go back."""
    if not np.all(np.isfinite(times)):
        raise DataError(f"times are {times.tolist()}; expected seconds, one an item.")
    if np.any(back := np.diff(times) < 0):
        at = int(np.argmax(back))
        raise DataError(
            f"{times[at + 1]} is before {times[at]}; expected the history oldest first."
        )


def _number(time: Any) -> float:
    if not isinstance(time, Real):
        raise DataError(f"a time is {time!r}; expected seconds as a number.")
    return float(time)
