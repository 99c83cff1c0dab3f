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

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import redis
from redis import exceptions
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from backends.errors import ExitCode, RepotuneError
from jobs.states import Cause, Desired, State
from queue_app.records import (
    WATCHED_EVENTS,
    Claim,
    JobRecord,
    NewJob,
    Ticket,
    WorkerRecord,
    job_from_hash,
    worker_from_hash,
)

# A command is sent again a few times within about a second; whoever can wait longer calls again.
_RESEND = 3
_ANSWER_SECONDS = 10.0
_CONNECT_SECONDS = 3.0
# Events and log lines per call, and characters per line: Redis has one thread, shared by everybody.
_BATCH = 500
_LONGEST_LINE = 32_000

_UNREACHABLE = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)


class StoreUnreachable(RepotuneError):
    """Redis does not answer, or refuses us."""

    exit_code = ExitCode.UNREACHABLE


class JobNotFound(RepotuneError):
    """No job has this id."""

    exit_code = ExitCode.NO_SUCH_JOB

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id}: `repotune jobs` lists those there are.")


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


def without_password(url: str) -> str:
    """The URL as it may be shown: user, password and query left out."""
    scheme, _, rest = url.partition("://")
    # A password may hold what ends a host: / ? #. Its end is the last @.
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what redis-py raises for a Redis that is away or refuses us into StoreUnreachable.

    Nothing of the original text is shown where it could hold a password.
    """
    shown = without_password(url)
    try:
        yield
    except (exceptions.AuthenticationError, exceptions.NoPermissionError):
        text = f"Redis at {shown} refuses this user and password: check REPOTUNE_BROKER_URL."
        raise StoreUnreachable(text) from None
    except _UNREACHABLE as error:
        text = f"Redis at {shown} does not answer ({_why(error)}): start it, or check REPOTUNE_BROKER_URL."
        raise StoreUnreachable(text) from None
    except exceptions.ResponseError as error:
        code = str(error).partition(" ")[0]
        if code == "NOAUTH":
            raise StoreUnreachable(f"Redis at {shown} wants a password: put it into REPOTUNE_BROKER_URL.") from None
        if isinstance(error, exceptions.OutOfMemoryError | exceptions.ReadOnlyError) or code in {"MISCONF", "OOM"}:
            text = f"Redis at {shown} cannot write (out of memory, out of disk, or a replica): see its log."
            raise StoreUnreachable(text) from None
        raise


def _why(error: BaseException) -> str:
    if isinstance(error, exceptions.BusyLoadingError):
        return "it is loading its data"
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        return "timeout"
    text = str(error).lower()
    known = ("connection refused", "name or service not known", "no such file", "no route to host", "certificate")
    return next((phrase for phrase in known if phrase in text), "connection lost")


class JobStore:
    """Jobs, their events and logs, and workers, in one Redis."""

    def __init__(self, client: redis.Redis, times: StoreTimes | None = None, url: str = "redis://") -> None:
        """A store on an open client that decodes its replies; `url` is named in error sentences."""
        self._redis: Any = client  # its typed replies differ from one version of redis-py to the next
        self._times = times or StoreTimes()
        self._url = url
        folder = resources.files("queue_app").joinpath("scripts")
        words = folder.joinpath("record.lua").read_text(encoding="utf-8")
        self._scripts = {
            file.name.removesuffix(".lua"): client.register_script(words + file.read_text(encoding="utf-8"))
            for file in folder.iterdir()
            if file.name.endswith(".lua") and file.name != "record.lua"
        }

    @classmethod
    def connect(cls, url: str, times: StoreTimes | None = None) -> "JobStore":
        """A store on the Redis at `url`; connects at the first call.

        Raises:
            StoreUnreachable: the URL is no Redis URL.
        """
        try:
            client = redis.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",
                socket_timeout=_ANSWER_SECONDS,
                socket_connect_timeout=_CONNECT_SECONDS,
                socket_keepalive=True,
                health_check_interval=30,
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), _RESEND),
            )
        except ValueError:
            raise StoreUnreachable(f"{without_password(url)} is no Redis URL: set REPOTUNE_BROKER_URL.") from None
        return cls(client, times, url)

    @property
    def redis(self) -> redis.Redis:
        """The client, for what is no transition: queue lists, pub/sub. Wrap its use in `reaching(store.url)`."""
        client: redis.Redis = self._redis
        return client

    @property
    def url(self) -> str:
        """Where the store is; may hold a password."""
        return self._url

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def ping(self) -> None:
        """Raises StoreUnreachable when Redis does not answer."""
        with reaching(self._url):
            self._redis.ping()

    def now(self) -> float:
        """Redis's time, seconds since the epoch: what the times of records compare with."""
        with reaching(self._url):
            seconds, microseconds = self._redis.time()
        return float(seconds) + float(microseconds) / 1e6

    # ---- The life of a job ------------------------------------------------------------------------------------------

    def submit(self, jobs: Sequence[NewJob]) -> list[JobRecord]:
        """Create jobs, all or none.

        A job whose idempotency key names one that lives or succeeded is not created: that one is returned in its place,
        and stands in for it as dependency of the others.

        Returns:
            One record per job of `jobs`, in their order. Those that are QUEUED need a ticket.

        Raises:
            JobNotFound: a dependency does not exist; nothing was created.
        """
        entries = [
            {name: "" if value is None else _encodable(str(value)) for name, value in asdict(job).items()}
            for job in jobs
        ]
        status, *ids = self._run("submit", [], [json.dumps(entries)])
        if status == "MISSING":
            raise JobNotFound(ids[0])
        return self._records(ids)

    def get(self, job_id: str) -> JobRecord:
        """The record of a job. Raises JobNotFound."""
        records = self._records([job_id])
        if not records:
            raise JobNotFound(job_id)
        return records[0]

    def jobs(self, states: Sequence[State] | None = None, limit: int = 100) -> list[JobRecord]:
        """Records, the newest first; only those in `states` where given."""
        indexes = ["rt:jobs"] if states is None else [f"rt:state:{state}" for state in states]
        with reaching(self._url):
            newest = [self._redis.zrange(index, 0, limit - 1, desc=True, withscores=True) for index in indexes]
        pairs = sorted((pair for found in newest for pair in found), key=lambda pair: -pair[1])
        return self._records([pair[0] for pair in pairs[:limit]])

    def by_key(self, idempotency_key: str) -> JobRecord | None:
        """The job that was last created under this key, whatever became of it; None where there is none."""
        with reaching(self._url):
            job_id = self._redis.get(f"rt:idempotency:{idempotency_key}")
        return next(iter(self._records([job_id])), None) if job_id else None

    def claim(self, job_id: str, attempt: int, worker: str, claim_id: str) -> Claim | None:
        """Take a QUEUED job; None when there is nothing to take.

        Not taken: another attempt, another state, not due yet, gone, or to be cancelled. The same claim id again gets
        the same claim.
        """
        reply = self._run("claim", [_key(job_id)], [job_id, attempt, worker, claim_id, self._times.lease])
        if not reply:
            return None
        record = job_from_hash(dict(zip(reply[::2], reply[1::2], strict=True)))
        return Claim(
            job_id=job_id, attempt=attempt, fence=record.fence, claim_id=claim_id, worker=worker, record=record
        )

    def renew(self, claim: Claim) -> Desired:
        """Renew the lease; the reply is what is wanted of the job. LOST: it is no longer yours."""
        return Desired(self._run("renew", [_key(claim.job_id)], [*_right(claim), self._times.lease]))

    def emit(self, claim: Claim, events: Sequence[str], first_seq: int) -> bool:
        """Append events (lines of JSON), numbered from `first_seq`; numbers already taken are skipped.

        A line that is no event, or is too long, is replaced by a note that says so.

        Returns:
            False when the job is no longer yours; nothing more was written.
        """
        keys = [_key(claim.job_id), f"rt:events:{claim.job_id}"]
        for start in range(0, len(events), _BATCH):
            lines = [_bounded_event(line) for line in events[start : start + _BATCH]]
            newest = {kind: at for at, line in enumerate(lines) if (kind := _watched(line))}
            watched = [item for pair in newest.items() for item in pair]
            if not self._run("emit", keys, [*_right(claim), first_seq + start, len(newest), *watched, *lines]):
                return False
        return True

    def logs_append(self, claim: Claim, lines: Sequence[str], first_seq: int) -> bool:
        """Append lines of the log, as `emit` does."""
        keys = [_key(claim.job_id), f"rt:logs:{claim.job_id}"]
        for start in range(0, len(lines), _BATCH):
            batch = [_encodable(line)[:_LONGEST_LINE] for line in lines[start : start + _BATCH]]
            if not self._run("logs_append", keys, [*_right(claim), first_seq + start, *batch]):
                return False
        return True

    def checkpoint(self, claim: Claim, step: int, artifact: str, best: str | None = None) -> bool:
        """Make a complete artifact the current checkpoint, `best` the one to keep beside it.

        False when the job is no longer yours.
        """
        pointer = json.dumps({"step": step, "artifact": artifact} | ({"best": best} if best else {}))
        return bool(self._run("checkpoint", [_key(claim.job_id)], [*_right(claim), pointer]))

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
        arguments = [*_right(claim), state, cause or "", _encodable(reason), json.dumps(result or {})]
        return _tickets(self._run("finish", [_key(claim.job_id)], arguments))

    def requeue(
        self, claim: Claim, cause: Cause | None, reason: str, delay_s: float = 0.0, halve_memory: bool = False
    ) -> Ticket | None:
        """Give a job back.

        With a cause (preempted, out_of_memory…) the next run is a new attempt; with None it never began and the attempt
        stays the same.

        Returns:
            The ticket to publish; None when the job is no longer yours, was to be cancelled or paused (and is so
            now), or is not due before `delay_s` seconds: then the reconciler publishes it.
        """
        arguments = [*_right(claim), cause or "", _encodable(reason), delay_s, int(halve_memory)]
        reply = self._run("requeue", [_key(claim.job_id)], arguments)
        return _tickets([reply])[0] if reply else None

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job: at once where it is not running, else desired CANCEL. Raises JobNotFound."""
        self._run("cancel", [_key(job_id)], [job_id])
        return self.get(job_id)

    def pause(self, job_id: str) -> JobRecord:
        """Set a job aside: at once where it is not running, else desired PAUSE. Raises JobNotFound."""
        self._run("pause", [_key(job_id)], [job_id])
        return self.get(job_id)

    def resume(self, job_id: str) -> list[Ticket]:
        """Put a PAUSED job back, or take back a pause not yet obeyed; returns tickets. Raises JobNotFound."""
        return self._tickets_of(job_id, "resume")

    def retry(self, job_id: str) -> list[Ticket]:
        """Run a FAILED or CANCELLED job again from its checkpoint, its dependency first where that did not succeed.

        Returns:
            Tickets to publish. None for a job in another state, which stays as it is.

        Raises:
            JobNotFound: no such job.
        """
        return self._tickets_of(job_id, "retry")

    def reap(self) -> list[Ticket]:
        """Judge leases: RUNNING becomes SUSPECT, SUSPECT goes back to the queue. Returns tickets to publish.

        Any number of reapers may call this, each every few seconds: less than `StoreTimes.gap`.
        """
        with reaching(self._url):
            server = self._redis.info("server")
        times = self._times
        return _tickets(self._run("reap", ["rt:reaper"], [times.lease, times.suspect, times.gap, server["run_id"]]))

    def due(self) -> list[JobRecord]:
        """Jobs that are QUEUED and may be claimed now: each should have a ticket (`queue_app.tickets.missing`)."""
        now = self.now()
        return [record for record in self.jobs([State.QUEUED], limit=10_000) if record.not_before <= now]

    # ---- What people read -------------------------------------------------------------------------------------------

    def events(self, job_id: str, after: str = "0", limit: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """Events behind stream id `after`, oldest first: (stream id, event with "attempt").

        Beside the job's own events (`jobs.events`) there are the store's, one for each transition:
        {"event": "state", "state", "cause", "reason", "worker", "time"}.
        """
        entries = self._stream(f"rt:events:{job_id}", after, limit)
        return [(at, {**json.loads(entry["event"]), "attempt": int(entry["attempt"])}) for at, entry in entries]

    def logs(self, job_id: str, after: str = "0", limit: int = 1000) -> list[tuple[str, dict[str, Any]]]:
        """Lines of the log behind stream id `after`, oldest first: (stream id, {"line", "attempt"})."""
        entries = self._stream(f"rt:logs:{job_id}", after, limit)
        return [(at, {"line": entry["line"], "attempt": int(entry["attempt"])}) for at, entry in entries]

    # ---- Workers ----------------------------------------------------------------------------------------------------

    def register(self, worker: WorkerRecord) -> None:
        """Make a worker known; its times are set here."""
        fields = asdict(worker) | {"queues": json.dumps(worker.queues), "versions": json.dumps(worker.versions)}
        pairs = [
            item
            for name, value in fields.items()
            if name not in {"name", "started_at", "seen_at"}
            for item in (name, str(value))
        ]
        self._run("register", [f"rt:worker:{worker.name}", "rt:workers"], [worker.name, self._times.worker, *pairs])

    def heartbeat(self, name: str, state: str, job_id: str = "") -> bool:
        """Say that a worker lives. False when the store does not know it (any more): register again."""
        return bool(self._run("heartbeat", [f"rt:worker:{name}"], [self._times.worker, state, job_id]))

    def unregister(self, name: str) -> None:
        """Forget a worker that leaves in order."""
        with reaching(self._url), self._redis.pipeline() as pipeline:
            pipeline.delete(f"rt:worker:{name}")
            pipeline.srem("rt:workers", name)
            pipeline.execute()

    def workers(self) -> list[WorkerRecord]:
        """Workers that live, by name."""
        with reaching(self._url):
            names = sorted(self._redis.smembers("rt:workers"))
        return [worker_from_hash(fields) for fields in self._hashes([f"rt:worker:{name}" for name in names])]

    # ---- Talking to Redis -------------------------------------------------------------------------------------------

    def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        with reaching(self._url):
            return self._scripts[script](keys, arguments)

    def _tickets_of(self, job_id: str, script: str) -> list[Ticket]:
        reply = self._run(script, [_key(job_id)], [job_id])
        if reply is None:
            raise JobNotFound(job_id)
        return _tickets(reply)

    def _records(self, ids: Sequence[str]) -> list[JobRecord]:
        return [job_from_hash(fields) for fields in self._hashes([_key(job_id) for job_id in ids])]

    def _hashes(self, keys: Sequence[str]) -> list[dict[str, str]]:
        """The hashes that exist, in one round trip."""
        with reaching(self._url), self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(key)
            return [fields for fields in pipeline.execute() if fields]

    def _stream(self, key: str, after: str, limit: int) -> list[tuple[str, dict[str, str]]]:
        with reaching(self._url):
            entries: list[tuple[str, dict[str, str]]] = self._redis.xrange(key, f"({after}", "+", limit)
        return entries


def _key(job_id: str) -> str:
    return f"rt:job:{job_id}"


def _right(claim: Claim) -> list[Any]:
    """What a script compares before it lets the caller write."""
    return [claim.job_id, claim.fence, claim.claim_id]


def _tickets(reply: Sequence[Sequence[str]]) -> list[Ticket]:
    return [
        Ticket(job_id=job_id, attempt=int(attempt), queue=queue, priority=int(priority))
        for job_id, attempt, queue, priority in reply
    ]


def _encodable(text: str) -> str:
    """Lone surrogates, which UTF-8 lacks, become question marks: a trainer's output may hold any byte."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _bounded_event(line: str) -> str:
    """The line where it is a JSON object of bearable length, else a note that stands for it: numbers must not shift."""
    line = _encodable(line)
    if len(line) <= _LONGEST_LINE and _kind(line):
        return line
    problem = "was too long" if len(line) > _LONGEST_LINE else "could not be read"
    return json.dumps({"event": "note", "time": 0.0, "level": "warning", "message": f"An event {problem}."})


def _watched(line: str) -> str:
    """The kind under which a job's record keeps the event; "" where it keeps none.

    Of losses it keeps those of held-out files, which are measured while a training goes on; the one of newer commits
    comes last and would hide them.
    """
    kind = _kind(line)
    hidden = kind == "evaluation" and json.loads(line).get("split", "held_out") != "held_out"
    return kind if kind in WATCHED_EVENTS and not hidden else ""


def _kind(line: str) -> str:
    """The kind of an event; "" where the line is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return ""
    return str(event.get("event", "")) if isinstance(event, dict) else ""
