"""State, create, step, train: the loop exists once, and knows no model."""

from collections.abc import Callable, Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.recommender import Batch, Catalogue, Recommender


@flax.struct.dataclass
class TrainState:
    """Arrays only; model and optimizer are closed over by the step."""

    step: jax.Array
    params: Any
    opt_state: Any


def create(
    recommender: Recommender,
    optimizer: optax.GradientTransformation,
    catalogue: Catalogue,
    batch: Batch,
    seed: int = 0,
) -> TrainState:
    """A fresh state. Pure in (catalogue, batch): jit or eval_shape it."""
    params = recommender.init(jax.random.key(seed), catalogue, batch)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_step(
    recommender: Recommender, optimizer: optax.GradientTransformation, seed: int = 0
) -> Callable[[TrainState, Catalogue, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The pure training step. Its randomness depends on (seed, step) alone: runs resume exactly."""

    def step(state: TrainState, catalogue: Catalogue, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grad = jax.value_and_grad(recommender.loss, has_aux=True)
        (loss, metrics), grads = grad(state.params, catalogue, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": _norm(grads), **metrics}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def make_dispatch(
    recommender: Recommender, optimizer: optax.GradientTransformation, seed: int = 0
) -> Callable[[TrainState, Catalogue, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """As `make_step` for batches stacked along a new first axis, one step each, in one dispatch.

    The recommender draws once for all of them. Metrics come stacked.
    """
    step = make_step(recommender, optimizer, seed)

    def dispatch(state: TrainState, catalogue: Catalogue, batches: Batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        drawn = recommender.draw(state.params, catalogue, jax.random.fold_in(key, 1))
        return jax.lax.scan(lambda now, batch: step(now, drawn, batch), state, batches)

    return dispatch


def _norm(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def train(
    step: Callable,
    state: TrainState,
    catalogue: Catalogue,
    batches: Iterable[Batch],
    until: int,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    stack: int = 1,
) -> TrainState:
    """Run the (jitted) step until `until`. Metrics of step n-1 are read after step n is on its way.

    stack: how many steps a call of `step` makes. Raises FloatingPointError, naming step and
    quantity, when a metric is not finite.
    """
    batches, pending = iter(batches), None
    for n in range(int(state.step), until, stack):
        state, metrics = step(state, catalogue, next(batches))
        if pending is not None:
            _read(*pending, report)
        pending = (n, metrics)
    if pending is not None:
        _read(*pending, report)
    return state


def _read(done: int, metrics: dict[str, jax.Array], report: Callable) -> None:
    """Tell the metrics of the steps after `done`, one by one."""
    columns = {name: np.atleast_1d(np.asarray(value)) for name, value in metrics.items()}
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        values = {name: float(value) for name, value in zip(columns, row, strict=True)}
        for name, value in values.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at step {done + i + 1}; lower the learning rate or clip "
                    "the gradient."
                )
        report(done + i + 1, values)
