"""The floors that every model is printed against: chosen on validation, measured on test.

Whole matrices, nothing truncated. A `split` is any object with `train` (rows of item ids), `valid`
and `test` (each with rows `history` and `positives`), `ordered` and `candidates`.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp

from zoo.exact import Events, Scorer, measure, measure_mixes
from zoo.models import counting

SMALL = 5000  # items; up to here the ordered grids are coarser: few users cannot tell more
LARGE = 8000  # items; above, the EASE grid is shorter: one inverse takes most of a minute
Choice = tuple[Scorer, dict[str, Any]]  # a floor and the parameters that were chosen for it


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
    memory: dict = field(default_factory=dict)

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

    def best(self, choices: Iterable[Choice]) -> Choice:
        """The choice with the best value; the first of equals. One is held at a time."""
        best, most = None, -1.0
        for scorer, chosen in choices:
            (value,) = self.values_of(scorer, [scorer.mix])
            if value > most:
                best, most = (scorer, chosen), value
        return best


# The floors: each takes the world and returns a scorer, its open parameters chosen.


def _popularity(world: World) -> Choice:
    return Scorer([], (), world.popularity), {}


def _markov(world: World) -> Choice:
    return Scorer([counting.markov_matrix(*world.train)], (1.0,), world.prior, 1), {}


def _item_knn(world: World) -> Choice:
    return Scorer([counting.cosine_knn(world.x)], (1.0,), world.prior, 20, 1.0), {}


def _knn_markov(world: World) -> Choice:
    both = counting.cosine_knn(world.x) + counting.markov_matrix(*world.train)
    return Scorer([both], (1.0,), world.prior, 20, 1.0), {}


def _graph(world: World) -> Choice:
    """SR-graph or CF-graph; chosen once, for itself and for what is mixed with it."""
    return world.once("graph", lambda: world.best((_sr_grid if world.ordered else _cf_grid)(world)))


def _sr_grid(world: World) -> Iterable[Choice]:
    small = world.n <= SMALL
    alphas = ((0.5, 0.25), (0.5, 0.5), (0.75, 0.25))
    for window in (5, 20):
        counts = counting.sequence_counts(*world.train, window)
        for alpha, symmetry in itertools.product(alphas, (0.3, 1.0) if small else (0.3, 0.6, 1.0)):
            matrix = counting.sr_matrix(counts, alpha, symmetry)
            for decay in (0.0, 0.5, 1.0) if small else (0.5, 1.0, 1.5):
                chosen = dict(window=window, alpha=alpha, symmetry=symmetry, decay=decay)
                yield Scorer([matrix], (1.0,), world.prior, 30, decay), chosen


def _cf_grid(world: World) -> Iterable[Choice]:
    counts, degree = counting.cf_counts(world.x), world.popularity.astype(np.float64)
    for c in itertools.product((0.0, 0.1, 0.25, 0.4, 0.5), (0.0, 0.1, 0.25)):
        yield Scorer([counting.cf_matrix(counts, degree, c)], (1.0,), world.prior), dict(c=c)


def _ease(world: World) -> Choice:
    """s = x_u B without a prior: EASE has values for all items that share users, below 0 too."""
    large = (200, 500, 1000)
    grid = large if world.n > LARGE else (30, 50, 100, *large)
    x, none = world.x, np.zeros(world.n, np.float32)
    return world.best(
        (Scorer([counting.ease_matrix(x, lam)], (1.0,), none), dict(lam=lam, grid=grid))
        for lam in grid
    )


def _content_knn(world: World, modality: str) -> Choice:
    """Content neighbours in place of the graph, with the graph's decay."""
    base, _ = _graph(world) if world.ordered else (Scorer([], (), world.prior), {})
    chosen = dict(decay=base.decay) if world.ordered else {}
    return base._replace(parts=[world.content[modality]()], mix=(1.0,)), chosen


def _with_content(world: World, modality: str) -> Choice:
    """The graph mixed with content neighbours: M + g·T̃ + h·(TM + MT)."""
    base, chosen = _graph(world)
    parts = counting.content_parts(base.parts[0], world.content[modality]())
    mixes = [(1.0, g, h) for g, h in _content_grid(world)]
    values = world.values_of(base._replace(parts=parts), mixes)
    mix = mixes[int(np.argmax(values))]
    return base._replace(parts=parts, mix=mix), chosen | dict(g=mix[1], h=mix[2])


def _content_grid(world: World) -> Iterable[tuple[float, float]]:
    if not world.ordered:
        return itertools.product((0.1, 0.3, 1.0), (0.0, 0.1, 0.3))
    steps = (0.0, 0.1, 0.3) if world.n <= SMALL else (0.0, 0.1, 0.3, 1.0)
    return itertools.product(steps, steps)


def _floors(world: World) -> dict[str, Callable[[World], Choice]]:
    """Name -> how to choose it, in the order in which a table prints them."""
    graph = "sr-graph" if world.ordered else "cf-graph"
    makers = {"popularity": _popularity}
    if world.ordered:
        makers |= {"markov": _markov, "item-knn": _item_knn, "knn+markov": _knn_markov}
    makers[graph] = _graph
    for m in world.content:
        makers[f"{m}-knn"] = functools.partial(_content_knn, modality=m)
        makers[f"{graph}+{m}"] = functools.partial(_with_content, modality=m)
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
) -> dict[str, dict[str, Any]]:
    """Every floor of a split: {name: {metrics, validation, chosen, seconds, cpu_seconds}}.

    words: rows of distinct word ids for items 0..n_items, or None. features {m: float [n,f]},
    present {m: bool [n]}: content vectors. `floors` names a selection (all but
    'popularity-leaky' by default). `mask=False` leaves the history in the ranking and is a second
    reading of the same floors; `select_mask=False` does so in the validation that chooses.
    `test_candidates` bool [n_items+1]: who competes at test, where that differs from
    validation (cold items only). Validation metrics are over all validation events. What cannot
    be measured stands under 'missing' with the reason. Raises ValueError on an unknown name.
    """
    content = _content(split.ordered, n_items, words, features, present)
    train = split.train.values, split.train.offsets, n_items + 1
    world = World(*train, split.valid, split.candidates, split.ordered, select_mask, content)
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
    scorer, chosen = make(world)
    return dict(
        metrics=measure(scorer, test, ks, mask, candidates),
        validation=measure(scorer, world.valid, ks, mask, world.candidates),
        chosen=chosen,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
    )


def _leaky(world: World, test: Any) -> Choice:
    """Counts that have seen the answers: proves metric code and data, competes with none."""
    everything = (world.values, world.valid.positives.values, test.positives.values)
    counts = np.bincount(np.concatenate(everything), minlength=world.n)
    return Scorer([], (), counts.astype(np.float32)), {}


def _no_text(world: World) -> dict[str, str]:
    graph = "sr-graph" if world.ordered else "cf-graph"
    names = [name for name in ("text-knn", f"{graph}+text") if name not in _floors(world)]
    return {name: "the data has no item text" for name in names}
