"""An unknown name is answered with the nearest known ones."""

import difflib
from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error to raise: `what` and the name, the nearest names, all names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 3, 0.3)
    nearest = f"nearest: {', '.join(near)}; " if near else ""
    return ValueError(f"{what} '{name}'; {nearest}known: {', '.join(known)}.")
