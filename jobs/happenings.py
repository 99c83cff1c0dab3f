"""What happened to a run that its curve does not tell, in order and bounded in length. Standard library only."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

#: Kinds that are marked in the curves: where the way of computing changed.
MARKED = frozenset({"resumed", "seam", "healed", "skipped"})
#: Lines at most; the first ones and the last ones stay.
_MOST = 100


@dataclass(frozen=True, kw_only=True)
class Happening:
    """One line."""

    #: As `jobs.incident.Incident` names it.
    kind: str
    step: int
    #: "" where it is not known.
    when: str
    message: str


def happenings(incidents: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> list[Happening]:
    """Incidents, and the steps that were skipped, in the order of the steps; many are cut in the middle."""
    found = [
        Happening(
            kind=str(one.get("kind", "")),
            step=int(one.get("step") or 0),
            when=_clock(one.get("time")),
            message=str(one.get("message", "")),
        )
        for one in incidents
    ]
    if all(one.kind != "skipped" for one in found):
        found += _skips(skipped_steps(steps))
    found.sort(key=lambda one: one.step)
    if len(found) <= _MOST:
        return found
    half, dropped = _MOST // 2, len(found) - _MOST
    cut = Happening(kind="", step=found[half].step, when="", message=f"{dropped} more, which are not shown")
    return [*found[:half], cut, *found[-half:]]


def skipped_steps(steps: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps that moved nothing: their loss or gradient was not a finite number, which JSON tells as null."""
    return [int(step["step"]) for step in steps if step["loss"] is None or step["grad_norm"] is None]


def _skips(numbers: Sequence[int]) -> list[Happening]:
    """A line for each run of neighbours."""
    found = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        first, *rest = [number for _, number in run]
        message = f"Steps {first} to {rest[-1]} were skipped" if rest else f"Step {first} was skipped"
        found.append(
            Happening(kind="skipped", step=first, when="", message=f"{message}: loss or gradient was no finite number")
        )
    return found


def _clock(moment: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if isinstance(moment, int | float) else ""
