"""The geometry of bars in per cent, so that a page can draw them at any width. Standard library only."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from jobs.chart import number

#: Bars of a list at most; the smallest are summed up in one more.
MOST_BARS = 12

_KIBI = 1024


@dataclass(frozen=True)
class Bar:
    """One amount beside others."""

    name: str
    #: Per cent of the longest.
    width: float
    text: str
    note: str = ""


@dataclass(frozen=True)
class Slice:
    """A part of a whole."""

    name: str
    #: Number of its colour: the same name has the same one in every whole.
    tone: int
    #: Per cent of the whole.
    width: float
    value: float


@dataclass(frozen=True)
class Column:
    """One class of a histogram."""

    label: str
    #: Per cent of the tallest.
    height: float
    text: str


def bars(
    values: Mapping[str, float],
    text: Callable[[float], str] = number,
    notes: Mapping[str, str] | None = None,
    most: int = MOST_BARS,
) -> list[Bar]:
    """The amounts, longest first, ties by name.

    Args:
        values: Amount by name.
        text: Writes an amount.
        notes: What else is said of a name.
        most: Bars at most, beside the one that sums up the rest.
    """
    order = sorted(values, key=lambda name: (-values[name], name))
    shown = most if len(order) > most + 1 else len(order)
    rest = order[shown:]
    longest = max(values.values(), default=0)
    known = notes or {}
    drawn = [
        Bar(name, _share(values[name], longest), text(values[name]), known.get(name, "")) for name in order[:shown]
    ]
    if rest:
        remainder = sum(values[name] for name in rest)
        drawn.append(Bar(f"{len(rest)} others", _share(remainder, longest), text(remainder)))
    return drawn


def slices(values: Mapping[str, float], order: Sequence[str]) -> list[Slice]:
    """The parts of a whole in `order`, which gives their tones; names that it lacks follow, all of one tone."""
    whole = sum(value for value in values.values() if value > 0)
    names = [*(name for name in order if name in values), *sorted(set(values) - set(order))]
    tones = {name: tone for tone, name in enumerate(order)}
    return [
        Slice(name, tones.get(name, len(order)), _share(values[name], whole), values[name])
        for name in names
        if values[name] > 0
    ]


def classes(histograms: Iterable[Mapping[str, float]]) -> list[int]:
    """The classes that all of some histograms share: every upper limit named, and the powers of two between them."""
    named = {int(limit) for histogram in histograms for limit in histogram if limit.isdecimal()}
    if not named:
        return []
    between = {1 << power for power in range(64) if min(named) < 1 << power < max(named)}
    return sorted(named | between)


def columns(values: Mapping[str, float], limits: Sequence[int]) -> list[Column]:
    """A histogram over `limits`, the largest value that each class counts."""
    counts = [values.get(str(limit), 0.0) for limit in limits]
    tallest = max(counts, default=0.0)
    return [
        Column(_short(limit), _share(count, tallest), f"{number(count)} of at most {number(limit)}")
        for limit, count in zip(limits, counts, strict=True)
    ]


def _share(part: float, whole: float) -> float:
    return round(100.0 * min(max(part / whole, 0.0), 1.0), 3) if whole > 0 else 0.0


def _short(limit: int) -> str:
    """A limit for an axis: 512 · 4k."""
    return f"{limit // _KIBI}k" if limit >= _KIBI and limit % _KIBI == 0 else str(limit)
