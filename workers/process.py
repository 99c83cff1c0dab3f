"""Starts a trainer process, reads what it writes, stops it. Knows no queue."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from workers.assignment import EVENTS, LOG, Assignment

#: What the supervisor may load of a file at once, so that a flood of logs cannot fill the worker's memory.
_READ_BYTES = 256 * 1024


class LineTail:
    """Reads the whole lines that a growing file has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[str]:
        """New whole lines, without their ends; a line still being written waits for the next call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]


class TrainerProcess:
    """One running trainer, in its own session so that its whole group can be ended."""

    def __init__(self, assignment: Assignment, workdir: Path, cache: Path) -> None:
        assignment.write(workdir)
        self.workdir = workdir
        with (workdir / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                # -P: a `workers` folder in the current directory is not ours.
                [sys.executable, "-P", "-m", "workers.trainer", str(workdir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=workdir,
                env=_environment(cache),
                start_new_session=True,
            )
        self.events = LineTail(workdir / EVENTS)
        self.log = LineTail(workdir / LOG)

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Ask it to save and leave. Asked twice it would leave without saving: ask once."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole process group now and wait until it is gone."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            self._process.kill()
        self._process.wait()

    def last_log_lines(self, count: int = 5) -> str:
        """The end of its log, for a sentence about why it died."""
        try:
            with (self.workdir / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                text = file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def _environment(cache: Path) -> dict[str, str]:
    """The worker's environment without its secrets: the trainer talks to no broker and no artifact store.

    Converted models go to the worker's `cache`, which its `.env` may have named.
    """
    secret = ("REPOTUNE_BROKER", "REPOTUNE_ARTIFACTS", "REPOTUNE_MONITOR", "REDIS_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(secret)}
    return kept | {
        "REPOTUNE_CACHE": str(cache),
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
