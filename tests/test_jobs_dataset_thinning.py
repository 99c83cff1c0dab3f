"""Where a repository's text is too much to hold all its runs of words, what is held still guards every file."""

import random

import numpy as np
import pytest

from jobs.dataset.attributes import Attributes
from jobs.dataset.reading import LEAK_WORDS
from jobs.dataset.shingles import shingles
from jobs.dataset.sides import Guard, Sides
from jobs.dataset.survey import _THIN, LEAST_GUARDED, Survey, thinned


def text(words, seed):
    chance = random.Random(seed)
    return " ".join(f"word{chance.randrange(10**6)}" for _ in range(words))


def guard(leak):
    survey = Survey([], [], Attributes({}), [], [leak], [])
    return Guard(survey, Sides([], [], [0], frozenset(), 0, 0), 0.5)


@pytest.mark.parametrize("words", [14, 20, 40, 100, 250, 300, 1000, 20_000])
def test_a_commit_that_holds_a_file_is_refused_however_small_the_file(words):
    for seed in range(20):
        held_out = text(words, seed)
        leak = thinned(shingles(held_out, LEAK_WORDS), _THIN, LEAST_GUARDED)
        assert not guard(leak).admits(shingles("before " + held_out + " after", LEAK_WORDS))
        assert guard(leak).admits(shingles(text(words, seed + 100), LEAK_WORDS))


@pytest.mark.parametrize("words", [100, 240, 1000, 20_000])
def test_a_quarter_of_a_file_is_no_leak_and_three_quarters_are(words):
    for seed in range(20):
        held_out = text(words, seed).split()
        watch = guard(thinned(shingles(" ".join(held_out), LEAK_WORDS), _THIN, LEAST_GUARDED))
        assert watch.admits(shingles(" ".join(held_out[: words // 4]), LEAK_WORDS))
        assert not watch.admits(shingles(" ".join(held_out[: words - words // 5]), LEAK_WORDS))


def test_a_large_text_keeps_what_every_other_text_would_keep_of_it():
    whole, part = text(20_000, 1), text(20_000, 1).split()[:10_000]
    one, other = (thinned(shingles(content, LEAK_WORDS), _THIN, LEAST_GUARDED) for content in (whole, " ".join(part)))
    assert len(other) == pytest.approx(10_000 / 16, rel=0.2)
    assert np.isin(other, one).all()
