import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.documents import Piece, by_row, read_pieces
from jobs.shards import DatasetError

LINE = {"split": "future", "row": 1, "place": 8, "tokens": 5, "labels": 4}


def write(folder, *lines):
    parquet.write_table(pa.Table.from_pylist(list(lines)), folder / "samples.parquet")


def test_pieces_are_read_in_the_order_of_the_rows(tmp_path):
    lines = [LINE | {"paths": ["b.py", "c.py"]}, LINE | {"paths": ["a.py"], "place": 0}]
    write(tmp_path, *lines, LINE | {"paths": ["a.py"], "row": 0}, LINE | {"paths": ["d.py"], "split": "train"})
    found = read_pieces(tmp_path)
    assert [piece.path for piece in found["future"]] == ["a.py", "a.py", "b.py"]
    assert by_row(found["future"])[1] == [Piece("a.py", 1, 0, 5, 4), Piece("b.py", 1, 8, 5, 4)]
    assert found["future"][2].span == slice(8, 13)


def test_a_table_that_names_one_file_for_a_sample_is_read(tmp_path):
    write(tmp_path, LINE | {"path": "a.py"})
    assert read_pieces(tmp_path)["future"] == [Piece("a.py", 1, 8, 5, 4)]


def test_a_table_that_is_missing_or_cut_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"samples\.parquet is missing: build the dataset again"):
        read_pieces(tmp_path)
    write(tmp_path, LINE | {"paths": ["a.py"]})
    file = tmp_path / "samples.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"samples\.parquet cannot be read"):
        read_pieces(tmp_path)
    write(tmp_path, {"something": 1})
    with pytest.raises(DatasetError, match="build the dataset again"):
        read_pieces(tmp_path)
