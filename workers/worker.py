"""The worker process: serves the queues of its machine until a signal ends it.

Celery runs in this process with one thread for the one job; torch is never imported here. The first SIGTERM or Ctrl-C
lets the running job save and go back to the queue, the second one ends everything now.
"""

import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from celery.apps.worker import Worker
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning

from backends.devices import Machine, queues_served
from backends.errors import ExitCode, RepotuneError
from queue_app.celery_app import make_app
from queue_app.commands.options import print_json, say
from queue_app.connection import Connection
from queue_app.ending import open_artifacts
from queue_app.settings import Settings
from workers import tasks
from workers.gauges import Gauges
from workers.presence import Presence
from workers.reaper import Reaper
from workers.runtime import Runtime


class WorkerRunsAlready(RepotuneError):
    """Another process on this machine serves under the same name."""

    exit_code = ExitCode.USAGE


def serve(machine: Machine, name: str | None, connection: Connection, *, as_json: bool) -> int:
    """Serve until told to leave; returns the exit code.

    Args:
        machine: what the worker offers.
        name: the worker's name; None takes the machine's, with a number where that is taken.
        connection: settings and store; the broker may come and go later.
        as_json: say who serves what as one JSON object.

    Raises:
        StoreUnreachable: the broker does not answer now.
        WorkerRunsAlready: the name is taken on this machine.
        GaugesRefused: the port for Prometheus cannot be listened on.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # Celery warns of running as root because of pickle, which is refused here.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    settings = connection.settings
    with _workroot(settings.home / "work", name) as workroot:
        runtime = Runtime(
            name=workroot.parent.name,
            machine=machine,
            settings=settings,
            store=connection.store,
            artifacts=open_artifacts(settings),
            app=make_app(settings.broker_url),
            workroot=workroot,
            gauges=_gauges(settings, workroot.parent.name, machine),
        )
        return _consume(runtime, as_json=as_json)


def _gauges(settings: Settings, name: str, machine: Machine) -> Gauges | None:
    """The worker's gauges, served where a port was named."""
    if not settings.metrics_port:
        return None
    gauges = Gauges(name, machine)
    gauges.serve(settings.metrics_address, settings.metrics_port)
    return gauges


def _consume(runtime: Runtime, *, as_json: bool) -> int:
    presence = Presence(runtime)
    presence.register()
    tasks.register(runtime, presence)
    presence.start()
    Reaper(runtime).start()
    worker = _celery_worker(runtime, as_json=as_json)
    try:
        worker.start()
    finally:
        runtime.leaving.set()
        presence.leave()
    return ExitCode.INTERRUPTED if runtime.now.is_set() else int(worker.exitcode or 0)


def _celery_worker(runtime: Runtime, *, as_json: bool) -> Any:
    class QuietWorker(Worker):
        """Celery's worker with our signals: its own warm shutdown would wait for the job to end."""

        def install_platform_tweaks(self, _worker: Any) -> None:
            # It warns of tickets acknowledged late, which none is here. Its logging turned the warning on a moment ago.
            warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
            _listen(runtime)

        ready_said = False

        def on_consumer_ready(self, consumer: Any) -> None:
            super().on_consumer_ready(consumer)
            if not self.ready_said:  # Celery says so again after every lost connection
                self.ready_said = True
                _say_ready(runtime, as_json=as_json)

        def emit_banner(self) -> None:
            pass

    return QuietWorker(
        app=runtime.app,
        hostname=f"{runtime.name}@%h",
        queues=queues_served(runtime.machine),
        pool="threads",
        concurrency=1,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        redirect_stdouts=False,
    )


def _listen(runtime: Runtime) -> None:
    """First signal: stop consuming, save, give the job back. Second: now."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        from celery.worker import state

        if runtime.leaving.is_set():
            # A thread may hold the lock that logging or the store needs: another thread does the rest.
            threading.Thread(target=_leave_now, args=(runtime,), daemon=True).start()
            return
        runtime.leaving.set()
        state.should_stop = ExitCode.OK
        if runtime.running:
            # Not print: the signal may have interrupted a write that holds the stream's lock.
            os.write(2, f"Leaving: {runtime.running[0]} saves and goes back to the queue. Again: now.\n".encode())

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def _leave_now(runtime: Runtime) -> None:
    """Kill the trainer and leave. The supervisor is given a moment to hand the job back; else its lease runs out."""
    runtime.now.set()
    for _ in range(50):
        if not runtime.running:
            break
        threading.Event().wait(0.1)
    # The trainer, if it still lives, notices within a second that its parent is gone.
    sys.stderr.flush()
    os._exit(ExitCode.INTERRUPTED)


def _say_ready(runtime: Runtime, *, as_json: bool) -> None:
    queues = queues_served(runtime.machine)
    if as_json:
        print_json({"worker": runtime.name, "device": runtime.machine.device, "queues": queues})
    else:
        say(f"Worker {runtime.name} is ready for jobs.", as_json=False)


@contextmanager
def _workroot(folder: Path, name: str | None) -> Iterator[Path]:
    """An empty folder `NAME/jobs` that only this process uses; what a killed worker left in it is removed."""
    machine = socket.gethostname()
    names = [name] if name else [machine, *(f"{machine}-{number}" for number in range(2, 100))]
    for candidate in names:
        lock = _lock(folder / candidate)
        if lock is None:
            continue
        with lock:
            jobs = folder / candidate / "jobs"
            shutil.rmtree(jobs, ignore_errors=True)
            jobs.mkdir()
            yield jobs
        return
    raise WorkerRunsAlready(
        f"A worker named {names[0]} runs on this machine already: stop it, or give this one another --name."
    )


def _lock(folder: Path) -> TextIO | None:
    """An exclusive lock on a worker's folder, held while the file is open; None when another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
