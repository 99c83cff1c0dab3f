"""Near copies are found, all of them and nothing else, in time that grows with the texts and not with their pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset import nearness
from jobs.dataset.groups import Groups
from jobs.dataset.nearness import clusters, contained
from jobs.dataset.shingles import shingles

RNG = np.random.default_rng(11)


def hashes(count, rng=RNG):
    return np.unique(rng.integers(1, 1 << 64, count, np.uint64))


def mixed(*parts):
    return np.unique(np.concatenate(parts))


def copies(base, count, share, rng=RNG):
    """Sets that keep `share` of a base and have as much of their own as they lack."""
    kept = [base[np.sort(rng.permutation(len(base))[: int(share * len(base))])] for _ in range(count)]
    return [mixed(part, hashes(len(base) - len(part), rng)) for part in kept]


def by_the_book(sets, limit):
    groups = Groups(len(sets))
    for one, other in combinations(range(len(sets)), 2):
        shared = len(np.intersect1d(sets[one], sets[other]))
        if shared and shared / len(np.union1d(sets[one], sets[other])) >= limit:
            groups.join(one, other)
    return [group for group in groups.all() if len(group) > 1]


def text(number, words=400):
    return " ".join(f"w{place}_{number}" for place in range(words))


def test_an_edited_copy_is_a_near_copy_and_another_text_is_not():
    edited = text(1).replace("w200_1", "changed").replace("w300_1", "changed")
    sets = [shingles(part, 5) for part in (text(0), text(1), text(2), edited)]
    assert clusters(sets) == [[1, 3]]


@given(data=st.data(), sizes=st.lists(st.sampled_from([0, 1, 2, 5, 20, 40, 300]), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_it_finds_what_comparing_every_pair_finds(data, sizes):
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    sets = []
    for size in sizes:
        base = hashes(size, rng)
        sets += [base, *copies(base, data.draw(st.integers(0, 3)), data.draw(st.sampled_from([0.7, 0.85, 0.95])), rng)]
    assert clusters(sets) == by_the_book(sets, 0.7)


def test_the_order_of_the_texts_changes_only_their_numbers():
    header = hashes(40)
    sets = [mixed(header, part) for _ in range(60) for part in copies(hashes(150), 3, 0.88)]
    order = RNG.permutation(len(sets)).tolist()
    turned = [sorted(order[place] for place in group) for group in clusters([sets[place] for place in order])]
    assert sorted(turned) == clusters(sets)
    assert clusters(sets)


def test_a_header_that_all_share_joins_nobody_and_hides_no_copy():
    header = hashes(100)
    sets = [mixed(header, hashes(400)) for _ in range(1000)]
    sets += [mixed(header, part) for part in copies(hashes(400), 3, 0.95)]
    assert clusters(sets) == [[1000, 1001, 1002]]


def test_more_copies_than_are_compared_with_each_other_are_one_group():
    assert clusters(copies(hashes(300), 500, 0.93)) == [list(range(500))]


def test_equal_texts_are_one_group_and_empty_ones_none():
    same = hashes(3)
    assert clusters([hashes(0), same, hashes(0), same, same]) == [[1, 3, 4]]
    assert clusters([]) == []
    assert clusters([same]) == []


def test_the_limit_is_the_callers():
    sets = [mixed(part) for part in copies(hashes(500), 2, 0.8)]
    assert clusters(sets, jaccard=0.4) == [[0, 1]]
    assert clusters(sets, jaccard=0.9) == []


@pytest.mark.parametrize("count", [500, 4000])
def test_the_pairs_that_are_looked_at_grow_with_the_texts_only(count):
    headers = [hashes(60) for _ in range(10)]
    sets = [mixed(headers[number % 10], hashes(100)) for number in range(count)]
    sketches, _, sums = nearness._sketches(sets)
    assert count < len(nearness._linked(sketches, sums)) <= 64 * count


def test_a_text_inside_another_is_found_with_its_share():
    inner, outer, other = hashes(100), hashes(1000), hashes(500)
    sets = [mixed(inner, hashes(25)), other, mixed(outer, inner)]
    assert contained(sets, 0.5) == [(0, 2, pytest.approx(0.8, abs=0.01))]
    assert contained(sets, 0.9) == []


def test_equal_texts_lie_in_each_other():
    same = hashes(100)
    assert contained([same, hashes(100), same], 0.5) == [(0, 2, 1.0), (2, 0, 1.0)]


def test_boilerplate_makes_no_text_lie_in_another():
    header = hashes(200)
    assert contained([mixed(header, hashes(20)) for _ in range(11)], 0.5) == []
    assert len(contained([mixed(header, hashes(20)) for _ in range(10)], 0.5)) == 90


def test_a_copy_under_a_shared_header_is_found_all_the_same():
    header, copied = hashes(500), hashes(100)
    sets = [mixed(header, hashes(50)) for _ in range(20)]
    sets += [mixed(header, copied), mixed(header, copied, hashes(900))]
    assert contained(sets, 0.5) == [(20, 21, 1.0)]
