"""Says in a sentence why a job waits, worked out from the job, its dependency and the workers of this moment."""

from collections.abc import Sequence

from jobs.states import Cause, State
from queue_app.plan import takers, why_nobody
from queue_app.records import JobRecord, WorkerRecord
from queue_app.store import JobNotFound, JobStore


def explain(store: JobStore, job: JobRecord) -> str:
    """Why `job` is where it is; "" where its state says it all."""
    if job.state == State.WAITING and job.depends_on:
        return _why_dependency(store, job.depends_on)
    if job.state == State.QUEUED:
        return why_queued(job, store.workers(), store.now())
    if job.state == State.SUSPECT:
        return f"Worker {job.worker} has not been heard of; if it stays silent, the job goes back to the queue."
    if job.cause == Cause.DEPENDENCY_FAILED and job.depends_on:
        return f"{_sentence(job.reason)} {_reason_of(store, job.depends_on)}".rstrip()
    return job.reason


def _reason_of(store: JobStore, job_id: str) -> str:
    try:
        return store.get(job_id).reason
    except JobNotFound:
        return ""


def why_queued(job: JobRecord, workers: Sequence[WorkerRecord], now: float) -> str:
    """Why the queued `job` is not running, the time being `now` (the store's clock)."""
    before = f"{_sentence(job.reason)} " if job.reason else ""
    if job.not_before > now:
        return f"{before}No worker may take it for another {job.not_before - now:.0f} seconds."
    nobody = why_nobody(job.queue, workers)
    if nobody:
        return before + nobody
    able = takers(job.queue, workers)
    busy = [worker for worker in able if worker.state == "busy"]
    if len(busy) < len(able):
        return f"{before}Worker {next(w.name for w in able if w not in busy)} is idle and should take it in a moment."
    running = ", ".join(f"{worker.name} runs {worker.job_id}" for worker in busy)
    return f"{before}Every worker that serves the queue {job.queue} is busy ({running})."


def _why_dependency(store: JobStore, job_id: str) -> str:
    try:
        dependency = store.get(job_id)
    except JobNotFound:
        return f"It waits for {job_id}, of which nothing is known any more: cancel it and submit again."
    why = explain(store, dependency) if dependency.state in {State.WAITING, State.QUEUED} else ""
    return f"It waits for {job_id}, which is {dependency.state}. {why}".rstrip()


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
