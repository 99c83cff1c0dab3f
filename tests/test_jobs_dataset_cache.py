"""What was worked out is found again, and a cache that is lost, damaged or full costs nothing but time."""

import sqlite3

import numpy as np
import pytest

from jobs.dataset.cache import Cache, Entry, key


def entry(number=1):
    return Entry({"number": number}, {"ids": np.arange(number, dtype=np.uint32), "labels": np.ones(2, np.uint8)})


def test_an_entry_is_found_by_the_next_build_with_its_facts_and_arrays(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put(key("stage", 1), entry(5))
    with Cache(tmp_path) as cache:
        found = cache.get(key("stage", 1))
        assert found.facts == {"number": 5}
        assert found.arrays["ids"].tolist() == [0, 1, 2, 3, 4]
        assert found.arrays["ids"].dtype == np.uint32
        assert (cache.hits, cache.misses) == (1, 0)


def test_an_entry_is_found_before_it_was_written(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put(key("stage"), entry(3))
        assert cache.get(key("stage")).facts == {"number": 3}


def test_keys_tell_parts_apart_wherever_they_are_cut():
    keys = [key("s", "ab", "c"), key("s", "a", "bc"), key("s", "abc"), key("t", "ab", "c"), key("s", b"ab", "d")]
    assert len(set(keys)) == len(keys)


def test_without_a_folder_nothing_is_kept_and_nothing_fails():
    with Cache(None) as cache:
        cache.put(key("stage"), entry())
        assert cache.get(key("stage")) is None


def test_a_damaged_file_is_made_anew(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put(key("stage"), entry())
    file = next(tmp_path.glob("*.sqlite"))
    file.write_bytes(b"not a database at all" * 100)
    with Cache(tmp_path) as cache:
        assert cache.get(key("stage")) is None
        cache.put(key("stage"), entry(4))
    with Cache(tmp_path) as cache:
        assert cache.get(key("stage")).facts == {"number": 4}


def test_a_file_that_is_damaged_in_its_middle_is_gone_for_the_next_build(tmp_path):
    with Cache(tmp_path) as cache:
        for number in range(300):
            cache.put(key("stage", number), entry(500))
    file = next(tmp_path.glob("*.sqlite"))
    content = bytearray(file.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    file.write_bytes(content)
    with Cache(tmp_path) as cache:
        assert cache.get(key("stage", 7)) is None
    with Cache(tmp_path) as cache:
        cache.put(key("stage", 7), entry())
    with Cache(tmp_path) as cache:
        assert cache.get(key("stage", 7)) is not None


def test_a_damaged_entry_is_as_good_as_none(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put(key("stage"), entry())
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as connection:
        connection.execute("UPDATE contents SET value = ?", (b"rubbish",))
    connection.close()
    with Cache(tmp_path) as cache:
        assert cache.get(key("stage")) is None


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with Cache(tmp_path / "file" / "below") as cache:
        cache.put(key("stage"), entry())
        assert cache.get(key("stage")) == entry() or cache.get(key("stage")) is None


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_what_was_not_used_for_longest_makes_room(tmp_path, limit):
    with Cache(tmp_path) as cache:
        cache.put(key("old"), entry(20_000))
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as connection:
        connection.execute("UPDATE entries SET used = 1")
    connection.close()
    with Cache(tmp_path, limit_bytes=limit) as cache:
        cache.put(key("new"), entry())
    with Cache(tmp_path) as cache:
        assert (cache.get(key("old")) is None) is (limit == 1)


def test_two_builds_share_the_file(tmp_path):
    with Cache(tmp_path) as one, Cache(tmp_path) as other:
        one.put(key("one"), entry(1))
        one.close()
        other.put(key("other"), entry(2))
        assert other.get(key("one")).facts == {"number": 1}


def test_within_one_build_the_oldest_entries_make_room_and_the_file_stays_bounded(tmp_path):
    limit = 4 << 20
    with Cache(tmp_path, limit_bytes=limit) as cache:
        for number in range(3000):
            cache.put(key("stage", number), Entry({}, {"ids": np.zeros(5000, np.uint8)}))
    with Cache(tmp_path) as cache:
        kept = [number for number in range(3000) if cache.has(key("stage", number))]
    assert kept == list(range(3000 - len(kept), 3000))
    assert limit // 4 < len(kept) * 5000 < limit
    assert next(tmp_path.glob("*.sqlite")).stat().st_size < 2 * limit


def test_what_is_used_again_stays_before_what_is_newer(tmp_path):
    big = Entry({}, {"ids": np.zeros(400_000, np.uint8)})
    with Cache(tmp_path) as cache:
        cache.put(key("used"), big)
        cache.put(key("unused"), big)
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as connection:
        connection.execute("UPDATE entries SET used = 1")
    connection.close()
    with Cache(tmp_path, limit_bytes=1_200_000) as cache:
        assert cache.get(key("used")) is not None
        cache.put(key("new"), big)
    with Cache(tmp_path) as cache:
        assert [cache.has(key(name)) for name in ("used", "unused", "new")] == [True, False, True]


def test_on_a_full_disk_a_build_goes_on_and_what_was_kept_stays(tmp_path):
    with Cache(tmp_path) as cache:
        cache.put(key("old"), entry())
    with Cache(tmp_path) as cache:
        cache._connection.execute("PRAGMA max_page_count = 1")
        for number in range(1000):
            cache.put(key("stage", number), entry(1000))
        assert cache.get(key("stage", 1)) is None
    with Cache(tmp_path) as cache:
        assert cache.get(key("old")) is not None


def test_while_another_build_writes_for_long_a_build_goes_on_without(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.dataset.cache._PATIENCE", 0.01)
    with Cache(tmp_path) as cache:
        cache.put(key("old"), entry())
    with sqlite3.connect(next(tmp_path.glob("*.sqlite"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        with Cache(tmp_path) as cache:
            cache.put(key("stage"), entry())
            assert cache.get(key("old")) is None
    other.close()
    with Cache(tmp_path) as cache:
        assert cache.get(key("old")) is not None


def test_a_cache_where_no_folder_can_be_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with Cache(tmp_path / "file" / "cache") as cache:
        cache.put(key("stage"), entry())
        assert cache.get(key("stage")) is None
    assert (tmp_path / "file").read_text() == "no folder"


def test_the_files_of_an_earlier_layout_go(tmp_path):
    (tmp_path / "dataset-2.sqlite-wal").touch()
    (tmp_path / "dataset-2.sqlite").touch()
    with Cache(tmp_path) as cache:
        cache.put(key("stage"), entry())
    assert not list(tmp_path.glob("dataset-2*"))
