"""Many words looked for in a text at once.

How: three bytes of every word, the rarest, are its mark. Eight groups of words have a bit each, and three tables say of
every byte in which groups' marks it stands first, second and third. A text is put through each table; where the three,
shifted by one and two, share a bit, a mark may stand, and only there the words are compared. This is the filter of
Hyperscan's "Teddy", with passes over the whole text in place of a processor's shuffles. A search of its own for each of
a hundred words takes several times as long.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

#: Word -> where it stands, in order.
Places = Mapping[str, list[int]]

_MARK = 3
_GROUPS = 8
#: Bytes of code, the most frequent first: a mark of rare bytes is seldom found in vain.
_BY_FREQUENCY = (
    b" estraonil\ndfc.p_u)(,mh'0\"=g:bTEy-x1wk>IvNS2RAqCL#/<[]3OP9F4D5MU68B\\7HGj*`;VWz&+{}\rXK%Y@?\tQJZ!~$|^"
)
#: About the share of a byte by its rank in the above.
_SHARES = {byte: 0.9 / (6 + 1.2 * rank) for rank, byte in enumerate(_BY_FREQUENCY)}
_RARE = 0.002


@dataclass(frozen=True)
class _Needle:
    word: str
    raw: bytes
    #: Where the mark starts in the word.
    offset: int
    any_case: bool

    def mark(self) -> list[frozenset[int]]:
        """The bytes that may stand at each place of the mark."""
        small = self.raw[self.offset : self.offset + _MARK]
        return [frozenset((byte, *(bytes((byte,)).upper() if self.any_case else b""))) for byte in small]


class Needles:
    """Words, prepared to be looked for.

    Args:
        exact: found as they are spelled.
        any_case: in small letters; found in any.
            All are ASCII, and of three characters or more.
    """

    def __init__(self, exact: Iterable[str], any_case: Iterable[str] = ()) -> None:
        needles = [_needle(word, any_case=False) for word in dict.fromkeys(exact)]
        needles += [_needle(word, any_case=True) for word in dict.fromkeys(any_case)]
        self._tables = _tables(needles)
        #: Mark in small letters -> the words with it.
        self._by_mark: dict[bytes, list[_Needle]] = defaultdict(list)
        for needle in needles:
            self._by_mark[needle.raw[needle.offset : needle.offset + _MARK].lower()].append(needle)

    def places(self, text: str) -> Places:
        """Where each word stands; words that do not are left out."""
        found: dict[str, list[int]] = defaultdict(list)
        # One byte a character, so that places are the same; what is not ASCII is in no word.
        raw = text.encode("ascii", "replace")
        if len(raw) < _MARK:
            return found
        small, marked = raw.lower(), self._by_mark
        for at in self._hits(raw):
            for needle in marked.get(small[at : at + _MARK], ()):
                start = at - needle.offset
                if start >= 0 and (small if needle.any_case else raw).startswith(needle.raw, start):
                    found[needle.word].append(start)
        return found

    def _hits(self, raw: bytes) -> list[int]:
        """Where a mark may stand."""
        first, second, third = (np.frombuffer(raw.translate(table), np.uint8) for table in self._tables)
        hits: list[int] = np.flatnonzero(first[:-2] & second[1:-1] & third[2:]).tolist()
        return hits


def _needle(word: str, *, any_case: bool) -> _Needle:
    raw = word.encode("ascii")
    needles = [_Needle(word, raw, offset, any_case) for offset in range(len(raw) - _MARK + 1)]
    return min(needles, key=lambda needle: _share(needle.mark()))


def _share(mark: Iterable[Iterable[int]]) -> float:
    """About how often bytes follow each other that stand in each of these sets."""
    return math.prod(sum(_SHARES.get(byte, _RARE) for byte in place) for place in mark)


def _tables(needles: list[_Needle]) -> list[bytes]:
    """For each place of the marks: byte -> the bits of the groups that have it there."""
    groups: list[list[frozenset[int]]] = [[frozenset()] * _MARK for _ in range(_GROUPS)]
    # The most frequent first, each to the group that it makes the least more frequent.
    for mark in sorted((needle.mark() for needle in needles), key=_share, reverse=True):
        joined = [[one | other for one, other in zip(group, mark, strict=True)] for group in groups]
        place = min(range(_GROUPS), key=lambda place: _share(joined[place]) - _share(groups[place]))
        groups[place] = joined[place]
    return [
        bytes(sum(1 << bit for bit, group in enumerate(groups) if byte in group[place]) for byte in range(0x100))
        for place in range(_MARK)
    ]
