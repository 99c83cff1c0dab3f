"""String literals that code puts together, read as the text they make: `"a" "b"`, `"a" + "b"`, one line below another.

A secret cut in two by a line break of the source is a secret none the less.
"""

import re
from bisect import bisect_right

QUOTES = frozenset("\"'")
#: Literals that the parts of a URL or a header stand in.
FEW = 6

#: What one literal may hold: neither quote, so that its end is told without knowing how it began.
_INNER = re.compile(r"[^\"'\n]{0,2000}+")
#: From the quote that ends one literal to the one that starts the next.
_JOIN = re.compile(r"""["'](?:[ \t]|\\?\r?\n|\+(?!\+)){1,200}+[bfruBFRU]{0,2}["']""")
#: Twice the lines of a key of 4096 bits.
_MAX_PARTS = 128


class Joined:
    """The literals of a stretch of text without what stands between them."""

    def __init__(self, text: str, places: list[tuple[int, int]]) -> None:
        self.text = text
        #: Where each literal stands: in the joined text, in the source.
        self._places = places

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """Where characters `start` to `stop` stand in the source."""
        first, last = self._piece(start), self._piece(stop - 1)
        return first[1] + start - first[0], last[1] + stop - last[0]

    def crosses(self, start: int, stop: int) -> bool:
        """True where characters `start` to `stop` come of more than one literal."""
        return self._piece(start) != self._piece(stop - 1)

    def _piece(self, place: int) -> tuple[int, int]:
        return self._places[bisect_right(self._places, place, key=lambda each: each[0]) - 1]


def join_literals(text: str, start: int, after: int = 0, parts_at_most: int = _MAX_PARTS) -> Joined | None:
    """The literals from inside the one at `start`; None where nothing is joined to that one.

    Args:
        text: the source.
        start: a place inside a literal, or just before its closing quote.
        after: this many characters behind the last literal are taken along.
        parts_at_most: this many literals are joined.
    """
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    length, begin = 0, start
    while True:
        end = _end(text, begin)
        places.append((length, begin))
        join = _JOIN.match(text, end)
        if join is None or len(places) >= parts_at_most:
            break
        parts.append(text[begin:end])
        length += end - begin
        begin = join.end()
    return Joined("".join([*parts, text[begin : end + after]]), places) if parts else None


def _end(text: str, begin: int) -> int:
    inner = _INNER.match(text, begin)
    return inner.end() if inner else begin
