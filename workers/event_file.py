"""The file that a running job appends its events to, one JSON object a line."""

import sys
import threading
from pathlib import Path
from typing import TextIO

from jobs.events import Checkpointed, Event

#: Its name in the output of a training in the foreground.
FILE = "events.jsonl"


class EventFile:
    """Made with the first event, so that a job which refuses its folder leaves nothing there; then appended to."""

    def __init__(self, path: Path) -> None:
        #: Of the last checkpoint.
        self.last_step: int | None = None
        self._path = path
        self._file: TextIO | None = None
        self._lock = threading.Lock()

    def write(self, event: Event) -> None:
        """Append one event. A full disk loses it: the job must not die of its own news."""
        if isinstance(event, Checkpointed):
            self.last_step = event.step
        with self._lock:
            try:
                self._file = self._file or self._path.open("a", encoding="utf-8")
                self._file.write(event.to_json() + "\n")
                self._file.flush()
            except OSError as error:
                print(f"event lost: {error}", file=sys.stderr)  # noqa: T201 - stderr is the trainer's log

    def close(self) -> None:
        """Nothing more is written."""
        with self._lock:
            if self._file is not None:
                self._file.close()
