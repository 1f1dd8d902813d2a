"""Which parameters train: ordered rules over their names, and what follows from them.

A plan is a tuple of (regex, label), label `train` or `frozen`, searched for in the parameter's
path name; the first rule found decides, and one must be found. It is plain data: json.dumps it,
and `plan(json.loads(...))` is the same again. Optimizer states, counts and deltas derive from it.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.mesh import fetch, path_name
from zoo.optim import match_names

LABELS = ("frozen", "train")
Plan = tuple[tuple[str, str], ...]
Rules = Iterable[Sequence[str]]


def plan(rules: Rules) -> Plan:
    """The rules, checked, as a value that compares and hashes. Raises ValueError for a rule that
    is not (regex, label), for an unknown label and for a regex that does not compile."""
    return tuple(_rule(rule) for rule in rules)


def _rule(rule: Sequence[str]) -> tuple[str, str]:
    if isinstance(rule, str) or len(rule) != 2 or rule[1] not in LABELS:
        raise ValueError(
            f"a rule of a plan is {rule!r}; expected (regex over parameter names, "
            f"{' or '.join(map(repr, LABELS))}), such as ('^items/', 'train')."
        )
    try:
        re.compile(rule[0])
    except re.error as error:
        raise ValueError(f"{rule[0]!r} is not a regular expression: {error}.") from error
    return str(rule[0]), str(rule[1])


def names(params: Any) -> list[str]:
    """The path names of all leaves, in the tree's order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


def labels(params: Any, rules: Rules) -> Any:
    """`train` or `frozen` for every leaf, a tree like `params`.

    Raises ValueError for a leaf that no rule covers, and for a rule that is found in no name: it
    would freeze or train nothing, which is never what was meant.
    """
    rules, every = plan(rules), names(params)
    for pattern, label in rules:
        found_nowhere(pattern, every, f"the rule ({pattern!r}, {label!r})", "parameter")
    return match_names(params, rules)


def found_nowhere(pattern: str, every: Iterable[str], what: str, kind: str) -> None:
    """Raise ValueError unless the regex is found in one of the names; the message shows some."""
    every = sorted(set(every))
    if not any(re.search(pattern, name) for name in every):
        raise ValueError(
            f"{what} is found in no {kind}'s name. The {len(every)} names are like "
            f"{', '.join(every[:: max(1, len(every) // 8)])}."
        )


class Counts(NamedTuple):
    """Numbers of parameters."""

    trainable: int
    total: int


def counts(params: Any, rules: Rules) -> Counts:
    """How many numbers train, and how many there are; `params` may be shapes (jax.eval_shape)."""
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(params)]
    chosen = jax.tree.leaves(labels(params, rules))
    trained = sum(n for n, label in zip(sizes, chosen, strict=True) if label == "train")
    return Counts(trained, sum(sizes))


def describe(params: Any, rules: Rules) -> str:
    """A line a rule: label, regex, leaves and numbers that it decides; then the share that trains.

    `params` may be shapes. Raises ValueError as `labels` does.
    """
    rules = plan(rules)
    trained, total = counts(params, rules)
    at = jax.tree.leaves(match_names(params, [(p, i) for i, (p, _) in enumerate(rules)]))
    sizes = [int(np.prod(x.shape)) for x in jax.tree.leaves(params)]
    lines = []
    for i, (pattern, label) in enumerate(rules):
        own = [n for n, rule in zip(sizes, at, strict=True) if rule == i]
        lines.append(f"{label:<6}  {pattern}  {len(own)} leaves, {sum(own):,} parameters")
    return "\n".join([*lines, f"trains {trained:,} of {total:,} ({trained / total:.2%})"])


def rates(rules: Rules) -> tuple[tuple[str, float], ...]:
    """The plan as factors of the learning rate, for `rates` of optim.optimizer: 1 or 0."""
    return tuple((pattern, float(label == "train")) for pattern, label in plan(rules))


def train_only(optimizer: optax.GradientTransformation, rules: Rules):
    """`optimizer` for the leaves that train; the others have no state and keep every bit."""
    rules = plan(rules)
    chains = {"train": optimizer, "frozen": optax.stateless(_still)}
    return optax.multi_transform(chains, lambda tree: labels(tree, rules))


def _still(updates: Any, params: Any = None) -> Any:
    """What added to x gives x: -0, since +0 would turn a weight of -0 into +0."""
    del params
    return jax.tree.map(lambda x: jnp.full_like(x, -0.0), updates)


class Delta(NamedTuple):
    """What training changed, and of which frozen base it is the change."""

    plan: Plan
    leaves: dict[str, np.ndarray]  # by path name: the leaves that train
    base: dict[str, str]  # by path name: digest of the leaves that do not


def delta(params: Any, rules: Rules) -> Delta:
    """The leaves that train, whole and on the host, and digests of those that do not."""
    rules = plan(rules)
    chosen, every = jax.tree.leaves(labels(params, rules)), jax.tree.leaves(fetch(params))
    rows = list(zip(names(params), chosen, every, strict=True))
    trained = {name: x for name, label, x in rows if label == "train"}
    return Delta(rules, trained, {n: _digest(x) for n, label, x in rows if label == "frozen"})


def with_delta(params: Any, change: Delta) -> Any:
    """`params` with the delta's leaves in their places, sharded as those of `params` are.

    Raises ValueError listing every path that is missing on either side, has another shape or
    dtype, or is a frozen leaf with other contents: a delta belongs to one base.
    """
    here = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    wrong = _missing(here, change) + _different(here, change)
    if wrong:
        raise ValueError(
            "the delta does not fit these parameters: " + "; ".join(wrong) + ". Build the model "
            "with the fields and the adaptation it was saved from, on the same pretrained base."
        )

    def leaf(path, value):
        name = path_name(path)
        return _like(value, change.leaves[name]) if name in change.leaves else value

    return jax.tree_util.tree_map_with_path(leaf, params)


def _missing(here: dict[str, Any], change: Delta) -> list[str]:
    there = change.leaves.keys() | change.base.keys()
    lacking = [f"{name} is in the delta alone" for name in sorted(there - here.keys())]
    return lacking + [f"{name} is not in the delta" for name in sorted(here.keys() - there)]


def _different(here: dict[str, Any], change: Delta) -> list[str]:
    def form(x):
        return f"{x.dtype}{list(x.shape)}"

    both = sorted(here.keys() & change.leaves.keys())
    pairs = [(name, form(here[name]), form(change.leaves[name])) for name in both]
    wrong = [f"{name} is {a} here, {b} in the delta" for name, a, b in pairs if a != b]
    frozen = {name: here[name] for name in sorted(here.keys() & change.base.keys())}
    return wrong + [
        f"{name}, frozen, has other contents than when the delta was made"
        for name, x in fetch(frozen).items()
        if _digest(x) != change.base[name]
    ]


def _like(value: Any, other: np.ndarray) -> Any:
    return jax.device_put(other, value.sharding) if isinstance(value, jax.Array) else other


def _digest(x: np.ndarray) -> str:
    """sha256 of dtype, shape and bytes."""
    form = f"{x.dtype}{list(x.shape)}".encode()
    return hashlib.sha256(form + np.ascontiguousarray(x).tobytes()).hexdigest()
