"""`--local`: follow a job to its end on this machine, with a worker of our own beside it.

The first Ctrl-C cancels the job: it saves a checkpoint and leaves; `repotune retry JOB --local` goes on from there.
The second ends everything at once; the same command goes on from the last checkpoint that was complete.
"""

import contextlib

import click

from jobs.states import TERMINAL
from queue_app.connection import Connection
from queue_app.ending import typed
from queue_app.follow import View, follow_pipeline
from queue_app.interrupts import Interrupts
from queue_app.lines import Event
from queue_app.local_worker import LocalWorker
from queue_app.records import JobRecord
from queue_app.store import JobStore, StoreUnreachable


def run_locally(connection: Connection, job_id: str, view: View) -> tuple[JobRecord, bool]:
    """Follow `job_id` and what it depends on to the end, a worker of this machine seeing to them.

    Returns:
        The job as it ended, and whether the person asked it to.

    Raises:
        LocalWorkerFailed: this machine cannot run the job, or its worker died twice; the jobs are cancelled.
        KeyboardInterrupt: a second Ctrl-C.
    """
    job = connection.store.get(job_id)
    worker = LocalWorker(connection, job.queue, job.device)
    with Interrupts() as interrupts:
        stopping = Stopping(connection.store, job, interrupts)

        def between() -> None:
            # A store that is away for a moment: the next look will do.
            with contextlib.suppress(StoreUnreachable):
                worker.tend()
                stopping.look()

        try:
            worker.tend()
            ended = follow_pipeline(connection.store, job_id, LocalView(view, worker), between)
            worker.stop()
        except KeyboardInterrupt:
            worker.leave_now()
            click.echo(f"Ended. Go on from the last checkpoint: {typed('repotune')} retry {job_id} --local", err=True)
            raise
        except BaseException:
            with contextlib.suppress(StoreUnreachable):
                stopping.cancel()
            worker.stop()
            raise
    return ended, stopping.asked


class LocalView:
    """A view that does not send people to start the worker that is starting already."""

    def __init__(self, view: View, worker: LocalWorker) -> None:
        self._view = view
        self._worker = worker

    def show(self, job: JobRecord, event: Event) -> None:
        """Show one event."""
        self._view.show(job, event)

    def wait(self, job: JobRecord, why: str) -> None:
        """Show why the job waits: for our worker, as long as that is not up."""
        self._view.wait(job, why if self._worker.is_up else "A worker is starting on this machine.")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._view.close()


class Stopping:
    """Cancels the jobs once the person asked for it."""

    def __init__(self, store: JobStore, job: JobRecord, interrupts: Interrupts) -> None:
        self._store = store
        self._ids = [job_id for job_id in (job.id, job.depends_on) if job_id]
        self._interrupts = interrupts
        self.asked = False

    def look(self) -> None:
        """Cancel, once, if Ctrl-C was pressed."""
        if self._interrupts.asked and not self.asked:
            self.cancel()
            self.asked = True
            click.echo("\nStopping: the job saves a checkpoint first. Press Ctrl-C again to end at once.", err=True)

    def cancel(self) -> None:
        """Cancel whichever of the jobs has not ended."""
        for job_id in self._ids:
            if self._store.get(job_id).state not in TERMINAL:
                self._store.cancel(job_id)
