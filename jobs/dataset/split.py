"""Chooses the files that are held out. What belongs together never lies on both sides.

The choice hangs on names and contents only, so that the next commit of the repository holds out the same files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

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


def held_out_names(units: Sequence[Unit], share: float, seed: int) -> frozenset[str]:
    """The names of the units that are never trained on; both sides get at least one unit.

    Raises:
        DatasetError: there are fewer than two groups, so that nothing can be held out.
    """
    groups = sorted(_groups(units), key=lambda group: _place(group, seed))
    if len(groups) < 2:  # noqa: PLR2004 - one side each
        raise DatasetError(
            f"The repository has {len(groups)} different file{'s'[: len(groups) != 1]} to learn from, and one must be "
            "held out of at least two: add files, or widen dataset.include."
        )
    names = {unit.name for group in _held_out(groups, share, seed) for unit in group}
    return frozenset(names)


def _held_out(groups: list[list[Unit]], share: float, seed: int) -> list[list[Unit]]:
    """The groups to hold out, of groups in the order of their hashes."""
    total = sum(map(_bytes, groups))
    candidates = [group for group in groups if 2 * _bytes(group) <= total] or groups[:1]
    chosen = [group for group in candidates if _place(group, seed) < share][: len(groups) - 1]
    held = sum(map(_bytes, chosen))
    # A handful of files may hash to none held out, or to a few bytes: the next ones by hash fill the share.
    for group in candidates[len(chosen) :]:
        if 2 * held >= share * total or len(chosen) == len(groups) - 1:
            break
        if held + _bytes(group) <= _OVERSHOOT * share * total:
            chosen.append(group)
            held += _bytes(group)
    return chosen or [min(candidates, key=_bytes)]


def _bytes(group: list[Unit]) -> int:
    return sum(unit.bytes for unit in group)


def _place(group: list[Unit], seed: int) -> float:
    """Where a group stands between 0 and 1: a hash of its first name."""
    name = min(unit.name for unit in group)
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(16, "little"), person=b"split").digest()
    return int.from_bytes(digest, "little") / 2**64


def _groups(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units joined wherever they share a key."""
    parents = {unit.name: unit.name for unit in units}

    def root(name: str) -> str:
        while parents[name] != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    holders: dict[str, str] = {}
    for unit in units:
        for key in unit.keys:
            parents[root(unit.name)] = root(holders.setdefault(key, unit.name))
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(root(unit.name), []).append(unit)
    return list(groups.values())
