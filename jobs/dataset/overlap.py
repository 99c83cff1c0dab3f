"""How much of the held-out texts was learned all the same: runs of thirteen words that both sides hold.

Thirteen words as the measure of contamination are from GPT-3 (Brown and others, 2020, appendix C). Boilerplate, runs
that are all over the place like a licence header, is counted apart: it is no leak.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.postings import Postings, Tally, common_above
from jobs.dataset.shingles import Shingles
from jobs.shards import DatasetError

#: Pairs that a report names.
_WORST = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """A held-out text, and a training source that holds a part of it."""

    held_out: str
    train: str
    #: The part of the held-out text's runs that the training source holds, boilerplate left out on both sides.
    share: float


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """How much of one split was learned."""

    #: The part of all held-out runs that some training source holds, boilerplate not among them.
    share: float
    #: For the held-out texts with the highest shares, the training source that holds most, the highest share first; at
    #: most ten, and none that share nothing.
    worst: tuple[Pair, ...]
    #: The part of all held-out runs that is boilerplate.
    boilerplate: float = 0.0
    #: Of a large training side one run in so many was looked at.
    sampling: int = 1


class Overlap:
    """The runs of words of the training side, to hold held-out texts against."""

    def __init__(self, words: int = 13, watched: Shingles | None = None, boilerplate: Shingles | None = None) -> None:
        """Nothing is learned yet.

        Args:
            words: of a run; what the shingles were made with.
            watched: the runs of all held-out texts, where they are known beforehand: others are then not kept, which
                needs next to no memory and no sampling.
            boilerplate: runs that are no leak; where it is not given, those that more training sources hold than
                `jobs.dataset.postings.common_above` says. Give it where one text is learned under many names.
        """
        self._words = words
        self._watched = watched
        self._boilerplate = boilerplate
        self._postings = Postings()
        self._numbers: dict[str, int] = {}

    def learn(self, name: str, text_shingles: Shingles) -> None:
        """Note what a training source holds.

        Args:
            name: of the source. One that is learned several times (the versions of a file) counts once.
            text_shingles: runs of the text, sorted, each once.
        """
        number = self._numbers.setdefault(name, len(self._numbers))
        if self._watched is not None:
            text_shingles = text_shingles[_among(text_shingles, self._watched)]
        self._postings.add(number, text_shingles)

    def measure(self, items: Iterable[tuple[str, Shingles]]) -> OverlapReport:
        """Compare held-out texts, given by name and runs, with all that was learned."""
        names = list(self._numbers)
        total = found = boilerplate = 0
        pairs: list[Pair] = []
        for name, shingles in items:
            tally = self._tally(shingles)
            total += tally.total
            found += tally.found
            boilerplate += tally.common
            # Of equal shares the first by name, so that the order of learning changes nothing.
            pairs += sorted(_pairs(name, tally, names, tally.shares.max(initial=0)), key=lambda pair: pair.train)[:1]
        pairs.sort(key=lambda pair: (-pair.share, pair.held_out, pair.train))
        total = max(1, total)
        return OverlapReport(found / total, tuple(pairs[:_WORST]), boilerplate / total, self._postings.sampling)

    def leaks(self, items: Iterable[tuple[str, Shingles]], limit: float) -> list[Pair]:
        """Every training source that holds more than `limit` of a held-out text, by held-out text, then by name.

        For who leaves these out of training, and then measures again.
        """
        names = list(self._numbers)
        found: list[Pair] = []
        for name, shingles in items:
            pairs = [pair for pair in _pairs(name, self._tally(shingles), names, limit) if pair.share > limit]
            found += sorted(pairs, key=lambda pair: pair.train)
        return found

    def refuse(self, report: OverlapReport, limit: float) -> None:
        """Let no dataset pass that measures what it has learned.

        Raises:
            DatasetError: one training source holds more than `limit` of a held-out text.
        """
        if not report.worst or report.worst[0].share <= limit:
            return
        pair = report.worst[0]
        raise DatasetError(
            f"The training file {pair.train} holds {pair.share:.0%} of the held-out file {pair.held_out} (runs of "
            f"{self._words} words; at most {limit:.0%} may be): leave one of them out with dataset.exclude, or raise "
            "dataset.max_overlap."
        )

    def _tally(self, shingles: Shingles) -> Tally:
        if self._boilerplate is None:
            return self._postings.tally(shingles, common_above(len(self._numbers)))
        common = _among(shingles, self._boilerplate)
        told = self._postings.tally(shingles[~common], len(self._numbers))
        apart = self._postings.tally(shingles[common], len(self._numbers)).total
        return replace(told, total=told.total + apart, common=apart)


def _pairs(held_out: str, tally: Tally, names: list[str], least: float) -> list[Pair]:
    """The training sources that hold a share of at least `least` of a text."""
    shares = tally.shares
    return [
        Pair(held_out, names[tally.owners[place]], float(shares[place])) for place in np.flatnonzero(shares >= least)
    ]


def _among(values: Shingles, others: Shingles) -> NDArray[np.bool_]:
    """Which of some sorted values are among others: bool [values]."""
    places = np.searchsorted(others, values)
    inside = places < len(others)
    inside[inside] = others[places[inside]] == values[inside]
    return inside
