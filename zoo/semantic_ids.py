"""Codes made unique, and new items appended: on the host, in numpy.

Resolvers, all deterministic; a group is the items that share all their codes:
    digit       an extra level: 0, 1, 2, ... within the group, in the order of the rows
    popularity  the same, most popular first
    relocate    the item nearest its last code keeps it, the others take the nearest free one of
                their prefix (MQL4GRec, ICLR 2025)
    sinkhorn    last codes of each group spread by Sinkhorn (LC-Rec), what still collides relocated
    none        nothing: only with metrics that know of collisions
"""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.sinkhorn import balanced

RESOLVERS = ("digit", "popularity", "relocate", "sinkhorn", "none")


def groups(codes: np.ndarray) -> np.ndarray:
    """int[n]: a number for every distinct row of codes [n,c], in the order of the codes."""
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def unique(codes: np.ndarray) -> bool:
    """Whether no two rows of codes [n,c] are equal."""
    return len(np.unique(codes, axis=0)) == len(codes)


def resolve(
    codes: np.ndarray,
    how: str = "digit",
    distances: np.ndarray | None = None,
    popularity: np.ndarray | None = None,
) -> np.ndarray:
    """int32 codes without collisions, [n,c+1] for `digit` and `popularity`, else [n,c].

    distances [n,v]: of every item to the last level's rows (quantize.last_distances), for
    `relocate` and `sinkhorn`; popularity [n]: train counts. Items outside groups keep their codes.
    Raises ValueError for an unknown resolver, for what it lacks, and for a full prefix.
    """
    codes = np.asarray(codes, np.int32)
    if how not in RESOLVERS:
        raise ValueError(f"no resolver '{how}'; expected one of {', '.join(RESOLVERS)}.")
    if how in ("digit", "popularity"):
        counts = _needed(popularity, how, "popularity") if how == "popularity" else None
        return with_digit(codes, counts)
    if how == "none":
        return codes
    distances = np.asarray(_needed(distances, how, "distances"))
    return relocate(spread(codes, distances) if how == "sinkhorn" else codes, distances)


def _needed(value: np.ndarray | None, how: str, name: str) -> np.ndarray:
    if value is None:
        raise ValueError(f"resolver '{how}' needs {name}=, an array with a row for each item.")
    return value


def with_digit(codes: np.ndarray, popularity: np.ndarray | None = None) -> np.ndarray:
    """int32 [n,c+1]: an extra level that counts from 0 within each group."""
    order = np.arange(len(codes))
    if popularity is not None:
        order = np.argsort(-np.asarray(popularity), kind="stable")
    digit = np.empty(len(codes), np.int32)
    digit[order] = _rank_within(groups(codes)[order])
    return np.column_stack([codes, digit]).astype(np.int32)


def _rank_within(group: np.ndarray) -> np.ndarray:
    """int[n]: how many rows before this one have the same group."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(len(group), int)
    rank[order] = np.arange(len(group)) - first
    return rank


def relocate(codes: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """int32 [n,c], all unique: see the caption. Raises ValueError where a prefix is full."""
    codes = codes.copy()
    own = distances[np.arange(len(codes)), codes[:, -1]]
    prefix = groups(codes[:, :-1])
    members = _members(prefix)
    for rows in _crowded(codes):
        rows = rows[np.argsort(own[rows], kind="stable")]
        for row in rows[1:]:
            taken = codes[members[prefix[row]], -1]
            codes[row, -1] = _nearest_free(distances[row], taken, codes[row])
    return codes


def _members(group: np.ndarray) -> list[np.ndarray]:
    """The rows of every group int[n], numbered from 0, in their order."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _crowded(codes: np.ndarray) -> list[np.ndarray]:
    """The rows of every group of more than one, in the order of the codes."""
    return [rows for rows in _members(groups(codes)) if len(rows) > 1]


def _nearest_free(distances: np.ndarray, taken: np.ndarray, code: np.ndarray) -> int:
    free = distances.astype(np.float64)
    free[taken] = np.inf
    if not np.isfinite(free).any():
        raise ValueError(
            f"more items share the prefix {code[:-1].tolist()} than the last level's "
            f"{len(distances)} codes can tell apart: use the resolver 'digit', or larger codebooks."
        )
    return int(free.argmin())


def spread(
    codes: np.ndarray, distances: np.ndarray, epsilon: float = 0.003, rounds: int = 20
) -> np.ndarray:
    """int32 [n,c]: each group's last codes by Sinkhorn, round after round while any collide.

    Codes that other items of the prefix hold are not given, so nobody outside the groups moves. A
    group that is small beside the codebook gives every item many codes of equal share: of these
    the nearest. Items of equal distances stay together; `relocate` settles them.
    """
    codes, run = codes.copy(), jax.jit(balanced)
    prefix = groups(codes[:, :-1])
    members = _members(prefix)
    for _ in range(rounds):
        crowded = _crowded(codes)
        if not crowded:
            break
        for rows in crowded:
            others = np.setdiff1d(members[prefix[rows[0]]], rows)
            free = np.ones(distances.shape[1], bool)
            free[codes[others, -1]] = False
            if free.any():
                share = np.exp(np.asarray(run(jnp.asarray(distances[rows]), epsilon))) * free[None]
                full = share >= 0.99 * share.max(1, keepdims=True)
                codes[rows, -1] = np.where(full & free[None], distances[rows], np.inf).argmin(1)
    return codes


def append(
    codes: np.ndarray,
    new: np.ndarray,
    how: str = "digit",
    distances: np.ndarray | None = None,
    reserved: int | None = None,
) -> np.ndarray:
    """int32 [n+m,c]: unique codes [n,c] as they are, and new items behind them, in their order.

    `digit` (and `popularity`): new [m,c-1] gets the next digit of its group; `relocate`: new [m,c]
    keeps its last code where that is free, else takes the nearest free one by distances [m,v].
    reserved: digits that a model leaves room for. Raises ValueError past it, and for a full prefix.
    """
    codes, new = np.asarray(codes, np.int32), np.asarray(new, np.int32)
    if how not in ("digit", "popularity", "relocate"):
        raise ValueError(f"cannot append by '{how}'; use the digit, popularity or relocate.")
    levels = codes.shape[1] - (how != "relocate")
    if new.shape[1] != levels:
        raise ValueError(f"new codes have {new.shape[1]} levels; '{how}' needs {levels} here.")
    taken: dict[tuple, list[int]] = {}
    for row in codes.tolist():
        taken.setdefault(tuple(row[:-1]), []).append(row[-1])
    if how == "relocate":
        last = _free_codes(taken, new, np.asarray(_needed(distances, how, "distances")))
        new = new[:, :-1]
    else:
        last = _next_digits(taken, new, reserved)
    grown = np.column_stack([new, np.asarray(last, np.int32).reshape(-1)])
    return np.concatenate([codes, grown.astype(np.int32)])


def _next_digits(taken: dict, new: np.ndarray, reserved: int | None) -> list[int]:
    out = []
    for prefix in map(tuple, new.tolist()):
        digits = taken.setdefault(prefix, [])
        digits.append(max(digits, default=-1) + 1)
        if reserved is not None and digits[-1] >= reserved:
            raise ValueError(
                f"the group {list(prefix)} needs digit {digits[-1]}; {reserved} are reserved: fit "
                "the quantiser anew on the grown catalogue, or reserve more digits."
            )
        out.append(digits[-1])
    return out


def _free_codes(taken: dict, new: np.ndarray, distances: np.ndarray) -> list[int]:
    out = []
    for row, code in enumerate(new):
        used = taken.setdefault(tuple(code[:-1].tolist()), [])
        keeps = int(code[-1]) not in used
        used.append(int(code[-1]) if keeps else _nearest_free(distances[row], used, code))
        out.append(used[-1])
    return out
