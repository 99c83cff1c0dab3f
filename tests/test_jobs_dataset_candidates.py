"""A history of any length is remembered in bounded memory, and which commits are does not hang on their order."""

import random

import pytest

from jobs.dataset.candidates import Candidates, _Remembered
from jobs.dataset.history import Change, Commit


def commit(number, files=1, message="Mend it"):
    changes = tuple(
        Change("M", b"caf\xe9/%d.py" % place, b"old.py", f"{place:040x}", f"{number:040x}", "100644")
        for place in range(files)
    )
    return Commit(f"{number:040x}", (f"{number + 1:040x}",), 1_700_000_000, message, changes)


def remembered(commits, most, most_bytes):
    kept = _Remembered(most, most_bytes)
    for lot, one in commits:
        kept.add(lot, one)
    return list(kept.candidates())


def test_a_commit_is_what_it_was():
    written = [
        commit(1, files=3, message="Grüße \N{PILE OF POO}\n\nlonger \udcff"),
        Commit("a" * 64, (), 0, "", (Change("A", b"\xff", b"\xff", None, "b" * 64, "120000"),)),
    ]
    assert remembered(enumerate(written), 10, 1 << 20) == written


@pytest.mark.parametrize(("most", "most_bytes"), [(20, 1 << 30), (1000, 40_000), (7, 3_000), (10, 0)])
def test_the_smallest_lots_that_fit_are_kept_in_whatever_order_they_come(most, most_bytes):
    chance = random.Random(3)
    commits = [(lot, commit(lot, files=chance.choice([1, 1, 2, 64]))) for lot in range(200)]
    kept = remembered(commits, most, most_bytes)
    assert kept == [one for _, one in commits[: len(kept)]]
    for _ in range(20):
        chance.shuffle(commits)
        assert remembered(commits, most, most_bytes) == kept


def test_large_commits_are_bounded_by_their_bytes_and_small_ones_by_their_number():
    assert len(remembered(((lot, commit(lot, files=64)) for lot in range(500)), 400, 1 << 20)) < 200
    assert len(remembered(((lot, commit(lot)) for lot in range(500)), 400, 1 << 20)) == 400


def test_those_of_which_something_holds_keep_their_order():
    kept = _Remembered(10, 1 << 20)
    for number in range(10):
        kept.add(number, commit(number, files=1 + number % 2))
    even = kept.candidates().where(lambda paths: paths == {b"caf\xe9/0.py", b"old.py"})
    assert isinstance(even, Candidates)
    assert [int(one.id, 16) for one in even] == [0, 2, 4, 6, 8]
    assert len(even) == 5
