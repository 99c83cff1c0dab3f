"""Many words looked for in a text at once.

How: three bytes of every word, rare ones, are its mark. Eight groups of words have a bit each, and three tables say of
every byte in which groups' marks it stands first, second and third. A text is put through each table; where the three,
shifted by one and two, share a bit, a mark may stand, and only there the words are compared. This is the filter of
Hyperscan's "Teddy", with passes over the whole text in place of a processor's shuffles. A search of its own for each of
a hundred words takes several times as long.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

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


#: For each place of a mark, the bytes that may stand there.
_Mark = tuple[frozenset[int], ...]


@dataclass(frozen=True)
class _Word:
    word: str
    raw: bytes
    any_case: bool

    def marks(self) -> list[_Mark]:
        """Every mark that this word could have, by where it starts in the word."""
        return [tuple(map(self._cases, self.raw[start : start + _MARK])) for start in range(len(self.raw) - _MARK + 1)]

    def _cases(self, byte: int) -> frozenset[int]:
        return frozenset((byte, *(bytes((byte,)).upper() if self.any_case else b"")))


@dataclass
class _Group:
    """Words whose marks share a bit."""

    places: list[set[int]] = field(default_factory=lambda: [set() for _ in range(_MARK)])
    #: About the share of a text's bytes that may stand at each place.
    shares: list[float] = field(default_factory=lambda: [0.0] * _MARK)

    def cost(self, mark: _Mark) -> float:
        """About how much more often a mark of the group would be found in a text if this were one."""
        return math.prod(self._shares_with(mark)) - math.prod(self.shares)

    def add(self, mark: _Mark) -> None:
        self.shares = self._shares_with(mark)
        self.places = [old | new for old, new in zip(self.places, mark, strict=True)]

    def _shares_with(self, mark: _Mark) -> list[float]:
        more = zip(self.shares, self.places, mark, strict=True)
        return [share + sum(_SHARES.get(byte, _RARE) for byte in new - old) for share, old, new in more]


class Needles:
    """Words, prepared to be looked for.

    Args:
        exact: found as they are spelled.
        any_case: in small letters; found in any.
            All are ASCII, and of three characters or more.
    """

    def __init__(self, exact: Iterable[str], any_case: Iterable[str] = ()) -> None:
        self._words = [_Word(word, word.encode("ascii"), any_case=False) for word in dict.fromkeys(exact)]
        self._words += [_Word(word, word.encode("ascii"), any_case=True) for word in dict.fromkeys(any_case)]

    def places(self, text: str) -> Places:
        """Where each word stands; words that do not are left out."""
        found: dict[str, list[int]] = defaultdict(list)
        # One byte a character, so that places are the same; what is not ASCII is in no word.
        raw = text.encode("ascii", "replace")
        if len(raw) < _MARK:
            return found
        tables, marked = self._prepared
        small = raw.lower()
        for at in _hits(raw, tables):
            for word, offset in marked.get(small[at : at + _MARK], ()):
                start = at - offset
                if start >= 0 and (small if word.any_case else raw).startswith(word.raw, start):
                    found[word.word].append(start)
        return found

    @cached_property
    def _prepared(self) -> tuple[list[bytes], dict[bytes, list[tuple[_Word, int]]]]:
        """The tables, and mark in small letters -> the words with it and where it starts in them.

        The words hardest to place come first; each gets the mark and the group that make for the fewest vain finds.
        """
        groups = [_Group() for _ in range(_GROUPS)]
        marked: dict[bytes, list[tuple[_Word, int]]] = defaultdict(list)
        alone = _Group()
        for word in sorted(self._words, key=lambda word: -min(map(alone.cost, word.marks()))):
            choices = product(enumerate(word.marks()), groups)
            (offset, mark), group = min(choices, key=lambda choice: choice[1].cost(choice[0][1]))
            group.add(mark)
            marked[word.raw[offset : offset + _MARK].lower()].append((word, offset))
        return _tables(groups), dict(marked)


def _tables(groups: list[_Group]) -> list[bytes]:
    """For each place of the marks: byte -> the bits of the groups that have it there."""
    return [
        bytes(sum(1 << bit for bit, group in enumerate(groups) if byte in group.places[place]) for byte in range(0x100))
        for place in range(_MARK)
    ]


def _hits(raw: bytes, tables: list[bytes]) -> list[int]:
    """Where a mark may stand."""
    first, second, third = (np.frombuffer(raw.translate(table), np.uint8) for table in tables)
    hits: list[int] = np.flatnonzero(first[:-2] & second[1:-1] & third[2:]).tolist()
    return hits
