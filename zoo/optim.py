"""The Optax chain: schedule, clipping, decay and learning rates by parameter name."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from zoo.mesh import path_name

SCHEDULES = ("constant", "cosine", "linear", "inverse-sqrt")


def match_names(tree, rules: Sequence[tuple[str, object]]):
    """A tree of the first rule's value whose regex is found in the parameter's name.

    Raises ValueError for a name that no rule covers: end the rules with ('.*', default).
    """

    def value(path, _):
        name = path_name(path)
        for pattern, result in rules:
            if re.search(pattern, name):
                return result
        raise ValueError(f"no rule covers the parameter '{name}'; add ('.*', value) at the end.")

    return jax.tree_util.tree_map_with_path(value, tree)


def schedule(name: str, rate: float, steps: int, warmup: int = 0) -> optax.Schedule:
    """Learning rate by step; `steps` counts the whole run, warm-up included.

    The rate grows from 0 over the warm-up, but for `inverse-sqrt`, T5's and TIGER's: constant over
    the warm-up and then rate * sqrt(warmup / step) (without one, rate / sqrt(step) from step 1).
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule is '{name}'; expected one of {', '.join(SCHEDULES)}.")
    if name == "inverse-sqrt":
        flat = max(warmup, 1)
        return lambda step: rate * jnp.sqrt(flat / jnp.maximum(step, flat))
    decay = max(steps - warmup, 1)
    main = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, decay),
        "linear": lambda: optax.linear_schedule(rate, 0.0, decay),
    }[name]()
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])


def optimizer(
    rate: float = 1e-3,
    steps: int = 1,
    warmup: int = 0,
    decay_schedule: str = "constant",
    weight_decay: float = 0.0,
    clip: float | None = None,
    b2: float = 0.999,
    rates: Sequence[tuple[str, float]] = (),
    accumulate: int = 1,
    no_decay: str = r"(bias|scale|norm)",
    l2: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW. l2 times a parameter is added to its gradient before Adam scales it, as PyTorch's Adam
    has it; `weight_decay` comes after. `rates` multiplies the learning rate by name (first
    match wins, 0 freezes); names that match `no_decay` are not decayed. accumulate: the mean
    gradient of so many calls is one step; schedule, warm-up and `steps` still count calls."""
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; expected at least 1 batch a step.")
    rules = [*rates, (".*", 1.0)]
    steps, warmup = -(-steps // accumulate), -(-warmup // accumulate)

    def decayed(params):
        return match_names(params, [(no_decay, False), (".*", True)])

    chain = [optax.clip_by_global_norm(clip)] if clip else []
    chain += [optax.add_decayed_weights(l2, decayed)] if l2 else []
    chain += [optax.scale_by_adam(b2=b2)]
    chain += [optax.add_decayed_weights(weight_decay, decayed)] if weight_decay else []
    chain += [optax.scale_by_learning_rate(schedule(decay_schedule, rate, steps, warmup))]
    chain += [_scale_by_name(rules)] if rates else []
    made = optax.chain(*chain)
    if accumulate == 1:
        return made
    return optax.MultiSteps(made, accumulate).gradient_transformation()


def with_rates(
    made: optax.GradientTransformation, rates: Sequence[tuple[str, float]]
) -> optax.GradientTransformation:
    """`made` with its updates multiplied by parameter name; names that no rule covers stay."""
    return optax.chain(made, _scale_by_name([*rates, (".*", 1.0)])) if rates else made


def _scale_by_name(rules) -> optax.GradientTransformation:
    def scaled(updates, params=None):
        del params
        return jax.tree.map(lambda u, r: u * r, updates, match_names(updates, rules))

    return optax.stateless(scaled)
