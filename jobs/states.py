"""The states a job passes through, why it ended, and what its owner wants of it. Standard library only."""

from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life."""

    WAITING = "WAITING"  # for another job to succeed
    QUEUED = "QUEUED"  # a ticket is out; any worker that fits may claim it
    RUNNING = "RUNNING"  # claimed, and its lease is fresh
    SUSPECT = "SUSPECT"  # the lease ran out; its worker has a last chance to come back
    PAUSED = "PAUSED"  # checkpointed and set aside by its owner
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Cause(StrEnum):
    """Why a job ended, or why it went back to the queue."""

    USER_ERROR = "user_error"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_LOST = "worker_lost"
    STALLED = "stalled"
    MAX_WALL_TIME = "max_wall_time"
    CANCELLED = "cancelled"
    BAD_SPEC = "bad_spec"
    DEPENDENCY_FAILED = "dependency_failed"
    PREEMPTED = "preempted"  # never an end: the job went back to the queue from its checkpoint


class Desired(StrEnum):
    """What the store wants of a running job; the reply to every renewal of its lease."""

    RUN = "RUN"
    CANCEL = "CANCEL"
    PAUSE = "PAUSE"
    PREEMPT = "PREEMPT"
    LOST = "LOST"  # the job belongs to somebody else now: stop, and write nothing more
