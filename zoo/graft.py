"""Parameters of one model put where another model's parameters of the same name stand."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from zoo.mesh import path_name
from zoo.plan import found_nowhere

# (regex, replacement) from names here to names in the source, first match wins; replacement None
# leaves the parameter fresh.
Names = Sequence[tuple[str, str | None]]


class Grafted(NamedTuple):
    """The new tree, by name which of its leaves came over and which stayed as they were, and which
    of the source found no place."""

    params: Any
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def graft(params: Any, source: Any, table: Names = ()) -> Grafted:
    """`params` with every leaf that `source` has under the same name, or under the one that
    `table` makes of it, and of the same shape.

    Raises ValueError for a line of the table that is found in no name here, or that makes a name
    which the source does not have; when nothing fits, or when a name fits and its shape does not:
    weights of another width.
    """
    found = {path_name(p): x for p, x in jax.tree_util.tree_flatten_with_path(source)[0]}
    taken, fresh, wrong = [], [], []
    _check_table(table, params, found)

    def leaf(path, value):
        name = path_name(path)
        other = _renamed(name, table)
        if other is None or other not in found:
            fresh.append(name)
        elif found[other].shape != value.shape:
            wrong.append(f"{name} {value.shape} here, {found[other].shape} there")
        else:
            taken.append(name)
            return found[other]
        return value

    out = jax.tree_util.tree_map_with_path(leaf, params)
    if wrong:
        raise ValueError(
            f"pretrained weights of other sizes: {'; '.join(wrong[:3])}. Build the model with the "
            "fields it was pretrained with (width, layers, experts, modalities). Tables of other "
            "rows alone are of more or fewer items, users or devices: pretrain on as many."
        )
    if not taken:
        raise ValueError(
            f"nothing to graft: of {sorted(found)[:4]}... no name is a parameter here "
            f"({fresh[:4]}...). Was it pretrained as another model?"
        )
    used = {_renamed(name, table) for name in taken}
    return Grafted(out, tuple(taken), tuple(fresh), tuple(n for n in found if n not in used))


def without(tree: Any, pattern: str, above: str = "") -> Any:
    """Nested dicts less the leaves in whose name the regex is found."""
    if not isinstance(tree, dict):
        return tree
    gone = [k for k, x in tree.items() if not isinstance(x, dict) and re.search(pattern, above + k)]
    return {k: without(x, pattern, f"{above}{k}/") for k, x in tree.items() if k not in gone}


def merged_trees(below: Any, above: Any) -> Any:
    """Two nested dicts as one; where both have a leaf, that of `above` stands."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return below if above is None else above
    return below | {k: merged_trees(below.get(k), x) for k, x in above.items()}


def names_of(lines: Sequence[str]) -> Names:
    """The table of lines `HERE=THERE`, a regex of names here and what they are called in the graft;
    `HERE=` leaves them fresh. Raises ValueError for a line without = and for a bad regex."""
    return tuple(_pair(*line.partition("="), line) for line in lines)


def _pair(here: str, equals: str, there: str, line: str) -> tuple[str, str | None]:
    if not (here and equals):
        raise ValueError(f"{line!r} is no line of a table of names; expected HERE=THERE.")
    try:
        re.sub(here, there, "")
    except re.error as error:
        raise ValueError(f"{line!r} is no regex and its replacement: {error}.") from error
    return here, there or None


def _check_table(table: Names, params: Any, found: dict[str, Any]) -> None:
    every = [path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    for here, there in table:
        found_nowhere(here, every, f"the line of names {here}={there or ''}", "parameter")
    made = {name: _renamed(name, table) for name in every}
    lost = [f"{a} from {b}" for a, b in made.items() if b not in (None, a) and b not in found]
    if lost:
        raise ValueError(
            f"the graft has no {'; '.join(lost[:3])}: it has {', '.join(sorted(found)[:6])}... "
            "Name what is there, or leave a parameter fresh with HERE=."
        )


def _renamed(name: str, table: Names) -> str | None:
    for pattern, replacement in table:
        if re.search(pattern, name):
            return None if replacement is None else re.sub(pattern, replacement, name)
    return name
