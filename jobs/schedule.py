"""Which learning rate at which step: linear warm-up, then one of four shapes. No torch.

A pure function of the step, so a checkpoint needs no scheduler state: a resumed run computes the same numbers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.spec import OptimizationSection

#: What takes this part of the time between two checkpoints is worth one before it.
_LONG = 0.1


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _linear(done: float) -> float:
    return 1.0 - done


def _constant(_done: float) -> float:
    return 1.0


#: How much of the way from the floor to the peak is left after a share of the fall. wsd (warm-up, stable, decay:
#: Hu et al. 2024, MiniCPM) falls in a straight line too, but later.
_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _linear,
}


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up over the first share of all optimizer steps, then a fall from the peak to a floor."""

    peak: float
    total_steps: int
    warmup_ratio: float
    #: cosine, linear, constant or wsd.
    schedule: str = "cosine"
    #: Share of all steps in which wsd falls.
    decay_ratio: float = 0.2
    #: The floor, as a share of the peak.
    min_ratio: float = 0.0

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak; the first step already moves."""
        return math.ceil(self.total_steps * self.warmup_ratio)

    @property
    def decay_steps(self) -> int:
        """Steps of the fall, the last ones: all after warm-up, or as many as wsd takes."""
        after_warmup = self.total_steps - self.warmup_steps
        if self.schedule != "wsd":
            return after_warmup
        return min(after_warmup, math.ceil(self.total_steps * self.decay_ratio))

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 1."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        fallen = step - 1 - (self.total_steps - self.decay_steps)
        done = min(max(fallen / self.decay_steps, 0.0), 1.0)
        floor = self.peak * self.min_ratio
        return floor + (self.peak - floor) * _SHAPES[self.schedule](done)


def make_rate(section: OptimizationSection, total_steps: int) -> LearningRate:
    """The learning rate of a run of so many optimizer steps."""
    return LearningRate(
        peak=section.learning_rate,
        total_steps=total_steps,
        warmup_ratio=section.warmup_ratio,
        schedule=section.schedule,
        decay_ratio=section.decay_ratio,
        min_ratio=section.min_ratio,
    )


@dataclass
class CheckpointClock:
    """Says when a checkpoint is due: every so many steps, or every so many minutes, whichever comes first."""

    every_steps: int
    every_minutes: float
    step: int
    clock: Callable[[], float] = time.monotonic
    #: When the last checkpoint was written, or tried.
    _tried_at: float = field(init=False)
    _tried_step: int = field(init=False)

    def __post_init__(self) -> None:
        self._tried_step, self._tried_at = self.step, self.clock()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`."""
        return step - self._tried_step >= self.every_steps or self._seconds() >= self.every_minutes * 60

    def is_due_before(self, seconds: float) -> bool:
        """Whether to save before something that takes so long: too much would be lost if the process died in it."""
        interval = self.every_minutes * 60
        return seconds >= _LONG * interval and self._seconds() + seconds >= interval

    def saved(self, step: int) -> None:
        """Note that a checkpoint of `step` is on disk."""
        self.step = step
        self.failed(step)

    def failed(self, step: int) -> None:
        """Note that none could be written at `step`: the next try is as far away as if it had been."""
        self._tried_step, self._tried_at = step, self.clock()

    def _seconds(self) -> float:
        return self.clock() - self._tried_at
