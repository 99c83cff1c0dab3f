"""Watches the losses of a run: says when it gains no more, and when it has diverged. No torch.

Early stopping is asked for (`training.early_stopping`) and counts held-out measurements without a gain. Divergence is
watched in every run: what a learning rate that is too high does to a model shows in a few dozen steps, and the rest of
the night changes nothing. All that is remembered is part of a checkpoint, so a resumed run stops where a straight one
does.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import isfinite
from statistics import fmean
from typing import Any, Self

from jobs.evaluation import HeldOut
from jobs.spec import Config

#: Steps whose mean loss counts.
_NEWEST = 20

#: By how much a run must have become worse than the base model that it began with, nats a token. Overfitting makes the
#: held-out loss rise too, while the training loss falls; a factor of e in perplexity on both is no longer a model.
_WORSE = 1.0

#: What the sentence suggests.
_LOWER = 3.0


class Verdict(Enum):
    """What a loss means for the run."""

    GO_ON = "go_on"
    STOP_EARLY = "stop_early"
    DIVERGED = "diverged"


@dataclass
class _Memory:
    """What a checkpoint keeps: JSON both ways, floats to the last bit."""

    #: Training loss of the first step, which is that of the base model, and of the newest steps.
    first: float | None = None
    newest: list[float] = field(default_factory=list)
    #: The best held-out loss that counted as a gain.
    best: float | None = None
    #: Measurements in a row without a gain.
    waited: int = 0


class Watchdog:
    """Told of every loss of a run."""

    def __init__(self, patience: int | None, delta: float, memory: _Memory) -> None:
        self._patience = patience
        self._delta = delta
        self._memory = memory

    @classmethod
    def of(cls, config: Config, saved: Mapping[str, Any]) -> Self:
        """For a run with `config`; `saved` is what `saved()` gave, empty for a new one."""
        known = {name: value for name, value in saved.items() if name in _Memory.__dataclass_fields__}
        return cls(config.training.early_stopping, config.training.early_stopping_delta, _Memory(**known))

    @property
    def has_stopped(self) -> bool:
        """Whether early stopping has ended this run: a resumed one must not train on."""
        return self._patience is not None and self._memory.waited >= self._patience

    def stepped(self, loss: float, base: float | None) -> Verdict:
        """After an optimizer step.

        Args:
            loss: Mean over the step's tokens, nats; one that is not finite was skipped.
            base: Held-out loss of the model before the first step; None where it is not measured yet.
        """
        if not isfinite(loss):
            return Verdict.GO_ON
        memory = self._memory
        memory.first = loss if memory.first is None else memory.first
        memory.newest = [*memory.newest, loss][-_NEWEST:]
        return Verdict.DIVERGED if self._trains_worse(base) else Verdict.GO_ON

    def measured(self, held_out: HeldOut, base: float | None) -> Verdict:
        """After a measurement of the held-out loss; `base` as above."""
        memory = self._memory
        if held_out.step == 0:
            return Verdict.GO_ON
        if self._measures_worse(held_out.loss, base):
            return Verdict.DIVERGED
        if memory.best is None or held_out.loss < memory.best - self._delta:
            memory.best, memory.waited = held_out.loss, 0
        else:
            memory.waited += 1
        return Verdict.STOP_EARLY if self.has_stopped else Verdict.GO_ON

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return asdict(self._memory)

    def _trains_worse(self, base: float | None) -> bool:
        """Far worse than the base was, by its first rows and by those that are held out: either may be easy ones."""
        memory = self._memory
        if len(memory.newest) < _NEWEST or memory.first is None or base is None:
            return False
        return fmean(memory.newest) > max(memory.first, base) + _WORSE

    def _measures_worse(self, loss: float, base: float | None) -> bool:
        """Far worse than the base on text that was held out, and no better on what was trained on."""
        memory = self._memory
        if base is None or memory.first is None or loss <= base + _WORSE:
            return False
        return fmean(memory.newest) >= memory.first


def suggestion(config: Config) -> str:
    """A clause: what to try after a divergence."""
    rate = config.optimization.learning_rate
    lower = f"set optimization.learning_rate to {rate / _LOWER:.1g} instead of {rate:g}"
    ratio = config.optimization.lora_plus_ratio
    return f"{lower}, or optimization.lora_plus_ratio lower than {ratio:g}" if ratio and ratio > 1 else lower
