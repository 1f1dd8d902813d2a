"""What a user gave: an unknown name is answered with the nearest, a number with its range."""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real


def check(**chosen: tuple[str, Iterable[str]]) -> None:
    """Raise the error for the first field=(value, known values) whose value is not known."""
    for field, (value, known) in chosen.items():
        if value not in known:
            raise unknown(f"unknown {field}", value, known)


def at_least(least: int, **given: object) -> None:
    """Raise ValueError for the first value that is no whole number of at least `least`."""
    for name, value in given.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is {value}; expected a whole number of at least {least}.")


def between(low: float, high: float, **given: object) -> None:
    """Raise ValueError for the first value that is no number with low <= value < high."""
    for name, value in given.items():
        if not isinstance(value, Real) or not low <= value < high:
            expected = f"below {high:g}" if math.isfinite(high) else "finite"
            raise ValueError(
                f"{name} is {value}; expected a number of at least {low:g}, {expected}."
            )


def above_zero(**given: object) -> None:
    """Raise ValueError for the first value that is no finite number above zero."""
    for name, value in given.items():
        if not isinstance(value, Real) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number above 0.")


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error to raise: `what` and the name, the nearest names, all names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.3)
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    return ValueError(f"{what} '{name}'; {nearest}known: {', '.join(known)}.")
