"""Words are found wherever they stand, as they are found one by one."""

import re

from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.needles import Needles

EXACT = ["AKIA", "://", ":*:", "key-", "$2a$", "login"]
ANY_CASE = ["password", "pass", "token", "kty"]
PIECES = st.sampled_from(
    [*EXACT, *ANY_CASE, "Pass", "WORD", "TOKEN", "a", ":*", " ", "\n", "é", "\u0130", "\U0001f600", "?"]
)
NEEDLES = Needles(EXACT, ANY_CASE)


def one_by_one(text):
    """The same by the book: places may overlap."""
    found = {word: [each.start() for each in re.finditer(f"(?={re.escape(word)})", text)] for word in EXACT}
    found |= {word: [each.start() for each in re.finditer(f"(?i:(?={word}))", text, re.ASCII)] for word in ANY_CASE}
    return {word: places for word, places in found.items() if places}


@given(text=st.lists(PIECES, max_size=30).map("".join) | st.text())
def test_every_word_is_found_where_it_stands(text):
    assert NEEDLES.places(text) == one_by_one(text)


@given(words=st.lists(st.text(st.characters(codec="ascii"), min_size=3, max_size=9), min_size=1, max_size=15))
def test_any_words_are_found(words):
    places = Needles(words).places("".join(words))
    at = 0
    for word in words:
        assert at in places[word]
        at += len(word)


def test_half_a_surrogate_pair_moves_no_place():
    assert NEEDLES.places("\ud800AKIA") == {"AKIA": [1]}
