import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.completions import completed_line, edit_distance, exact, similarity
from jobs.dataset.tokens import Vocabulary

WORDS = st.text("ab ", max_size=8)


@pytest.mark.parametrize(
    ("one", "other", "distance"), [("", "", 0), ("kitten", "sitting", 3), ("abc", "", 3), ("flaw", "lawn", 2)]
)
def test_the_edit_distance_is_levenshteins(one, other, distance):
    assert edit_distance(one, other) == edit_distance(other, one) == distance


@given(WORDS, WORDS, WORDS)
def test_the_edit_distance_is_a_distance(one, other, third):
    assert (edit_distance(one, other) == 0) == (one == other)
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)


def test_blanks_at_the_ends_of_a_line_do_not_count():
    assert exact("  return x ", "return x")
    assert not exact("return  x", "return x")
    assert similarity("return x ", " return x") == 1.0
    assert similarity("", "") == 1.0
    assert similarity("abcd", "abcx") == 0.75
    assert similarity("", "abcd") == 0.0


def test_a_completion_is_read_up_to_the_end_of_its_line(tiny_tokenizer):
    vocabulary = Vocabulary(tiny_tokenizer)
    prompt, new = (vocabulary.encode([text])[0].tolist() for text in ("    return", " width * 2\n    x"))
    assert completed_line(vocabulary, prompt, new) == "width * 2"
    assert completed_line(vocabulary, prompt, [*new[:2], vocabulary.end]) == vocabulary.text_of(new[:2]).strip()
    assert completed_line(vocabulary, prompt, []) == ""
