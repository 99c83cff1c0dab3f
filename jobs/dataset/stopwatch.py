"""Times the stages of a build by the events that tell of them; what it tells is for people, never part of the data."""

import resource
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from jobs.context import JobContext
from jobs.events import Event, StageStarted
from jobs.stages import Stages


@dataclass
class _Lap:
    stage: str
    wall: float
    cpu: float


class Stopwatch:
    """Listens to a build's stages on their way to whoever asked for them."""

    def __init__(self, context: JobContext) -> None:
        self._emit = context.emit
        self._laps: list[_Lap] = []
        self.stages = Stages(replace(context, emit=self._heard))

    def _heard(self, event: Event) -> None:
        if isinstance(event, StageStarted):
            self._laps.append(_Lap(event.stage, time.perf_counter(), _cpu()))
        self._emit(event)

    def told(self) -> dict[str, Any]:
        """Seconds of every stage so far, in order, and the most memory that the process held, in bytes."""
        ends = [*self._laps[1:], _Lap("", time.perf_counter(), _cpu())]
        seconds: dict[str, list[float]] = {}
        for lap, end in zip(self._laps, ends, strict=True):
            total = seconds.setdefault(lap.stage, [0.0, 0.0])
            total[0] += end.wall - lap.wall
            total[1] += end.cpu - lap.cpu
        stages = [
            {"stage": stage, "seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
            for stage, (wall, cpu) in seconds.items()
        ]
        unit = 1 if sys.platform == "darwin" else 1024
        return {"stages": stages, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _cpu() -> float:
    """CPU seconds of this process and of the git processes that it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
