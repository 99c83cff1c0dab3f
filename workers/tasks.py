"""The one Celery task: a ticket comes in, the job store says whether there is a job to it."""

import logging
import re
from typing import Any

from queue_app.celery_app import RUN_JOB
from queue_app.records import Claim, new_claim_id
from queue_app.store import StoreUnreachable
from workers.presence import Presence
from workers.runtime import Runtime
from workers.supervisor import Supervisor

_log = logging.getLogger(__name__)
_JOB_ID = re.compile(r"[a-z]{1,32}-[a-z0-9]{4,64}")
_CLAIM_TRIES = 10
_CLAIM_PAUSE_SECONDS = 3.0


def register(runtime: Runtime, presence: Presence) -> None:
    """Make the app know the task `run_job(job_id, attempt)`."""

    def run_job(job_id: Any = None, attempt: Any = None) -> None:
        take(runtime, presence, job_id, attempt)

    runtime.app.task(name=RUN_JOB)(run_job)


def take(runtime: Runtime, presence: Presence, job_id: Any, attempt: Any) -> None:
    """Claim the job of a ticket and run it. A ticket without a job behind it is a no-op.

    Anyone who reaches the broker can send a ticket, so its arguments are checked before use.
    """
    if not _is_ticket(job_id, attempt):
        _log.warning("a ticket that names no job was dropped")
        return
    claim = _claim(runtime, job_id, attempt)
    if claim is None:
        _log.info("ticket %s.%s is stale", job_id, attempt)
        return
    runtime.running.append(job_id)
    if runtime.gauges:
        runtime.gauges.began(job_id)
    presence.tell()
    try:
        Supervisor(runtime, claim).run()
    finally:
        runtime.running.clear()
        if runtime.gauges:
            runtime.gauges.ended()
        presence.tell()


def _is_ticket(job_id: Any, attempt: Any) -> bool:
    named = isinstance(job_id, str) and _JOB_ID.fullmatch(job_id) is not None
    return named and isinstance(attempt, int) and not isinstance(attempt, bool) and attempt >= 0


def _claim(runtime: Runtime, job_id: str, attempt: int) -> Claim | None:
    """Claim with one claim id, so that a claim whose answer was lost is found again."""
    claim_id = new_claim_id()
    for _ in range(_CLAIM_TRIES):
        if runtime.leaving.is_set():
            return None
        try:
            return runtime.store.claim(job_id, attempt, runtime.name, claim_id)
        except StoreUnreachable as error:
            _log.warning("the job store is away: %s", error)
            runtime.leaving.wait(_CLAIM_PAUSE_SECONDS)
    return None
