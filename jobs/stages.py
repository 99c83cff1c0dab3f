"""Tells how far a job of stages is, a few times a second at most, and leaves when asked to."""

import time

from jobs.context import JobContext, StopRequested
from jobs.events import Progress, StageStarted

#: Seconds between two reports of progress.
_PAUSE = 0.25


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
