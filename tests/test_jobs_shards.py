"""Rows go to disk and come back; a dataset that is cut, altered or unfinished is told by name."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import ExitCode
from jobs import shards
from jobs.shards import (
    DOCUMENT_START,
    LABEL,
    DatasetError,
    ShardWriter,
    dtype_name,
    labels,
    open_dataset,
    position_ids,
    verify,
    write_manifest,
)

T = 8


def some_rows(count, top=49_151):
    rng = np.random.default_rng(count)
    return [(rng.integers(0, top, T), rng.integers(0, 4, T).astype(np.uint8)) for _ in range(count)]


def write(folder, train, held_out, dtype="uint16"):
    files, counts = {}, {}
    for split, rows in (("train", train), ("held_out", held_out)):
        with ShardWriter(folder, split, T, dtype) as writer:
            for ids, flags in rows:
                writer.append(ids, flags)
        files |= writer.files
        counts[split] = {"rows": writer.rows}
    write_manifest(folder, {"files": files, "splits": counts, "dtype": dtype, "sequence_length": T})
    return folder


def refusal(function, folder):
    with pytest.raises(DatasetError) as caught:
        function(folder)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value)


@pytest.mark.parametrize(("dtype", "top"), [("uint16", 65_535), ("uint32", 151_664)])
def test_rows_come_back_as_they_were(tmp_path, monkeypatch, dtype, top):
    monkeypatch.setattr(shards, "SHARD_BYTES", T * 4 * 3)
    train, held_out = some_rows(20, top), some_rows(1, top)
    dataset = open_dataset(write(tmp_path, train, held_out, dtype))
    assert (len(dataset.train), len(dataset.held_out), dataset.sequence_length) == (20, 1, T)
    for row, (ids, flags) in zip(dataset.train, train, strict=True):
        assert row.ids.dtype == np.int64
        assert row.flags.dtype == np.uint8
        np.testing.assert_array_equal(row.ids, ids)
        np.testing.assert_array_equal(row.flags, flags)
    assert len(list((tmp_path / "train").glob("*.ids"))) > 1
    verify(tmp_path)


def test_a_row_that_does_not_exist_is_an_index_error(tmp_path):
    dataset = open_dataset(write(tmp_path, some_rows(2), []))
    assert len(dataset.held_out) == 0
    for index in (-1, 2):
        with pytest.raises(IndexError):
            dataset.train[index]


def test_a_row_of_another_length_is_not_written(tmp_path):
    with ShardWriter(tmp_path, "train", T, "uint16") as writer, pytest.raises(ValueError, match="8 tokens"):
        writer.append(np.zeros(T + 1, np.int64), np.zeros(T + 1, np.uint8))


def test_the_storage_is_as_small_as_the_vocabulary_admits():
    assert dtype_name(65_536) == "uint16"
    assert dtype_name(65_537) == "uint32"


def test_positions_restart_and_only_flagged_tokens_are_labels():
    flags = np.array([1, 2, 2, 1, 2, 1, 0, 0], np.uint8)
    assert position_ids(flags).tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert labels(np.arange(8), flags).tolist() == [-100, 1, 2, -100, 4, -100, -100, -100]
    assert position_ids(np.stack([flags, flags])).shape == (2, 8)


@given(flags=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_positions_count_from_the_last_start(flags):
    expected, count = [], 0
    for flag in flags:
        count = 0 if flag & DOCUMENT_START else count
        expected.append(count)
        count += 1
    assert position_ids(np.array(flags, np.uint8)).tolist() == expected


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path):
    write(tmp_path, some_rows(2), some_rows(1))
    (tmp_path / "manifest.json").unlink()
    assert "no manifest.json" in refusal(open_dataset, tmp_path)


def test_a_missing_or_cut_shard_is_named(tmp_path):
    write(tmp_path, some_rows(2), some_rows(1))
    (tmp_path / "train" / "00000.flags").unlink()
    assert "00000.flags is missing" in refusal(open_dataset, tmp_path)
    (tmp_path / "train" / "00000.flags").write_bytes(b"x")
    assert "00000.flags is cut" in refusal(open_dataset, tmp_path)


def test_an_altered_byte_is_named(tmp_path):
    write(tmp_path, some_rows(2), some_rows(1))
    file = tmp_path / "held_out" / "00000.ids"
    file.write_bytes(bytes([file.read_bytes()[0] ^ LABEL]) + file.read_bytes()[1:])
    open_dataset(tmp_path)
    assert "held_out/00000.ids was altered" in refusal(verify, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": "0"}}},
        {"files": {"train/00000.ids": {"bytes": 1, "sha256": "0"}}},
        {"files": 3},
        {"splits": {}},
        {"splits": {"train": {"rows": 9}, "held_out": {"rows": 1}}},
        {"dtype": "float16"},
        {"sequence_length": 0},
        {"sequence_length": 7},
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path, change):
    write(tmp_path, some_rows(2), some_rows(1))
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refusal(open_dataset, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x00"])
def test_a_manifest_of_rubbish_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    refusal(open_dataset, tmp_path)


def test_the_same_rows_give_the_same_bytes(tmp_path):
    one, two = (write(tmp_path / name, some_rows(5), some_rows(1)) for name in ("one", "two"))
    for file in one.rglob("*.*"):
        assert file.read_bytes() == (two / file.relative_to(one)).read_bytes()
