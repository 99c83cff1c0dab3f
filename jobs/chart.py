"""The geometry of a line chart in per cent of its plot area, so that a page can draw it at any width.

Standard library only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

#: Points of a line at most; longer ones are averaged in buckets.
MAX_POINTS = 400
#: Points that a line needs before a smoother one is drawn over it.
_ENOUGH_TO_SMOOTH = 12
#: Markers that are joined by a line.
_ENOUGH_TO_JOIN = 3

_SMALL = 1e-3
_LARGE = 1e3


@dataclass(frozen=True)
class Tick:
    """A grid line: where, in per cent from the left or from the bottom, and what it says."""

    place: float
    text: str


@dataclass(frozen=True)
class Marker:
    """A single measurement, in per cent, with what it says."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x, in per cent, with what it says."""

    x: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A line, perhaps a smoother one over it, markers with a line through them, and marks; y grows upwards."""

    line: str
    smooth: str
    markers: tuple[Marker, ...]
    #: Empty where there are fewer than three markers.
    through: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def line_chart(
    points: Sequence[tuple[float, float | None]],
    *,
    markers: Sequence[tuple[float, float, str]] = (),
    marks: Sequence[tuple[float, str]] = (),
    smooth: bool = False,
    from_zero: bool = False,
) -> Chart:
    """Lay out a chart of (x, y); a y of None leaves a gap in nothing but the line's detail.

    Args:
        points: Ordered by x.
        markers: (x, y, text), drawn over the line.
        marks: (x, text), drawn from top to bottom where x is in sight.
        smooth: Add a running mean where there are points enough.
        from_zero: The y axis begins at 0.
    """
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    marked = [(x, y, text) for x, y, text in markers if math.isfinite(y)]
    every_x = [x for x, _ in known] + [x for x, _, _ in marked] or [0.0]
    every_y = [y for _, y in known] + [y for _, y, _ in marked] or [0.0]
    x_ticks = _ticks(min(every_x), max(every_x), count=6, whole=True)
    y_ticks = _ticks(0.0 if from_zero else min(every_y), max(every_y), count=5)
    left, right = min(every_x), max(*every_x, min(every_x) + 1)
    bottom, top = min(y_ticks[0], *every_y), max(y_ticks[-1], *every_y)

    def place(x: float, y: float) -> tuple[float, float]:
        return _percent(x, left, right), _percent(y, bottom, top)

    return Chart(
        line=_path([place(x, y) for x, y in thinned(known)]),
        smooth=_path([place(x, y) for x, y in thinned(smoothed(known))])
        if smooth and len(known) >= _ENOUGH_TO_SMOOTH
        else "",
        markers=tuple(Marker(*place(x, y), text) for x, y, text in marked),
        through=_path([place(x, y) for x, y, _ in marked]) if len(marked) >= _ENOUGH_TO_JOIN else "",
        marks=tuple(Mark(_percent(x, left, right), text) for x, text in marks if left <= x <= right),
        x_ticks=tuple(Tick(_percent(x, left, right), number(x)) for x in x_ticks if left <= x <= right),
        y_ticks=tuple(Tick(_percent(y, bottom, top), number(y)) for y in y_ticks),
    )


def number(value: float) -> str:
    """A number as people read it: 12,345 · 0.25 · 2e-05."""
    if value == 0:
        return "0"
    if abs(value) < _SMALL:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:,.0f}" if value == int(value) or abs(value) >= _LARGE else f"{value:.4g}"


def _percent(value: float, low: float, high: float) -> float:
    return round(100.0 * (value - low) / (high - low), 3) if high > low else 50.0


def _path(points: Sequence[tuple[float, float]]) -> str:
    """SVG path data; SVG's y grows downwards."""
    return " ".join(f"{'ML'[index > 0]}{x:g} {round(100 - y, 3):g}" for index, (x, y) in enumerate(points))


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor * count >= span)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:
        last += 1
    return [round(index * step, 12) for index in range(first, last + 1)]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of each point's neighbours, a twentieth of the line to either side, fewer near the ends."""
    reach = max(2, len(points) // 20)
    sums = [0.0, *accumulate(y for _, y in points)]
    means = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        means.append((x, (sums[index + near + 1] - sums[index - near]) / (2 * near + 1)))
    return means


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` points and the last one: means of neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    buckets = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in bucket) / len(bucket), sum(y for _, y in bucket) / len(bucket)) for bucket in buckets]
    return [*means, points[-1]]
