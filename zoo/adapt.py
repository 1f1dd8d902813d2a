"""Few parameters for many: freeze, bitfit, lora are functions from Recommender to Recommender.

An adapted recommender has the same functions. Its parameters are those of the model, under their
own names, and beside them one tree for each addition:
    {items: ..., trunk: ..., lora: {trunk: {...: {kernel: {a, b}}}}, adapter: {...}}
so that grafts, sharding rules and plans by name go on working. Which leaves train is a plan
(plan.py), `plan_of(recommender)`: an addition puts its own rule before those that were there, and
freezes everything else of a model that had none. Gradients stop at frozen leaves; give the same
plan to `plan.train_only` for an optimizer that keeps no state for them.

    small = lora(sasrec(), rank=8, where="attention/(query|value)/kernel")
    chain = train_only(optimizer(1e-3), plan_of(small))

Additions stack: adapter(lora(...)), or two of a kind under two names. adapters.py has those that
work inside a module: adapter and prompt.
"""

import re
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.mesh import path_name
from zoo.plan import Plan, Rules, found_nowhere, labels, names, plan
from zoo.recommender import Params, Recommender, undrawn

Array = jax.Array
BIASES_AND_NORMS = r"(^|/)(norm_)?(bias|scale)$"
NOT_KERNELS = r"(table|bias|scale)$"  # of two dimensions, too, in tables and expert layers
FUNCTIONS = ("loss", "index", "recommend", "score", "encode", "match")


class Step(NamedTuple):
    """One addition: what its parameters do to the model's parameters, or around its functions."""

    name: str  # of its tree
    change: Callable[[Params, Params], Params] | None = None  # (own, the model's) -> the model's
    around: Callable[[Params], AbstractContextManager] = lambda own: nullcontext()


@dataclass(frozen=True)
class Adapted:
    """A function of a recommender behind a plan and additions, the last one first."""

    function: Callable
    plan: Plan = ()
    steps: tuple[Step, ...] = ()

    def __call__(self, params: Params, *rest: Any, **named: Any) -> Any:
        _check_has(params, self.steps)
        chosen = labels(params, self.plan)
        stop = lambda x, label: x if label == "train" else jax.lax.stop_gradient(x)  # noqa: E731
        params = jax.tree.map(stop, params, chosen)
        with ExitStack() as stack:
            for step in self.steps:
                own, params = _parted(params, step.name)
                params = step.change(own, params) if step.change else params
                stack.enter_context(step.around(own))
            return self.function(params, *rest, **named)


def plan_of(recommender: Recommender) -> Plan:
    """Which of its parameters train. Raises ValueError for one that is not adapted."""
    if not isinstance(recommender.loss, Adapted):
        raise ValueError(
            "this recommender has no plan: all of its parameters train. Adapt it with freeze, "
            "bitfit, lora, adapter or prompt; what wraps an adapted one (fuse) has none either."
        )
    return recommender.loss.plan


def freeze(recommender: Recommender, rules: Rules) -> Recommender:
    """Only what the rules label `train` learns; the first that is found in a name decides.

    rules: (regex, 'train' or 'frozen'), before those that the recommender has already. Names that
    no rule covers, and rules that cover no name, raise ValueError when parameters are first seen.
    """
    rules = plan(rules)

    def init(key, catalogue, batch):
        params = recommender.init(key, catalogue, batch)
        labels(params, rules + _before(recommender, ()))
        return params

    return adapted(recommender, init, rules)


def bitfit(recommender: Recommender, where: str = BIASES_AND_NORMS) -> Recommender:
    """Biases and norms alone learn (BitFit, arXiv 2106.10199): leaves `bias` and `scale`."""
    return freeze(recommender, ((where, "train"), (".*", "frozen")))


def lora(
    recommender: Recommender,
    rank: int,
    where: str,
    alpha: float | None = None,
    name: str = "lora",
) -> Recommender:
    """W + (alpha / rank) A B in place of every kernel W [...,i,o] whose name has `where` in it.

    LoRA (Hu et al. 2021, arXiv 2106.09685, equation 3, for row vectors): A [...,i,r] ~ N(0, 1/r),
    B [...,r,o] = 0, so it starts as the identity; alpha None: 2 rank. W is frozen, unless a plan
    says otherwise. A leading axis (layers under scan, experts) has a pair for each row. The sum
    is formed inside the functions, once a call, in W's dtype, so dropout on the input of A alone,
    which the paper allows, is not there. Raises ValueError for a rank below 1 and, at init, for a
    `where` that is in no kernel's name and a name that the parameters have already.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}; expected at least 1: the width of A and B.")
    scale = (2 * rank if alpha is None else alpha) / rank

    def init(key, catalogue, batch):
        params = recommender.init(key, catalogue, batch)
        check_new(name, params)
        kernels = {n: x for n, x in _by_name(params).items() if _is_kernel(n, x)}
        found_nowhere(where, kernels, f"lora: where={where!r}", "kernel")
        kernels = {n: x for n, x in kernels.items() if re.search(where, n)}
        keys = jax.random.split(own_key(key, name), len(kernels))
        pairs = zip(keys, kernels.items(), strict=True)
        return params | {name: nested({n: _factors(k, x, rank) for k, (n, x) in pairs})}

    def change(own, params):
        def leaf(path, w):
            pair = at(own, path_name(path))
            return w if pair is None else _sum(w, pair, scale)

        return jax.tree_util.tree_map_with_path(leaf, params)

    return adapted(recommender, init, ((f"^{name}/", "train"),), Step(name, change))


def merged(recommender: Recommender, params: Params) -> Params:
    """The parameters of the model as it was before adaptation, every LoRA added to its kernels.

    For export: the plain recommender gives with them what the adapted one gives with `params`.
    Raises ValueError for a recommender that is not adapted, and for additions that are layers of
    their own and have no place in its kernels.
    """
    plan_of(recommender)
    _check_has(params, recommender.loss.steps)
    for step in recommender.loss.steps:
        if step.change is None:
            raise ValueError(
                f"'{step.name}' is not a change of kernels, so it cannot be merged into them: keep "
                "the adapted recommender with its parameters, or save plan.delta of them."
            )
        params = step.change(*_parted(params, step.name))
    return params


def adapted(recommender: Recommender, init: Callable, rules: Plan, *steps: Step) -> Recommender:
    """The recommender with an addition around what it had; `rules` before those it had."""
    default = ((".*", "frozen"),) if steps else ()
    rules = rules + _before(recommender, default)

    def wrap(function):
        inner = function if isinstance(function, Adapted) else Adapted(function)
        return replace(inner, plan=rules, steps=steps + inner.steps)

    reader = recommender.incremental
    reader = None if reader is None else reader._replace(extend=wrap(reader.extend))
    functions = {f: wrap(g) for f in FUNCTIONS if (g := getattr(recommender, f)) is not None}
    if recommender.draw is not undrawn:
        functions["draw"] = wrap(recommender.draw)
    return recommender._replace(init=init, incremental=reader, **functions)


def _before(recommender: Recommender, default: Plan) -> Plan:
    return recommender.loss.plan if isinstance(recommender.loss, Adapted) else default


def check_new(name: str, params: Params) -> None:
    """Raise ValueError unless an addition may be called that."""
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in params:
        raise ValueError(
            f"an addition named '{name}': expected lower-case letters, digits and _, and none of "
            f"{sorted(params)}. Give it another `name`."
        )


def own_key(key: Array, name: str) -> Array:
    """An addition's own randomness: the model's parameters stay those of `key`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def at(tree: Params, name: str) -> Params | None:
    """The node of nested dicts under a path name; None where there is none."""
    for part in name.split("/") if name else ():
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def nested(by_name: dict[str, dict]) -> dict:
    """{'a/b': x} to {'a': {'b': x}}."""
    tree: dict = {}
    for name, leaves in by_name.items():
        node = tree
        for part in name.split("/") if name else ():
            node = node.setdefault(part, {})
        node.update(leaves)
    return tree


def _check_has(params: Params, steps: tuple[Step, ...]) -> None:
    """Raise ValueError for parameters without an addition's tree: the plain model's own."""
    missing = [step.name for step in steps if step.name not in params]
    if missing:
        raise ValueError(
            f"the parameters have no {missing}: found {sorted(params)}. Make them with `init` of "
            "the adapted recommender and graft the pretrained ones into them."
        )


def _parted(params: Params, name: str) -> tuple[Params, Params]:
    """(the addition's tree, the rest)."""
    return params[name], {k: v for k, v in params.items() if k != name}


def _by_name(params: Params) -> dict[str, Any]:
    return dict(zip(names(params), jax.tree.leaves(params), strict=True))


def _is_kernel(name: str, x: Array) -> bool:
    return x.ndim in (2, 3) and not re.search(NOT_KERNELS, name)


def _factors(key: Array, w: Array, rank: int) -> dict[str, Array]:
    *lead, i, o = w.shape
    a = jax.random.normal(key, (*lead, i, rank), w.dtype) / jnp.sqrt(rank).astype(w.dtype)
    return {"a": a, "b": jnp.zeros((*lead, rank, o), w.dtype)}


def _sum(w: Array, pair: dict[str, Array], scale: float) -> Array:
    return w + scale * jnp.einsum("...ir,...ro->...io", pair["a"], pair["b"])
