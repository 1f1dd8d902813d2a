"""sources.py: every folder form becomes one Dataset; every bad cell an error that names it."""

import hashlib
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.schema import DataError
from pipelines.sources import from_arrays, from_tfds, load


def write(folder: Path, **files: str) -> Path:
    """Files from keyword names: `items_csv` becomes items.csv."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        stem, _, ending = name.rpartition("_")
        (folder / f"{stem}.{ending}").write_text(text, "utf-8")
    return folder


def features(folder: Path, name: str, rows: int, dtype=np.float16) -> np.ndarray:
    values = np.arange(rows * 2, dtype=dtype).reshape(rows, 2)
    np.save(folder / name, values)
    return values.astype(np.float32)


# --- forms ---------------------------------------------------------------------------------


def test_sequences_keep_integer_ids_and_json_text(tmp_path):
    items = (
        "item_id\ttitle\tcategories\n"
        '1\tone\t"[[""Beauty"", ""Nails""]]"\n'
        '2\ttwo\t\n3\t"a ""b"""\t\n'
    )
    data = load(write(tmp_path, sequences_txt="1 3 1\n2 2 3\n", items_tsv=items))
    assert data.users.tolist() == [1, 1, 2, 2] and data.users.dtype == np.int32
    assert data.items.tolist() == [3, 1, 2, 3] and data.items.dtype == np.int32
    assert data.item_ids.tolist() == ["", "1", "2", "3"]
    assert data.columns["categories"].tolist() == ["", '[["Beauty", "Nails"]]', "", ""]
    assert data.columns["title"][3] == 'a "b"'
    assert data.present["text"].tolist() == [False, True, True, True]
    assert data.times is None and data.source["order"] == "file"


def test_sequences_join_the_attributes(tmp_path):
    folder = write(tmp_path, sequences_txt="1 1 2 3\n", items_tsv="item_id\n1\n2\n3\n")
    (folder / "item2attributes.json").write_text('{"2": [4, 5]}')
    assert load(folder).columns["attributes"].tolist() == ["", "", "[4, 5]", ""]


def test_mmrec_counts_items_that_nobody_touched(tmp_path):
    folder = write(tmp_path, clip_inter="userID\titemID\tx_label\n0\t3\t0\n0\t1\t1\n1\t3\t2\n")
    image = features(folder, "image_feat.npy", 6)
    text = features(folder, "text_feat_384.npy", 6, np.float32)
    data = load(folder)
    assert data.n_items == 6 and data.n_users == 2
    assert data.items.tolist() == [4, 2, 4] and data.labels.tolist() == [0, 1, 2]
    assert data.labels.dtype == np.int8
    assert data.features["image"].dtype == np.float32
    np.testing.assert_array_equal(data.features["image"][1:], image)
    np.testing.assert_array_equal(data.features["text"][1:], text)
    assert not data.features["image"][0].any() and not data.present["image"][0]


def test_mmrec_without_features_counts_to_the_largest_id(tmp_path):
    data = load(write(tmp_path, a_inter="userID\titemID\n5\t3\n2\t0\n"))
    assert data.n_items == 4 and data.items.tolist() == [4, 1]
    assert data.user_ids.tolist() == ["", "2", "5"] and data.users.tolist() == [2, 1]


def test_mmrec_ids_that_do_not_count(tmp_path):
    folder = write(tmp_path, a_inter="userID\titemID\n0\t3\n0\t999999999999\n")
    with pytest.raises(
        DataError, match="itemID to count items from 0, found 2 items and ids up to"
    ):
        load(folder)
    write(folder, items_tsv="itemID\n3\n999999999999\n")
    assert load(folder).items.tolist() == [1, 2]


def test_mmrec_ids_are_rows_of_a_table_with_other_ids(tmp_path):
    inter = "userID\titemID\ttimestamp\tx_label\n0\t1\t9\t0\n1\t0\t8\t2\n"
    items, users = "movie_id\ttitle\n10\tten\n20\ttwenty\n", "user_id\tage\n7\t30\n8\t40\n"
    folder = write(tmp_path, a_inter=inter, items_tsv=items, users_tsv=users)
    data = load(folder)
    assert data.columns["title"][data.items].tolist() == ["twenty", "ten"]
    assert data.item_ids[data.items].tolist() == ["20", "10"]
    assert data.user_columns["age"][data.users].tolist() == ["30", "40"]
    assert "row of items.tsv" in data.source["notes"][0]
    write(folder, a_inter=inter + "0\t2\t9\t0\n")
    with pytest.raises(DataError, match=r"a\.inter, row 3: expected a row number below 2.*found 2"):
        load(folder)


def test_several_parts_are_logged_and_chosen(tmp_path, caplog):
    rows = "userID\titemID\n0\t{}\n"
    folder = write(tmp_path / "set", b_inter=rows.format(1), a_inter=rows.format(0))
    write(folder, a_items_tsv="itemID\tasin\n0\tX\n", b_items_tsv="itemID\tasin\n0\tX\n1\tY\n")
    with caplog.at_level(logging.INFO, "pipelines"):
        first = load(folder)
    assert first.source["part"] == "a" and first.source["parts"] == ["a", "b"]
    assert "taking part 'a'; others are ['b']" in caplog.text
    second, direct = load(folder, part="b"), load(folder / "b.inter")
    assert second.columns["asin"].tolist() == direct.columns["asin"].tolist() == ["", "X", "Y"]
    assert second.name == direct.name == "set-b" != first.name
    with pytest.raises(DataError, match=r"no part 'c'; it has \['a', 'b'\]"):
        load(folder, part="c")
    with pytest.raises(DataError, match="this is part 'b', not 'a'"):
        load(folder / "b.inter", part="a")


def test_recbole_headers_and_tables(tmp_path):
    inter = "user_id:token\titem_id:token\ttimestamp:float\nu\tx\t3.5\nv\ty\t1\n"
    data = load(
        write(tmp_path, a_inter=inter, a_item="item_id:token\ttitle:token_seq\ny\tY\nx\tX\n")
    )
    assert data.items.tolist() == [2, 1] and data.times.tolist() == [3.5, 1.0]
    assert data.columns["title"].tolist() == ["", "Y", "X"]


def test_sibling_text_is_joined_by_s3rec_id(tmp_path):
    write(tmp_path / "amazon-sports", items_tsv="item_id\tgram_text_id\n1\tone\n2\ttwo\n")
    folder = write(tmp_path / "graph", sports_inter="userID\titemID\n0\t0\n0\t1\n")
    write(folder, sports_items_tsv="itemID\ts3rec_id\n0\t2\n1\t1\n")
    data = load(folder)
    assert data.columns["gram_text_id"].tolist() == ["", "two", "one"]
    assert "../amazon-sports/items.tsv" in data.source["files"]
    assert "s3rec_id" in data.source["notes"][0]


def test_movielens_csv_with_posters(tmp_path):
    ratings = "userId,movieId,rating,timestamp\n1,30,4.5,964982703\n1,2,3,964982704\n"
    folder = write(tmp_path, ratings_csv=ratings, movies_csv='movieId,title\n30,"C, (1)"\n2,B\n')
    write(folder / "posters", **{"2_jpg": "bytes"})
    data = load(folder)
    assert data.item_ids.tolist() == ["", "2", "30"] and data.items.tolist() == [2, 1]
    assert data.columns["title"].tolist() == ["", "B", "C, (1)"]
    assert data.columns["image"].tolist() == ["", str(folder.resolve() / "posters" / "2.jpg"), ""]
    assert data.present["image"].tolist() == [False, True, False]
    assert data.times.dtype == np.int64 and data.ratings.tolist() == [4.5, 3.0]


def test_movielens_dat_in_latin_1(tmp_path):
    folder = write(tmp_path, ratings_dat="1::5::3::978300760\n2::5::4::978302109\n")
    (folder / "movies.dat").write_bytes("5::Misérables, Les (1995)::Drama\n".encode("latin-1"))
    data = load(folder)
    assert data.columns["title"][1] == "Misérables, Les (1995)"
    assert data.times.tolist() == [978300760, 978302109] and data.users.tolist() == [1, 2]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_three_tables(tmp_path, ending):
    def save(name: str, **columns):
        frame, path = pl.DataFrame(columns), tmp_path / f"{name}.{ending}"
        if ending == "parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="," if ending == "csv" else "\t")

    save(
        "interactions",
        user_id=["u", "v", "u"],
        item_id=["b", "a", "a"],
        timestamp=[3, 1, 2],
        split=["train", "Validation", "test"],
    )
    save(
        "items", item_id=["a", "b"], title=["A", None], image=["pics/a.jpg", None], brand=["x", "y"]
    )
    save("users", user_id=["v", "u"], age=[20, 30])
    write(tmp_path / "pics", a_jpg="bytes")
    data = load(tmp_path)
    assert data.items.tolist() == [2, 1, 1] and data.users.tolist() == [2, 1, 2]
    assert data.times.tolist() == [3, 1, 2] and data.labels.tolist() == [0, 1, 2]
    assert data.columns["image"].tolist() == ["", str(tmp_path.resolve() / "pics" / "a.jpg"), ""]
    assert data.columns["brand"].tolist() == ["", "x", "y"]
    assert data.user_columns["age"].tolist() == ["", "20", "30"]
    assert data.present["text"].tolist() == [False, True, False]


def test_parquet_dates_and_lists(tmp_path):
    times = pl.Series([1_000_000, 2_500_000]).cast(pl.Datetime("us"))
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [4, 5], "timestamp": times})
    frame.write_parquet(tmp_path / "interactions.parquet")
    items = pl.DataFrame({"item_id": [4, 5], "tags": [["a", "b"], []]})
    items.write_parquet(tmp_path / "items.parquet")
    data = load(tmp_path)
    assert data.times.tolist() == [1.0, 2.5]
    assert data.columns["tags"].tolist() == ["", '["a", "b"]', "[]"]


def test_ids_without_a_table(tmp_path):
    numeric = load(write(tmp_path, interactions_csv="user_id,item_id\n10,9\n9,100\n10,20\n"))
    assert numeric.item_ids.tolist() == ["", "9", "20", "100"]
    assert numeric.user_ids.tolist() == ["", "9", "10"]
    text = load(write(tmp_path, interactions_csv="user_id,item_id\nb,07\na,7\n"))
    assert text.item_ids.tolist() == ["", "07", "7"] and text.user_ids.tolist() == ["", "b", "a"]


def test_source_says_where_it_comes_from(tmp_path):
    folder = write(tmp_path / "set", interactions_csv="user_id,item_id\na,b\n")
    write(folder, SOURCE_md="# set\nLicense: CC0, ask nobody.\n")
    source = load(folder).source
    digest = hashlib.sha256(b"user_id,item_id\na,b\n").hexdigest()
    assert source["folder"] == "set" and source["licence"] == "CC0, ask nobody."
    assert source["files"] == {"interactions.csv": digest}
    assert source["part"] == "interactions" and source["format"] == "tables"


def test_from_arrays():
    data = from_arrays(
        ["u", "v"],
        [7, 5],
        times=[2.5, 1.0],
        ratings=[1, 2],
        labels=[0, 2],
        item_columns={"item_id": [9, 7, 5], "title": ["nine", "seven", None]},
        features={"image": np.array([[9.0], [7.0], [5.0]])},
    )
    assert data.item_ids.tolist() == ["", "5", "7", "9"]
    assert data.columns["title"].tolist() == ["", "", "seven", "nine"]
    assert data.features["image"][:, 0].tolist() == [0, 5, 7, 9]
    assert data.times.tolist() == [2.5, 1.0] and data.labels.tolist() == [0, 2]
    assert data.name == "memory" and data.source["format"] == "memory"
    with pytest.raises(DataError, match="equal length, found .*'user_id': 2, 'item_id': 1"):
        from_arrays([1, 2], [1])


def test_from_tfds_reads_records_and_decodes_bytes():
    records = [
        {"user_id": b"2", "movie_id": b"b", "timestamp": np.int64(5), "user_rating": np.float32(3)},
        {"user_id": b"1", "movie_id": b"a", "timestamp": np.int64(4), "user_rating": np.float32(4)},
    ]
    for record, title in zip(records, (b"B", "Ä".encode()), strict=True):
        record["movie_title"] = title
    data = from_tfds(records, title="movie_title")
    assert data.user_ids.tolist() == ["", "1", "2"] and data.users.tolist() == [2, 1]
    assert data.item_ids.tolist() == ["", "b", "a"]
    assert data.columns["title"].tolist() == ["", "B", "Ä"]
    assert data.times.tolist() == [5, 4] and data.ratings.tolist() == [3.0, 4.0]
    assert from_tfds(records, rating=None).ratings is None
    with pytest.raises(DataError, match="no key 'item' for the items; it has"):
        from_tfds(records, item="item")


# --- errors --------------------------------------------------------------------------------


def test_missing_column_names_the_nearest(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,itemid\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'item_id' .*nearest \['itemid'"):
        load(folder)


def test_cells_parted_by_another_mark_are_told(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id;item_id\n1;2\n")
    with pytest.raises(DataError, match="parted by ';'; expected commas in .csv"):
        load(folder)


def test_extra_columns_are_logged(tmp_path, caplog):
    folder = write(tmp_path, interactions_csv="user_id,item_id,colour\n1,2,red\n")
    with caplog.at_level(logging.INFO, "pipelines"):
        data = load(folder)
    assert "order is taken for time; not used: colour" in caplog.text and data.columns == {}
    folder = write(tmp_path, interactions_csv="user_id,item_id,timestamp,colour\n1,2,3,red\n")
    with caplog.at_level(logging.INFO, "pipelines"):
        load(folder)
    assert "columns ['colour'] are not used" in caplog.text


@pytest.mark.parametrize("side, header", [("items", "item_id"), ("users", "user_id")])
def test_ids_outside_the_table(tmp_path, side, header):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,1\n2,2\n1,1\n")
    write(folder, **{f"{side}_csv": f"{header}\n1\n"})
    with pytest.raises(
        DataError, match=rf"every {header} in the {side[:-1]} table.*\['2'\] at row 2"
    ):
        load(folder)


@pytest.mark.parametrize(
    "column, cell, message",
    [
        ("timestamp", "2020-01-01", "row 2, column 'timestamp': expected seconds.*'2020-01-01'"),
        ("timestamp", "", "row 2, column 'timestamp': expected seconds.*None"),
        ("timestamp", "nan", "row 2, column 'timestamp': expected seconds.*'nan'"),
        ("rating", "good", "row 2, column 'rating': expected a number.*'good'"),
        ("split", "3", "row 2, column 'split': expected one of 0, train"),
    ],
)
def test_unparsable_cells(tmp_path, column, cell, message):
    table = f"user_id,item_id,{column}\n1,1,0\n1,2,{cell}\n"
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, interactions_csv=table))


def test_missing_id(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,1\n1,\n")
    with pytest.raises(DataError, match="row 2, column 'item_id': expected an id, found None"):
        load(folder)


@pytest.mark.parametrize("text", ["", "user_id,item_id\n"])
def test_empty_interactions(tmp_path, text):
    with pytest.raises(DataError, match=r"interactions\.csv: (no interactions|the file is empty)"):
        load(write(tmp_path, interactions_csv=text))


@pytest.mark.parametrize("text, message", [("\n", "the file is empty"), ("1 2\n3\n", "row 2")])
def test_bad_sequences(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, sequences_txt=text))


def test_ragged_table(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,1\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"interactions\.csv: could not be read as csv"):
        load(folder)


def test_unrecognised_folder_lists_what_it_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"Looked for sequences: .*ratings\.dat.*holds \['a\.md'\]"):
        load(write(tmp_path, a_md="x"))
    with pytest.raises(DataError, match="no such folder or file"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"a\.md: unknown kind of interactions file"):
        load(tmp_path / "a.md")


def test_feature_rows_must_be_the_items(tmp_path):
    folder = write(tmp_path, a_inter="userID\titemID\n0\t7\n")
    features(folder, "image_feat.npy", 6)
    with pytest.raises(DataError, match="features 'image': expected 8 rows.*found 6"):
        load(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_must_be_finite(tmp_path, bad):
    folder = write(tmp_path, a_inter="userID\titemID\n0\t1\n")
    np.save(folder / "image_feat.npy", np.array([[1.0, 2.0], [bad, 0.0]]))
    with pytest.raises(DataError, match=r"image_feat\.npy: .*in 1 rows, first row 1 \(from 0\)"):
        load(folder)


def test_features_are_never_unpickled(tmp_path):
    folder = write(tmp_path, a_inter="userID\titemID\n0\t1\n")
    np.save(folder / "image_feat.npy", np.array([{"a": 1}, None], object))
    with pytest.raises(DataError, match=r"image_feat\.npy: expected a plain \.npy float matrix"):
        load(folder)


def test_features_follow_the_rows_of_the_item_table(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,30\n1,2\n")
    write(folder, items_csv="item_id,title\n30,thirty\n2,two\n")
    thirty, two = features(folder, "image_feat.npy", 2).tolist()
    data = load(folder)
    assert data.columns["title"].tolist() == ["", "two", "thirty"]
    assert data.features["image"].tolist() == [[0, 0], two, thirty]
    features(folder, "image_feat.npy", 3)
    with pytest.raises(DataError, match="features 'image': expected 2 rows.*found 3"):
        load(folder)


def test_mmrec_features_follow_the_item_id(tmp_path):
    folder = write(tmp_path, a_inter="userID\titemID\n0\t1\n")
    write(folder, items_tsv="itemID\ttitle\n1\tone\n0\tzero\n")
    zero, one = features(folder, "image_feat.npy", 2).tolist()
    data = load(folder)
    assert data.columns["title"].tolist() == ["", "zero", "one"]
    assert data.features["image"].tolist() == [[0, 0], zero, one]


def test_features_need_an_order(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,x\n1,y\n")
    features(folder, "image_feat.npy", 2)
    with pytest.raises(DataError, match="and there is none. Add items.csv"):
        load(folder)
    features(folder, "image_feat_4.npy", 2)
    with pytest.raises(DataError, match="expected one feature file for 'image'"):
        load(folder)


@pytest.mark.parametrize("cell", ["../secret.jpg", "/etc/hostname", "pics/../../secret.jpg"])
def test_image_paths_stay_inside(tmp_path, cell):
    write(tmp_path, secret_jpg="x")
    folder = write(tmp_path / "set", interactions_csv="user_id,item_id\n1,1\n")
    write(folder, items_csv=f"item_id,image\n1,{cell}\n")
    with pytest.raises(DataError, match="row 1, column 'image': expected a path inside the folder"):
        load(folder)


def test_image_link_out_of_the_folder(tmp_path):
    write(tmp_path, secret_jpg="x")
    folder = write(tmp_path / "set", interactions_csv="user_id,item_id\n1,1\n")
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    write(folder, items_csv="item_id,image\n1,a.jpg\n")
    with pytest.raises(DataError, match="expected a path inside the folder, found 'a.jpg'"):
        load(folder)


def test_image_that_is_not_there(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,1\n")
    write(folder, items_csv="item_id,image\n1,a.jpg\n")
    with pytest.raises(DataError, match="row 1, column 'image': there is no file 'a.jpg'"):
        load(folder)


def test_item_table_ids(tmp_path):
    folder = write(tmp_path, interactions_csv="user_id,item_id\n1,1\n")
    write(folder, items_csv="item_id,title\n1,a\n2,b\n1,c\n")
    with pytest.raises(DataError, match=r"each item_id once, found '1'.*rows \[1, 3\]"):
        load(folder)
    write(folder, items_csv='item_id,title\n1,a\n"",b\n')
    with pytest.raises(DataError, match="row 2, column 'item_id': expected an id, found none"):
        load(folder)


# --- real data -----------------------------------------------------------------------------

COUNTS = {  # folder, part: users, items, interactions
    ("amazon-beauty", None): (22363, 12101, 198502),
    ("amazon-sports", None): (35598, 18357, 296337),
    ("amazon-instruments", None): (17112, 6250, 136226),
    ("amazon-graph", "baby"): (19445, 7050, 160792),
    ("amazon-graph", "sports"): (35598, 18357, 296337),
    ("tiktok", None): (9308, 6710, 68722),
    ("ml-100k", None): (943, 1682, 100000),
    ("ml-100k", "ml100k_75_12_13"): (943, 1682, 100000),
    ("ml-100k", "ml100k_logs_33_33_33"): (943, 1682, 100000),
    ("ml-latest-small", None): (610, 9742, 100836),
}


@pytest.mark.parametrize("folder, part", COUNTS)
def test_real_counts(real_data, folder, part):
    data = load(real_data / folder, part)
    assert (data.n_users, data.n_items, len(data.users)) == COUNTS[folder, part]


def test_real_contents(real_data):
    beauty = load(real_data / "amazon-beauty")
    assert beauty.columns["categories"][1] == '[["Beauty", "Makeup", "Nails", "Nail Polish"]]'
    assert (beauty.columns["title"][1:] != "").all() and beauty.item_ids[7] == "7"
    sports = load(real_data / "amazon-graph", "sports")
    assert sports.columns["gram_text_id"][1].startswith("|▁mount|▁scope")
    tiktok = load(real_data / "tiktok")
    assert {k: v.shape for k, v in tiktok.features.items()} == {
        "audio": (6711, 128),
        "image": (6711, 128),
    }
    assert np.bincount(tiktok.labels).tolist() == [59541, 3051, 6130]


def test_real_mmrec_ids_are_the_movie_ids(real_data):
    ratings = load(real_data / "ml-100k")
    split = load(real_data / "ml-100k" / "ml100k_75_12_13.inter")
    np.testing.assert_array_equal(ratings.items, split.items)
    np.testing.assert_array_equal(ratings.users, split.users)
    np.testing.assert_array_equal(ratings.times, split.times)
    assert split.features["text"].shape == (1683, 384)


def test_real_posters(real_data):
    data = load(real_data / "ml-latest-small")
    there = data.columns["image"] != ""
    assert there.sum() == 4888 and there[data.items].sum() == 93226
    assert len(np.unique(data.items)) == 9724
    np.testing.assert_array_equal(there, data.columns["has_poster"] == "1")
