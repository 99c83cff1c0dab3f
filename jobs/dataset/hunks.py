"""What changed between two texts, line by line, at a cost that no text can drive up.

What both begin and end with is put aside first, by comparing memory. The rest is lined up at the lines that occur once
on both sides (patience diff, as Bram Cohen described it); only small gaps between those are looked at by difflib, whose
time may grow with the cube of the lines.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

#: Unchanged lines kept on either side of the changes.
MOST_CONTEXT = 32
#: Changed lines on both sides together, from the first change to the last: more are no edit that one could learn.
_MOST_LINES = 20_000
#: Lines before times lines after of a gap that difflib may look at.
_SMALL_GAP = 4096
#: Characters compared at once.
_CHUNK = 4096


class Edit(NamedTuple):
    """Lines that were replaced; either side may be empty, not both."""

    before: range
    after: range


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a file that changed, with the unchanged lines around it: at most 32 on either side."""

    #: Lines of the file that stand before.
    offset: int
    before: list[str]
    after: list[str]
    #: In order; line numbers are the window's.
    edits: tuple[Edit, ...]


class Hunk(NamedTuple):
    """Edits near one another, with the lines around them."""

    before: range
    after: range
    edits: tuple[Edit, ...]


def window(before: str, after: str) -> Window | None:
    """What changed from one text to the other; None if no line did, or too many."""
    start = before.rfind("\n", 0, _common_start(before, after)) + 1
    end = _common_end(before[start:], after[start:])
    stops = len(before) - end, len(after) - end
    if max(before.count("\n", start, stops[0]), after.count("\n", start, stops[1])) > _MOST_LINES:
        return None
    old, new = _lines(before[start : stops[0]]), _lines(after[start : stops[1]])
    lead = _lines(before[_lines_above(before, start, MOST_CONTEXT) : start])
    tail = _lines(before[stops[0] : _lines_below(before, stops[0], MOST_CONTEXT)])
    edits = tuple(_moved(edit, len(lead)) for edit in _edits(old, new))
    offset = before.count("\n", 0, start) - len(lead)
    return Window(offset, lead + old + tail, lead + new + tail, edits) if edits else None


class ChangedPart(NamedTuple):
    """The lines of two texts from the first change to the last, and lines around them."""

    #: Lines that stand before the part.
    offset: int
    before: str
    after: str


def changed_part(before: str, after: str, around: int) -> ChangedPart | None:
    """What of two texts a `window` shows, and up to `around` lines more on either side; None if nothing changed."""
    start = before.rfind("\n", 0, _common_start(before, after)) + 1
    end = _common_end(before[start:], after[start:])
    stops = len(before) - end, len(after) - end
    if before[start : stops[0]] == after[start : stops[1]]:
        return None
    lead = _lines_above(before, start, MOST_CONTEXT + around)
    tail = _lines_below(before, stops[0], MOST_CONTEXT + around) - stops[0]
    return ChangedPart(before.count("\n", 0, lead), before[lead : stops[0] + tail], after[lead : stops[1] + tail])


def hunks(change: Window, context: int) -> list[Hunk]:
    """The edits with up to `context` lines around them, those that would touch in one."""
    groups: list[list[Edit]] = []
    for edit in change.edits:
        if groups and edit.before.start - groups[-1][-1].before.stop <= 2 * context:
            groups[-1].append(edit)
        else:
            groups.append([edit])
    return [_hunk(change, edits, context) for edits in groups]


def _hunk(change: Window, edits: Sequence[Edit], context: int) -> Hunk:
    first, last = edits[0], edits[-1]
    above = min(context, first.before.start)
    below = min(context, len(change.before) - last.before.stop)
    return Hunk(
        range(first.before.start - above, last.before.stop + below),
        range(first.after.start - above, last.after.stop + below),
        tuple(edits),
    )


def hull(change: Window, context: int) -> Hunk:
    """All edits in one, from the first to the last."""
    return _hunk(change, change.edits, context)


def unified(change: Window, hunk: Hunk) -> list[str]:
    """A hunk's lines as `diff -u` writes them, without line ends."""
    lines = [f"@@ -{_place(change, hunk.before)} +{_place(change, hunk.after)} @@"]
    place = hunk.before.start
    for edit in hunk.edits:
        lines += [f" {line}" for line in change.before[place : edit.before.start]]
        lines += [f"-{change.before[number]}" for number in edit.before]
        lines += [f"+{change.after[number]}" for number in edit.after]
        place = edit.before.stop
    return lines + [f" {line}" for line in change.before[place : hunk.before.stop]]


def _place(change: Window, lines: range) -> str:
    """First line, counted from 1, and number of lines; an empty range is named by the line before it."""
    return f"{change.offset + lines.start + bool(lines)},{len(lines)}"


# ---- Lines -----------------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    """Lines without their ends: what follows the last end is a line only if there is something."""
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return lines


def _lines_above(text: str, stop: int, count: int) -> int:
    """Where the last `count` lines of `text[:stop]` begin, which ends with a line."""
    start = stop
    for _ in range(count):
        if start == 0:
            break
        start = text.rfind("\n", 0, start - 1) + 1
    return start


def _lines_below(text: str, start: int, count: int) -> int:
    """Where the first `count` lines of `text[start:]` end."""
    stop = start
    for _ in range(count):
        found = text.find("\n", stop)
        if found < 0:
            return len(text)
        stop = found + 1
    return stop


def _common_start(one: str, other: str) -> int:
    """Characters that both texts begin with."""
    place, most = 0, min(len(one), len(other))
    while place < most and one[place : place + _CHUNK] == other[place : place + _CHUNK]:
        place += _CHUNK
    if place >= most:
        return most
    part, rest = one[place : place + _CHUNK], other[place : place + _CHUNK]
    return min(most, place + _first_difference(part, rest))


def _first_difference(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _common_end(one: str, other: str) -> int:
    """Characters that both texts end with, from the beginning of a line in both."""
    size, most = 0, min(len(one), len(other))
    step = _CHUNK
    while step and size < most:
        step = min(step, most - size)
        if one[len(one) - size - step : len(one) - size] == other[len(other) - size - step : len(other) - size]:
            size += step
        else:
            step //= 2
    starts = len(one) - size, len(other) - size
    if all(start == 0 or text[start - 1] == "\n" for text, start in zip((one, other), starts, strict=True)):
        return size
    line_end = one.find("\n", starts[0])
    return len(one) - line_end - 1 if line_end >= 0 else 0


# ---- Edits -----------------------------------------------------------------------------------------------------------


def _moved(edit: Edit, lines: int) -> Edit:
    return Edit(*(range(side.start + lines, side.stop + lines) for side in edit))


def _edits(before: Sequence[str], after: Sequence[str]) -> Iterator[Edit]:
    """The edits between lists of lines, in order."""
    row, column = 0, 0
    for anchor in (*_anchors(before, after), (len(before), len(after))):
        yield from _gap(before, after, range(row, anchor[0]), range(column, anchor[1]))
        row, column = anchor[0] + 1, anchor[1] + 1


def _anchors(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int]]:
    """The longest series of lines, in the order of both sides, of those that occur once on each."""
    counts, others = Counter(before), Counter(after)
    places = {line: place for place, line in enumerate(after) if others[line] == 1}
    pairs = [(place, places[line]) for place, line in enumerate(before) if counts[line] == 1 and line in places]
    return _longest_rising(pairs)


def _longest_rising(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The longest subsequence whose second numbers rise."""
    ends: list[int] = []  # second number of the best series of each length
    last: list[int] = []  # and its place in pairs
    links = []
    for place, (_, column) in enumerate(pairs):
        length = bisect_left(ends, column)
        links.append(last[length - 1] if length else -1)
        if length == len(ends):
            ends.append(column)
            last.append(place)
        else:
            ends[length], last[length] = column, place
    series = []
    place = last[-1] if last else -1
    while place >= 0:
        series.append(pairs[place])
        place = links[place]
    return series[::-1]


def _gap(before: Sequence[str], after: Sequence[str], rows: range, columns: range) -> Iterator[Edit]:
    """The edits between two anchors."""
    while rows and columns and before[rows[0]] == after[columns[0]]:
        rows, columns = rows[1:], columns[1:]
    while rows and columns and before[rows[-1]] == after[columns[-1]]:
        rows, columns = rows[:-1], columns[:-1]
    if not rows and not columns:
        return
    if len(rows) * len(columns) > _SMALL_GAP:
        yield Edit(rows, columns)
        return
    old, new = before[rows.start : rows.stop], after[columns.start : columns.stop]
    for kind, first, stop, other, other_stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            yield Edit(rows[first:stop], columns[other:other_stop])
