"""An unknown name is answered with the nearest known ones."""

import difflib
from collections.abc import Iterable


def check(**chosen: tuple[str, Iterable[str]]) -> None:
    """Raise the error for the first field=(value, known values) whose value is not known."""
    for field, (value, known) in chosen.items():
        if value not in known:
            raise unknown(f"unknown {field}", value, known)


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error to raise: `what` and the name, the nearest names, all names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.3)
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    return ValueError(f"{what} '{name}'; {nearest}known: {', '.join(known)}.")
