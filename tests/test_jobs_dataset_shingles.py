"""Shingles stand for the runs of words of a text, for all of them and for nothing else."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.shingles import shingles

CODE = "def clamp(value, low, high):\n    return max(low, min(value, high))\n"
WORDS = st.sampled_from(["a", "b", "ab", "_1", "é", "+", "(", "==", "\ufdd0", "\U0001f600"])
BLANKS = st.sampled_from([" ", "\n", "\t", "\r\n", "   ", "\x00", "\x7f"])
TEXTS = st.lists(WORDS | BLANKS, max_size=80).map("".join)


def runs(text, words):
    """The same by the book."""
    found = re.findall(rb"[0-9A-Za-z_\x80-\xff]+|[^\x00-\x20\x7f]", text.encode())
    return {tuple(found[place : place + words]) for place in range(len(found) - words + 1)}


@given(one=TEXTS | st.text(), other=TEXTS | st.text(), words=st.integers(1, 6))
def test_there_are_as_many_and_as_many_shared_as_runs_of_words(one, other, words):
    hashes = shingles(one, words), shingles(other, words)
    assert [len(part) for part in hashes] == [len(runs(text, words)) for text in (one, other)]
    assert len(np.intersect1d(*hashes)) == len(runs(one, words) & runs(other, words))


@given(text=TEXTS)
def test_they_are_sorted_and_each_there_once(text):
    hashes = shingles(text, 3)
    assert hashes.dtype == np.uint64
    assert (hashes[1:] > hashes[:-1]).all()


def test_a_word_is_the_same_wherever_it_stands_in_a_long_text():
    filler = "".join(f"word{number} " for number in range(30_000))
    beginning, end = shingles(CODE + filler, 5), shingles(filler + CODE, 5)
    assert len(np.intersect1d(beginning, end)) >= 30_000 + len(shingles(CODE, 5)) - 10
    assert np.isin(shingles(CODE, 5), end).all()


def test_blanks_and_line_ends_change_nothing_and_case_does():
    spaced = CODE.replace("\n", "\r\n\r\n").replace("    ", "\t").replace("(", " ( ")
    assert (shingles(spaced, 5) == shingles(CODE, 5)).all()
    assert not np.isin(shingles("A B C", 2), shingles("a b c", 2)).any()


@pytest.mark.parametrize("text", ["", " \n", "a b c d"])
def test_a_text_of_fewer_words_has_none(text):
    assert shingles(text, 5).tolist() == []


def test_a_run_of_no_words_is_refused():
    with pytest.raises(ValueError, match="at least one word"):
        shingles("a", 0)


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000 + "b", ("x" * 999 + " ") * 300, "()" * 100_000])
def test_texts_without_blanks_or_words_of_usual_length_are_taken(text):
    assert len(shingles(text, 1)) <= 5


def test_the_end_of_a_very_long_word_counts():
    assert not np.isin(shingles("a" * 1000 + "b", 5), shingles("a" * 1000 + "c", 5)).any()


def test_half_of_a_surrogate_pair_is_a_character_like_others():
    assert len(shingles("\ud800 a", 2)) == 1


def test_they_are_the_same_in_every_process_and_version():
    script = "from jobs.dataset.shingles import shingles; print(shingles('one two three', 2).tolist())"
    answers = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in "12"
    }
    assert answers == {"[5419594497695282468, 11035048740153157241]\n"}
