"""`metrics.jsonl`: one JSON object per optimizer step; and the speed that the last steps give.

Standard library only.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

from jobs.checkpoint import disk_full_as_sentence, replace_file
from jobs.events import StepDone

FILE = "metrics.jsonl"

#: Steps over which the speed is averaged.
WINDOW = 20


class Metrics:
    """The file of a run: a line after each step, and on resume exactly the lines that the checkpoint knew."""

    def __init__(self, file: Path, known: bytes = b"") -> None:
        self.file = file
        with disk_full_as_sentence(file.parent):
            replace_file(file, known)

    def append(self, event: StepDone) -> None:
        """Add the line of a step."""
        fields = json.loads(event.to_json())
        del fields["event"], fields["eta_seconds"]
        with disk_full_as_sentence(self.file.parent), self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(fields, separators=(",", ":")) + "\n")

    def content(self) -> bytes:
        """Every line so far."""
        return self.file.read_bytes()


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Speed:
    """Tokens per second, from the steps themselves: evaluation and saving do not count."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, tokens: int, seconds: float) -> None:
        """Note a step."""
        self._steps.append((tokens, seconds))

    @property
    def tokens_per_second(self) -> float:
        """Over the last steps."""
        seconds = sum(duration for _, duration in self._steps)
        return sum(tokens for tokens, _ in self._steps) / seconds if seconds > 0 else 0.0
