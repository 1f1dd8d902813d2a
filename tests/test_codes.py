"""Semantic ids: unique after each resolver, old ones never move, known quality, files both ways."""

import json

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from scipy.optimize import linear_sum_assignment

from pipelines import codes as files
from pipelines.schema import DataError
from zoo import quantize
from zoo import semantic_ids as sids
from zoo.code_quality import lines, quality

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    """Sixty items in 2 x 6 codes, which they must share, with a last level of 24."""
    books = [np.random.default_rng(i).normal(size=(24, 4)).astype(np.float32) for i in (1, 2)]
    books = jnp.asarray(np.stack(books)).at[0, 6:].set(100.0)
    codes = np.asarray(quantize.assign(jnp.asarray(X), books))
    distances = np.asarray(quantize.last_distances(jnp.asarray(X), jnp.asarray(codes), books))
    assert not sids.unique(codes)
    return codes, distances


@pytest.mark.parametrize("how", ["digit", "popularity", "relocate", "sinkhorn"])
def test_codes_are_unique_and_items_outside_groups_keep_theirs(fitted, how):
    codes, distances = fitted
    out = sids.resolve(codes, how, distances, np.arange(60))
    assert sids.unique(out) and out.dtype == np.int32
    size = np.bincount(sids.groups(codes))[sids.groups(codes)]
    np.testing.assert_array_equal(out[size == 1][:, :2], codes[size == 1])
    np.testing.assert_array_equal(out[:, 0], codes[:, 0])
    np.testing.assert_array_equal(out, sids.resolve(codes, how, distances, np.arange(60)))


def test_digits_count_in_the_order_of_items_or_of_popularity():
    codes = np.asarray([[1, 1], [0, 0], [1, 1], [1, 1]])
    assert sids.resolve(codes)[:, 2].tolist() == [0, 0, 1, 2]
    popular = sids.resolve(codes, "popularity", popularity=np.asarray([1, 0, 5, 5]))
    assert popular[:, 2].tolist() == [2, 0, 0, 1]
    np.testing.assert_array_equal(sids.resolve(codes, "none"), codes)


def test_the_nearest_keeps_its_code_and_the_others_take_the_nearest_free_one():
    codes = np.asarray([[0, 1], [0, 1], [0, 2], [3, 0]])
    distances = np.asarray([[9, 0.5, 1, 2], [3, 0.1, 1, 2], [9, 9, 0, 9], [0, 1, 1, 1]])
    out = sids.resolve(codes, "relocate", distances)
    assert out.tolist() == [[0, 3], [0, 1], [0, 2], [3, 0]]
    with pytest.raises(ValueError, match=r"prefix \[0\] than the last level's 2 codes"):
        sids.resolve(np.zeros((3, 2), int), "relocate", np.ones((3, 2)))


def test_sinkhorn_shares_out_a_group_by_what_all_its_items_lose():
    """One after another the nearest keeps its code, whatever that costs the others; together they
    take the assignment of the least total."""
    same, distances = np.zeros((2, 2), int), np.asarray([[0.0, 1.0], [0.1, 9.0]])
    assert sids.resolve(same, "relocate", distances)[:, 1].tolist() == [0, 1]
    assert sids.resolve(same, "sinkhorn", distances)[:, 1].tolist() == [1, 0]
    distances = np.random.default_rng(0).random((6, 6))
    rows, least = linear_sum_assignment(distances)
    moved, shared = (
        sids.resolve(np.zeros((6, 2), int), how, distances)[:, 1]
        for how in ("relocate", "sinkhorn")
    )
    np.testing.assert_array_equal(shared, least)
    assert distances[rows, moved].sum() > 1.2 * distances[rows, least].sum()


@pytest.mark.parametrize("how", ["digit", "relocate"])
def test_appending_moves_no_old_code_and_twice_is_once(fitted, how):
    codes, distances = fitted
    old, new = slice(0, 40), slice(40, 60)
    start = sids.resolve(codes[old], how, distances[old])
    once = sids.append(start, codes[new], how, distances[new])
    twice = start
    for part in (slice(40, 47), slice(47, 60)):
        twice = sids.append(twice, codes[part], how, distances[part])
    assert once[:40].tobytes() == start.tobytes()
    np.testing.assert_array_equal(once, twice)
    assert sids.unique(once) and len(once) == 60


def test_a_gap_in_the_digits_is_not_filled_and_a_full_range_is_an_error():
    codes = np.asarray([[5, 0], [5, 3]])
    assert sids.append(codes, np.asarray([[5], [6]])).tolist()[2:] == [[5, 4], [6, 0]]
    with pytest.raises(ValueError, match="needs digit 4; 4 are reserved"):
        sids.append(codes, np.asarray([[5]]), reserved=4)


def test_resolvers_say_what_they_lack():
    codes = np.zeros((2, 2), int)
    with pytest.raises(ValueError, match="needs distances="):
        sids.resolve(codes, "relocate")
    with pytest.raises(ValueError, match="needs popularity="):
        sids.resolve(codes, "popularity")
    with pytest.raises(ValueError, match="no resolver 'hash'; expected one of digit"):
        sids.resolve(codes, "hash")
    with pytest.raises(ValueError, match="new codes have 3 levels; 'digit' needs 1"):
        sids.append(codes, np.zeros((1, 3), int))


def test_quality_of_known_codes():
    codes = np.asarray([[0, 0], [0, 1], [1, 0], [1, 0]])
    x = np.asarray([[0.0], [0.4], [10], [11]])
    report = quality(
        codes,
        labels=np.asarray(["a", "b", "c", "c"]),
        weights=np.asarray([3, 1, 2, 2]),
        targets=np.asarray([0, 2]),
        x=x,
        decoded=np.full((4, 1), x.mean()),
    )
    first, second = report["levels"]
    assert first == {"used": 2, "perplexity": pytest.approx(2), "largest": 2}
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert second == {"used": 2, "perplexity": pytest.approx(np.exp(entropy)), "largest": 3}
    assert report["prefixes"] == [2, 3]
    assert (report["colliding"], report["largest_group"]) == (2, 2)
    assert report["targets_colliding"] == 0.5
    assert report["purity"] == 0.75 and report["purity_weighted"] == 7 / 8
    assert report["neighbours"] == [1.0, 0.5]
    assert report["error"] == pytest.approx(1)
    assert any("2 items collide, largest group 2" in line for line in lines(report))


IDS = np.array(["", "x", "y", "z"], object)
INDEX = {"z": ["<a_5>", "<b_1>"], "x": ["<a_0>", "<b_9>"], "y": ["<a_5>", "<b_0>"]}


def written(tmp_path, index):
    path = tmp_path / "toy.index.json"
    path.write_text(index if isinstance(index, str) else json.dumps(index))
    return path


def test_an_index_is_read_by_item_and_written_back(tmp_path):
    codes = files.read_index(written(tmp_path, INDEX), IDS)
    assert codes.codes.tolist() == [[0, 0], [0, 9], [5, 0], [5, 1]]
    assert codes.present.tolist() == [False, True, True, True] and codes.letters == ("a", "b")
    files.write_index(tmp_path / "again.json", codes, IDS)
    assert json.loads((tmp_path / "again.json").read_text()) == INDEX
    again = files.read_column(files.to_column(codes), IDS)
    np.testing.assert_array_equal(again.codes, codes.codes)
    np.testing.assert_array_equal(files.from_array(codes.codes[1:]).codes, codes.codes)


def test_more_levels_than_letters(tmp_path):
    ids = np.array(["", "x", "y"], object)
    made = files.from_array(np.arange(80).reshape(2, 40))
    assert made.letters[25:28] == ("z", "aa", "ab")
    files.write_index(tmp_path / "c.json", made, ids)
    np.testing.assert_array_equal(files.read_index(tmp_path / "c.json", ids).codes, made.codes)
    plain = [" ".join(map(str, row)) for row in made.codes.tolist()]
    column = files.read_column(["", *plain[1:]], ids)
    assert column.tokens(1) == made.tokens(1)


def test_ids_that_count_from_zero_and_columns_of_plain_numbers(tmp_path):
    ids = np.array(["", "1", "2"], object)
    index = {"0": ["<A_1>", "<B_2>"], "1": ["<A_3>", "<B_4>"]}
    codes = files.read_index(written(tmp_path, index), ids, key=lambda i: str(int(i) + 1))
    assert codes.codes.tolist() == [[0, 0], [1, 2], [3, 4]] and codes.letters == ("A", "B")
    plain = files.read_column(["", "1 2", None], ids, partial=True)
    assert plain.codes.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert plain.present.tolist() == [False, True, False] and plain.tokens(2) == []


@pytest.mark.parametrize(
    "index, message",
    [
        ({**INDEX, "w": ["<a_1>", "<b_1>"]}, "1 of its 4 items are not in this catalogue.*'w'"),
        ({k: v for k, v in INDEX.items() if k != "y"}, "1 of 3 items have no codes.*'y'"),
        (INDEX | {"y": INDEX["x"]}, "2 of 3 items share their codes, such as 'x' and 'y'"),
        (INDEX | {"y": ["<a_1>", "b1"]}, "item 'y': 'b1' is no token"),
        (INDEX | {"y": ["<b_1>", "<a_1>"]}, "item 'y'.*levels b-a; the first item's are a-b"),
        (INDEX | {"y": ["<a_256>", "<b_1>"]}, "item 'y': code 256 does not exist"),
        ('{"x": ["<a_1>"], "x": ["<a_2>"]}', "item 'x' stands there twice"),
        ("[1, 2]", "expected one object"),
        ("{", "not JSON"),
        ({}, "no item has codes"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, index, message):
    with pytest.raises(DataError, match=f"(?s)toy.index.json.*{message}"):
        files.read_index(written(tmp_path, index), IDS)


def test_wrong_columns_and_vectors_are_refused():
    with pytest.raises(DataError, match="2 rows of codes for 4 items"):
        files.read_column(["", "1 2"], IDS)
    x = np.ones((4, 2))
    present = np.array([False, True, True, True])
    files.check_vectors(x, present, IDS, 3)
    with pytest.raises(DataError, match="3 items with features cannot fill 4 codes"):
        files.check_vectors(x, present, IDS, 4)
    x[2, 1] = np.nan
    with pytest.raises(DataError, match="1 items hold NaN.*'y'"):
        files.check_vectors(x, present, IDS, 3)


PUBLISHED = [  # perplexity by level, distinct prefixes, colliding items, largest group
    ("amazon-beauty", "letter_sid", [82.7, 248.6, 247.6, 246.6], [197, 7931, 11696, 12088], 24, 3),
    (
        "amazon-beauty",
        "tigerrepro_rqkmeans_sid",
        [85.1, 62.8, 42.0, 252.8],
        [256, 3687, 7834, 12088],
        0,
        1,
    ),
    (
        "amazon-instruments",
        "sid_text",
        [15.8, 182.9, 218.9, 235.9],
        [126, 1708, 5012, 5988],
        524,
        2,
    ),
]


@pytest.mark.parametrize("folder, column, perplexity, prefixes, colliding, largest", PUBLISHED)
def test_published_ids(real_data, folder, column, perplexity, prefixes, colliding, largest):
    path = real_data / folder / "items.tsv"
    table = pl.read_csv(path, separator="\t", infer_schema=False)
    ids = np.array(["", *table["item_id"]], object)
    codes = files.read_column(["", *table[column]], ids, column, partial=True, collisions=True)
    report = quality(codes.codes[codes.present])
    seen = [round(level["perplexity"], 1) for level in report["levels"]]
    assert (seen, report["prefixes"]) == (perplexity, prefixes)
    assert (report["colliding"], report["largest_group"]) == (colliding, largest)
