"""Fills what packing left empty: pieces of long files, which were cut anyway, are cut again to the size of a gap.

Best fit needs small documents to fill rows with. A repository of middling files has few, and leaves rows of one file
with a third of them empty. No file that fits a row is touched. What is still empty then, a part of one row as a rule,
shows a piece the lines that stand before it in its file: they are not learned there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.samples import Earlier, Sample

#: Tokens of a gap, and of a part's own text, that are worth another document.
_LEAST_GAP, _LEAST_TEXT = 32, 16

#: Pieces that are tried for a gap: the lines of some are too long for it.
_TRIED = 8


@dataclass(frozen=True)
class Filled:
    """Rows with their gaps filled."""

    samples: list[Sample]
    #: For every sample, the index of the one that it is, or is part of, in what was given.
    origins: list[int]
    #: Indices into `samples`; no row is longer than before, and some are gone.
    rows: list[list[int]]


def split(sample: Sample, room: int) -> tuple[Sample, Sample] | None:
    """Two documents of one, the first of at most `room` tokens, both under the same head; None where none fits."""
    if sample.seams is None:
        return None
    fits = (sample.seams[:, 0] <= room) & (sample.seams[:, 0] >= sample.head + _LEAST_TEXT)
    found = np.flatnonzero(fits)
    if not len(found):
        return None
    seam = int(found[-1])
    token, byte = (int(place) for place in sample.seams[seam])
    own = np.arange(len(sample.ids)) >= sample.head
    first, rest = np.arange(len(sample.ids)) < token, ~own | (np.arange(len(sample.ids)) >= token)
    if not (_teaches(sample, first) and _teaches(sample, rest)):
        return None
    later = sample.seams[seam + 1 :] - np.array([token - sample.head, 0], np.int32)
    return (
        replace(_only(sample, first), stop=byte, seams=sample.seams[:seam]),
        replace(_only(sample, rest), start=byte, seams=later, earlier=_earlier(sample, seam)),
    )


def _teaches(sample: Sample, part: NDArray[np.bool_]) -> bool:
    """Whether something is learned of a part that begins with the first token."""
    return sample.labels is None or bool(sample.labels[part][1:].any())


def _only(sample: Sample, part: NDArray[np.bool_]) -> Sample:
    return replace(sample, ids=sample.ids[part], labels=None if sample.labels is None else sample.labels[part])


def _earlier(sample: Sample, seam: int) -> Earlier:
    """What is known to stand before the seam: as much as was cut off, so that it fills the gap that this left."""
    assert sample.seams is not None  # noqa: S101 - it has been cut there
    own = Earlier(
        sample.ids[sample.head : sample.seams[seam, 0]],
        np.insert(sample.seams[:seam, 0] - sample.head, 0, 0).astype(np.int32),
    )
    before = sample.earlier
    if before is None:
        return own
    return Earlier(np.concatenate([before.ids, own.ids]), np.concatenate([before.lines, own.lines + len(before.ids)]))


def extended(sample: Sample, room: int) -> Sample:
    """The piece with as many of the lines before it as `room` tokens hold, shown and not learned."""
    if sample.earlier is None:
        return sample
    fits = sample.earlier.lines[len(sample.earlier.ids) - sample.earlier.lines <= room]
    shown = sample.earlier.ids[fits[0] :] if len(fits) else sample.earlier.ids[:0]
    (ids, labels), place = (sample.ids, sample.learned), sample.head
    return replace(
        sample,
        ids=np.concatenate([ids[:place], shown, ids[place:]]),
        labels=np.concatenate([labels[:place], np.zeros(len(shown), np.bool_), labels[place:]]),
        seams=None,
        earlier=None,
        shown=len(shown),
    )


def fill_gaps(samples: Sequence[Sample], rows: Sequence[Sequence[int]], capacity: int) -> Filled:
    """Fill the gaps of packed rows, the largest first, with parts of the pieces that have a row to themselves.

    Args:
        samples: of one split.
        rows: what `jobs.dataset.packing.pack` made of their lengths.
        capacity: tokens of a row.
    """
    return _Filling(samples, rows, capacity).done()


class _Filling:
    """Rows on their way to being full. Few pieces are in use at a time; what is left of the last keeps its row."""

    def __init__(self, samples: Sequence[Sample], rows: Sequence[Sequence[int]], capacity: int) -> None:
        self._samples = list(samples)
        self._origins = list(range(len(samples)))
        self._rows = [list(row) for row in rows]
        self._gaps = [capacity - sum(len(samples[index].ids) for index in row) for row in rows]
        self._sources = [place for place, gap in enumerate(self._gaps) if gap < _LEAST_GAP and self._can_give(place)]

    def done(self) -> Filled:
        """The largest gap first, then what is left of the pieces in use, the shortest first."""
        self._fill_all()
        left = [place for place in self._sources if self._gaps[place] >= _LEAST_GAP]
        for place in sorted(left, key=lambda place: (-self._gaps[place], place)):
            # One that has been filled up itself stays as it is.
            self._sources = [place] if len(self._rows[place]) == 1 else []
            self._fill_all()
        self._extend_all()
        return Filled(self._samples, self._origins, [row for row in self._rows if row])

    def _fill_all(self) -> None:
        busy = set(self._sources)
        rows = [place for place in range(len(self._rows)) if self._rows[place] and place not in busy]
        for place in sorted(rows, key=lambda place: (-self._gaps[place], place)):
            while self._gaps[place] >= _LEAST_GAP and self._fill(place):
                pass

    def _extend_all(self) -> None:
        """Show pieces what stands before them, where room is left."""
        for place, row in enumerate(self._rows):
            for index in row:
                if self._gaps[place] < _LEAST_TEXT:
                    break
                self._samples[index] = extended(self._samples[index], self._gaps[place])
                self._gaps[place] -= self._samples[index].shown

    def _can_give(self, place: int) -> bool:
        row = self._rows[place]
        seams = self._samples[row[0]].seams if len(row) == 1 else None
        return seams is not None and len(seams) > 0

    def _fill(self, place: int) -> bool:
        """Put some of a piece into a gap, of the one in use if its lines allow; False where nothing fits."""
        return any(self._take(source, place) for source in self._sources[: -_TRIED - 1 : -1])

    def _take(self, source: int, place: int) -> bool:
        """Move what fits of the piece in row `source` into row `place`."""
        (index,) = self._rows[source]
        if len(self._samples[index].ids) <= self._gaps[place]:
            self._put(place, index)
            self._rows[source] = []
            self._sources.remove(source)
            return True
        parts = split(self._samples[index], self._gaps[place])
        if parts is None:
            return False
        self._gaps[source] += len(self._samples[index].ids) - len(parts[1].ids)
        self._samples[index] = parts[1]
        self._samples.append(parts[0])
        self._origins.append(self._origins[index])
        self._put(place, len(self._samples) - 1)
        return True

    def _put(self, place: int, index: int) -> None:
        self._rows[place].append(index)
        self._gaps[place] -= len(self._samples[index].ids)
