"""Tells how far a job of stages is, a few times a second at most, and leaves when asked to."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from jobs.context import JobContext, StopRequested
from jobs.events import Progress, StageStarted

#: Seconds between two reports of progress.
_PAUSE = 0.25

#: Between two reports of a stage that tells no time left.
_LONG_PAUSE = 0.5

_Item = TypeVar("_Item")


class Stages:
    """The stages of one run."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._stage = ""
        self._started = self._told = 0.0

    def check(self) -> None:
        """Leave if asked to.

        Raises:
            StopRequested: asked to.
        """
        if self._context.should_stop():
            raise StopRequested

    def checked(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items, each with a look whether to go on.

        Raises:
            StopRequested: asked to.
        """
        for item in items:
            self.check()
            yield item

    def start(self, stage: str, message: str = "") -> None:
        """Enter a stage."""
        self.check()
        self._stage = stage
        self._started = self._told = time.monotonic()
        self._context.emit(StageStarted(stage=stage, message=message))

    def progress(self, done: int, total: int, unit: str) -> None:
        """Say that `done` of `total` are done; the last of them is always said."""
        self.check()
        now = time.monotonic()
        if now - self._told < _PAUSE and done < total:
            return
        self._told = now
        eta = (now - self._started) * (total - done) / done if done else None
        self._context.emit(Progress(stage=self._stage, done=done, total=total, unit=unit, eta_seconds=eta))


def throttled_progress(
    context: JobContext, stage: str, unit: str, *, total: float, first: float = 0.0
) -> Callable[[float], None]:
    """A function that tells how far a stage is, twice a second at most."""
    told = time.monotonic()

    def tell(done: float) -> None:
        nonlocal told
        if time.monotonic() - told >= _LONG_PAUSE:
            told = time.monotonic()
            context.emit(Progress(stage=stage, done=round(first + done, 3), total=total, unit=unit))

    return tell
