"""Shows the events of a foreground job: a progress bar on a terminal, plain lines when piped."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import click

from jobs.events import Event
from queue_app.lines import Pace, describe, is_echo
from queue_app.stage_bar import StageBar


class Display(Protocol):
    """Takes events as the job emits them."""

    def show(self, event: Event) -> None:
        """Show one event; quick, and never raises."""


@contextmanager
def open_display(*, to_stderr: bool) -> Iterator[Display]:
    """The display for where lines go: standard output, or standard error beside `--json`."""
    stream = sys.stderr if to_stderr else sys.stdout
    if not stream.isatty():
        yield LineDisplay(to_stderr=to_stderr)
        return
    bar = BarDisplay(to_stderr=to_stderr)
    try:
        yield bar
    finally:
        bar.close()


class LineDisplay:
    """One line an event; of steps and progress one line every few seconds."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._to_stderr = to_stderr
        self._pace = Pace()

    def show(self, event: Event) -> None:
        """Print the event, unless one like it was printed a moment ago."""
        data = _as_dict(event)
        text = describe(data)
        if text and not is_echo(data) and not self._pace.is_too_soon(data):
            click.echo(text, err=self._to_stderr)


class BarDisplay:
    """A progress bar of the present stage; all else as lines above it."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._bar = StageBar("starting", to_stderr=to_stderr)

    def show(self, event: Event) -> None:
        """Move the bar, or print a line above it."""
        self._bar.show(_as_dict(event))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()


def _as_dict(event: Event) -> dict[str, Any]:
    return {"event": event.kind, **asdict(event)}
