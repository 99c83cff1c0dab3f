"""A change is told completely, in few lines, and no text makes that slow."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset.hunks import MOST_CONTEXT, changed_part, hull, hunks, unified, window

TEXTS = st.lists(st.sampled_from(["a", "b", "", "  c", "d\r", "x" * 9, "\x0c", "\u2028é"]), max_size=30).map("\n".join)


def lines(text):
    """Lines as git counts them."""
    return text.split("\n")[: -1 if text.endswith("\n") or not text else None]


def replayed(before, after, context):
    change = window(before, after)
    if change is None:
        return lines(before)
    new, place = [], 0
    old = lines(before)
    for hunk in hunks(change, context):
        start = change.offset + hunk.before.start
        new += old[place:start]
        body = unified(change, hunk)[1:]
        assert [line[1:] for line in body if line[0] != "+"] == old[start : start + len(hunk.before)]
        new += [line[1:] for line in body if line[0] != "-"]
        place = start + len(hunk.before)
    return new + old[place:]


@settings(max_examples=400, deadline=None)
@given(before=TEXTS, after=TEXTS, context=st.integers(0, 5))
def test_the_hunks_turn_one_text_into_the_other(before, after, context):
    assert replayed(before, after, context) == lines(after)


@settings(max_examples=400, deadline=None)
@given(before=TEXTS, after=TEXTS, lead=st.integers(0, 100), around=st.integers(0, 3))
def test_the_changed_part_shows_the_same_window_as_the_whole(before, after, lead, around):
    same = "".join(f"line {number}\n" for number in range(lead))
    whole = window(same + before, same + after)
    part = changed_part(same + before, same + after, around)
    if part is None:
        assert whole is None
        return
    seen = window(part.before, part.after)
    assert (seen is None) == (whole is None)
    if seen and whole:
        assert (seen.offset + part.offset, seen.before, seen.after, seen.edits) == (
            whole.offset,
            whole.before,
            whole.after,
            whole.edits,
        )


def test_the_changed_part_of_a_long_text_is_short():
    old = [f"line {number}\n" for number in range(10_000)]
    new = [*old[:5000], "something new\n", *old[5000:]]
    part = changed_part("".join(old), "".join(new), 16)
    assert part is not None
    assert part.offset == 5000 - MOST_CONTEXT - 16
    assert part.after.count("\n") == 2 * (MOST_CONTEXT + 16) + 1


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, place=st.integers(0, 30), lead=st.integers(0, 200))
def test_one_new_line_in_a_long_text_is_one_edit(text, place, lead):
    old = [*(f"line {number}" for number in range(lead)), *lines(text)]
    place = min(place, len(old))
    new = [*old[:place], "something new", *old[place:]]
    change = window("\n".join([*old, ""]), "\n".join([*new, ""]))
    ((edit,),) = [change.edits]
    assert not edit.before
    assert [change.after[number] for number in edit.after] == ["something new"]
    assert change.offset + edit.after.start == place
    assert len(change.after) <= 2 * MOST_CONTEXT + 1


@pytest.mark.parametrize("texts", [("", ""), ("a\n", "a\n"), ("a", "a\n")])
def test_texts_of_the_same_lines_have_no_window(texts):
    assert window(*texts) is None


def test_a_new_file_and_a_removed_one_are_all_change():
    assert window("", "a\nb\n").after == ["a", "b"]
    assert window("a\nb\n", "").before == ["a", "b"]
    assert unified(window("", "a\nb\n"), hunks(window("", "a\nb\n"), 3)[0]) == ["@@ -0,0 +1,2 @@", "+a", "+b"]


def test_hunks_read_as_diff_writes_them():
    before = "".join(f"{number}\n" for number in range(1, 41))
    after = before.replace("\n10\n", "\nten\n").replace("\n30\n", "\n").replace("\n31\n", "\n31\n31.5\n")
    change = window(before, after)
    assert [unified(change, hunk)[0] for hunk in hunks(change, 3)] == ["@@ -7,7 +7,7 @@", "@@ -27,8 +27,8 @@"]
    assert unified(change, hunks(change, 1)[0]) == ["@@ -9,3 +9,3 @@", " 9", "-10", "+ten", " 11"]
    assert len(hunks(change, 10)) == 1


def test_the_hull_spans_all_edits():
    before = "".join(f"{number}\n" for number in range(1, 41))
    change = window(before, before.replace("\n10\n", "\nten\n").replace("\n30\n", "\nthirty\n"))
    hunk = hull(change, 2)
    assert change.before[hunk.before.start : hunk.before.stop] == [str(number) for number in range(8, 33)]
    assert len(hunk.after) == len(hunk.before)


def test_moved_code_is_found_by_the_lines_that_occur_once():
    one, other = [f"one {n}" for n in range(20)], [f"other {n}" for n in range(90)]
    change = window("\n".join([*one, *other]), "\n".join([*other, *one]))
    assert sum(len(edit.before) for edit in change.edits) == 20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x\n" * 200_000, "y\n" * 200_000),
        ("x\ny\n" * 9_000, "y\nx\nz\n" * 5_000),
        ("a" * 3_000_000, "a" * 2_999_999 + "b"),
        ("".join(f"{n % 97}\n" for n in range(9_000)), "".join(f"{n % 89}\n" for n in range(9_000))),
    ],
    ids=["monster", "repeated lines", "one long line", "few kinds of line"],
)
def test_no_text_makes_it_slow(before, after):
    start = time.process_time()
    window(before, after)
    assert time.process_time() - start < 2
