"""The training loss of a job as it comes in, bounded in memory, drawn under its progress bar. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

from queue_app.terminal_chart import chart_lines

#: Lines of the plot, and characters of each at most.
HEIGHT, WIDTH = 8, 100
#: Points that are kept, an even number: from there on two neighbours become one.
_MOST = 4096
#: Steps from which a curve says more than the numbers do.
_ENOUGH = 5

_Points = list[tuple[float, float]]


class Curve:
    """Loss by step."""

    def __init__(self) -> None:
        self._points: _Points = []
        #: Steps that make up one point, and those of the point that is not complete.
        self._size = 1
        self._begun: _Points = []
        #: What was drawn last, by width and height: a bar is drawn anew many times a second.
        self._drawn: dict[tuple[int, int], list[str]] = {}

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take the loss of a step. A step that comes again, because a run was resumed, takes back what followed it."""
        step, loss = event.get("step"), event.get("loss")
        if not isinstance(step, int) or not isinstance(loss, int | float):
            return
        self._drawn = {}
        if (self._begun or self._points or [(0.0, 0.0)])[-1][0] >= step:
            self._points = [point for point in self._points if point[0] < step]
            self._begun = [point for point in self._begun if point[0] < step]
        self._begun.append((float(step), float(loss)))
        if len(self._begun) >= self._size:
            self._points.append(_mean(self._begun))
            self._begun = []
        if len(self._points) >= _MOST:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points, self._size = [_mean(pair) for pair in pairs], 2 * self._size

    def lines(self, width: int, height: int = HEIGHT) -> list[str]:
        """A title and the plot, at most `width` characters wide; nothing as long as there is little to see."""
        if (width, height) not in self._drawn:
            points = self._points + ([_mean(self._begun)] if self._begun else [])
            plot = chart_lines(points, min(width, WIDTH), height) if len(points) >= _ENOUGH else []
            self._drawn[width, height] = ["training loss by optimizer step", *plot] if plot else []
        return self._drawn[width, height]


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """At the last x, the mean y."""
    return points[-1][0], sum(y for _, y in points) / len(points)
