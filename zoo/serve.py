"""A bundle made ready: recommend in the user's own ids, evaluate, explain."""

import difflib
from collections.abc import Sequence
from functools import cached_property, partial
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints.bundle import Bundle, load_bundle
from checkpoints.hub import resolve
from pipelines.loader import requests
from pipelines.schema import DataError, Dataset, Ragged, Split
from zoo.end_to_end import end_to_end
from zoo.models import build, older
from zoo.models.fusion import fuse
from zoo.recipes import adapted_by
from zoo.recommender import Incremental, ReadAgain, Recommender
from zoo.scorer import best
from zoo.session import Session, timed


class Recommendation(NamedTuple):
    """One line of a recommendation list."""

    item: str  # the catalogue's own id
    score: float
    title: str


class Pretrained:
    """A loaded bundle; `recommender`, `params`, `catalogue`, `index` are its functional parts."""

    def __init__(self, bundle: Bundle):
        self.bundle = bundle
        self.config, self.split = bundle.config, bundle.split
        model = self.config["model"]
        plain = build(model, **{**older(model), **_fields(self.config["fields"])})
        if "encoding" in self.config:  # the catalogue has what the encoders made of every item
            plain = end_to_end(plain, {})
        plain = adapted_by(plain, self.config.get("adapt"))
        self.recommender = _with_prior(plain, self.config.get("prior"))
        self.params = jax.tree.map(jnp.asarray, bundle.params)
        catalogue = self.recommender.prepare({**bundle.catalogue, **_codes(bundle)}, 1)
        self.catalogue = jax.tree.map(jnp.asarray, catalogue)
        self.item_ids = [str(x) for x in bundle.item_ids]
        self.titles = [str(x) for x in bundle.item_columns.get("title", [""] * len(self.item_ids))]
        self.max_len = int(self.config["fields"].get("max_len", self.config.get("max_len", 50)))

    @cached_property
    def index(self) -> Any:
        """What serving needs of the catalogue, computed once."""
        return jax.jit(self.recommender.index)(self.params, self.catalogue)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {item: i for i, item in enumerate(self.item_ids) if i}

    @cached_property
    def _recommend(self):
        return jax.jit(self.recommender.recommend, static_argnums=3)

    @cached_property
    def _score(self):
        return jax.jit(self.recommender.score)

    @cached_property
    def reader(self) -> Incremental | None:
        """How a history is read one event at a time; None where this model cannot."""
        reader = self.recommender.incremental
        if reader is None:
            return None
        try:
            first = reader.begin(self.index, 1), jnp.ones(1, jnp.int32), jnp.zeros(1, jnp.int32)
            jax.eval_shape(reader.extend, self.params, self.index, *first)
        except ReadAgain:
            return None
        return reader

    @cached_property
    def _extend(self):
        return jax.jit(self.recommender.incremental.extend)

    @cached_property
    def _best(self):
        def listed(params, index, query, k, exclude):
            match = partial(self.recommender.match, params, index, query)
            return best(match, index, query, k, exclude)

        return jax.jit(listed, static_argnums=3)

    def numbers(self, history: Sequence[str], called: str = "history") -> list[int]:
        """Inner ids of external ones. Raises DataError naming the unknown ids."""
        if history is None or isinstance(history, str):
            raise DataError(f"{called} is {history!r}; expected a list of item ids.")
        wanted = [str(item) for item in history]
        unknown = [item for item in wanted if item not in self._numbers]
        if unknown:
            near = difflib.get_close_matches(unknown[0], list(self._numbers), 3)
            raise DataError(
                f"{called}: {unknown[:5]} not among the {len(self._numbers)} items of this bundle"
                + (f"; nearest to '{unknown[0]}': {', '.join(near)}" if near else "")
                + f"; ids look like '{self.item_ids[1]}'."
            )
        if not wanted:
            raise DataError(f"{called} is empty: give item ids, such as '{self.item_ids[1]}'.")
        return [self._numbers[item] for item in wanted]

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        times: Sequence[float] | None = None,
        allowed: Sequence[str] | None = None,
    ) -> list[Recommendation]:
        """The k best items not in `history` (external ids, oldest first), best first.

        times: seconds, one an item; needed by models that read them. allowed: ids of the only
        items that compete, such as those in stock; another choice of them compiles nothing anew.
        """
        return self.recommend_batch([history], k, None if times is None else [times], allowed)[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        times: Sequence[Sequence[float]] | None = None,
        allowed: Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """`recommend` for several histories at once; of none, none."""
        if not len(histories):
            return []
        numbers = [self.numbers(history) for history in histories]
        index = self._among(allowed)
        self._check_k(k, numbers, index)
        batch = self._requests(numbers, times)
        return self._lines(*self._recommend(self.params, index, batch, k))

    def score(
        self,
        history: Sequence[str],
        items: Sequence[str],
        times: Sequence[float] | None = None,
    ) -> list[float]:
        """What the model gives each of `items` after `history` (external ids, oldest first): what
        `recommend` ranks by, also of items it would not list. Of a model that spells items the
        log-probability of their codes, -inf where an item has none.

        Raises DataError for an unknown id.
        """
        wanted = np.array(self.numbers(items, "items"), np.int32)
        padded = np.resize(wanted, 2 ** int(np.ceil(np.log2(len(wanted)))))  # so few shapes compile
        batch = self._requests([self.numbers(history)], None if times is None else [times])
        scores = self._score(self.params, self.index, batch, padded[None])
        return np.asarray(scores, np.float64)[0, : len(wanted)].tolist()

    def session(self) -> Session:
        """An empty history to append events to."""
        return Session(self)

    def _among(self, allowed: Sequence[str] | None) -> Any:
        """The index in which only `allowed` items compete."""
        if allowed is None:
            return self.index
        rows = np.zeros(len(self.index["valid"]), bool)
        rows[self.numbers(allowed, "allowed")] = True
        return {**self.index, "valid": self.index["valid"] & rows}

    def _check_k(self, k: int, numbers: list[list[int]], index: Any) -> None:
        left = self._listable(index)
        available = int(left.sum()) - max(int(left[list(set(row))].sum()) for row in numbers)
        if not isinstance(k, Integral) or not 1 <= k <= available:
            raise ValueError(
                f"k is {k}; expected 1 to {available}: the items that compete less those of the "
                "history."
            )

    def _listable(self, index: Any) -> np.ndarray:
        """bool[n]: items that may stand in a list; one that is spelled needs codes."""
        valid, codes = np.asarray(index["valid"]), index.get("codes")
        if codes is None or "content" in index:
            return valid
        return valid & (np.asarray(codes)[..., 0] >= 0).reshape(len(valid), -1).any(1)

    def _requests(
        self, numbers: list[list[int]], times: Sequence[Sequence[float]] | None = None
    ) -> dict[str, np.ndarray]:
        """One shape for any history up to max_len, so that serving compiles once."""
        longest = max(len(row) for row in numbers)
        width = self.max_len if longest <= self.max_len else int(2 ** np.ceil(np.log2(longest)))
        users = np.zeros(len(numbers), np.int32)
        return requests(timed(Ragged.of(numbers), times), users, self.max_len, width)

    def _lines(self, items: Any, scores: Any) -> list[list[Recommendation]]:
        return [
            [
                Recommendation(self.item_ids[i], float(s), self.titles[i])
                for i, s in zip(row, values, strict=True)
                if i > 0  # a model that spells items may find fewer than k
            ]
            for row, values in zip(np.asarray(items), np.asarray(scores), strict=True)
        ]

    def data_options(self):
        """The DataOptions that this bundle was trained with."""
        from zoo.data import DataOptions

        options = dict(self.split.get("options", {}))
        for name in ("require", "features"):  # JSON has lists
            options[name] = tuple(options.get(name, ()))
        return DataOptions(**options)

    def check_same_items(self, dataset: Dataset) -> None:
        """Raise DataError unless `dataset` has this bundle's items in the same order."""
        theirs = [str(x) for x in dataset.item_ids]
        if theirs == self.item_ids:
            return
        pairs = enumerate(zip(self.item_ids, theirs, strict=False))
        first = next(
            (f"differ first at item {i}: '{a}', '{b}'" for i, (a, b) in pairs if a != b), ""
        )
        raise DataError(
            f"the bundle knows {len(self.item_ids) - 1} items, {dataset.name} has "
            f"{dataset.n_items}; they {first or 'are the same as far as both go'}. Use the data it "
            "was trained on, with the same options (part, k_core, require), or train on this one "
            "(zoo train --graft starts from the bundle)."
        )

    def vectors(self, dataset: Dataset, split: Split) -> dict[str, np.ndarray]:
        """What its index holds: float32 {items [rows,d]} and, where a model has them, {users}.

        Raises DataError for other items, ValueError for a run on another split (its vectors may
        know what is held out here) and for a model that keeps no one vector an item.
        """
        self.check_same_items(dataset)
        model, theirs = self.config["model"], self.split["hash"]
        if theirs != split.hash:
            raise ValueError(
                f"{model} was trained on the split {theirs[:12]} ({self.split['protocol']}), this "
                f"is {split.hash[:12]} ({split.protocol}): its vectors may know what is held out "
                "here. Use the options that it was trained with, or train it on this split."
            )
        index = self.index if isinstance(self.index, dict) else {}
        if getattr(index.get("table"), "ndim", 0) != 2:
            raise ValueError(
                f"{model} serves without one vector an item: take a run of a sequential, two-tower "
                "or graph model, such as graphsage."
            )
        named = {"items": "table", "users": "users"}
        return {k: np.asarray(index[v], np.float32) for k, v in named.items() if v in index}


def _codes(bundle: Bundle) -> dict[str, dict]:
    """The catalogue's `codes` and `sizes`, of a bundle that has semantic ids."""
    parts: dict[str, dict] = {}
    for name, x in (bundle.codes or {}).items():
        part, vocabulary = name.split(".", 1)
        parts.setdefault(part, {})[vocabulary] = x
    return parts


def _with_prior(recommender: Recommender, prior: dict[str, Any] | None) -> Recommender:
    """The recommender with the floor that the bundle fuses with it (prior.py)."""
    if prior is None:
        return recommender
    floor = build(prior["floor"], **_fields(prior["fields"]))
    return fuse(recommender, floor, prior["weight"], prior["how"])


def _fields(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: lists of a config are tuples of the constructor."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def from_pretrained(name_or_path: str | Path, revision: str | None = None) -> Pretrained:
    """A bundle by folder, by a name shipped with the zoo, or by Hugging Face repository.

    A training run's folder works too: its bundle is taken.
    """
    bundle = bundle_of(name_or_path, revision)
    if "model" not in bundle.config:
        raise ValueError(
            f"{name_or_path} holds encoders pretrained by '{bundle.config.get('objective')}', no "
            "recommender: train one that starts from them (zoo train ... --graft)."
        )
    return Pretrained(bundle)


def bundle_of(name_or_path: str | Path, revision: str | None = None) -> Bundle:
    """The bundle that `from_pretrained` reads, as it is."""
    run = Path(name_or_path) / "bundle"
    return load_bundle(run if run.is_dir() else resolve(name_or_path, revision))
