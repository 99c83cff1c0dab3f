"""Scores of base and adapter on the same documents, by language, each with its interval."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.bootstrap import Interval, Values, interval

BASE, ADAPTER = "base", "adapter"
#: Digits behind the point: fewer than a machine's rounding changes.
_DIGITS = 6


@dataclass
class Tally:
    """What was counted on one document."""

    language: str
    #: tokens, bytes, fills, next_lines
    counts: Counter[str] = field(default_factory=Counter)
    #: Side -> nats, fim_exact, fim_similarity, next_line_exact, summed.
    sums: defaultdict[str, defaultdict[str, float]] = field(default_factory=lambda: defaultdict(_zeros))


def _zeros() -> defaultdict[str, float]:
    return defaultdict(float)


@dataclass(frozen=True)
class Metric:
    """A sum over a count."""

    name: str
    total: str
    count: str
    #: What the quotient is multiplied by.
    factor: float = 1.0
    exponential: bool = False
    #: Between 0 and 1, and often at one of them.
    share: bool = False

    def of(self, totals: Values, counts: Values) -> Values:
        """The score of summed totals and counts."""
        mean = totals / counts * self.factor
        with np.errstate(over="ignore"):
            return np.exp(mean) if self.exponential else mean


METRICS = (
    Metric("loss", "nats", "tokens"),
    Metric("perplexity", "nats", "tokens", exponential=True),
    Metric("bits_per_byte", "nats", "bytes", factor=1 / math.log(2)),
    Metric("fim_exact", "fim_exact", "fills", share=True),
    Metric("fim_similarity", "fim_similarity", "fills", share=True),
    Metric("next_line_exact", "next_line_exact", "next_lines", share=True),
)


def scores(tallies: Iterable[Tally], sides: Sequence[str], resamples: int) -> dict[str, Any]:
    """The scores of some documents and, where they are of several languages, of each.

    Returns:
        documents, tokens, bytes; by side its scores, null where nothing was counted; `intervals` by side, and the
        `difference`, adapter less base, where both were measured; `languages`.
    """
    known = list(tallies)
    found = _scores(known, sides, resamples)
    languages = Counter(tally.language for tally in known)
    found["languages"] = {
        name: _scores([tally for tally in known if tally.language == name], sides, resamples)
        for name in sorted(languages)
    }
    return found


def _scores(tallies: Sequence[Tally], sides: Sequence[str], resamples: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "documents": sum(tally.counts["tokens"] > 0 for tally in tallies),
        "tokens": sum(tally.counts["tokens"] for tally in tallies),
        "bytes": sum(tally.counts["bytes"] for tally in tallies),
        "intervals": {},
    }
    for side in sides:
        of_side = {metric.name: _of_side(metric, tallies, side, resamples) for metric in METRICS}
        found[side] = {name: one and _number(one.mean) for name, one in of_side.items()}
        found["intervals"][side] = {name: one and _json(one) for name, one in of_side.items()}
    if ADAPTER in sides:
        pairs = ((metric.name, _difference(metric, tallies, resamples)) for metric in METRICS)
        found["difference"] = {name: one and _json(one) for name, one in pairs}
    return found


def _of_side(metric: Metric, tallies: Sequence[Tally], side: str, resamples: int) -> Interval | None:
    counts, totals = _columns(metric, tallies, (side,))

    def score(chosen: NDArray[np.int64]) -> Values:
        return metric.of(totals[0][chosen].sum(axis=1), counts[chosen].sum(axis=1))

    return _interval(metric, score, len(counts), resamples)


def _difference(metric: Metric, tallies: Sequence[Tally], resamples: int) -> Interval | None:
    counts, totals = _columns(metric, tallies, (BASE, ADAPTER))

    def score(chosen: NDArray[np.int64]) -> Values:
        weights = counts[chosen].sum(axis=1)
        base, adapter = (metric.of(one[chosen].sum(axis=1), weights) for one in totals)
        return adapter - base

    return _interval(metric, score, len(counts), resamples)


def _interval(
    metric: Metric, score: Callable[[NDArray[np.int64]], Values], documents: int, draws: int
) -> Interval | None:
    """The score with its interval; None of no documents.

    A share that is the same in all of them, as where nothing was right, has no bounds: draws of what is always the same
    know nothing of what other documents would bring.
    """
    if not documents:
        return None
    found = interval(score, documents, draws)
    return replace(found, low=None, high=None) if metric.share and found.low == found.high else found


def _columns(metric: Metric, tallies: Sequence[Tally], sides: Sequence[str]) -> tuple[Values, list[Values]]:
    """Counts [documents] and, for each side, totals, of the documents on which the metric was counted."""
    counted = [tally for tally in tallies if tally.counts[metric.count] > 0]
    counts = np.array([tally.counts[metric.count] for tally in counted], np.float64)
    return counts, [np.array([tally.sums[side][metric.total] for tally in counted], np.float64) for side in sides]


def _json(one: Interval) -> dict[str, float | None]:
    return {name: value if value is None else _number(value) for name, value in one.to_json().items()}


def _number(value: float) -> float | None:
    """Rounded; null where JSON has no such number."""
    return round(value, _DIGITS) if math.isfinite(value) else None
