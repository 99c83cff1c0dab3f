"""The index knows who holds what, and stays small."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.postings import Postings, common_above

SETS = st.lists(st.sets(st.integers(0, 60)), min_size=1, max_size=30)
RNG = np.random.default_rng(7)


def hashes(count):
    return np.unique(RNG.integers(0, 1 << 64, count, np.uint64))


def few(numbers):
    """Shingles that differ in their first bits, as real ones do."""
    return np.array(sorted(numbers), np.uint64) << np.uint64(40)


def index(sets):
    postings = Postings()
    for owner, numbers in enumerate(sets):
        postings.add(owner, few(numbers))
    return postings


@given(sets=SETS, common=st.integers(0, 12))
def test_it_counts_as_sets_do(sets, common):
    postings = index(sets)
    asked = sets[0]
    boilerplate = {number for number in asked if sum(number in one for one in sets) > common}
    held = {owner: len((numbers & asked) - boilerplate) for owner, numbers in enumerate(sets)}
    tally = postings.tally(few(asked), common)
    assert (tally.total, tally.found, tally.common) == (len(asked), len(asked - boilerplate), len(boilerplate))
    assert dict(zip(tally.owners.tolist(), tally.held.tolist(), strict=True)) == {o: n for o, n in held.items() if n}


@given(sets=SETS)
def test_forgetting_what_one_owner_holds_changes_no_share_of_another(sets):
    whole, part = index(sets), index(sets)
    part.keep_shared()
    for owner, numbers in enumerate(sets):
        tallies = [postings.tally(few(numbers), 3) for postings in (whole, part)]
        shares = [dict(zip(one.owners.tolist(), one.shares.tolist(), strict=False)) for one in tallies]
        assert {other: share for other, share in shares[0].items() if other != owner} == {
            other: share for other, share in shares[1].items() if other != owner
        }


def test_what_is_added_twice_counts_once():
    postings, some = Postings(), hashes(100)
    for _ in range(3):
        postings.add(5, some)
    tally = postings.tally(some, 10)
    assert (tally.owners.tolist(), tally.held.tolist()) == ([5], [100])


def test_beyond_its_limit_it_keeps_a_sample_that_tells_the_same_shares():
    postings, whole = Postings(most_pairs=20_000), hashes(20_000)
    for owner in range(10):
        postings.add(owner, hashes(20_000))
    postings.add(10, whole[::2])
    tally = postings.tally(whole, 10)
    assert postings.sampling == 16
    assert len(postings._pairs) <= 20_000
    assert tally.owners.tolist() == [10]
    assert tally.shares[0] == pytest.approx(0.5, abs=0.05)


def test_adding_a_large_index_bit_by_bit_gives_the_same_sample():
    parts = [hashes(1000) for _ in range(50)]
    one, other = Postings(most_pairs=10_000), Postings(most_pairs=10_000)
    for owner, part in enumerate(parts):
        one.add(owner, part)
        other.add(owner, part)
        other.tally(part, 10)
    one.tally(parts[0], 10)
    assert one.sampling == other.sampling > 1
    assert (one._pairs == other._pairs).all()


def test_a_few_shingles_tell_no_share():
    postings = Postings()
    postings.add(0, few(range(100)))
    assert not postings.tally(few(range(15)), 10).telling
    assert postings.tally(few(range(15)), 10).shares.tolist() == []
    assert postings.tally(few(range(16)), 10).shares.tolist() == [1.0]


def test_nothing_is_found_in_an_empty_index():
    assert Postings().tally(hashes(100), 10).found == 0
    assert Postings().tally(hashes(0), 10).total == 0


@pytest.mark.parametrize("owner", [-1, 1 << 24])
def test_an_owner_that_does_not_fit_is_refused(owner):
    with pytest.raises(ValueError, match="Owner"):
        Postings().add(owner, hashes(1))


@pytest.mark.parametrize(("sources", "limit"), [(1, 10), (1000, 10), (5000, 50), (10_000_000, 1000)])
def test_boilerplate_is_in_more_than_ten_or_one_of_a_hundred(sources, limit):
    assert common_above(sources) == limit
