"""`metrics.jsonl`: one JSON object per optimizer step; and the speed that the last steps give.

Standard library only.
"""

import json
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

from jobs.checkpoint import DiskFull, disk_full_as_sentence, replace_file
from jobs.events import StepDone

FILE = "metrics.jsonl"

#: Steps over which the speed is averaged.
WINDOW = 20


class Metrics:
    """The file of a run: a line after each step, and on resume exactly the lines that the checkpoint knew.

    The lines are kept in memory too, some hundred bytes a step: a full disk loses none of them.
    """

    def __init__(self, file: Path, known: bytes = b"") -> None:
        self.file = file
        #: Whether lines wait for room on the disk.
        self.waits = False
        self._content = bytearray(known)
        with disk_full_as_sentence(file.parent):
            replace_file(file, known)

    def append(self, event: StepDone) -> None:
        """Add the line of a step. On a full disk it waits, and is written as soon as there is room."""
        fields = json.loads(event.to_json())
        del fields["event"], fields["eta_seconds"]
        line = (json.dumps(fields, separators=(",", ":")) + "\n").encode()
        self._content += line
        try:
            with disk_full_as_sentence(self.file.parent):
                self._write(line)
        except DiskFull:
            self.waits = True
        else:
            self.waits = False

    def content(self) -> bytes:
        """Every line so far."""
        return bytes(self._content)

    def _write(self, line: bytes) -> None:
        if self.waits:  # the file may end in a part of a line
            replace_file(self.file, self.content())
            return
        with self.file.open("ab") as stream:
            stream.write(line)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last one that a full disk or a kill cut is left out."""
    whole, _, _cut = file.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class Speed:
    """Tokens per second, from the steps themselves: evaluation and saving do not count."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, tokens: int, seconds: float) -> None:
        """Note a step."""
        self._steps.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float:
        """The median of the last steps: a process that was stopped for a while (SIGSTOP) is not a slow one."""
        rates = [tokens / seconds for tokens, seconds in self._steps if seconds > 0]
        return median(rates) if rates else 0.0
