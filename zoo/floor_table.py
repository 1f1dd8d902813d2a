"""The floors that every model is printed against: chosen on validation, measured on test.

Whole matrices, nothing truncated. A `split` is any object with `train` (rows of item ids), `valid`
and `test` (each with rows `history` and `positives`), `ordered` and `candidates`.
"""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from zoo.exact import Events, Scorer, measure, measure_mixes
from zoo.models import counting

SMALL = 5000  # items; up to here the ordered grids are coarser: few users cannot tell more
LARGE = 8000  # items; above, the EASE grid is shorter: one inverse takes most of a minute
Choice = tuple[Scorer, dict[str, Any], int]  # a floor, what was chosen, out of how many


@dataclass(frozen=True)
class World:
    """What the floors may see: train rows, content, and validation events; never the test."""

    values: np.ndarray
    offsets: np.ndarray
    n: int
    valid: Any
    candidates: np.ndarray | None
    ordered: bool
    mask: bool  # in the validation that chooses
    content: dict[str, Callable[[], sp.csr_array]]
    fixed: dict[str, dict[str, Any]]  # floor -> parameters that are not to be chosen
    memory: dict = field(default_factory=dict)

    @property
    def graph(self) -> str:
        """The graph floor of this kind of data."""
        return "sr-graph" if self.ordered else "cf-graph"

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray, int]:
        """What counting.py takes."""
        return self.values, self.offsets, self.n

    @property
    def popularity(self) -> np.ndarray:
        """float32 [n], train counts."""
        return np.bincount(self.values, minlength=self.n).astype(np.float32)

    @property
    def prior(self) -> np.ndarray:
        """float32 [n]: the last resort where nothing was counted, ε·popularity."""
        pop = self.popularity
        return np.float32(1e-6) * pop / pop.max() if self.ordered else np.float32(1e-7) * pop

    @property
    def x(self) -> sp.csr_array:
        """Binary train matrix [u,n]."""
        return counting.user_items(*self.train)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()` the first time `name` is asked for."""
        if name not in self.memory:
            self.memory[name] = make()
        return self.memory[name]

    def sample(self) -> Events:
        """The validation events that grids look at: 4,000 by seed 1, of sets 5,000 by seed 0."""
        seed, size = (1, 4000) if self.ordered else (0, 5000)
        events = Events(self.valid.history, self.valid.positives)
        which = np.random.default_rng(seed).permutation(len(events.history.offsets) - 1)
        return events.take(which[:size])

    def values_of(self, scorer: Scorer, mixes: list[tuple[float, ...]]) -> list[float]:
        """The validation metric that chooses, for each mix of the scorer's parts."""
        sample = self.once("sample", self.sample)
        found = measure_mixes(scorer, mixes, sample, (10, 20), self.mask, self.candidates)
        return [m["ndcg@10" if self.ordered else "recall@20"] for m in found]

    def choose(self, name: str, grid: list[dict[str, Any]], build: Callable[..., Scorer]) -> Choice:
        """The grid point with the best value, the first of equals; one scorer is held at a time."""
        if name in self.fixed:
            return build(**self.fixed[name]), self.fixed[name], 1
        best, most = None, -1.0
        for point in grid:
            scorer = build(**point)
            (value,) = self.values_of(scorer, [scorer.mix])
            if value > most:
                best, most = (scorer, point, len(grid)), value
        return best


# The floors: each takes the world and returns a scorer, its open parameters chosen.


def _grid(**axes: tuple) -> list[dict[str, Any]]:
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]


def _popularity(world: World) -> Choice:
    return Scorer([], (), world.popularity), {}, 1


def _markov(world: World) -> Choice:
    return Scorer([counting.markov_matrix(*world.train)], (1.0,), world.prior, 1), {}, 1


def _item_knn(world: World) -> Choice:
    return Scorer([counting.cosine_knn(world.x)], (1.0,), world.prior, 20, 1.0), {}, 1


def _knn_markov(world: World) -> Choice:
    both = counting.cosine_knn(world.x) + counting.markov_matrix(*world.train)
    return Scorer([both], (1.0,), world.prior, 20, 1.0), {}, 1


def _graph(world: World) -> Choice:
    """SR-graph or CF-graph; chosen once, for itself and for what is mixed with it."""
    build = _sr_graph if world.ordered else _cf_graph
    build = functools.partial(build, world)
    return world.once("graph", lambda: world.choose(world.graph, _graph_grid(world), build))


def _graph_grid(world: World) -> list[dict[str, Any]]:
    if not world.ordered:
        c = itertools.product((0.0, 0.1, 0.25, 0.4, 0.5), (0.0, 0.1, 0.25))
        return _grid(c=tuple(c))
    small = world.n <= SMALL
    return _grid(
        window=(5, 20),
        alpha=((0.5, 0.25), (0.5, 0.5), (0.75, 0.25)),
        symmetry=(0.3, 1.0) if small else (0.3, 0.6, 1.0),
        decay=(0.0, 0.5, 1.0) if small else (0.5, 1.0, 1.5),
    )


def _sr_graph(world: World, window: int, alpha, symmetry: float, decay: float) -> Scorer:
    counts = world.once(f"counts {window}", lambda: counting.sequence_counts(*world.train, window))
    matrix = counting.sr_matrix(counts, alpha, symmetry)
    return Scorer([matrix], (1.0,), world.prior, 30, decay)


def _cf_graph(world: World, c) -> Scorer:
    counts = world.once("counts", lambda: counting.cf_counts(world.x))
    matrix = counting.cf_matrix(counts, world.popularity.astype(np.float64), c)
    return Scorer([matrix], (1.0,), world.prior)


def _ease(world: World) -> Choice:
    """s = x_u B without a prior: EASE has values for all items that share users, below 0 too."""
    lams = (200, 500, 1000) if world.n > LARGE else (30, 50, 100, 200, 500, 1000)

    def build(lam: float) -> Scorer:
        return Scorer([counting.ease_matrix(world.x, lam)], (1.0,), np.zeros(world.n, np.float32))

    return world.choose("ease", _grid(lam=lams), build)


def _content_knn(world: World, modality: str) -> Choice:
    """Content neighbours in place of the graph, with the graph's decay."""
    name, scorer = f"{modality}-knn", Scorer([world.content[modality]()], (1.0,), world.prior)
    if not world.ordered:
        return scorer, {}, 1
    decay = (world.fixed[name] if name in world.fixed else _graph(world)[1])["decay"]
    return scorer._replace(depth=30, decay=decay), dict(decay=decay), 1


def _with_content(world: World, modality: str) -> Choice:
    """The graph mixed with content neighbours: M + g·T̃ + h·(TM + MT)."""
    base, chosen, _ = _graph(world)
    parts = counting.content_parts(base.parts[0], world.content[modality]())
    fixed = world.fixed.get(f"{world.graph}+{modality}")
    mixes = _content_mixes(world) if fixed is None else [(1.0, fixed["g"], fixed["h"])]
    values = world.values_of(base._replace(parts=parts), mixes) if fixed is None else [0.0]
    mix = mixes[int(np.argmax(values))]
    return base._replace(parts=parts, mix=mix), chosen | dict(g=mix[1], h=mix[2]), len(mixes)


def _content_mixes(world: World) -> list[tuple[float, float, float]]:
    g = h = (0.0, 0.1, 0.3) if world.n <= SMALL else (0.0, 0.1, 0.3, 1.0)
    if not world.ordered:
        g, h = (0.1, 0.3, 1.0), (0.0, 0.1, 0.3)
    return list(itertools.product((1.0,), g, h))


def _floors(world: World) -> dict[str, Callable[[World], Choice]]:
    """Name -> how to choose it, in the order in which a table prints them."""
    makers = {"popularity": _popularity}
    if world.ordered:
        makers |= {"markov": _markov, "item-knn": _item_knn, "knn+markov": _knn_markov}
    makers[world.graph] = _graph
    for m in world.content:
        makers[f"{m}-knn"] = functools.partial(_content_knn, modality=m)
        makers[f"{world.graph}+{m}"] = functools.partial(_with_content, modality=m)
    return makers | {"ease": _ease}


def _content(ordered: bool, n_items: int, words, features, present) -> dict[str, Callable]:
    """Modality -> its neighbour graph T, counted when first asked for."""
    n, found = n_items + 1, {}
    if words is not None:
        items = np.repeat(np.arange(n), np.diff(words.offsets))
        found["text"] = lambda: counting.content_neighbours(
            counting.tfidf(items, words.values, n, n_items, smooth=ordered)
        )
    for m, rows in (features or {}).items():
        name = f"{m}-features" if m in found else m
        here = (present or {}).get(m)
        found[name] = lambda rows=rows, here=here: counting.content_neighbours(
            counting.unit_rows(rows, here)
        )
    return {m: functools.cache(make) for m, make in found.items()}


def floor_table(
    split: Any,
    n_items: int,
    words: Any = None,
    features: dict[str, np.ndarray] | None = None,
    present: dict[str, np.ndarray] | None = None,
    ks: tuple[int, ...] = (5, 10, 20),
    floors: tuple[str, ...] | None = None,
    mask: bool = True,
    select_mask: bool = True,
    test_candidates: np.ndarray | None = None,
    fixed: dict[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Every floor of a split: {name: {metrics, validation, chosen, grid_points, ...}}.

    words: rows of distinct word ids for items 0..n_items, or None. features {m: float [n,f]},
    present {m: bool [n]}: content vectors. `floors` names a selection (all but
    'popularity-leaky' by default). `mask=False` leaves the history in the ranking and is a second
    reading of the same floors; `select_mask=False` does so in the validation that chooses.
    `test_candidates` bool [n_items+1]: who competes at test, where that differs from validation
    (cold items only). `fixed` {floor: chosen} takes parameters from another table instead of
    choosing; give the graph's for all that is made of it.

    Validation metrics are over all validation events. What cannot be measured stands under
    'missing' with the reason. Raises ValueError on an unknown name.
    """
    content = _content(split.ordered, n_items, words, features, present)
    train = split.train.values, split.train.offsets, n_items + 1
    world = World(
        *train, split.valid, split.candidates, split.ordered, select_mask, content, fixed or {}
    )
    makers = _floors(world) | {"popularity-leaky": lambda world: _leaky(world, split.test)}
    missing = {} if words is not None else _no_text(world)
    default = tuple(name for name in makers if name != "popularity-leaky")
    at_test = split.candidates if test_candidates is None else test_candidates
    table = {}
    for name in default if floors is None else floors:
        if name not in makers | missing:
            raise ValueError(
                f"no floor is called '{name}' for {'ordered' if world.ordered else 'set'} data; "
                f"there are {', '.join(makers)}."
            )
        if name not in missing:
            table[name] = _entry(world, makers[name], split.test, at_test, ks, mask)
    return table | ({"missing": missing} if missing else {})


def _entry(world: World, make: Callable, test: Any, candidates, ks, mask) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    scorer, chosen, points = make(world)
    return dict(
        metrics=measure(scorer, test, ks, mask, candidates),
        validation=measure(scorer, world.valid, ks, mask, world.candidates),
        chosen=chosen,
        grid_points=points,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
    )


def _leaky(world: World, test: Any) -> Choice:
    """Counts that have seen the answers: proves metric code and data, competes with none."""
    everything = (world.values, world.valid.positives.values, test.positives.values)
    counts = np.bincount(np.concatenate(everything), minlength=world.n)
    return Scorer([], (), counts.astype(np.float32)), {}, 1


def _no_text(world: World) -> dict[str, str]:
    names = [name for name in ("text-knn", f"{world.graph}+text") if name not in _floors(world)]
    return {name: "the data has no item text" for name in names}
