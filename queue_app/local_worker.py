"""The worker that `--local` runs beside itself: started when nobody else serves the queue, restarted once."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from backends.errors import ExitCode, RepotuneError
from queue_app.connection import Connection
from queue_app.plan import takers, why_nobody
from queue_app.records import WorkerRecord

# -P: a folder `queue_app/` where the person stands must not shadow ours.
_COMMAND = (sys.executable, "-P", "-c", "from queue_app.local_worker import main; main()")
_RESTARTS = 1
# A worker that says why it cannot run here says the same again; its last line is the sentence.
_FINAL = (ExitCode.USAGE, ExitCode.DEVICE_UNAVAILABLE)
_LOG_LINES = 12
#: A worker that is asked to stop saves a checkpoint; past this it is killed.
STOP_SECONDS = 120.0


# Two signals at once would arrive as one.
_BETWEEN_SIGNALS_SECONDS = 0.2
_HAND_BACK_SECONDS = 4.0

# How long a worker whose parent is gone may take to save its checkpoint.
_ORPHAN_SECONDS = 60.0


class LocalWorkerFailed(RepotuneError):
    """The worker on this machine cannot run the job."""

    exit_code = ExitCode.DEVICE_UNAVAILABLE


class LocalWorker:
    """A worker process of our own, where no other serves the queue."""

    def __init__(self, connection: Connection, queue: str, device: str) -> None:
        self._connection = connection
        self._queue = queue
        self._device = device
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._fits = False
        self.log = connection.settings.home / "local" / f"worker-{os.getpid()}.log"

    @property
    def is_up(self) -> bool:
        """Whether a worker serves the queue: ours, or one that was there."""
        return self._process is None or self._fits

    def tend(self) -> None:
        """See to it that a worker is there; call it every now and then.

        Raises:
            LocalWorkerFailed: the worker died again and again, or this machine cannot take the job.
        """
        if self._process is not None and self._process.poll() is None:
            self._fits = self._fits or self._check_queue(self._process.pid)
        elif self._process is not None and self._process.returncode in _FINAL:
            raise LocalWorkerFailed(last_lines(self.log, 1).strip().removeprefix("repotune: "))
        elif self._process is not None and self._starts > _RESTARTS:
            raise LocalWorkerFailed(
                f"The worker on this machine ended with exit code {self._process.returncode}; its log, {self.log}, "
                f"ends:\n{last_lines(self.log)}"
            )
        elif not takers(self._queue, self._living()):
            self._start()

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """Ask our worker to save and leave, and wait until it did."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def leave_now(self) -> None:
        """End our worker without a checkpoint; it gets a moment to hand the job back, else the lease must run out."""
        process = self._process
        if process is None:
            return
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_BETWEEN_SIGNALS_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        self.stop(_HAND_BACK_SECONDS)

    def kill(self) -> None:
        """End our worker this instant; its trainer notices and leaves."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [] if self._device == "any" else ["--device", self._device]
        # In the environment, not among the arguments: those are for everyone on the machine to read.
        environment = os.environ | {"REPOTUNE_BROKER_URL": self._connection.settings.broker_url}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_COMMAND, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own session: Ctrl-C reaches us alone, and we ask it to stop in our order.
                start_new_session=True,
            )
        self._starts += 1

    def _living(self) -> list[WorkerRecord]:
        return [worker for worker in self._connection.store.workers() if not _is_gone(worker)]

    def _check_queue(self, pid: int) -> bool:
        """Whether our worker is up; says so when this machine is too small for the job, or lacks the device."""
        mine = [worker for worker in self._living() if worker.pid == pid and worker.host == socket.gethostname()]
        if mine and self._queue not in mine[0].queues:
            raise LocalWorkerFailed(f"This machine cannot run the job. {why_nobody(self._queue, mine)}")
        return bool(mine)


def last_lines(log: Path, count: int = _LOG_LINES) -> str:
    """The last lines of a log, indented."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"  (cannot be read: {error})"
    return "\n".join(f"  {line}" for line in lines[-count:])


def _is_gone(worker: WorkerRecord) -> bool:
    """Whether a registered worker of this machine was killed and could not say so."""
    if worker.host != socket.gethostname():
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def main() -> None:
    """What the worker process runs: `device-worker`, which leaves when the one that started it is gone."""
    from queue_app.cli import worker_main

    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True, name="parent-watch").start()
    worker_main()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
