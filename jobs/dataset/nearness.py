"""Near copies among texts: groups of nearly equal ones, and texts that lie inside others.

Nothing is compared with everything. Two sets that have most of their shingles in common have many of their *smallest*
hashes in common too (bottom-k sketches: Broder, 1997; Cohen and Kaplan, 2007), so only texts that share some of those
are candidates, and only candidates whose sketches look alike are compared shingle by shingle. What is reported was
measured on whole sets; what sketches can do is miss a pair, about one in 170,000 of those that are just at 0.7.

Sets are taken by index and not kept: a sequence that reads them from a cache needs little memory.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.groups import Groups
from jobs.dataset.postings import Postings, common_above
from jobs.dataset.shingles import Shingles

#: Hashes of a sketch.
_SKETCH = 32
_EMPTY = np.uint64((1 << 64) - 1)
#: Of the smallest hashes of two near copies together, about `jaccard` are in both. Half of that passes nearly all (of
#: 32 hashes at 0.7, fewer than 11 are shared once in 170,000 times) and stops what has a licence header in common.
_SKETCH_MARGIN = 2
#: A hash in more sketches than this links neighbours only, instead of everyone with everyone.
_MOST_HOLDERS = 64
_NEIGHBOURS = 4
#: Candidate pairs for every set, on average, at most.
_PAIRS_PER_SET = 64
_PAIRS_AT_ONCE = 4096

Pairs = NDArray[np.int64]


def clusters(sets: Sequence[Shingles], *, jaccard: float = 0.7) -> list[list[int]]:
    """Groups of two or more near copies, as sorted indices, in the order of their first ones.

    Two sets are near copies where they have `jaccard` of the union in common; a group is what hangs together through
    such pairs. Empty sets are nobody's copies. The order of the sets changes the numbers only.

    Args:
        sets: of every text, the shingles of (usually) five words.
        jaccard: between 0 and 1; below about 0.4 sketches begin to miss pairs.
    """
    groups = Groups(len(sets))
    for first, second in _candidates(sets, jaccard):
        if not groups.joined(first, second) and _jaccard(sets[first], sets[second]) >= jaccard:
            groups.join(first, second)
    return [group for group in groups.all() if len(group) > 1]


def contained(sets: Sequence[Shingles], limit: float) -> list[tuple[int, int, float]]:
    """Which texts lie inside others: index, index of the holder, share of its shingles that the holder has.

    Listed is what has a share above `limit`, in ascending order. Shingles in more than `common_above` of the sets are
    boilerplate and not counted; a text that has next to nothing else is not listed. Beyond four million shingles the
    shares are those of a sample.

    Args:
        sets: of every text, the shingles of (usually) thirteen words.
        limit: between 0 and 1.
    """
    postings = Postings()
    for owner, shingles in enumerate(sets):
        postings.add(owner, shingles)
    postings.keep_shared()
    common = common_above(len(sets))
    pairs = []
    for number, shingles in enumerate(sets):
        tally = postings.tally(shingles, common)
        held = zip(tally.owners.tolist(), tally.shares.tolist(), strict=False)
        pairs += [(number, owner, share) for owner, share in held if owner != number and share > limit]
    return pairs


def _jaccard(one: Shingles, other: Shingles) -> float:
    """The common part of the union of two sets that are not both empty."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _candidates(sets: Sequence[Shingles], jaccard: float) -> Iterator[tuple[int, int]]:
    """Pairs that may be near copies, judged by sizes and sketches, in ascending order."""
    sketches, sizes, sums = _sketches(sets)
    pairs = _linked(sketches, sums)
    small, large = np.sort(sizes[pairs], axis=1).T
    pairs = pairs[small >= jaccard * large]
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some = pairs[start : start + _PAIRS_AT_ONCE]
        yield from map(tuple, some[_alike(sketches, some, jaccard)].tolist())


def _sketches(sets: Sequence[Shingles]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint64]]:
    """Of every set the smallest hashes (uint64 [sets, _SKETCH], then _EMPTY), the size, and the sum."""
    sketches = np.full((len(sets), _SKETCH), _EMPTY)
    sizes = np.zeros(len(sets), np.int64)
    sums = np.zeros(len(sets), np.uint64)
    for number, shingles in enumerate(sets):
        sketches[number, : len(shingles)] = shingles[:_SKETCH]
        sizes[number] = len(shingles)
        sums[number] = np.add.reduce(shingles, dtype=np.uint64)
    return sketches, sizes, sums


def _alike(sketches: NDArray[np.uint64], pairs: Pairs, jaccard: float) -> NDArray[np.bool_]:
    """Which pairs may be near copies by the smallest hashes of their unions: bool [pairs]."""
    both = sketches[pairs].reshape(len(pairs), 2 * _SKETCH)
    both.sort(axis=1)
    equal = both[:, 1:] == both[:, :-1]
    # The number of smaller hashes, each counted once. Beyond the first hashes of the union one sketch may have ended.
    ranks = np.cumsum(~equal, axis=1, dtype=np.int8)
    empty = both == _EMPTY
    shared = (equal & (ranks < _SKETCH) & ~empty[:, 1:]).sum(axis=1)
    union = np.minimum(1 + ranks[:, -1] - empty[:, -1], _SKETCH)
    return np.asarray(shared >= union * (jaccard / _SKETCH_MARGIN))


def _linked(sketches: NDArray[np.uint64], sums: NDArray[np.uint64]) -> Pairs:
    """Pairs of sets whose sketches share a hash: int64 [pairs, 2], sorted, each once, few for every set.

    The holders of a hash stand in the order of the hash that follows it in their sketches, so that among many holders
    those that are alike are neighbours; each of the hashes that two sets share is another chance to be neighbours.
    """
    filled = sketches != _EMPTY
    owners = np.nonzero(filled)[0]
    hashes = sketches[filled]
    following = np.concatenate([sketches[:, 1:], np.zeros((len(sketches), 1), np.uint64)], axis=1)[filled]
    order = np.lexsort((sums[owners], following, hashes))
    owners, hashes = owners[order], hashes[order]
    holders = _run_lengths(hashes)
    reach = np.where(holders <= _most_holders(holders, len(sketches)), holders - 1, _NEIGHBOURS)
    found = []
    alive = np.arange(len(hashes))
    for distance in range(1, 1 + int(reach.max(initial=0))):
        alive = alive[(reach[alive] >= distance) & (alive + distance < len(hashes))]
        alive = alive[hashes[alive] == hashes[alive + distance]]
        found.append(_coded(owners[alive], owners[alive + distance], len(sketches)))
    codes = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    return np.stack(np.divmod(codes, max(1, len(sketches))), axis=1)


def _coded(one: NDArray[np.int64], other: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """A pair of different numbers below `count` as one number, the smaller first."""
    return np.unique(np.minimum(one, other) * count + np.maximum(one, other))


def _run_lengths(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For every one of some sorted values, how often it occurs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[places]


def _most_holders(holders: NDArray[np.int64], sets: int) -> int:
    """How many holders of a hash are linked with each other, so that there are not too many pairs in all."""
    most = _MOST_HOLDERS
    # A hash of n holders makes n (n - 1) / 2 pairs and is counted n times.
    while most > _NEIGHBOURS and int((holders[holders <= most] - 1).sum()) // 2 > _PAIRS_PER_SET * sets:
        most //= 2
    return most
