"""The floors that every model is printed against: chosen on validation, measured on test.

Exact: whole matrices on the host, full ranking, ties by expectation. A `split` is any object with
`train` (rows of item ids), `valid` and `test` (each with `history`, `positives`), `ordered` and
optionally `candidates`; rows are flat `values` and `offsets`.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from zoo.models import counting

ORDERED = ("popularity", "markov", "item-knn", "knn+markov", "sr-graph", "ease")
SETS = ("popularity", "cf-graph", "ease")
SMALL = 5000  # items; below, text and symmetry grids are coarser: few users cannot tell more
TILE = 64  # rows of scores at a time: a few MB, which the allocator keeps between uses
LARGE = 8000  # items; above, one EASE inverse takes most of a minute


class Floor(NamedTuple):
    """s(u) = Σ_p mix_p Σ_k (k+1)^−decay M_p[h_{−1−k}] + prior, over the last `depth` items."""

    parts: list
    mix: tuple[float, ...]
    prior: np.ndarray  # float32 [n]
    depth: int | None = None
    decay: float = 0.0
    chosen: dict[str, Any] = {}  # noqa: RUF012  (never written to)


@dataclass(frozen=True)
class World:
    """What the floors may see: train rows, content, and validation events; never the test."""

    values: np.ndarray
    offsets: np.ndarray
    n: int
    valid: Any
    candidates: np.ndarray | None
    ordered: bool
    mask: bool
    content: dict[str, Callable[[], sp.csr_array]]
    memory: dict = field(default_factory=dict)

    @property
    def popularity(self) -> np.ndarray:
        """float32 [n], train counts."""
        return np.bincount(self.values, minlength=self.n).astype(np.float32)

    @property
    def prior(self) -> np.ndarray:
        """The last resort where nothing was counted: ε·pop (§8)."""
        pop = self.popularity
        return np.float32(1e-6) * pop / pop.max() if self.ordered else np.float32(1e-7) * pop

    @property
    def x(self) -> sp.csr_array:
        """Binary train matrix [u,n]."""
        return counting.user_items(self.values, self.offsets, self.n)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """`make()` the first time `key` is asked for."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def best(self, floors: Iterable[Floor]) -> Floor:
        """The floor with the best validation value; the first of equals."""
        sample = self.once("sample", lambda: _sample(self.valid, self.ordered))
        key = "ndcg@10" if self.ordered else "recall@20"
        best, value = None, -1.0
        for floor in floors:
            found = measure(floor, sample, (10, 20), self.mask, self.candidates)[key]
            if found > value:
                best, value = floor, found
        return best


class _Events(NamedTuple):
    history: Any
    positives: Any


class _Rows(NamedTuple):
    values: np.ndarray
    offsets: np.ndarray


def _take(rows: Any, which: np.ndarray) -> _Rows:
    lengths = np.diff(rows.offsets)[which]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return _Rows(rows.values[np.repeat(rows.offsets[:-1][which], lengths) + within], offsets)


def _sample(events: Any, ordered: bool) -> _Events:
    """The validation events that grids look at: 4,000 by seed 1, of sets 5,000 by seed 0."""
    seed, size = (1, 4000) if ordered else (0, 5000)
    which = np.random.default_rng(seed).permutation(len(events.history.offsets) - 1)[:size]
    return _Events(_take(events.history, which), _take(events.positives, which))


def _discount(k: np.ndarray) -> np.ndarray:
    """D(k) = Σ_{r<k} 1/log2(r+2)."""
    terms = 1.0 / np.log2(np.arange(int(np.max(k, initial=1))) + 2.0)
    return np.concatenate([[0.0], np.cumsum(terms)])[k]


def expected_metrics(
    above: np.ndarray, equal: np.ndarray, event: np.ndarray, ks: tuple[int, ...]
) -> dict[str, float]:
    """recall@k and ndcg@k, means over events; exact expectation over random order within ties.

    above, equal, event int [p]: for each positive the candidates scored above it, the other
    candidates that tie with it, and its event 0, 1, .... hit@k is added where every event has one
    positive: there it is recall; elsewhere it is no sum over positives.
    """
    positives = np.bincount(event)
    found = {}
    for k in ks:
        low, high = np.minimum(above, k), np.minimum(above + equal + 1, k)
        hit = (high - low) / (equal + 1)
        gain = (_discount(high) - _discount(low)) / (equal + 1)
        ideal = _discount(np.minimum(k, positives))
        found[f"recall@{k}"] = float(np.mean(np.bincount(event, hit) / positives))
        found[f"ndcg@{k}"] = float(np.mean(np.bincount(event, gain) / ideal))
        if positives.max() == 1:
            found[f"hit@{k}"] = found[f"recall@{k}"]
    return found


def measure(
    floor: Floor,
    events: Any,
    ks: tuple[int, ...],
    mask: bool = True,
    candidates: np.ndarray | None = None,
) -> dict[str, float]:
    """Full-ranking metrics of a floor over events; `mask` takes the history out of the ranking."""
    return measure_mixes(floor, [floor.mix], events, ks, mask, candidates)[0]


def measure_mixes(floor, mixes, events, ks, mask=True, candidates=None) -> list[dict[str, float]]:
    """`measure` for several `mixes` of the same parts: the products are formed once."""
    history, positives, n = events.history, events.positives, len(floor.prior)
    weights = counting.history_weights(history.values, history.offsets, n, floor.depth, floor.decay)
    seen = counting.user_items(history.values, history.offsets, n)
    counts = [[] for _ in mixes]
    for rows, products in counting.history_scores(floor.parts, weights):
        hidden = seen[rows].nonzero() if mask else None
        wanted = _take(positives, np.arange(rows.start, rows.stop))
        for mix, into in zip(mixes, counts, strict=True):
            scores = _mixed(products, mix, floor.prior, rows.stop - rows.start)
            _hide(scores, hidden, candidates)
            into.append(tie_counts(scores, wanted))
    event = np.repeat(np.arange(len(positives.offsets) - 1), np.diff(positives.offsets))
    return [expected_metrics(*np.concatenate(found, axis=1), event, ks) for found in counts]


def _mixed(products: list, mix: tuple[float, ...], prior: np.ndarray, rows: int) -> np.ndarray:
    """Scores float32 [rows,n]."""
    scores = np.zeros((rows, len(prior)), np.float32)
    if products:
        total = products[0] if mix[0] == 1 else products[0] * mix[0]
        for product, weight in zip(products[1:], mix[1:], strict=True):
            total = total + product * weight if weight else total
        scores[:] = total
    return np.add(scores, prior[None], out=scores)


def _hide(scores: np.ndarray, hidden: Any, candidates: np.ndarray | None) -> None:
    scores[:, 0] = -np.inf
    if candidates is not None:
        scores[:, ~candidates] = -np.inf
    if hidden is not None:
        scores[hidden] = -np.inf


def tie_counts(scores: np.ndarray, positives: Any) -> np.ndarray:
    """int [2,p]: candidates scored above each positive, and others equal to it. −inf is masked."""
    lengths = np.diff(positives.offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    own = scores[rows, positives.values]
    if not np.all(np.isfinite(own)):
        at = int(np.flatnonzero(~np.isfinite(own))[0])
        raise ValueError(
            f"Positive item {positives.values[at]} of event {rows[at]} has score {own[at]}: it is "
            "masked or not a candidate. A positive must stand in the candidate set and not in the "
            "masked history; check the split, or measure with mask=False."
        )
    found = np.empty((2, len(own)), np.int64)
    for at in range(0, len(own), TILE):
        some, mine = scores[rows[at : at + TILE]], own[at : at + TILE, None]
        found[0, at : at + TILE] = np.count_nonzero(some > mine, axis=1)
        found[1, at : at + TILE] = np.count_nonzero(some == mine, axis=1) - 1
    return found


# The floors. Each takes the world and returns one Floor, its open parameters chosen.


def _popularity(world: World) -> Floor:
    return Floor([], (), world.popularity)


def _markov(world: World) -> Floor:
    matrix = counting.markov_matrix(world.values, world.offsets, world.n)
    return Floor([matrix], (1.0,), world.prior, depth=1)


def _item_knn(world: World) -> Floor:
    return Floor([counting.cosine_knn(world.x)], (1.0,), world.prior, depth=20, decay=1.0)


def _knn_markov(world: World) -> Floor:
    both = counting.cosine_knn(world.x) + counting.markov_matrix(
        world.values, world.offsets, world.n
    )
    return Floor([both], (1.0,), world.prior, depth=20, decay=1.0)


def _sr_graph(world: World) -> Floor:
    return world.once("sr-graph", lambda: world.best(_sr_grid(world)))


def _sr_grid(world: World) -> Iterable[Floor]:
    small = world.n <= SMALL
    alphas = ((0.5, 0.25), (0.5, 0.5), (0.75, 0.25))
    for window in (5, 20):
        counts = counting.sequence_counts(world.values, world.offsets, world.n, window)
        for alpha, symmetry in itertools.product(alphas, (0.3, 1.0) if small else (0.3, 0.6, 1.0)):
            matrix = counting.sr_matrix(counts, alpha, symmetry)
            for decay in (0.0, 0.5, 1.0) if small else (0.5, 1.0, 1.5):
                chosen = dict(window=window, alpha=alpha, symmetry=symmetry, decay=decay)
                yield Floor([matrix], (1.0,), world.prior, 30, decay, chosen)


def _cf_graph(world: World) -> Floor:
    return world.once("cf-graph", lambda: world.best(_cf_grid(world)))


def _cf_grid(world: World) -> Iterable[Floor]:
    counts, degree = counting.cf_counts(world.x), world.popularity.astype(np.float64)
    for c in itertools.product((0.0, 0.1, 0.25, 0.4, 0.5), (0.0, 0.1, 0.25)):
        matrix = counting.cf_matrix(counts, degree, c)
        yield Floor([matrix], (1.0,), world.prior, chosen=dict(c=c))


def _ease(world: World) -> Floor:
    """s = x_u B and nothing else: EASE scores every item that shares users, also below zero."""
    large = (200, 500, 1000)
    grid = large if world.n > LARGE else (30, 50, 100, *large)
    x, none = world.x, np.zeros(world.n, np.float32)
    tables = ((lam, counting.ease_matrix(x, lam)) for lam in grid)
    return world.best(
        Floor([b], (1.0,), none, chosen=dict(lam=lam, grid=grid)) for lam, b in tables
    )


def _content_knn(world: World, modality: str) -> Floor:
    base = _sr_graph(world) if world.ordered else Floor([], (), world.prior)
    chosen = dict(decay=base.decay) if world.ordered else {}
    return base._replace(parts=[world.content[modality]()], mix=(1.0,), chosen=chosen)


def _with_content(world: World, modality: str) -> Floor:
    """The graph floor mixed with content neighbours; g and h chosen on validation."""
    base = _sr_graph(world) if world.ordered else _cf_graph(world)
    parts = counting.content_parts(base.parts[0], world.content[modality]())
    if not world.ordered:
        grid = itertools.product((0.1, 0.3, 1.0), (0.0, 0.1, 0.3))
    else:
        steps = (0.0, 0.1, 0.3) if world.n <= SMALL else (0.0, 0.1, 0.3, 1.0)
        grid = itertools.product(steps, steps)
    mixes = [(1.0, g, h) for g, h in grid]
    sample = world.once("sample", lambda: _sample(world.valid, world.ordered))
    key = "ndcg@10" if world.ordered else "recall@20"
    fused = base._replace(parts=parts)
    found = measure_mixes(fused, mixes, sample, (10, 20), world.mask, world.candidates)
    mix = mixes[int(np.argmax([values[key] for values in found]))]
    return fused._replace(mix=mix, chosen=base.chosen | dict(g=mix[1], h=mix[2]))


def _floors(world: World) -> dict[str, Callable[[World], Floor]]:
    """Name -> how to choose it, in the order in which a table prints them."""
    makers = {
        "popularity": _popularity,
        "markov": _markov,
        "item-knn": _item_knn,
        "knn+markov": _knn_markov,
        "sr-graph": _sr_graph,
        "cf-graph": _cf_graph,
    }
    graph = "sr-graph" if world.ordered else "cf-graph"
    makers = {name: makers[name] for name in (ORDERED if world.ordered else SETS) if name in makers}
    for m in world.content:
        makers[f"{m}-knn"] = lambda world, m=m: _content_knn(world, m)
        makers[f"{graph}+{m}"] = lambda world, m=m: _with_content(world, m)
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
    test_candidates: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """Every floor of a split: {name: {metrics, validation, chosen, seconds}}.

    words: rows of distinct word ids for items 0..n_items, or None. features {m: float [n,f]},
    present {m: bool [n]}: content vectors. `floors` names a selection (all but
    'popularity-leaky' by default); `mask=False` leaves the history in the ranking, in selection
    too. `test_candidates` bool [n_items+1]: who competes at test, where that differs from
    validation (cold items only). Validation metrics are over all validation events. What cannot
    be measured stands under 'missing' with the reason. Raises ValueError on an unknown name.
    """
    world = World(
        split.train.values,
        split.train.offsets,
        n_items + 1,
        split.valid,
        split.candidates,
        split.ordered,
        mask,
        _content(split.ordered, n_items, words, features, present),
    )
    makers = _floors(world)
    leaky = {"popularity-leaky": lambda world: _leaky(world, split.test)}
    missing = {} if words is not None else _no_text(world)
    table = {}
    for name in tuple(makers) if floors is None else floors:
        if name not in makers | leaky | missing:
            raise ValueError(
                f"no floor is called '{name}' for {'ordered' if world.ordered else 'set'} data; "
                f"there are {', '.join(makers | leaky)}."
            )
        if name not in missing:
            at_test = split.candidates if test_candidates is None else test_candidates
            table[name] = _entry(world, (makers | leaky)[name], split.test, at_test, ks)
    return table | ({"missing": missing} if missing else {})


def _entry(world: World, make: Callable, test: Any, candidates, ks) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    floor = make(world)
    return dict(
        metrics=measure(floor, test, ks, world.mask, candidates),
        validation=measure(floor, world.valid, ks, world.mask, world.candidates),
        chosen=floor.chosen,
        seconds=time.perf_counter() - wall,
        cpu_seconds=time.process_time() - cpu,
    )


def _leaky(world: World, test: Any) -> Floor:
    """Counts that have seen the answers (§8.1): proves metric code and data, competes with none."""
    everything = (world.values, world.valid.positives.values, test.positives.values)
    counts = np.bincount(np.concatenate(everything), minlength=world.n)
    return Floor([], (), counts.astype(np.float32))


def _no_text(world: World) -> dict[str, str]:
    graph = "sr-graph" if world.ordered else "cf-graph"
    reason = "the data has no item text"
    return {name: reason for name in ("text-knn", f"{graph}+text") if name not in _floors(world)}
