"""A curve as text: braille cells, two points across and four down, a scale at the left. Standard library only.

See the Unicode block "Braille Patterns": U+2800 and one bit a dot.
"""

import math
from collections.abc import Sequence

from jobs.chart import number, thinned

_EMPTY = 0x2800
#: The bit of each dot of a cell, by row and column.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_ACROSS, _DOWN = 2, 4
#: Characters of the plot below which a curve tells nothing.
_NARROWEST = 8


def chart_lines(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """The curve through `points` in `height` lines of at most `width` characters, and a line for the x axis.

    Args:
        points: (x, y), ordered by x; what is no finite number is left out.
        width: Of a line, in characters.
        height: Lines of the plot.

    Returns:
        Nothing where there are fewer than two points, or no room.
    """
    known = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(known) <= 1 or height < 1:
        return []
    low, high = min(y for _, y in known), max(y for _, y in known)
    labels = {0: number(_rounded(high)), height - 1: number(_rounded(low))}
    margin = max(map(len, labels.values()))
    columns = width - margin - 1
    if columns < _NARROWEST:
        return []
    cells = _drawn(thinned(known, columns * _ACROSS), columns, height)
    lines = [f"{labels.get(row, ''):>{margin}}▕{''.join(map(chr, line))}" for row, line in enumerate(cells)]
    first, last = number(known[0][0]), number(known[-1][0])
    return [*lines, f"{' ' * margin} {first}{last:>{max(1, columns - len(first))}}"]


def _drawn(points: Sequence[tuple[float, float]], columns: int, height: int) -> list[list[int]]:
    """The cells, a list for each line."""
    cells = [[_EMPTY] * columns for _ in range(height)]
    dots = _dots(points, columns * _ACROSS - 1, height * _DOWN - 1)
    before = dots[0]
    for x, y in dots:
        for column in range(before[0], x + 1):
            _fill(cells, column, *_between(before, (x, y), column))
        before = (x, y)
    return cells


def _dots(points: Sequence[tuple[float, float]], right: int, bottom: int) -> list[tuple[int, int]]:
    """Each point as a column and a row of dots, the first row at the top."""
    left_x, right_x = points[0][0], points[-1][0]
    low, high = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> tuple[int, int]:
        across = (x - left_x) / (right_x - left_x) if right_x > left_x else 0.0
        up = (y - low) / (high - low) if high > low else 0.5
        return round(across * right), round((1 - up) * bottom)

    return [place(x, y) for x, y in points]


def _between(start: tuple[int, int], end: tuple[int, int], column: int) -> tuple[int, int]:
    """The rows that the line from `start` to `end` passes in `column`, the upper one first."""
    if end[0] == start[0]:
        return min(start[1], end[1]), max(start[1], end[1])
    slope = (end[1] - start[1]) / (end[0] - start[0])
    rows = [
        round(start[1] + slope * (min(max(at, start[0]), end[0]) - start[0])) for at in (column - 0.5, column + 0.5)
    ]
    return min(rows), max(rows)


def _fill(cells: list[list[int]], column: int, top: int, bottom: int) -> None:
    for row in range(top, bottom + 1):
        cells[row // _DOWN][column // _ACROSS] |= _BITS[row % _DOWN][column % _ACROSS]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
