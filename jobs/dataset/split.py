"""Chooses the files that are held out. What belongs together never lies on both sides.

The choice hangs on names and on what belongs together only, so that the next commit of the repository holds out the
same files: a group is held out where one of its members is, so a new near copy of a held-out file joins it, and never
pulls it into training. The price is that large groups are held out more often than small ones; one that is larger than
the share that was asked for is learned instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.dataset.groups import Groups
from jobs.dataset.lots import drawn
from jobs.shards import DatasetError

#: A group that would make the held-out part so many times larger than asked is not added to fill it.
_OVERSHOOT = 2


@dataclass(frozen=True)
class Unit:
    """What is split: a file."""

    #: Unique.
    name: str
    bytes: int
    #: Units that share a key lie on the same side: the same content, the same history, near copies.
    keys: tuple[str, ...] = ()
    #: A name that stays when the file is renamed (its lineage's), which decides instead of `name` where it is given.
    origin: str = ""


@dataclass(frozen=True)
class _Group:
    """Units that lie on the same side."""

    #: Where the group stands between 0 and 1.
    place: float
    #: Of the units, sorted.
    names: tuple[str, ...]
    bytes: int


def held_out_names(units: Sequence[Unit], share: float, seed: int) -> frozenset[str]:
    """The names of the units that are never trained on; both sides get at least one group.

    Raises:
        DatasetError: there are fewer than two groups, so that nothing can be held out.
    """
    groups = [_group(members, seed) for members in _joined(units)]
    if len(groups) < 2:  # noqa: PLR2004 - one side each
        raise DatasetError(_told(len(units)))
    groups.sort(key=lambda group: (group.place, group.names))
    return frozenset(name for group in _held_out(groups, share) for name in group.names)


def _told(units: int) -> str:
    if units < 2:  # noqa: PLR2004 - one side each
        found = f"The repository has {units} file{'s'[: units != 1]} to learn from"
    else:
        found = f"All {units} files of the repository belong together (copies, renames)"
    return f"{found}, and one must be held out of at least two different ones: add files, or widen dataset.include."


def _held_out(groups: list[_Group], share: float) -> list[_Group]:
    """The groups to hold out, of two or more in the order of their places."""
    total = sum(group.bytes for group in groups)
    candidates = [group for group in groups if group.bytes <= share * total]
    chosen = [group for group in candidates if group.place < share][: len(groups) - 1]
    held = sum(group.bytes for group in chosen)
    # A handful of files may hash to none held out, or to a few bytes: the next ones by hash fill the share.
    for group in candidates[len(chosen) :]:
        if 2 * held >= share * total or len(chosen) == len(groups) - 1:
            break
        if held + group.bytes <= _OVERSHOOT * share * total:
            chosen.append(group)
            held += group.bytes
    # Where each is larger than the share, one of the smallest is enough: at most half, of two groups or more.
    smallest = min(group.bytes for group in groups)
    return chosen or [next(group for group in groups if group.bytes <= min(_OVERSHOOT * smallest, total / 2))]


def _group(members: Sequence[Unit], seed: int) -> _Group:
    place = min(_place(unit.origin or unit.name, seed) for unit in members)
    return _Group(place, tuple(sorted(unit.name for unit in members)), sum(unit.bytes for unit in members))


def _place(name: str, seed: int) -> float:
    """Where a name stands between 0 and 1."""
    return int.from_bytes(drawn(seed, name.encode("utf-8", "surrogatepass"), b"split"), "little") / 2**64


def _joined(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units joined wherever they share a key."""
    groups = Groups(len(units))
    holders: dict[str, int] = {}
    for number, unit in enumerate(units):
        for key in unit.keys:
            groups.join(number, holders.setdefault(key, number))
    return [[units[number] for number in group] for group in groups.all()]
