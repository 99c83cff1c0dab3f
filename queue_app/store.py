"""The job store: one Redis hash per job, changed only by the Lua scripts beside it.

| from             | by                                | to                                                   |
|------------------|-----------------------------------|------------------------------------------------------|
| (nothing)        | submit                            | QUEUED; WAITING while its dependency is not done;    |
|                  |                                   | FAILED if that failed already                        |
| WAITING          | finish of the dependency          | QUEUED (it succeeded), FAILED (dependency_failed)    |
| WAITING, QUEUED  | cancel / pause                    | CANCELLED / PAUSED                                   |
| PAUSED           | cancel / resume                   | CANCELLED / as submit, new attempt and fence         |
| QUEUED           | claim                             | RUNNING, with a lease                                |
| RUNNING, SUSPECT | renew                             | RUNNING, the lease anew                              |
| RUNNING, SUSPECT | cancel / pause                    | the same, desired CANCEL / PAUSE                     |
| RUNNING, SUSPECT | finish                            | SUCCEEDED, FAILED, CANCELLED, PAUSED                 |
| RUNNING, SUSPECT | requeue                           | QUEUED, new fence (new attempt where there is a      |
|                  |                                   | cause); CANCELLED or PAUSED where that is desired    |
| RUNNING          | reap, lease out                   | SUSPECT                                              |
| SUSPECT          | reap, grace out                   | QUEUED (worker_lost), new attempt and fence;         |
|                  |                                   | CANCELLED or PAUSED where that is desired            |
| FAILED,CANCELLED | retry                             | QUEUED or WAITING, new attempt and fence             |

Whoever held a job before its fence grew is told LOST, and writes nothing any more. A job that fails or is cancelled
fails those that wait for it. Clients re-send a command whose reply was lost, so each script may run twice with the
same arguments and has the effect of one run. All times are Redis's. Keys begin with `rt:`; scripts reach the
keys of dependent jobs by name, so the store wants one Redis, not a cluster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from backends.errors import ExitCode, RepotuneError
from jobs.states import Cause, Desired, State
from queue_app.records import Claim, JobRecord, NewJob, Ticket, WorkerRecord


class StoreUnreachable(RepotuneError):
    """Redis does not answer, or refuses us."""

    exit_code = ExitCode.UNREACHABLE


class JobNotFound(RepotuneError):
    """No job has this id."""

    exit_code = ExitCode.NO_SUCH_JOB


@dataclass(frozen=True, kw_only=True)
class StoreTimes:
    """How patient the store is, seconds. The same on every machine."""

    #: A running job whose owner did not renew for so long becomes SUSPECT.
    lease: float = 45.0
    #: A SUSPECT job goes back to the queue after so long.
    suspect: float = 15.0
    #: When nobody reaped for so long, nobody watched: leases are extended before anyone is judged.
    gap: float = 45.0
    #: A worker unheard of for so long leaves the list.
    worker: float = 60.0


class JobStore:
    """Jobs, their events and logs, and workers, in one Redis."""

    def __init__(self, client: "redis.Redis[str]", times: StoreTimes | None = None) -> None: ...

    @classmethod
    def connect(cls, url: str, times: StoreTimes | None = None) -> "JobStore":
        """A store on the Redis at `url`; connects at the first call."""

    @property
    def redis(self) -> "redis.Redis[str]":
        """The client, for what is no transition: queue lists, pub/sub."""

    def ping(self) -> None:
        """Raises StoreUnreachable when Redis does not answer."""

    def now(self) -> float:
        """Redis's time, seconds since the epoch: what the times of records compare with."""

    def submit(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        """Create jobs, all or none.

        A job whose idempotency key names one that lives or succeeded is not created: that one is returned in its place,
        and stands in for it as dependency of the others.

        Returns:
            One record per job of `jobs`, in their order. Those that are QUEUED need a ticket.

        Raises:
            JobNotFound: a dependency does not exist; nothing was created.
        """

    def get(self, job_id: str) -> JobRecord:
        """The record of a job. Raises JobNotFound."""

    def jobs(self, states: Sequence[State] | None = None, limit: int = 100) -> list[JobRecord]:
        """Records, the newest first; only those in `states` where given."""

    def claim(self, job_id: str, attempt: int, worker: str, claim_id: str) -> Claim | None:
        """Take a QUEUED job; None when there is nothing to take.

        Not taken: another attempt, another state, not due yet, gone, or to be cancelled. The same claim id again gets
        the same claim.
        """

    def renew(self, claim: Claim) -> Desired:
        """Renew the lease; the reply is what is wanted of the job. LOST: it is no longer yours."""

    def emit(self, claim: Claim, events: Sequence[str], first_seq: int) -> bool:
        """Append events (lines of JSON), numbered from `first_seq`; numbers already taken are skipped.

        Returns:
            False when the job is no longer yours; nothing was written.
        """

    def logs_append(self, claim: Claim, lines: Sequence[str], first_seq: int) -> bool:
        """Append lines of the log, as `emit` does."""

    def checkpoint(self, claim: Claim, step: int, artifact: str) -> bool:
        """Make a complete artifact the current checkpoint. False when the job is no longer yours."""

    def finish(
        self,
        claim: Claim,
        state: State,
        cause: Cause | None = None,
        reason: str = "",
        result: dict[str, Any] | None = None,
    ) -> list[Ticket]:
        """End a job as SUCCEEDED, FAILED, CANCELLED or PAUSED; a no-op when it is no longer yours.

        Returns:
            Tickets to publish: those of jobs that waited for this one.
        """

    def requeue(
        self, claim: Claim, cause: Cause | None, reason: str, delay_s: float = 0.0, halve_memory: bool = False
    ) -> Ticket | None:
        """Give a job back. With a cause (preempted, out_of_memory…) the next run is a new attempt; without, it never began.

        Returns:
            The ticket to publish; None when the job is no longer yours, was to be cancelled or paused (and is so
            now), or is not due before `delay_s` seconds: then the reconciler publishes it.
        """

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job: at once where it is not running, else desired CANCEL. Raises JobNotFound."""

    def pause(self, job_id: str) -> JobRecord:
        """Set a job aside: at once where it is not running, else desired PAUSE. Raises JobNotFound."""

    def resume(self, job_id: str) -> list[Ticket]:
        """Put a PAUSED job back (or take back a pause not yet obeyed); returns tickets to publish. Raises JobNotFound."""

    def retry(self, job_id: str) -> list[Ticket]:
        """Run a FAILED or CANCELLED job again from its checkpoint, its dependency first where that did not succeed.

        Returns:
            Tickets to publish. None for a job in another state, which stays as it is.

        Raises:
            JobNotFound: no such job.
        """

    def reap(self) -> list[Ticket]:
        """Judge leases: RUNNING becomes SUSPECT, SUSPECT goes back to the queue. Returns tickets to publish."""

    def due(self) -> list[JobRecord]:
        """Jobs that are QUEUED and may be claimed now: each should have a ticket (`queue_app.tickets.missing`)."""

    def events(self, job_id: str, after: str = "0", limit: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """Events behind stream id `after`, oldest first: (stream id, event with "attempt").

        Beside the job's own events (`jobs.events`) there are the store's: {"event": "state", "state", "cause", "reason",
        "worker", "time"} for each transition.
        """

    def logs(self, job_id: str, after: str = "0", limit: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """Lines of the log behind stream id `after`, oldest first: (stream id, {"line", "attempt"})."""

    def register(self, worker: WorkerRecord) -> None:
        """Make a worker known; its times are set here."""

    def heartbeat(self, name: str, state: str, job_id: str = "") -> bool:
        """Say that a worker lives. False when the store does not know it (any more): register again."""

    def unregister(self, name: str) -> None:
        """Forget a worker that leaves in order."""

    def workers(self) -> list[WorkerRecord]:
        """Workers that live, by name."""
