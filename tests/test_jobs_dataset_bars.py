"""Bars and their words: in per cent, the longest first, nothing lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.amounts import duration, percent, several, size
from jobs.dataset.bars import bars, classes, columns, slices
from jobs.dataset.facts import Facts

COUNTS = st.dictionaries(st.text("abc", max_size=3), st.integers(0, 1_000), max_size=30)


def test_the_longest_bar_comes_first_and_ties_go_by_name():
    assert [(bar.name, bar.width, bar.text) for bar in bars({"b": 5, "c": 10, "a": 5})] == [
        ("c", 100.0, "10"),
        ("a", 50.0, "5"),
        ("b", 50.0, "5"),
    ]


def test_the_smallest_bars_are_summed_up():
    drawn = bars({f"{number:02}": 100 - number for number in range(20)}, most=3)
    assert [bar.name for bar in drawn] == ["00", "01", "02", "17 others"]
    assert drawn[-1].text == "1,513"


@given(COUNTS)
def test_bars_and_slices_stay_within_their_width(counts):
    assert all(0 <= bar.width <= 100 for bar in bars(counts))
    parts = slices(counts, ("a", "b"))
    assert sum(part.value for part in parts) == sum(counts.values())
    assert sum(part.width for part in parts) == pytest.approx(100 if parts else 0, abs=0.02)


def test_a_name_has_the_same_tone_in_every_whole():
    wholes = [slices({"docs": 1, "x": 2}, ("code", "docs")), slices({"code": 1, "docs": 1}, ("code", "docs"))]
    assert [[(part.name, part.tone) for part in parts] for parts in wholes] == [
        [("docs", 1), ("x", 2)],
        [("code", 0), ("docs", 1)],
    ]


def test_a_histogram_has_a_column_for_every_power_between():
    limits = classes([{"16": 1}, {"128": 3, "100": 1}, {"other": 5}])
    assert limits == [16, 32, 64, 100, 128]
    assert [column.height for column in columns({"16": 1, "128": 4}, limits)] == [25.0, 0.0, 0.0, 0.0, 100.0]
    assert [column.label for column in columns({}, [512, 4096])] == ["512", "4k"]


def test_shares_are_never_rounded_to_all_or_nothing():
    assert [percent(share) for share in (0, 0.0001, 0.123, 0.9973, 0.99999, 1)] == [
        "0 %",
        "< 0.1 %",
        "12.3 %",
        "99.73 %",
        "99.99 %",
        "100 %",
    ]


def test_amounts_are_written_in_the_unit_that_people_use():
    assert [size(count) for count in (0, 312, 4_450_000, 999_999, 2.5e9, 3e12)] == [
        "0 B",
        "312 B",
        "4.45 MB",
        "1 MB",
        "2.5 GB",
        "3,000 GB",
    ]
    assert [duration(seconds) for seconds in (0.04, 12.5, 59.7, 200, 7_500)] == [
        "0.04 s",
        "12.5 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert [several(count, "file") for count in (0, 1, 2_048)] == ["0 files", "1 file", "2,048 files"]


@pytest.mark.parametrize("value", [None, "text", True, [], {}, float("nan"), float("inf")])
def test_what_is_no_number_counts_as_nothing(value):
    assert Facts({"a": value}).number("a") == 0
    assert Facts({"a": {"b": value, "c": 2}}).numbers("a") == {"c": 2}


def test_a_document_is_read_as_far_as_it_goes():
    facts = Facts({"a": {"b": [{"c": 1}], "d": False, "e": None, "f": {}}})
    assert facts.rows("a", "b")[0].number("c") == 1
    assert not facts.at("a", "b", "c")
    assert facts.text("a", "d") == ""
    assert facts.flat(without=frozenset(["x"])) == [("a.b", "{'c': 1}"), ("a.d", "false"), ("a.e", "-"), ("a.f", "-")]
