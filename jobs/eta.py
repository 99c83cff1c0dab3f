"""How long a run will still take: steps, measurements of the held-out loss, checkpoints, the evaluation at the end.

Every part is told from what this run has measured of it so far; a part that has not come yet is told from the others.
What was learned is part of every checkpoint, so that a resumed run knows from its first step on; on another machine, or
with the base held in another way, it learns anew. Standard library only.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from jobs.time_limit import evaluation_seconds

#: Steps that count: enough to even out, few enough to follow a machine that grows hot.
WINDOW = 64
#: Measurements and checkpoints that count.
_FEW = 5
#: A step of more than so many times the median, and so many seconds more, is one during which the process was stopped
#: or the machine asleep. Less is what a busy machine does all the time, and counts.
_PAUSED, _PAUSED_SECONDS = 10.0, 30.0
#: What a forward pass takes of a step, where nobody has worked it out: one of three passes.
FORWARD_SHARE = 1 / 3
#: Report, picture and result, s: measured for 1,000 steps.
_CLOSING_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What is left of a run."""

    steps: int
    #: To train on, in all of these steps.
    rows: int
    #: To measure the held-out loss on, in all measurements that are still due.
    measured_rows: int
    #: Between two checkpoints at most.
    steps_between_saves: int
    seconds_between_saves: float
    #: Of the evaluation at the end, in forward passes of a row; how long it may take hangs on the training's time.
    compared_rows: float = 0.0
    trained_seconds: float = 0.0
    evaluation_minutes: float = 0.0


@dataclass(kw_only=True)
class Eta:
    """Learns what the parts of a run take."""

    #: What the learned is true of: machine, device, the base's type…
    kind: str
    #: Part of a row's step that a row's forward pass takes, until one was measured.
    forward_share: float = FORWARD_SHARE
    clock: Callable[[], float] = time.monotonic
    #: When the last step was noted, and the seconds since that are noted apart.
    _told_at: float | None = None
    _aside: float = 0.0
    #: Rows and seconds of the last steps, but for the first of this process: it pays for caches.
    _steps: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _first: tuple[int, float] | None = None
    #: Seconds per row.
    _measured: deque[float] = field(default_factory=lambda: deque(maxlen=_FEW))
    #: Seconds per checkpoint.
    _saved: deque[float] = field(default_factory=lambda: deque(maxlen=_FEW))

    @classmethod
    def of(cls, saved: Mapping[str, Any], kind: str, forward_share: float = FORWARD_SHARE) -> "Eta":
        """Go on from what `state` gave, where that was learned of the same kind."""
        eta = cls(kind=kind, forward_share=forward_share)
        if saved.get("kind") == kind:
            eta._steps.extend((int(rows), float(seconds)) for rows, seconds in saved.get("steps", ()))
            eta._measured.extend(map(float, saved.get("measured", ())))
            eta._saved.extend(map(float, saved.get("saved", ())))
        return eta

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "kind": self.kind,
            "steps": [[rows, round(seconds, 4)] for rows, seconds in self._steps],
            "measured": [round(seconds, 6) for seconds in self._measured],
            "saved": [round(seconds, 4) for seconds in self._saved],
        }

    def step(self, rows: int, seconds: float) -> None:
        """Note an optimizer step, with what else passed since the one before it: metrics, events, the rows to come."""
        now = self.clock()
        if self._told_at is not None:
            seconds = max(seconds, now - self._told_at - self._aside)
        self._told_at, self._aside = now, 0.0
        if self._first is None:
            self._first = (rows, seconds)
        else:
            self._steps.append((rows, seconds))

    def evaluated(self, rows: int, seconds: float) -> None:
        """Note a measurement of the held-out loss."""
        self._aside += seconds
        if rows:
            self._measured.append(seconds / rows)

    def saved(self, seconds: float) -> None:
        """Note a checkpoint."""
        self._aside += seconds
        self._saved.append(seconds)

    def left(self, ahead: Ahead) -> float | None:
        """Seconds to the end; None before the first step."""
        row = self.seconds_per_row
        if row is None:
            return None
        training = row * ahead.rows
        measuring = self._seconds_per_measured_row(row) * ahead.measured_rows
        save = median(self._saved) if self._saved else 0.0
        allowed = evaluation_seconds(ahead.trained_seconds + training, ahead.evaluation_minutes)
        evaluating = min(allowed, self._seconds_per_measured_row(row) * ahead.compared_rows)
        return training + measuring + save * _saves(ahead, training) + save + evaluating + _CLOSING_SECONDS

    @property
    def seconds_per_row(self) -> float | None:
        """Of training: the mean of the last steps, without those during which nothing ran."""
        steps = list(self._steps) or ([self._first] if self._first else [])
        if not steps:
            return None
        usual = median(seconds / rows for rows, seconds in steps)
        kept = [(rows, seconds) for rows, seconds in steps if not _was_paused(seconds, usual * rows)]
        return sum(seconds for _, seconds in kept) / sum(rows for rows, _ in kept)

    def _seconds_per_measured_row(self, row: float) -> float:
        return median(self._measured) if self._measured else row * self.forward_share


def _was_paused(seconds: float, usual: float) -> bool:
    return seconds > _PAUSED * usual and seconds > usual + _PAUSED_SECONDS


def _saves(ahead: Ahead, training: float) -> int:
    """Checkpoints that are still to come."""
    if not ahead.steps:
        return 0
    by_steps = ahead.steps / max(1, ahead.steps_between_saves)
    by_time = training / ahead.seconds_between_saves if ahead.seconds_between_saves > 0 else ahead.steps
    return math.ceil(min(max(by_steps, by_time), ahead.steps))
