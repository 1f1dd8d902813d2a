"""The synthetic world: its law is what it says, its optimum is the optimum, its files are real."""

import numpy as np
import pytest

from pipelines import choices, content, sources, synthetic
from pipelines.schema import DataError, Events, Ragged, Split
from pipelines.splits import make_split

SMALL = dict(n_items=240, n_users=1500, image_size=16)


@pytest.fixture(scope="module")
def world() -> synthetic.World:
    return synthetic.world(**SMALL)


@pytest.fixture(scope="module")
def split(world) -> Split:
    return make_split(world.dataset, "leave-one-out")


def tiny_law(seed: int, launch: float = 0.4) -> choices.Law:
    rng = np.random.default_rng(seed)
    factors = {"shape": np.r_[0, rng.integers(0, 3, 9)], "pitch": np.r_[0, rng.integers(0, 2, 9)]}
    cold = np.zeros(10, bool)
    cold[[3, 7]] = True
    weights = {"shape": 1.0, "pitch": 0.5}
    return choices.law(factors, weights, cold, launch, (1.2, 1.5, 0.5, 3), rng)


def by_hand(law: choices.Law, history: list[int]) -> np.ndarray:
    """The posterior predictive by plain loops over types and items."""
    items = range(1, len(law.cold))

    def chance(z, last, seen, item):
        pool = [j for j in items if j not in seen and law.cold[j] == law.cold[item]]
        weights = {j: law.taste[z, j] * law.drift[last, j] for j in pool}
        return weights[item] / sum(weights.values())

    joint = list(law.prior)
    for z in range(len(joint)):
        for t, item in enumerate(history):
            last = history[t - 1] if t else 0
            joint[z] *= chance(z, last, history[:t], item)
    out = np.zeros(len(law.cold))
    for item in set(items) - set(history):
        share = law.launch if law.cold[item] else 1 - law.launch
        for z, p in enumerate(joint):
            out[item] += p / sum(joint) * share * chance(z, (history or [0])[-1], history, item)
    return out


@pytest.mark.parametrize("history", [[], [4], [4, 1, 9], [2, 5, 3], [8, 6, 5, 1, 2, 7]])
def test_scores_are_bayes_rule(history):
    law = tiny_law(0)
    found = choices.predictive(law, Ragged.of([[1, 2], history]))[1]
    np.testing.assert_allclose(found, by_hand(law, history), rtol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-6)


def chi_square(counts: np.ndarray, chances: np.ndarray) -> float:
    """The statistic minus its mean, in standard deviations; impossible items must not occur."""
    assert not counts[chances == 0].any()
    expected = counts.sum() * chances[chances > 0]
    freedom = len(expected) - 1
    statistic = ((counts[chances > 0] - expected) ** 2 / expected).sum()
    return (statistic - freedom) / np.sqrt(2 * freedom)


def test_samples_follow_the_law():
    law, n = tiny_law(1), 40000
    rng = np.random.default_rng(2)
    kinds = rng.choice(3, n, p=law.prior)
    items = choices.sample(law, kinds, np.full(n, 4), rng).values.reshape(n, 4)
    warm = law._replace(launch=0.0)  # the first two places
    for past, rule in ((0, warm), (1, warm), (2, law), (3, law)):
        pasts, counts = np.unique(items[:, :past], axis=0, return_counts=True)
        common = pasts[counts.argmax()]
        rows = (items[:, :past] == common).all(1)
        found = np.bincount(items[rows, past], minlength=10)
        chances = choices.predictive(rule, Ragged.of([common]))[0].astype(float)
        assert found.sum() > 500
        assert chi_square(found, chances) < 4
        assert chi_square(found, (chances > 0) / (chances > 0).sum()) > 4  # the test can fail


def test_the_oracle_keeps_its_promise(world, split):
    for part in ("valid", "test"):
        metrics = synthetic.bayes_metrics(world, split, part=part)
        recall, expected = metrics["recall@10"], metrics["expected_recall@10"]
        error = np.sqrt(expected * (1 - expected) / world.dataset.n_users)
        assert abs(recall - expected) < 3.5 * error
        assert abs(metrics["ndcg@10"] - metrics["expected_ndcg@10"]) < 3.5 * error


def test_ties_count_by_chance():
    few = dict(values={"shape": 2, "colour": 2, "texture": 1, "pitch": 1}, fame=0)
    world = synthetic.world(**SMALL, **few)
    metrics = synthetic.bayes_metrics(world, make_split(world.dataset, "leave-one-out"))
    scores = synthetic.bayes_scores(world, Ragged.of([[1, 2, 3]]))
    assert len(np.unique(scores)) < 12  # all items of a style are one
    expected = metrics["expected_recall@10"]
    error = np.sqrt(expected / world.dataset.n_users)
    assert abs(metrics["recall@10"] - expected) < 3.5 * error
    gain = synthetic._gain(np.array([0, 1, 9, 10]), np.array([1, 2, 4, 5]), np.ones(10))
    np.testing.assert_allclose(gain, [1, 1, 0.25, 0])


def test_probabilities_are_calibrated(world, split):
    scores = synthetic.bayes_scores(world, split.test.history)
    hit = np.zeros(scores.shape, bool)
    np.put_along_axis(hit, split.test.positives.values[:, None], True, 1)
    for low, high in ((0.001, 0.01), (0.01, 0.05), (0.05, 0.2), (0.2, 1)):
        rows = (scores > low) & (scores <= high)
        error = np.sqrt(scores[rows].sum()) / rows.sum()
        assert abs(hit[rows].mean() - scores[rows].mean()) < 4 * error


def recall_at_10(scores: np.ndarray, events: Events) -> float:
    """Of any scores [b, n+1], history masked, ties broken by chance."""
    scores = scores + 1e-9 * np.random.default_rng(0).random(scores.shape)
    rows = np.repeat(np.arange(len(events)), events.history.lengths)
    scores[rows, events.history.values] = -np.inf
    target = np.take_along_axis(scores, events.positives.values[:, None], 1)
    return ((scores[:, 1:] > target).sum(1) < 10).mean()


def test_the_optimum_is_above_the_floors():
    world = synthetic.world(image_size=8)
    split = make_split(world.dataset, "leave-one-out")
    best = synthetic.bayes_metrics(world, split)["recall@10"]
    n = world.dataset.n_items + 1
    popularity = np.bincount(split.train.values, minlength=n) / len(split.train.values)
    follows = np.zeros((n, n))
    for history in (split.train[u] for u in range(1, len(split.train))):
        np.add.at(follows, (history[:-1], history[1:]), 1)
    last = [split.test.history[r][-1] for r in range(len(split.test))]
    popular = recall_at_10(np.tile(popularity, (len(split.test), 1)), split.test)
    markov = recall_at_10(follows[last] + popularity, split.test)
    assert 0.25 < best < 0.5
    assert 10 / n < popular < 0.5 * best  # more than chance, far below the best
    assert popular < markov < 0.8 * best
    assert best == pytest.approx(
        recall_at_10(synthetic.bayes_scores(world, split.test.history).astype(float), split.test)
    )


def test_equal_arguments_make_equal_worlds(world):
    again, other = synthetic.world(**SMALL), synthetic.world(**SMALL, seed=1)
    for name in ("images", "sounds"):
        np.testing.assert_array_equal(getattr(world, name), getattr(again, name))
        assert (getattr(world, name) != getattr(other, name)).any()
    np.testing.assert_array_equal(world.dataset.items, again.dataset.items)
    np.testing.assert_array_equal(world.dataset.columns["text"], again.dataset.columns["text"])
    assert len(world.dataset.items) != len(other.dataset.items)


def test_sequences_are_what_was_asked_for(world):
    data = world.dataset
    lengths = np.bincount(data.users)[1:]
    assert lengths.min() == 6 and lengths.max() == 20
    pairs = data.users.astype(np.int64) * (data.n_items + 1) + data.items
    assert len(np.unique(pairs)) == len(pairs)  # nobody takes an item twice
    assert (np.diff(data.times)[np.diff(data.users) == 0] > 0).all()


def test_cold_items_come_late_and_as_often_as_asked():
    world = synthetic.world(**SMALL, cold=0.2, launch=0.35)
    split = make_split(world.dataset, "leave-one-out")
    assert world.cold.sum() == 48
    assert not world.cold[split.train.values].any()
    for events in (split.valid, split.test):
        share = world.cold[events.positives.values].mean()
        assert abs(share - 0.35) < 4 * np.sqrt(0.35 * 0.65 / len(events))
    scores = synthetic.bayes_scores(world, split.test.history)
    np.testing.assert_allclose(scores[:, world.cold].sum(1), 0.35, rtol=1e-5)
    assert not synthetic.world(**SMALL, cold=0, launch=0.5).cold.any()


def readable(world: synthetic.World, modality: str, factor: str) -> float:
    """How much better than chance ridge regression reads a factor off held-out items, 0 to 1."""
    x, value = world.dataset.features[modality], world.factors[factor]
    rows = np.random.default_rng(0).permutation(np.flatnonzero(world.present[modality]))
    half = len(rows) // 2
    x = np.hstack([x, np.ones((len(x), 1), np.float32)]).astype(float)
    one_hot = np.eye(value.max() + 1)[value]
    a, b = rows[:half], rows[half:]
    w = np.linalg.solve(x[a].T @ x[a] + 30 * np.eye(x.shape[1]), x[a].T @ one_hot[a])
    chance = np.bincount(value[b]).max() / len(b)
    return (((x[b] @ w).argmax(1) == value[b]).mean() - chance) / (1 - chance)


def test_each_modality_carries_its_factors_and_no_others():
    carries = {**synthetic.CARRIES, "audio": ("pitch",)}
    world = synthetic.world(n_items=600, n_users=20, missing=0, carries=carries)
    for modality, carried in carries.items():
        for factor in synthetic.VALUES:
            found = readable(world, modality, factor)
            assert found > 0.8 if factor in carried else abs(found) < 0.2, (modality, factor)


def test_weights_say_what_matters():
    law = synthetic.world(**SMALL, weights={"colour": 1.0}, fame=0).law
    world = synthetic.world(**SMALL, weights={"colour": 1.0}, fame=0)
    colour = world.factors["colour"]
    for value in np.unique(colour[1:]):
        alike = np.flatnonzero((colour == value) & (np.arange(len(colour)) > 0))
        assert np.ptp(law.taste[:, alike], axis=1).max() == 0
        assert np.ptp(law.drift[:, alike], axis=1).max() == 0
    assert np.ptp(law.taste[:, 1:], axis=1).min() > 0
    flat = synthetic.world(**SMALL, taste=0, drift=0, fame=0).law
    assert np.ptp(flat.taste[:, 1:]) == 0 and np.ptp(flat.drift[:, 1:]) == 0


def test_missing_content_is_absent_everywhere():
    world = synthetic.world(n_items=400, n_users=20, missing=0.3, image_size=16)
    there = np.array([world.present[m][1:] for m in ("image", "text", "audio")])
    assert (abs(there.mean(1) - 0.7) < 4 * np.sqrt(0.21 / 400)).all()
    assert abs(np.corrcoef(there)[np.triu_indices(3, 1)]).max() < 0.2  # independently
    data = world.dataset
    for modality, present in world.present.items():
        assert not data.features[modality][~present].any()
        assert data.features[modality][present].any(1).all()
        assert not present[0]
    assert not world.images[~world.present["image"]].any()
    assert not world.sounds[~world.present["audio"]].any()
    np.testing.assert_array_equal(data.columns["title"] != "", world.present["text"])


def test_a_world_without_any_content_still_has_behaviour():
    world = synthetic.world(n_items=60, n_users=40, missing=1, image_size=16)
    assert not any(x.any() for x in world.dataset.features.values())
    assert len(world.dataset.items) >= 40 * 6


def test_saved_files_come_back_as_they_were(tmp_path):
    world = synthetic.world(n_items=40, n_users=30, length=(3, 9))
    data = sources.load(synthetic.save(world, tmp_path / "world"))
    for name in ("users", "items", "times", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(data, name), getattr(world.dataset, name))
    np.testing.assert_array_equal(data.columns["title"], world.dataset.columns["title"])
    images, present, problems = content.decode_images(data.columns["image"], (32, 32))
    np.testing.assert_array_equal(images, world.images)
    np.testing.assert_array_equal(present, world.present["image"])
    sounds, present, more = content.decode_sounds(data.columns["audio"], world.rate, 0.25)
    np.testing.assert_allclose(sounds, world.sounds, atol=1e-6)
    np.testing.assert_array_equal(present, world.present["audio"])
    assert problems == more == []


@pytest.mark.parametrize(
    "wrong",
    [
        dict(length=(2, 5)),
        dict(length=(6, 300)),
        dict(cold=1.5),
        dict(cold=1 / 240),
        dict(values={"shape": 50}),
        dict(weights={"smell": 1.0}),
        dict(carries={"video": ("shape",)}),
        dict(carries={"image": ("smell",)}),
        dict(types=0),
    ],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(DataError, match=f"{next(iter(wrong))}=.*expected"):
        synthetic.world(**SMALL, **wrong)


def test_the_ceiling_is_of_the_next_item_alone(world, split):
    two = Events(np.ones(1, np.int32), Ragged.of([[1]]), Ragged.of([[2, 3]]))
    with pytest.raises(DataError, match="leave-one-out"):
        synthetic.bayes_metrics(world, Split("x", "x", split.train, two, two, ""))
