"""What a running job may know of the world: where it works, whom it tells, whether to stop. Standard library only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backends.errors import ExitCode, RepotuneError
from jobs.events import Event


class StopRequested(Exception):
    """The job noticed `should_stop()`, saved what it had, and left."""


class OutputExists(RepotuneError):
    """The output folder already holds a result, and nobody said to go on from it or to replace it."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """Handed to every job. The job calls upward only through it."""

    #: Folder of the job on this machine; everything it writes goes below.
    output: Path
    #: Takes every event; must be quick and never raise.
    emit: Callable[[Event], None]
    #: True once the job should save and leave. Asked between steps and between files.
    should_stop: Callable[[], bool] = lambda: False
    #: File where this machine keeps what its trainings took (`backends.calibration`); None keeps nothing.
    calibration: Path | None = None
