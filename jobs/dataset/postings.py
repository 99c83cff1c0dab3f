"""Which texts hold which shingles: an index of eight bytes for every pair, in bounded memory.

Beyond a number of pairs only a quarter of all shingles is kept, then a sixteenth…: those with small hashes, of every
text the same ones, so that shares of shared shingles stay comparable (FracMinHash: Irber and others, 2022).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.shingles import Shingles, distinct

#: A pair is the first 40 bits of the hash and the number of the owner. A foreign shingle meets one of four million by
#: chance once in 260,000 times.
_OWNERS = np.uint64((1 << 24) - 1)
_MOST_PAIRS = 4 << 20
_PENDING = 1 << 20

#: A shingle in more sources than this is boilerplate (licence headers, imports): it tells nothing of copying.
_COMMON_SHARE = 100
_COMMON_LEAST = 10
_COMMON_MOST = 1000

#: Of fewer shingles a share tells nothing: a few common lines that happen to be in no more than ten files.
_EVIDENCE = 16
_EVIDENCE_SAMPLED = 4


def common_above(sources: int) -> int:
    """In how many of so many sources a shingle may be before it counts as boilerplate: ten, or 1 % to a thousand."""
    return max(_COMMON_LEAST, min(sources // _COMMON_SHARE, _COMMON_MOST))


@dataclass(frozen=True, slots=True)
class Tally:
    """What an index knows of one text's shingles."""

    #: Shingles that were looked up.
    total: int
    #: Those that some owner holds, boilerplate not among them.
    found: int
    #: Those that are boilerplate.
    common: int
    #: int64 [owners]: who holds some that are not boilerplate, in ascending order.
    owners: NDArray[np.int64]
    #: int64 [owners]: how many of those.
    held: NDArray[np.int64]
    #: What is left without boilerplate is enough to speak of shares.
    telling: bool

    @property
    def shares(self) -> NDArray[np.float64]:
        """float64 [owners]: the part of the shingles that the owner holds, no boilerplate; empty if not telling."""
        return self.held / (self.total - self.common) if self.telling else np.empty(0)


class Postings:
    """The index. Owners are numbers below 2^24."""

    def __init__(self, most_pairs: int = _MOST_PAIRS) -> None:
        self._most_pairs = most_pairs
        self._pairs = np.empty(0, np.uint64)
        self._pending: list[NDArray[np.uint64]] = []
        self._pending_size = 0
        #: One shingle in so many is looked at.
        self.sampling = 1

    def add(self, owner: int, shingles: Shingles) -> None:
        """Note that `owner` holds `shingles`, beside what it was known to hold.

        Raises:
            ValueError: the owner's number is too large.
        """
        if not 0 <= owner <= int(_OWNERS):
            raise ValueError(f"Owner {owner} is not between 0 and {_OWNERS}.")
        pairs = self._sample(shingles) & ~_OWNERS
        pairs |= np.uint64(owner)
        self._pending.append(pairs)
        self._pending_size += len(pairs)
        if self._pending_size > max(_PENDING, len(self._pairs) // 2):
            self._settle()

    def tally(self, shingles: Shingles, common: int) -> Tally:
        """Who holds how many of `shingles`; those that more than `common` owners hold are boilerplate."""
        self._settle()
        hashes = self._sample(shingles) & ~_OWNERS
        total = len(hashes)
        begins = np.searchsorted(self._pairs, hashes)
        known = begins < len(self._pairs)
        known[known] = self._pairs[begins[known]] & ~_OWNERS == hashes[known]
        begins, hashes = begins[known], hashes[known]
        counts = np.searchsorted(self._pairs, hashes | _OWNERS, side="right") - begins
        usual = counts <= common
        found, boilerplate = int(usual.sum()), int((~usual).sum())
        owners, held = np.unique(self._owners(begins[usual], counts[usual]), return_counts=True)
        enough = max(_EVIDENCE_SAMPLED, _EVIDENCE // self.sampling)
        return Tally(total, found, boilerplate, owners, held, telling=total - boilerplate >= enough)

    def look_up(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Of shingles in any order: which are looked at, and which some owner holds: bool [hashes], twice."""
        self._settle()
        looked = hashes <= np.uint64(((1 << 64) - 1) // self.sampling)
        wanted = hashes & ~_OWNERS
        # In rising order the search goes through the index once: several times as fast where it is large.
        order = np.argsort(wanted)
        begins = np.empty(len(wanted), np.int64)
        begins[order] = np.searchsorted(self._pairs, wanted[order])
        held = looked & (begins < len(self._pairs))
        held[held] = self._pairs[begins[held]] & ~_OWNERS == wanted[held]
        return looked, held

    def keep_shared(self) -> None:
        """Forget what only one owner holds, usually nearly all. Nothing is added afterwards."""
        self._settle()
        hashes = self._pairs & ~_OWNERS
        equal = hashes[1:] == hashes[:-1]
        shared = np.zeros(len(hashes), np.bool_)
        shared[1:] |= equal
        shared[:-1] |= equal
        self._pairs = self._pairs[shared]

    def _owners(self, begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The owners of the pairs in some ranges of the index, one range after the other."""
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(begins - (ends - counts), counts)
        return np.asarray(self._pairs[places] & _OWNERS, np.int64)

    def _sample(self, shingles: Shingles) -> Shingles:
        if self.sampling == 1:
            return shingles
        return shingles[: np.searchsorted(shingles, np.uint64((1 << 64) // self.sampling))]

    def _settle(self) -> None:
        """Sort in what came since the last time, and thin out the index where it is too large."""
        if not self._pending:
            return
        self._pairs = distinct(np.concatenate([self._pairs, *self._pending]))
        self._pending, self._pending_size = [], 0
        while len(self._pairs) > self._most_pairs:
            self.sampling *= 4
            self._pairs = self._sample(self._pairs).copy()
