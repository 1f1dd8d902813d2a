"""Word sets from item columns, against small tables written by hand."""

import numpy as np
import pytest

from pipelines.schema import DataError, Dataset
from pipelines.words import of_text, vocabulary_size, words


def table(**columns) -> Dataset:
    n = len(next(iter(columns.values())))
    ids = np.array(["", *map(str, range(n))], object)
    return Dataset(
        name="table",
        users=np.ones(1, np.int32),
        items=np.ones(1, np.int32),
        user_ids=np.array(["", "u"], object),
        item_ids=ids,
        columns={name: np.array(["", *cells], object) for name, cells in columns.items()},
    )


def shared(dataset: Dataset, a: int, b: int) -> int:
    rows = words(dataset)
    return len(np.intersect1d(rows[a], rows[b]))


def test_text_is_unescaped_lowered_and_cut_at_everything_else():
    assert of_text("Foam 2-1/2&quot; X&amp;Y café") == ["foam", "2", "1", "2", "x", "y", "caf"]


def test_rows_are_sets_with_an_empty_row_for_padding():
    rows = words(table(title=["red red nail", "RED!", ""]))
    assert len(rows) == 4
    assert rows.lengths.tolist() == [0, 2, 1, 0]
    assert set(rows[2]) < set(rows[1])
    assert vocabulary_size(rows) == 2


def test_category_nodes_are_whole_tokens_at_any_depth():
    data = table(
        title=["a", "b", "nail polish"],
        categories=['[["Beauty", "Nail Polish"]]', '[["Tools"], ["Nail  Polish", "Sets"]]', ""],
    )
    assert words(data).lengths.tolist() == [0, 3, 4, 2]
    assert shared(data, 1, 2) == 1  # c_nail_polish
    assert shared(data, 1, 3) == 0  # the words nail and polish are other tokens


def test_movies_have_title_overview_and_genre_tokens():
    data = table(
        title=["Heat (1995)", "Jumanji"],
        overview=["a thief", "a game"],
        genres=["War|Drama", "War"],
    )
    assert words(data).lengths.tolist() == [0, 6, 4]
    assert shared(data, 1, 2) == 2  # the word a and the genre


def test_keywords_stand_in_only_where_there_is_no_title():
    keywords = dict(idgenrec_text_id=["lee powder"], gram_text_id=["|▁le|▁powder|Le|le|▁2012."])
    assert words(table(**keywords)).lengths.tolist() == [0, 7]  # ▁powder, Le are their own
    assert words(table(title=["gun"], **keywords)).lengths.tolist() == [0, 1]


def test_no_text_is_none():
    assert words(table(asin=["B00"])) is None
    assert words(table(title=["", ""])) is None


@pytest.mark.parametrize("cell", ["Beauty", '{"a": 1', "[1, 2]"])
def test_bad_categories_name_the_item(cell):
    with pytest.raises(DataError, match="item 2, column 'categories'.*list of paths"):
        words(table(title=["a", "b"], categories=['[["Beauty"]]', cell]))
