"""A time that work is begun in."""

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TimeLimit:
    """Counts from when it was made."""

    seconds: float
    _began: float = field(default_factory=lambda: time.monotonic())  # noqa: PLW0108 - read when it is made

    def is_over(self, share: float = 1.0) -> bool:
        """Whether that share of the time has passed."""
        return time.monotonic() - self._began >= share * self.seconds


#: Of the time that a training took; and what is always granted, s: the bound is there for long trainings.
_SHARE, _LEAST = 0.1, 15.0


def evaluation_seconds(trained: float, minutes: float) -> float:
    """Seconds that the evaluation of a training of so many seconds may take."""
    return min(60 * minutes, max(_LEAST, _SHARE * trained))
