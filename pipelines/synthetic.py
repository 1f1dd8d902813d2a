"""A small world with raw pixels, words and sound and a known optimum: the embedded default.

Items have a style: one value of each factor (shape, colour, texture, pitch, timbre), and show it
in an image, a text and a sound. Users are of one of few hidden types. What a user takes next
depends on the type (taste), on the style of the last item (drift: styles walk in cycles) and on
the item's fame; choices.py has the law. Cold items are launched late: they stand only at the
last two places of a sequence (validation and test), and their fame is average, so that nothing
but content tells them apart.

The type is the only thing hidden from who knows the law, and it takes few values: Bayes' rule
over types is exact, and with it the best possible ranking. That is the ceiling for every model
(`bayes_metrics`); it knows the style of items whose content is missing, too.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import choices, render
from pipelines.features import image_features, sound_features, text_features
from pipelines.schema import DataError, Dataset, Events, Ragged, Split

VALUES = {"shape": 5, "colour": 6, "texture": 4, "pitch": 4, "timbre": 3}
WEIGHTS = {"shape": 1.0, "colour": 1.0, "texture": 0.5, "pitch": 0.75}
CARRIES = {
    "image": ("shape", "colour", "texture"),
    "text": ("colour", "texture"),
    "audio": ("pitch", "timbre"),
}
RATE, SAMPLES = 8000, 2000


@dataclass(frozen=True)
class World:
    """The data set, its raw content and the law that made it. Row 0 of arrays is padding."""

    dataset: Dataset  # features and present of image, text, audio included
    images: np.ndarray  # uint8 [n_items+1, h, w, 3], zero where absent
    sounds: np.ndarray  # float32 [n_items+1, samples] in -1..1, zero where absent
    rate: int  # samples a second
    present: dict[str, np.ndarray]  # {image, text, audio: bool [n_items+1]}
    factors: dict[str, np.ndarray]  # {factor: int64 [n_items+1]}, values from 0
    types: np.ndarray  # int64 [n_users+1], the hidden type of each user, from 0
    law: choices.Law  # the probabilities of the next item
    settings: dict[str, Any]  # the arguments of world()

    @property
    def cold(self) -> np.ndarray:
        """bool [n_items+1], launched late."""
        return self.law.cold


def world(
    n_items: int = 600,
    n_users: int = 3000,
    length: tuple[int, int] = (6, 20),
    values: dict[str, int] = VALUES,
    weights: dict[str, float] = WEIGHTS,
    carries: dict[str, tuple[str, ...]] = CARRIES,
    taste: float = 1.2,
    drift: float = 2.7,
    fame: float = 0.7,
    types: int = 4,
    noise: float = 0.05,
    cold: float = 0.1,
    launch: float | None = None,
    missing: float = 0.1,
    image_size: int = 32,
    seed: int = 0,
) -> World:
    """Make a world; equal arguments make equal worlds.

    length: shortest and longest sequence, the two held-out items included. values: how many
    values a factor has. weights: how much a factor counts in taste and drift (left out: nothing,
    a distractor). carries: the factors that an image, a text, a sound shows; others are drawn at
    random there, or go unsaid. taste, drift, fame: strength of the three terms (standard
    deviation of taste and fame, log odds of the following value for drift). noise: of pixels,
    words and sound. cold: share of items launched late. launch: how often a held-out item is one
    of them (None: as their share). missing: share of items without image, text, audio, each
    drawn on its own. Memory grows with n_items squared. Raises DataError for arguments out of
    range.
    """
    settings = dict(locals())
    _check(settings)
    rng = np.random.default_rng(seed)
    factors = {f: np.r_[0, rng.integers(0, (VALUES | values)[f], n_items)] for f in VALUES}
    late = np.zeros(n_items + 1, bool)
    late[1 + rng.permutation(n_items)[: round(cold * n_items)]] = True
    launch = float(cold if launch is None else launch) if late.any() else 0.0
    law = choices.law(factors, weights, late, launch, (taste, drift, fame, types), rng)
    kinds = rng.choice(types, n_users, p=law.prior)
    lengths = rng.integers(length[0], length[1] + 1, n_users)
    sequences = choices.sample(law, kinds, lengths, rng)
    present = {m: np.r_[False, rng.random(n_items) >= missing] for m in CARRIES}
    shape = (image_size, RATE, SAMPLES)
    content = render.content(factors, CARRIES | carries, noise, shape, present, rng)
    dataset = _dataset(sequences, content, present, settings, rng)
    kinds = np.r_[0, kinds]
    images, sounds = content["image"], content["audio"]
    return World(dataset, images, sounds, RATE, present, factors, kinds, law, settings)


def _check(settings: dict[str, Any]) -> None:
    def expect(holds: bool, argument: str, expected: str) -> None:
        if not holds:
            found = settings[argument]
            raise DataError(f"world({argument}={found!r}): expected {expected}.")

    for argument in ("values", "weights"):
        expect(set(settings[argument]) <= set(VALUES), argument, f"factors among {list(VALUES)}")
    for factor, count in settings["values"].items():
        most = len(render.NAMES[factor])
        expect(1 <= count <= most, "values", f"1 to {most} values of {factor}")
    expect(set(settings["carries"]) <= set(CARRIES), "carries", f"keys among {list(CARRIES)}")
    for shown in settings["carries"].values():
        expect(set(shown) <= set(VALUES), "carries", f"factors among {list(VALUES)}")
    for argument in ("n_users", "types", "image_size"):
        expect(settings[argument] >= 1, argument, "at least 1")
    for argument in ("cold", "missing", "launch"):
        share = settings[argument]
        expect(share is None or 0 <= share <= 1, argument, "a share from 0 to 1")
    n_cold = round(settings["cold"] * settings["n_items"])
    expect(n_cold != 1, "cold", "a share that makes no cold item or at least two")
    low, high = settings["length"]
    warm = settings["n_items"] - n_cold
    expect(3 <= low <= high <= warm, "length", f"3 <= shortest <= longest <= {warm} warm items")


def _dataset(
    sequences: Ragged,
    content: dict[str, Any],
    present: dict[str, np.ndarray],
    settings: dict[str, Any],
    rng: np.random.Generator,
) -> Dataset:
    """Events a day to a month apart, each user in order; features of all three modalities."""
    users = np.repeat(np.arange(1, len(sequences) + 1, dtype=np.int32), sequences.lengths)
    waits = rng.integers(1, 30, len(users)) * 86400 + rng.integers(0, 86400, len(users))
    since = np.cumsum(waits)
    starts = since[sequences.offsets[:-1]] - rng.integers(0, 365 * 86400, len(sequences))
    columns = {name: content[name] for name in ("title", "text")}
    both = [f"{a} {b}".strip() for a, b in zip(*columns.values(), strict=True)]
    features = {
        "image": image_features(content["image"], present["image"]),
        "text": text_features(both),
        "audio": sound_features(content["audio"], RATE, present["audio"]),
    }
    return Dataset(
        name="synthetic",
        users=users,
        items=sequences.values,
        user_ids=_ids("user", len(sequences)),
        item_ids=_ids("item", len(present["image"]) - 1),
        times=1_600_000_000 + since - np.repeat(starts, sequences.lengths),
        columns=columns,
        features=features,
        present=dict(present),
        source={"generator": "pipelines.synthetic.world", "settings": settings, "licence": "CC0"},
    )


def _ids(kind: str, n: int) -> np.ndarray:
    return np.array(["", *(f"{kind}-{i:04d}" for i in range(1, n + 1))], object)


def bayes_scores(world: World, histories: Ragged) -> np.ndarray:
    """float32 [b, n_items+1]: the exact probability of each next item; history items have 0.

    For a held-out place: warm and cold items can come. Histories are item ids, oldest first,
    without repetition (the law knows none).
    """
    return choices.predictive(world.law, histories)


def bayes_metrics(world: World, split: Split, k: int = 10, part: str = "test") -> dict[str, float]:
    """Recall and NDCG at k of the best possible ranking of the held-out items: the ceiling.

    `split` is leave-one-out on `world.dataset`; `part` is 'test' or 'valid'. The `expected_`
    figures average what the law itself says of its top k, without looking at the outcome; the
    measured ones differ from them by sampling error alone.
    """
    events: Events = getattr(split, part)
    if (events.positives.lengths != 1).any():
        raise DataError(
            f"split '{split.name}': expected one held-out item an event, found up to "
            f"{events.positives.lengths.max()}. The law speaks of the next item only: split with "
            "leave-one-out."
        )
    scores = bayes_scores(world, events.history)
    target = np.take_along_axis(scores, events.positives.values[:, None], 1)
    better, equal = (scores > target).sum(1), (scores == target).sum(1)  # the target is its equal
    top = -np.sort(-scores, axis=1)[:, :k].astype(np.float64)
    ones, discount = np.ones(top.shape[1]), 1 / np.log2(np.arange(top.shape[1]) + 2)
    return {
        f"recall@{k}": float(_gain(better, equal, ones).mean()),
        f"ndcg@{k}": float(_gain(better, equal, discount).mean()),
        f"expected_recall@{k}": float((top @ ones).mean()),
        f"expected_ndcg@{k}": float((top @ discount).mean()),
    }


def _gain(better: np.ndarray, equal: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[b]: mean of the gains by place over the places that a tie may get; beyond them, nothing.

    Ties are real here: cold items of one style have one probability.
    """
    sums = np.concatenate([[0], np.cumsum(gains)])
    k = len(gains)
    return (sums[np.minimum(better + equal, k)] - sums[np.minimum(better, k)]) / equal


def save(world: World, folder: str | Path) -> Path:
    """Write the three-table form with real files; returns the folder.

    interactions.csv (user_id, item_id, timestamp), items.csv (item_id, title, text, image, audio:
    paths inside the folder, empty where absent), images/<item_id>.png, sounds/<item_id>.wav,
    SOURCE.md.
    """
    import soundfile
    from PIL import Image

    folder, data = Path(folder), world.dataset
    for part in ("images", "sounds"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows = []
    for i, name in enumerate(data.item_ids[1:], 1):
        image, sound = f"images/{name}.png", f"sounds/{name}.wav"
        if world.present["image"][i]:
            Image.fromarray(world.images[i]).save(folder / image)
        if world.present["audio"][i]:
            soundfile.write(folder / sound, world.sounds[i], world.rate, subtype="PCM_16")
        paths = [p if world.present[m][i] else "" for m, p in (("image", image), ("audio", sound))]
        rows.append([name, data.columns["title"][i], data.columns["text"][i], *paths])
    _write(folder / "items.csv", ["item_id", "title", "text", "image", "audio"], rows)
    events = zip(data.user_ids[data.users], data.item_ids[data.items], data.times, strict=True)
    _write(folder / "interactions.csv", ["user_id", "item_id", "timestamp"], events)
    (folder / "SOURCE.md").write_text(
        f"# Synthetic world\n\nMade by pipelines.synthetic.world, seed {world.settings['seed']}.\n"
        "Licence: CC0\n",
        encoding="utf-8",
    )
    return folder


def _write(path: Path, header: list[str], rows: Any) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
