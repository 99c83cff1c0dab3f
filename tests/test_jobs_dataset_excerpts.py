"""A rendered sample holds nothing that drives a screen, and says what it leaves out."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.excerpts import excerpt, visible

EVERYTHING = st.text(st.characters(exclude_categories=()))


def piece(text, *, special=False, label=True):
    return {"text": text, "special": special, "label": label}


def cut(*pieces, lines=40, characters=1_000):
    return excerpt({"pieces": list(pieces)}, lines=lines, characters=characters)


@given(EVERYTHING)
def test_what_is_shown_has_a_shape_and_is_shown_the_same_again(text):
    shown = visible(text)
    shown.encode()
    assert visible(shown) == shown
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufdd0-\ufdef]", shown
    )


@pytest.mark.parametrize("text", ["naïve", "名前\u3000は", "a\u00a0b", "\tif x:\n", "🙂"])
def test_text_that_people_write_stays_as_it_is(text):
    assert visible(text) == text


@given(st.lists(st.builds(piece, st.text("ab\n", max_size=9), special=st.booleans(), label=st.booleans()), max_size=9))
def test_an_uncut_sample_holds_all_its_text(pieces):
    sample = cut(*pieces)
    assert sample.left_out == ""
    assert "".join(one.text * one.times for one in sample.pieces) == "".join(one["text"] for one in pieces)


@given(
    st.lists(st.builds(piece, st.text("ab\n", max_size=30), label=st.booleans()), max_size=9),
    st.integers(0, 9),
    st.integers(0, 40),
)
def test_a_cut_sample_is_the_beginning_within_its_limits(pieces, lines, characters):
    whole = "".join(one["text"] for one in pieces)
    sample = cut(*pieces, lines=lines, characters=characters)
    shown = "".join(one.text for one in sample.pieces)
    assert whole.startswith(shown)
    assert shown.count("\n") <= lines
    assert len(shown) <= characters
    assert bool(sample.left_out) == (shown != whole)


def test_what_is_left_out_is_said_in_lines_or_characters():
    assert cut(piece("a\n" * 50), lines=40).left_out == "10 more lines"
    assert cut(piece("a" * 1_050)).left_out == "50 more characters"


def test_neighbours_of_one_sort_are_one_piece_and_a_row_of_one_token_is_counted():
    sample = cut(piece("a"), piece("b"), *[piece("<pad>", special=True, label=False)] * 3, piece("c", label=False))
    assert [(one.shown, one.special, one.label) for one in sample.pieces] == [
        ("ab", False, True),
        ("<pad> x 3", True, False),
        ("c", False, False),
    ]


def test_a_special_token_is_never_cut_in_two():
    assert [one.text for one in cut(piece("ab"), piece("<file_sep>", special=True), characters=6).pieces] == ["ab"]


def test_a_sample_that_tells_nothing_is_empty():
    sample = excerpt({}, lines=1, characters=1)
    assert (sample.pieces, sample.path, sample.tokens, sample.left_out) == ((), "", 0, "")


def test_a_path_stays_on_its_line():
    assert excerpt({"path": "a\n\tb"}, lines=1, characters=1).path == r"a\n\tb"
