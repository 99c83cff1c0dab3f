"""Packs documents of different lengths into rows of one length: best fit, longest first."""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each filled to at most `capacity` tokens.

    The longest document goes first, each into the fullest row that still takes it; equal ones keep their order.

    Raises:
        ValueError: a length is zero or more than `capacity`.
    """
    if any(not 0 < length <= capacity for length in lengths):
        msg = f"a document is empty or longer than a row of {capacity} tokens"
        raise ValueError(msg)
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # sorted: the keys of by_space that have a row
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        row, space = _take(by_space, spaces, lengths[index]) or (len(rows), capacity)
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        _put(by_space, spaces, row, space - lengths[index])
    return rows


def _take(by_space: dict[int, list[int]], spaces: list[int], length: int) -> tuple[int, int] | None:
    """The fullest row with room for `length`, taken out, and its room."""
    place = bisect_left(spaces, length)
    if place == len(spaces):
        return None
    space = spaces[place]
    row = by_space[space].pop()
    if not by_space[space]:
        del spaces[place]
    return row, space


def _put(by_space: dict[int, list[int]], spaces: list[int], row: int, space: int) -> None:
    if space == 0:
        return
    if not by_space.setdefault(space, []):
        insort(spaces, space)
    by_space[space].append(row)
