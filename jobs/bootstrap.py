"""Confidence intervals by bootstrap: what a score would have been, had chance chosen other documents.

Documents are drawn, not tokens: what stands in one file hangs together. Base and adapter are scored on the same drawn
documents (a paired bootstrap, Efron and Tibshirani 1993; for language tasks Koehn 2004), so that how hard a document is
cancels out of their difference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

#: Of every draw; the same documents give the same interval.
_SEED = 17
#: Percentiles between which a score lies in 95 of 100 draws.
_LOW, _HIGH = 2.5, 97.5
#: Documents that are drawn at a time, over all draws.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Interval:
    """A score and where 95 of 100 draws put it; no bounds where one document cannot vary."""

    mean: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """As `evaluation.json` has it."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def draws(documents: int, resamples: int) -> list[NDArray[np.int64]]:
    """Which documents are drawn, with repetition: arrays [n, documents] of `resamples` lines in all."""
    random = np.random.default_rng(_SEED)
    step = max(1, _CHUNK // max(1, documents))
    sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
    return [random.integers(0, documents, (size, documents)) for size in sizes]


def interval(score: Callable[[NDArray[np.int64]], Values], documents: int, resamples: int) -> Interval:
    """A score of all documents, and its percentile interval.

    Args:
        score: Takes indices [n, documents] of documents and gives the score [n] of each line.
        documents: How many there are, at least one.
        resamples: Draws.
    """
    with np.errstate(invalid="ignore"):  # a model that diverged has no numbers
        mean = float(score(np.arange(documents)[None])[0])
        if documents == 1:
            return Interval(mean, None, None)
        found = np.concatenate([score(chosen) for chosen in draws(documents, resamples)])
        low, high = np.percentile(found, (_LOW, _HIGH))
    return Interval(mean, float(low), float(high))
