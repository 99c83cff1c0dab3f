"""Puts a repository's two jobs into the queue: the dataset, and the training that depends on it.

Order: look whether store answers, carry the repository to the artifact store, record both jobs in one script, publish
their tickets. What fails before the record leaves no job behind; a ticket that could not be published is published by
the reconciler of whichever worker comes first.
"""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from backends.errors import RepotuneError
from jobs.repository import Resolved, lacks, write_bundle
from jobs.sources import full_name
from jobs.spec import Config, JobSpec, Kind, Source
from jobs.states import State
from queue_app.celery_app import make_app
from queue_app.plan import DATASET_NEED_BYTES, Plan, Request, config_of_dataset, dataset_queue
from queue_app.records import JobRecord, NewJob, Ticket, new_job_id
from queue_app.tickets import publish, ticket_of

if TYPE_CHECKING:
    from queue_app.artifacts import ArtifactStore
    from queue_app.connection import Connection
    from queue_app.store import JobStore


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Two jobs as they were recorded."""

    dataset: JobRecord
    training: JobRecord
    #: Whether an earlier job's dataset serves.
    dataset_reused: bool
    #: Whether --key named an earlier training.
    training_reused: bool
    #: Why the tickets could not be published; "" when they were.
    unpublished: str = ""


def submit(request: Request, plan: Plan, connection: "Connection", artifacts: "ArtifactStore") -> Submission:
    """Record both jobs and publish their tickets.

    Raises:
        StoreUnreachable: the store does not answer; nothing was recorded.
        ArtifactError: the artifact store does not answer; nothing was recorded.
    """
    connection.store.ping()
    bundles = [carry(source, artifacts, connection.settings.cache) for source in plan.sources.all]
    new_dataset, new_training = new_jobs(request, plan, bundles)
    key = _key_of_whole(new_dataset.idempotency_key or "", connection.store, artifacts)
    new = (replace(new_dataset, idempotency_key=key), new_training)
    records = connection.store.submit(new)
    dataset, training = records
    tickets = [ticket_of(job) for job in records if job.state == State.QUEUED]
    return Submission(
        dataset=dataset,
        training=training,
        dataset_reused=dataset.id != new[0].id,
        training_reused=training.id != new[1].id,
        unpublished=publish_tickets(connection.settings.broker_url, tickets),
    )


def carry(source: Resolved, artifacts: "ArtifactStore", cache: Path) -> str | None:
    """Put a local repository as a git bundle where every worker can fetch it; None for a URL, which they fetch."""
    if source.git_dir is None:
        return None
    # A shallow clone holds less of the same commit, and more of it later; a range may begin beside the commit.
    parts = [source.commit, *([source.since] if source.since else [])]
    if source.shallow:
        parts.append(f"shallow-{lacks(source.git_dir)[:16]}")
    path = f"bundles/{'-'.join(parts)}.bundle"
    if not artifacts.exists(path):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="bundle-") as folder:
            file = Path(folder) / f"{source.commit}.bundle"
            write_bundle(source.git_dir, source.commit, file, source.since)
            artifacts.put_file(file, path)
    return path


def new_jobs(request: Request, plan: Plan, bundles: Sequence[str | None]) -> tuple[NewJob, NewJob]:
    """The dataset job and the training job of a submission; `bundles` carry the repositories, in their order."""
    source = plan.sources.pinned(full_name, bundles)
    dataset_config = config_of_dataset(request).without_repositories()
    dataset = NewJob(
        id=new_job_id(Kind.DATASET),
        kind=Kind.DATASET,
        name=plan.name,
        device="any",
        queue=dataset_queue(),
        priority=request.priority,
        spec=JobSpec(kind=Kind.DATASET, name=plan.name, config=dataset_config, source=source).model_dump_json(),
        need_bytes=DATASET_NEED_BYTES,
        idempotency_key=dataset_key(source, dataset_config),
    )
    spec = JobSpec(
        kind=Kind.TRAINING,
        name=plan.name,
        device=request.device,
        config=request.config.without_repositories(),
        dataset_job=dataset.id,
    )
    training = NewJob(
        id=new_job_id(Kind.TRAINING),
        kind=Kind.TRAINING,
        name=plan.name,
        device=request.device,
        queue=plan.queue,
        priority=request.priority,
        spec=spec.model_dump_json(),
        need_bytes=plan.need_bytes,
        depends_on=dataset.id,
        idempotency_key=f"training-{request.key or secrets.token_hex(16)}",
    )
    return dataset, training


def dataset_key(source: Source, config: Config) -> str:
    """The same for the same repositories, commits, dataset section and tokenizer: such a dataset is built once."""
    told = {
        # A bundle's name tells a shallow clone from what it holds once it is deepened.
        "repositories": [one.model_dump(mode="json") for one in source.repositories],
        "dataset": config.dataset.model_dump(mode="json"),
        "model": config.model.model_dump(mode="json"),
    }
    return f"dataset-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}"


def _key_of_whole(key: str, store: "JobStore", artifacts: "ArtifactStore") -> str:
    """The key; one beside it, to build anew, where what was built under it is not in the artifact store (any more)."""
    candidate, number = key, 1
    while (known := store.by_key(candidate)) and known.state == State.SUCCEEDED:
        artifact = known.result.get("artifact")
        if artifact and artifacts.exists(artifact):
            break
        number += 1
        candidate = f"{key}-{number}"
    return candidate


def publish_tickets(broker_url: str, tickets: Sequence[Ticket]) -> str:
    """Publish tickets; returns why that failed, "" when it did not. The records stand either way."""
    try:
        app = make_app(broker_url)
        for ticket in tickets:
            publish(app, ticket)
    except RepotuneError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - kombu lets through whatever its transport raises
        return f"{type(error).__name__}: {error}"
    return ""
