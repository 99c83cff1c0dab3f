"""Which learning rate at which step: linear warm-up, then a cosine down to zero. No torch.

A pure function of the step, so a checkpoint needs no scheduler state: a resumed run computes the same numbers.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.spec import OptimizationSection


@dataclass(frozen=True, kw_only=True)
class LearningRate:
    """Linear warm-up over the first share of all optimizer steps, then half a cosine."""

    peak: float
    total_steps: int
    warmup_ratio: float

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak; the first step already moves."""
        return math.ceil(self.total_steps * self.warmup_ratio)

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 1."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        decay_steps = self.total_steps - self.warmup_steps
        done = (step - 1 - self.warmup_steps) / decay_steps
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def make_rate(section: OptimizationSection, total_steps: int) -> LearningRate:
    """The learning rate of a run of so many optimizer steps."""
    return LearningRate(peak=section.learning_rate, total_steps=total_steps, warmup_ratio=section.warmup_ratio)


@dataclass
class CheckpointClock:
    """Says when a checkpoint is due: every so many steps, or every so many minutes, whichever comes first."""

    every_steps: int
    every_minutes: float
    step: int
    clock: Callable[[], float] = time.monotonic
    saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.saved_at = self.clock()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step`."""
        return step - self.step >= self.every_steps or self.clock() - self.saved_at >= self.every_minutes * 60

    def saved(self, step: int) -> None:
        """Note that a checkpoint of `step` is on disk."""
        self.step, self.saved_at = step, self.clock()
