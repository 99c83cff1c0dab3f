"""Follows a trainer process to its end: hears its events, asks it to stop, kills it when it does not."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from jobs.events import Checkpointed, Event, Failed, Finished, Stopped, event_from_json
from workers.memory_kill import KillWatch
from workers.process import TrainerProcess
from workers.uploads import CheckpointUploads

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2

#: A trainer that told its end and does not leave is helped.
_LINGER_SECONDS = 30.0


class Stop(StrEnum):
    """Why the supervisor ended the trainer."""

    CANCEL = "cancel"
    PAUSE = "pause"
    PREEMPT = "preempt"
    WALL_TIME = "wall time"
    STALLED = "stalled"


@dataclass(frozen=True, kw_only=True)
class End:
    """How the trainer ended: what it said last, why it was stopped, and its exit code."""

    last: Event | None
    stop: Stop | None
    exit_code: int
    log: str
    #: How the system ended it for want of memory, a clause; "" where it did not.
    memory_kill: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How patient the supervisor is, seconds."""

    #: From start to end of this attempt.
    wall_seconds: float
    #: Between two events.
    stall_seconds: float
    #: Between asking to stop and killing.
    stop_seconds: float


class Watch:
    """Follows a trainer to its end: reads its events, asks it to stop, kills it when it does not."""

    def __init__(
        self,
        trainer: TrainerProcess,
        wanted: Callable[[], Stop | None],
        uploads: CheckpointUploads,
        limits: Limits,
        heard: Callable[[Event], None] | None = None,
    ) -> None:
        self._trainer = trainer
        self._wanted = wanted
        self._uploads = uploads
        self._limits = limits
        self._tell = heard
        self._started = self._heard = time.monotonic()
        self._stop: Stop | None = None
        self._kill_at = float("inf")
        self._last: Event | None = None
        self._kills = KillWatch(trainer.pid)

    def until_end(self, give_up: Callable[[], bool]) -> End:
        """Follow until the trainer is gone; kill it as soon as `give_up()`."""
        while self._trainer.exit_code is None:
            self._hear()
            self._judge()
            self._kills.look()
            if give_up() or time.monotonic() > self._kill_at:
                self._trainer.kill()
                break
            time.sleep(_POLL_SECONDS)
        self._hear()
        exit_code = self._trainer.exit_code or 0
        return End(
            last=self._last,
            stop=self._stop,
            exit_code=exit_code,
            log=self._trainer.last_log_lines(),
            memory_kill=self._kills.verdict(exit_code),
        )

    def _hear(self) -> None:
        while lines := self._trainer.events.read():
            self._heard = time.monotonic()
            for line in lines:
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            event = event_from_json(line)
        except ValueError as error:  # a full disk cut the line
            _log.warning("%s", error)
            return
        if self._tell is not None:
            self._tell(event)
        if isinstance(event, Checkpointed):
            self._uploads.add(event.step, Path(event.path), best=event.best)
        if isinstance(event, Finished | Failed | Stopped):
            self._last = event
            self._kill_at = min(self._kill_at, time.monotonic() + _LINGER_SECONDS)

    def _judge(self) -> None:
        """Ask the trainer to stop, once, when there is a reason."""
        if self._stop or self._last:
            return
        self._stop = self._wanted() or self._over_limit()
        if self._stop:
            self._kill_at = time.monotonic() + self._limits.stop_seconds
            self._trainer.ask_to_stop()

    def _over_limit(self) -> Stop | None:
        now = time.monotonic()
        if now - self._started > self._limits.wall_seconds:
            return Stop.WALL_TIME
        return Stop.STALLED if now - self._heard > self._limits.stall_seconds else None
