"""Brings checkpoints and results into the artifact store while the job goes on.

Files are hard-linked aside first: the job may remove an old checkpoint while it is still on its way.
"""

import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backends.errors import RepotuneError

_log = logging.getLogger(__name__)
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)

#: upload(folder on disk, step, whether it is the best so far) -> None; raises RepotuneError when the store is away
Upload = Callable[[Path, int, bool], None]


def link_aside(folder: Path, into: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Copy `folder` to `into` by hard links (copies where the disk knows none), without the names in `leave_out`."""
    shutil.copytree(folder, into, copy_function=_link, ignore=shutil.ignore_patterns(*leave_out))
    return into


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class _Waiting:
    """A checkpoint on its way."""

    #: Counted from 1 as they come. A step may come twice: saved before a measurement, and again as the best.
    number: int
    step: int
    folder: Path
    best: bool


class CheckpointUploads(threading.Thread):
    """Uploads checkpoints in order; while the store is away, one that a newer one overtook is skipped, unless the best.

    Failed tries are repeated for as long as it takes.
    """

    def __init__(self, job_id: str, upload: Upload, staging: Path) -> None:
        super().__init__(name=f"uploads-{job_id}", daemon=True)
        #: Why the last try failed; "" when it did not.
        self.trouble = ""
        self._added = 0
        self._upload = upload
        self._staging = staging
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._abandoned = threading.Event()

    def add(self, step: int, folder: Path, *, best: bool = False) -> None:
        """Queue a complete checkpoint; `best`: of the best held-out loss so far."""
        number = self._added + 1
        try:
            aside = link_aside(folder, self._staging / f"{number}-step-{step}")
        except OSError as error:
            _log.warning("checkpoint %s is gone before its upload: %s", folder, error)
            return
        self._added = number
        self._waiting.put(_Waiting(number, step, aside, best))

    def run(self) -> None:
        """Upload until `close()` or `abandon()`."""
        while (item := self._waiting.get()) is not None:
            self._bring(item)

    def close(self) -> None:
        """No more checkpoints come: the thread ends once those that wait have arrived."""
        self._waiting.put(None)

    def abandon(self) -> None:
        """Upload nothing more."""
        self._abandoned.set()
        self._waiting.put(None)

    def _bring(self, item: _Waiting) -> None:
        attempt = 0
        while not self._abandoned.is_set():
            try:
                self._upload(item.folder, item.step, item.best)
            except (RepotuneError, OSError) as error:
                self.trouble = str(error)
                _log.warning(
                    "checkpoint of step %s does not reach the artifact store, trying again: %s", item.step, error
                )
                self._abandoned.wait(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                attempt += 1
                if item.number != self._added and not item.best:
                    break
            else:
                self.trouble = ""
                break
        shutil.rmtree(item.folder, ignore_errors=True)
