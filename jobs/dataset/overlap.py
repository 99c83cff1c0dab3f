"""How much of the held-out texts was learned all the same: runs of thirteen words that both sides hold.

Thirteen words as the measure of contamination are from GPT-3 (Brown and others, 2020, appendix C). Boilerplate, runs
that are all over the place like a licence header, is counted apart: it is no leak.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.postings import Postings, Tally, common_above
from jobs.dataset.shingles import Shingles, distinct, runs_in_order
from jobs.dataset.survey import thinned
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

    @property
    def largest(self) -> float:
        """The largest part of one text that one training source holds."""
        return self.worst[0].share if self.worst else 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What training knows of a text, word by word."""

    #: int64 [words]: where each begins in the text's UTF-8.
    starts: NDArray[np.int64]
    #: bool [words]: it is part of a run that training holds.
    known: NDArray[np.bool_]
    #: uint64 [runs]: the first begins with the first word; of how many words, and which of them are compared.
    runs: NDArray[np.uint64]
    words: int
    thin: int

    def runs_of(self, chosen: NDArray[np.bool_]) -> Shingles:
        """The runs that are made of chosen words alone, as `measure` takes them. `chosen`: bool [words]."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        whole = before[self.words :] - before[: -self.words] == self.words
        return thinned(distinct(self.runs[whole[: len(self.runs)]]), self.thin)


class Overlap:
    """The runs of words of the training side, to hold held-out texts against."""

    def __init__(self, words: int = 13, thin: int = 1, boilerplate: Shingles | None = None) -> None:
        """Nothing is learned yet.

        Args:
            words: of a run; what the shingles were made with.
            thin: of the runs of a source, one in so many is given: those whose hashes it divides.
            boilerplate: runs that are no leak; where it is not given, those that more training sources hold than
                `jobs.dataset.postings.common_above` says. Give it where one text is learned under many names.
        """
        self.words = words
        self._thin = thin
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
        self._postings.add(number, text_shingles)

    def measure(self, items: Iterable[tuple[str, Shingles]]) -> OverlapReport:
        """Compare held-out texts, given by name and runs, with all that was learned."""
        names = list(self._numbers)
        total = found = boilerplate = 0
        pairs: list[Pair] = []
        for name, text_shingles in items:
            tally = self._tally(text_shingles)
            total += tally.total
            found += tally.found
            boilerplate += tally.common
            # Of equal shares the first by name, so that the order of learning changes nothing.
            pairs += sorted(_pairs(name, tally, names, tally.shares.max(initial=0)), key=lambda pair: pair.train)[:1]
        pairs.sort(key=lambda pair: (-pair.share, pair.held_out, pair.train))
        total = max(1, total)
        return OverlapReport(found / total, tuple(pairs[:_WORST]), boilerplate / total, self._postings.sampling)

    def seen(self, text: str) -> Seen:
        """Which words of a text stand in runs that some source holds, boilerplate too."""
        runs, starts = runs_in_order(text, self.words)
        looked, held = self._postings.look_up(runs)
        known = _guessed(held, held | (looked & (runs % np.uint64(self._thin) == 0)))
        borders = np.zeros(len(starts) + 1, np.int64)
        np.add.at(borders, np.flatnonzero(known), 1)
        np.add.at(borders, np.flatnonzero(known) + self.words, -1)
        return Seen(starts, np.cumsum(borders[:-1]) > 0, runs, self.words, self._thin)

    def refuse(self, report: OverlapReport, limit: float) -> None:
        """Let no dataset pass that measures what it has learned.

        Raises:
            DatasetError: one training source holds more than `limit` of a held-out text.
        """
        if report.largest <= limit:
            return
        pair = report.worst[0]
        raise DatasetError(
            f"The training file {pair.train} holds {pair.share:.0%} of the held-out file {pair.held_out} (runs of "
            f"{self.words} words; at most {limit:.0%} may be): leave one of them out with dataset.exclude, or raise "
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


def _guessed(held: NDArray[np.bool_], told: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`held` where it is `told`, and between: what lies between two runs that are held is held."""
    places = np.flatnonzero(told)
    if len(places) in (0, len(held)):
        return held
    after = np.searchsorted(places, np.arange(len(held)))
    before = np.clip(np.searchsorted(places, np.arange(len(held)), side="right") - 1, 0, None)
    return np.asarray(held[places[before]] & held[places[np.clip(after, None, len(places) - 1)]])


def _among(values: Shingles, others: Shingles) -> NDArray[np.bool_]:
    """Which of some sorted values are among others: bool [values]."""
    places = np.searchsorted(others, values)
    inside = places < len(others)
    inside[inside] = others[places[inside]] == values[inside]
    return inside
