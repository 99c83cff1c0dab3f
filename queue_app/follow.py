"""Follows a job to its end: a progress bar on a terminal, plain lines when piped.

Reads the store only: stopping to follow never stops a job.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import click

from jobs.states import TERMINAL, State
from queue_app.explanation import explain
from queue_app.lines import Event, Pace, describe, is_echo
from queue_app.records import JobRecord
from queue_app.stage_bar import StageBar
from queue_app.store import JobStore, StoreUnreachable

POLL_SECONDS = 0.4
# A store that is away for less is a hiccup; nobody needs to know.
PATIENCE_SECONDS = 60.0
_BATCH = 500


class View(Protocol):
    """Shows what a job says."""

    def show(self, job: JobRecord, event: Event) -> None:
        """Show one event."""

    def wait(self, job: JobRecord, why: str) -> None:
        """Show why a job waits; called again whenever that changes."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def follow_pipeline(store: JobStore, job_id: str, view: View, between: Callable[[], None] = lambda: None) -> JobRecord:
    """Follow what `job_id` depends on, then `job_id`; returns its record as it ended.

    Args:
        store: Where the jobs are.
        job_id: The last job of the pipeline.
        view: Shows the events; closed in the end.
        between: Called between two looks at the store; may raise to stop.

    Raises:
        JobNotFound: no such job.
        StoreUnreachable: the store stayed away for longer than a hiccup.
    """
    try:
        dependency = store.get(job_id).depends_on
        if dependency and store.get(job_id).state == State.WAITING:
            follow(store, dependency, view, between)
        job = follow(store, job_id, view, between)
        return replace(job, reason=explain(store, job))
    finally:
        view.close()


def follow(store: JobStore, job_id: str, view: View, between: Callable[[], None] = lambda: None) -> JobRecord:
    """Show every event of one job, from its first to its end; returns its last record."""
    after, told, reached = "0", "", time.monotonic()
    while True:
        try:
            job = store.get(job_id)
            after = _show_new(store, job, after, view)
            why = explain(store, job) if job.state not in TERMINAL else ""
            reached = time.monotonic()
        except StoreUnreachable:
            if time.monotonic() - reached > PATIENCE_SECONDS:
                raise
        else:
            if job.state in TERMINAL:
                return job
            if why != told and job.state != State.RUNNING:
                view.wait(job, why)
            told = why
        between()
        time.sleep(POLL_SECONDS)


def _show_new(store: JobStore, job: JobRecord, after: str, view: View) -> str:
    """Show the events behind `after`; returns the id of the last one."""
    while batch := store.events(job.id, after, _BATCH):
        for _, event in batch:
            view.show(job, event)
        after = batch[-1][0]
    return after


def make_view(*, to_stderr: bool = False) -> View:
    """The view for where the lines go: standard output, or standard error beside `--json`."""
    stream = sys.stderr if to_stderr else sys.stdout
    return BarView(to_stderr=to_stderr) if stream.isatty() else PlainView(to_stderr=to_stderr)


class PlainView:
    """One line an event; of steps and progress one line every few seconds."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._to_stderr = to_stderr
        self._pace = Pace()

    def show(self, job: JobRecord, event: Event) -> None:
        """Print the event, unless one like it was printed a moment ago."""
        text = describe(event)
        if text and not is_echo(event) and not self._pace.is_too_soon(event, job.id):
            self._print(job, text)

    def wait(self, job: JobRecord, why: str) -> None:
        """Print why the job waits."""
        if why:
            self._print(job, f"{job.state.lower()}: {why}")

    def close(self) -> None:
        """Nothing to leave behind."""

    def _print(self, job: JobRecord, text: str) -> None:
        click.echo(f"{job.id}  {text}", err=self._to_stderr)


class BarView:
    """A progress bar for the jobs that are followed."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self._bar = StageBar("waiting", to_stderr=to_stderr)

    def show(self, job: JobRecord, event: Event) -> None:
        """Move the bar, or print a line above it."""
        self._bar.show(event, f"{job.id}  ")

    def wait(self, job: JobRecord, why: str) -> None:
        """Print why the job waits, above the bar."""
        self._bar.move(job.state.lower(), 0, None, "")
        if why:
            self._bar.say(f"{job.id}  {why}")

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
