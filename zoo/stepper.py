"""A model, its optimizer and its batches on a mesh: one executable, and a state step by step."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo import mesh as meshes
from zoo.flops import matmul_flops
from zoo.graft import Names, graft
from zoo.train import TrainState, create, make_dispatch, make_step, train

log = logging.getLogger("zoo")


class Stepper:
    """Traced at once, compiled once; `fresh` makes a state, `advance` trains it.

    recommender: anything with init, loss and draw. loader: batches with a place; where it stacks
    them, an element is a dispatch. catalogue: numpy, goes over all devices by its rows. start:
    parameters that take the place of fresh ones, of those names or of what `names` says (graft.py).
    """

    def __init__(
        self,
        recommender: Any,
        optimizer: optax.GradientTransformation,
        loader: Any,
        catalogue: dict[str, Any],
        mesh: Mesh,
        seed: int = 0,
        start: Any = None,
        names: Names = (),
    ):
        self.recommender, self.optimizer, self.loader = recommender, optimizer, loader
        self.mesh, self.seed, self.stack = mesh, seed, loader.stack
        self.start, self.names = start, names
        self.catalogue = jax.device_put(catalogue, NamedSharding(mesh, P(("data", "model"))))
        self.shapes = jax.eval_shape(self._create, self.catalogue)
        if start is not None:
            graft(self.shapes.params, start, names)  # what does not fit is told before compiling
        self.shardings = meshes.shardings(self.shapes, mesh)
        self._traced = self._trace()
        shares = zip(self.loader.shares, self._traced.values(), strict=True)
        mean = sum(share * matmul_flops(traced.jaxpr) for share, traced in shares)
        self.flops = mean / (self.stack or 1)  # of a step

    def _trace(self) -> dict[tuple[int, ...], Any]:
        """The step, by the shape of the batches' items."""
        make = make_step if self.stack is None else make_dispatch
        step = make(self.recommender, self.optimizer, self.seed)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, None))
        examples = [self._place(example) for example in self.loader.examples]
        state = self.abstract()
        return {x["items"].shape: jitted.trace(state, self.catalogue, x) for x in examples}

    @cached_property
    def step(self) -> Callable:
        """The one executable of the run, made when it is first asked for; of batches of several
        widths one each, behind a function that takes the right one."""
        made = {shape: traced.lower().compile() for shape, traced in self._traced.items()}
        if len(made) == 1:
            return next(iter(made.values()))
        return lambda state, catalogue, x: made[x["items"].shape](state, catalogue, x)

    def compile(self) -> None:
        """Make the executable now: before a clock starts."""
        self.step  # noqa: B018

    def _place(self, batch: dict) -> dict:
        return meshes.shard_batch(batch, self.mesh, self.stack is not None)

    def _create(self, catalogue: dict) -> TrainState:
        example = self.loader.example
        if self.stack is not None:
            example = {k: x[0] for k, x in example.items()}
        return create(self.recommender, self.optimizer, catalogue, example, self.seed)

    def fresh(self) -> TrainState:
        """The state at step 0, placed by the rules; pretrained parameters in their places."""
        state = jax.jit(self._create, out_shardings=self.shardings)(self.catalogue)
        if self.start is None:
            return state
        grafted = graft(meshes.fetch(state.params), self.start, self.names)
        told = "grafted %d parameters; fresh: %s; of the graft unused: %s"
        log.warning(told, len(grafted.taken), list(grafted.fresh), list(grafted.unused))
        return state.replace(params=jax.device_put(grafted.params, self.shardings.params))

    def abstract(self) -> TrainState:
        """Shapes with shardings: what a checkpoint is restored onto."""
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            self.shapes,
            self.shardings,
        )

    def advance(self, state: TrainState, until: int, report: Callable) -> TrainState:
        """Train to step `until`; every metric of every step goes to `report`."""
        batches = (self._place(batch) for batch in self.loader)
        return train(self.step, state, self.catalogue, batches, until, report, self.stack or 1)
