"""New parameters inside a model that does not know of them: Houlsby adapters, prompt tokens.

Both need a place within the computation, which a change of kernels cannot give. They take it by
Flax's method interceptors, which see each call of a module by its path, so that no model is
written for them, and their parameters stand in a tree of their own. A module's path is the one
inside what the recommender applies: `stack/block_0/attention` of a trunk, not `trunk/stack/...`.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.adapt import Step, adapted, at, check_new, nested, own_key
from zoo.plan import found_nowhere
from zoo.recommender import Params, Recommender

Array = jax.Array
AFTER = r"(^|/)(\w+_)?(attention|ffn)$"
STACKS = r"(^|/)stack$"


class Seen(NamedTuple):
    """A module as its initialisation called it."""

    root: Any  # the scope of what was applied
    arguments: tuple
    out: Any


def adapter(
    recommender: Recommender, width: int = 64, where: str = AFTER, name: str = "adapter"
) -> Recommender:
    """y + W_up GELU(W_down y + b) in place of y, the output of every module with `where` in its
    path: after attention and after the feed-forward layer (Houlsby et al. 2019, arXiv 1902.00751).

    width: the bottleneck m. W_down [d,m] ~ N(0, 1/d), b [m] = 0, W_up [m,d] = 0: it starts as the
    identity. Raises ValueError for a width below 1 and, at init, where no module has such a path,
    where two do, or where layers are scanned: one call is all of them.
    """
    if width < 1:
        raise ValueError(f"width={width}; expected at least 1: the adapter's bottleneck.")

    def leaves(key, path, seen):
        out = _first(seen.out)
        if not isinstance(out, jax.Array):
            raise ValueError(
                f"adapter: '{path}' returns {type(out).__name__}; expected an array [...,d], or a "
                "tuple that begins with one. Choose a narrower `where`."
            )
        d = out.shape[-1]
        down = jax.random.normal(key, (d, width)) / jnp.sqrt(d)
        return {"down": down, "bias": jnp.zeros(width), "up": jnp.zeros((width, d))}

    def call(own, run, args, kwargs):
        out = run(*args, **kwargs)
        y = _adapted(own, _first(out))
        return (y, *out[1:]) if isinstance(out, tuple) else y

    return _inserted(recommender, name, where, leaves, call, "up")


def prompt(
    recommender: Recommender, tokens: int = 8, where: str = STACKS, name: str = "prompt"
) -> Recommender:
    """`tokens` learned rows before the input x [b,l,d] of a stack of layers, cut from its output
    (prompt tuning, arXiv 2104.08691).

    The stack is a module with `where` in its path, called as (x, mask bool[b or 1,1,l or 1,l],
    ..., columns=int[b,s] or None). Every query sees the prompt. Where one mask serves all queries
    (text encoders) the prompt sees what they see; else, behind a causal or segment mask, it sees
    itself alone.
    Rows ~ N(0, .02): the outputs change from the start. Nothing is read incrementally. Raises
    ValueError for fewer tokens than 1 and, at init, where no module, or two, have such a path.
    """
    if tokens < 1:
        raise ValueError(f"tokens={tokens}; expected at least 1.")

    def leaves(key, path, seen):
        shapes = [getattr(x, "shape", None) for x in seen.arguments[:2]]
        if [len(s or ()) for s in shapes] != [3, 4]:
            raise ValueError(
                f"prompt: '{path}' is called with shapes {shapes}; expected x [b,l,d] and a mask "
                "[b,1,l,l], as the stacks of layers have. Choose another `where`."
            )
        return {"tokens": 0.02 * jax.random.normal(key, (tokens, shapes[0][-1]))}

    def call(own, run, args, kwargs):
        x, mask, *rest = args
        rows = jnp.broadcast_to(own["tokens"].astype(x.dtype)[None], (len(x), *own["tokens"].shape))
        x = jnp.concatenate([rows, x], axis=1)
        if (columns := kwargs.get("columns")) is not None:  # it gives them alone
            return run(x, _wider(mask, tokens), *rest, **kwargs | {"columns": columns + tokens})
        out = run(x, _wider(mask, tokens), *rest, **kwargs)
        return jax.tree.map(lambda y: y[..., tokens:, :], out)

    found = _inserted(recommender, name, where, leaves, call, "tokens")
    return found._replace(incremental=None)


def _inserted(
    recommender: Recommender, name: str, where: str, leaves: Callable, call: Callable, mark: str
) -> Recommender:
    """leaves(key, path, seen) makes a module's own parameters, `mark` among them;
    call(own, run, args, kwargs) is the module with them."""

    def init(key, catalogue, batch):
        seen: dict[str, Seen] = {}
        with nn.intercept_methods(_recorder(seen, where, name)):
            params = recommender.init(key, catalogue, batch)
        check_new(name, params)
        found_nowhere(where, seen, f"{name}: where={where!r}", "module")
        chosen = {path: one for path, one in seen.items() if re.search(where, path)}
        _check_not_scanned(name, chosen)
        keys = jax.random.split(own_key(key, name), len(chosen))
        pairs = zip(keys, chosen.items(), strict=True)
        return params | {name: nested({path: leaves(k, path, one) for k, (path, one) in pairs})}

    def around(own: Params):
        def intercept(run, args, kwargs, context):
            mine = at(own, _path(context)) if context.method_name == "__call__" else None
            here = isinstance(mine, dict) and mark in mine
            return call(mine, run, args, kwargs) if here else run(*args, **kwargs)

        return nn.intercept_methods(intercept)

    return adapted(recommender, init, ((f"^{name}/", "train"),), Step(name, None, around))


def _recorder(seen: dict[str, Seen], where: str, name: str) -> Callable:
    """An interceptor that notes every module that is called. Raises ValueError for a path that
    `where` picks in two applied modules: one set of parameters would serve both."""

    def intercept(run, args, kwargs, context):
        out = run(*args, **kwargs)
        if context.method_name != "__call__":
            return out
        path, root = _path(context), context.module.scope.root
        before = seen.setdefault(path, Seen(root, args, out))
        twice = before.root is not root and not _scanned(path)
        if twice and re.search(where, path):
            raise ValueError(
                f"{name}: two modules of this recommender have the path '{path}' that "
                f"where={where!r} picks. Choose one that picks neither."
            )
        return out

    return intercept


def _scanned(path: str) -> bool:
    return "blocks" in path.split("/")  # what the stacks call their layers under scan


def _check_not_scanned(name: str, paths: Iterable[str]) -> None:
    scanned = [path for path in paths if _scanned(path)]
    if scanned:
        raise ValueError(
            f"{name}: '{scanned[0]}' is scanned: one call is all layers, which could only share "
            "what is added. Build the model with scan=False, or use lora, which has factors for "
            "each layer."
        )


def _path(context: Any) -> str:
    return "/".join(context.module.path)


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) and out else out


def _adapted(own: Params, y: Array) -> Array:
    down, bias, up = (own[k].astype(y.dtype) for k in ("down", "bias", "up"))
    z = y @ down
    z = jax.nn.gelu(z + bias.reshape((1,) * (z.ndim - 1) + bias.shape), approximate=False)
    return y + z @ up


def _wider(mask: Array, tokens: int) -> Array:
    """The mask [...,q,l] of keys behind `tokens` prompt keys, which all queries see."""
    mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], tokens), bool), mask], axis=-1)
    if mask.shape[-2] == 1:
        return mask
    itself = jnp.arange(mask.shape[-1]) < tokens
    rows = jnp.broadcast_to(itself, (*mask.shape[:-2], tokens, mask.shape[-1]))
    return jnp.concatenate([rows, mask], axis=-2)
