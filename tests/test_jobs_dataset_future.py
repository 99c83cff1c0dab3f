"""Only lines that the newest commits added are measured."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset import hunks
from jobs.dataset.future import FutureFile, added_spans, unknown
from jobs.dataset.overlap import Overlap
from jobs.dataset.shingles import shingles

LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\r\n", "\n", "  \n", "e"]), max_size=12).map("".join)


def texts(before, after):
    return [after[start:stop] for start, stop in added_spans(before, after)]


def test_a_new_file_is_new_from_end_to_end():
    assert texts("", "one\ntwo\n") == ["one\ntwo\n"]


def test_a_line_between_others_is_new_alone():
    assert texts("one\nthree\n", "one\ntwo\nthree\n") == ["two\n"]


def test_other_line_ends_are_nothing_new():
    assert texts("one\ntwo\n", "one\r\ntwo\r\n") == []


def test_what_was_deleted_or_moved_by_blank_lines_adds_nothing():
    assert texts("one\ntwo\n", "one\n\n\n") == []


@given(LINES, LINES)
def test_spans_are_whole_lines_in_order_and_the_rest_was_there_before(before, after):
    spans = added_spans(before, after)
    ends = [0]
    for line in after.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    assert all(start in ends and stop in ends and start < stop for start, stop in spans)
    assert list(spans) == sorted(spans)
    kept = "".join(letter for at, letter in enumerate(after) if not any(start <= at < stop for start, stop in spans))
    old = [line for line in before.splitlines() if line.strip()]
    for line in (line for line in kept.splitlines() if line.strip()):
        assert line in old


def test_a_very_long_file_is_compared_line_by_line(monkeypatch):
    monkeypatch.setattr(hunks, "_MOST_LINES", 1)
    assert texts("one\ntwo\nthree\n", "three\nnew\none\n") == ["new\n"]


def words(name, count=8):
    return " ".join(f"{name}{number}" for number in range(count)) + "\n"


def block(name, lines):
    return "".join(words(f"{name}{number}_") for number in range(lines))


def left(before, after, *sources):
    overlap = Overlap()
    for number, source in enumerate([before, *sources]):
        overlap.learn(f"{number}.py", shingles(source, 13))
    file = FutureFile("a.py", "blob", len(after), after, added_spans(before, after), {})
    return [after[start:stop] for start, stop in unknown(file, overlap)[0].added]


def test_lines_that_were_moved_within_a_file_or_from_another_are_not_new():
    old, other = block("old", 6), block("other", 6)
    assert left(old, block("old", 6)[len(block("old", 2)) :] + block("old", 2) + other, other) == []


def test_a_new_line_among_moved_ones_is_new_alone():
    other = block("other", 8)
    half = len(block("other", 4))
    after = block("old", 3) + other[:half] + words("new") + other[half:] + "\n" + words("newer")
    assert left(block("old", 3), after, other) == [words("new"), words("newer")]


def test_a_copied_file_is_not_new_under_another_name():
    assert left("", block("copy", 9), block("copy", 9)) == []


def test_a_letter_beyond_ascii_moves_no_border():
    other = "\N{GREEK SMALL LETTER ALPHA} " + block("other\N{SNOWMAN}", 5)
    new = words("n\N{LATIN SMALL LETTER E WITH ACUTE}w")
    assert left("", other + new + "\n" + block("more", 2), other) == [new + "\n" + block("more", 2)]
