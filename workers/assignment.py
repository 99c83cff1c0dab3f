"""What the worker hands its trainer process: one JSON file that only its owner may read. It carries no secrets."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ASSIGNMENT = "assignment.json"
EVENTS = "events.jsonl"
LOG = "trainer.log"
OUTPUT = "output"
#: What a training writes there however it ends (jobs.report, which a worker does not load).
REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One attempt of a job, with all its inputs on this machine's disk."""

    #: The job's spec as JSON.
    spec: str
    #: The device to run on.
    device: str
    #: The process that must outlive the trainer: when it is gone the trainer leaves.
    parent_pid: int
    #: Bare repository with the commit; set for dataset jobs.
    git_dir: str | None = None
    #: Bare repositories that are learned with it.
    also: Sequence[str] = ()
    #: Dataset folder; set for training jobs.
    dataset: str | None = None
    #: Checkpoint folder to go on from.
    resume_from: str | None = None
    #: The micro-batch is divided by this after running out of memory.
    micro_batch_divisor: int = 1
    #: File where this machine keeps what its trainings took.
    calibration: str | None = None

    def write(self, workdir: Path) -> None:
        """Write `workdir`/assignment.json, readable by its owner only."""
        descriptor = os.open(workdir / ASSIGNMENT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)

    @classmethod
    def read(cls, workdir: Path) -> "Assignment":
        """Read back what `write` wrote."""
        data: dict[str, Any] = json.loads((workdir / ASSIGNMENT).read_text(encoding="utf-8"))
        return cls(**data | {"also": tuple(data.get("also", ()))})
