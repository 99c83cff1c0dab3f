"""What the store keeps and hands out: frozen values, standard library only.

Every time is Redis's own clock in seconds since the epoch; 0.0 means "not yet". Clocks of workers never enter.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.states import Cause, Desired, State

# No vowels and no look-alikes: ids are read aloud, and spell nothing.
_ID_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
_ID_PREFIXES = {"training": "train"}


def new_job_id(kind: str) -> str:
    """A fresh id that begins with the kind, e.g. `train-x7k2m9qz`, `dataset-…`."""
    suffix = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
    return f"{_ID_PREFIXES.get(kind, kind)}-{suffix}"


def new_claim_id() -> str:
    """A fresh claim id: one per try to claim, repeated when the same call is sent again."""
    return secrets.token_hex(8)


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job as it is submitted."""

    id: str
    kind: str
    name: str
    #: The device asked for: cuda, mps, cpu or any.
    device: str
    #: Queue of device and tier, e.g. `cuda.24g`.
    queue: str
    #: 0 to 9, 9 first.
    priority: int = 5
    #: `JobSpec` as JSON.
    spec: str
    #: Memory that the job needs on its device, bytes; 0 where unknown.
    need_bytes: int = 0
    #: Id of the job that must succeed first; may be an earlier job of the same submission.
    depends_on: str | None = None
    #: Two submissions with one key are one job, for as long as the first has not failed or been cancelled.
    idempotency_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as the store knows it."""

    id: str
    kind: str
    name: str
    state: State
    device: str
    queue: str
    #: 0 to 9, 9 first.
    priority: int
    #: `JobSpec` as JSON.
    spec: str
    #: Counts from 1; one more after a loss, a preemption or a retry. Celery's task id is `{id}.{attempt}`.
    attempt: int
    #: One more whenever an owner loses the job: the older fence writes nothing any more.
    fence: int
    #: Of the present owner; "" when nobody owns the job.
    claim_id: str = ""
    #: Name of the present or the last owner.
    worker: str = ""
    depends_on: str | None = None
    desired: Desired = Desired.RUN
    #: Why it ended, or why it went back to the queue.
    cause: Cause | None = None
    #: One sentence: why it ended, or why it waits.
    reason: str = ""
    created_at: float = 0.0
    queued_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    #: No claim before this time.
    not_before: float = 0.0
    need_bytes: int = 0
    #: {"step": int, "artifact": path in the artifact store} of the newest checkpoint, kept over attempts; with "best"
    #: where another one is kept for its held-out loss.
    checkpoint: dict[str, Any] | None = None
    #: The newest event of each kind that people watch: {"stage": {…}, "progress": {…}, "step": {…}, "evaluation": {…}}.
    progress: dict[str, Any] = field(default_factory=dict)
    #: What the job returned; {} until it succeeded.
    result: dict[str, Any] = field(default_factory=dict)
    #: How often the micro-batch was halved after running out of memory.
    memory_halvings: int = 0


#: Kinds of events whose newest one is kept in the record. The others live in the stream only.
WATCHED_EVENTS = ("stage", "progress", "step", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """An invitation to claim one attempt of a job. Lost, duplicate and stale tickets do no harm."""

    job_id: str
    attempt: int
    queue: str
    #: 0 to 9, 9 first.
    priority: int

    @property
    def task_id(self) -> str:
        """The Celery task id, by which Flower lists attempts."""
        return f"{self.job_id}.{self.attempt}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run a job: worth what its fence is worth."""

    job_id: str
    attempt: int
    fence: int
    claim_id: str
    worker: str
    #: The record as it was claimed.
    record: JobRecord


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """A worker that lives, or did a moment ago."""

    name: str
    device: str
    #: As the driver names it, e.g. "NVIDIA RTX 2060".
    device_name: str
    memory_bytes: int
    #: Queues it takes jobs from, the largest tier first.
    queues: tuple[str, ...]
    #: Versions of python, torch, transformers, peft…
    versions: dict[str, str]
    pid: int
    host: str
    #: "idle" or "busy".
    state: str = "idle"
    #: The job it runs; "" when idle.
    job_id: str = ""
    started_at: float = 0.0
    seen_at: float = 0.0


def job_from_hash(fields: Mapping[str, str]) -> JobRecord:
    """Read the fields of a `rt:job:…` hash.

    Fields that are unknown here (a newer writer) are ignored, absent ones take their default.
    """
    progress = {kind: json.loads(fields[f"last_{kind}"]) for kind in WATCHED_EVENTS if fields.get(f"last_{kind}")}
    return JobRecord(
        id=fields["id"],
        kind=fields["kind"],
        name=fields.get("name", ""),
        state=State(fields["state"]),
        device=fields["device"],
        queue=fields["queue"],
        priority=int(fields["priority"]),
        spec=fields["spec"],
        attempt=int(fields["attempt"]),
        fence=int(fields["fence"]),
        claim_id=fields.get("claim_id", ""),
        worker=fields.get("worker", ""),
        depends_on=fields.get("depends_on") or None,
        desired=Desired(fields.get("desired") or Desired.RUN),
        cause=Cause(fields["cause"]) if fields.get("cause") else None,
        reason=fields.get("reason", ""),
        created_at=float(fields.get("created_at") or 0),
        queued_at=float(fields.get("queued_at") or 0),
        started_at=float(fields.get("started_at") or 0),
        finished_at=float(fields.get("finished_at") or 0),
        not_before=float(fields.get("not_before") or 0),
        need_bytes=int(fields.get("need_bytes") or 0),
        checkpoint=json.loads(fields["checkpoint"]) if fields.get("checkpoint") else None,
        progress=progress,
        result=json.loads(fields["result"]) if fields.get("result") else {},
        memory_halvings=int(fields.get("memory_halvings") or 0),
    )


def worker_from_hash(fields: Mapping[str, str]) -> WorkerRecord:
    """Read the fields of a `rt:worker:…` hash."""
    return WorkerRecord(
        name=fields["name"],
        device=fields["device"],
        device_name=fields["device_name"],
        memory_bytes=int(fields["memory_bytes"]),
        queues=tuple(json.loads(fields["queues"])),
        versions=json.loads(fields["versions"]),
        pid=int(fields["pid"]),
        host=fields["host"],
        state=fields["state"],
        job_id=fields.get("job_id", ""),
        started_at=float(fields["started_at"]),
        seen_at=float(fields["seen_at"]),
    )
