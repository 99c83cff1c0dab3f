"""Runs a job in the foreground of a terminal: shows its events, and turns Ctrl-C into "save and leave"."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from backends.errors import ExitCode, RepotuneError
from jobs.context import JobContext
from jobs.events import Event
from workers.display import open_display
from workers.event_file import EventFile
from workers.failure import sentence_of


class ForegroundFailed(RepotuneError):
    """The job stopped on something that is no `RepotuneError`, e.g. a full disk."""


def run_in_foreground(
    job: Callable[[JobContext], dict[str, Any]],
    output: Path,
    *,
    to_stderr: bool,
    calibration: Path | None = None,
    events: Path | None = None,
) -> dict[str, Any]:
    """Run `job` with a context whose events are shown here and whose stop flag is Ctrl-C.

    Args:
        job: takes the context, returns the result.
        output: folder that the job writes into.
        to_stderr: show events on standard error, because standard output is for JSON.
        calibration: file where this machine keeps what its trainings took.
        events: file that the events are appended to; None keeps none.

    Raises:
        StopRequested: Ctrl-C was pressed once and the job saved what it had.
        RepotuneError: what is wrong, in a sentence.
    """
    stop = threading.Event()
    with _ctrl_c(stop), open_display(to_stderr=to_stderr) as display, _kept(events, display.show) as emit:
        context = JobContext(output=output, emit=emit, should_stop=stop.is_set, calibration=calibration)
        try:
            return job(context)
        except OSError as error:
            raise ForegroundFailed(sentence_of(error, "run it again with `repotune --debug` to see where")) from error


@contextmanager
def _kept(file: Path | None, show: Callable[[Event], None]) -> Iterator[Callable[[Event], None]]:
    """Takes events to `show` and, where there is one, into the file."""
    if file is None:
        yield show
        return

    def emit(event: Event) -> None:
        kept.write(event)
        show(event)

    with closing(EventFile(file)) as kept:
        yield emit


@contextmanager
def _ctrl_c(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks, the second one ends the process."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(ExitCode.INTERRUPTED)
        stop.set()
        # Not click.echo: the signal may have interrupted a write that holds the stream's lock.
        os.write(2, b"\nSaving, then leaving. Ctrl-C again: now.\n")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_interrupted(sentence: str) -> None:
    """Say that the job was interrupted and leave with the exit code for it."""
    click.echo(sentence, err=True)
    click.get_current_context().exit(ExitCode.INTERRUPTED)
