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
from jobs.repository import Resolved, is_url, shown, write_bundle
from jobs.spec import Config, JobSpec, Kind, Source
from jobs.states import State
from queue_app.celery_app import make_app
from queue_app.plan import DATASET_NEED_BYTES, Plan, Request, dataset_queue
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
    bundle = carry(plan.source, artifacts, connection.settings.cache)
    new_dataset, new_training = new_jobs(request, plan, bundle)
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
    # A shallow clone holds less of the same commit.
    path = f"bundles/{source.commit}{'-shallow' if source.shallow else ''}.bundle"
    if not artifacts.exists(path):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="bundle-") as folder:
            file = Path(folder) / f"{source.commit}.bundle"
            write_bundle(source.git_dir, source.commit, file)
            artifacts.put_file(file, path)
    return path


def new_jobs(request: Request, plan: Plan, bundle: str | None) -> tuple[NewJob, NewJob]:
    """The dataset job and the training job of a submission."""
    source = Source(
        repository=_identity(request.repository), commit=plan.source.commit, since=plan.source.since, bundle=bundle
    )
    dataset_config = config_of_dataset(request)
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
        config=request.config,
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


def config_of_dataset(request: Request) -> Config:
    """The configuration of the dataset job: as it holds on the training's device, whoever builds the dataset."""
    from backends.devices import ANY, Device

    if request.device != ANY:
        return request.config.for_device(Device(request.device))
    return Config.model_validate(request.config.model_dump(exclude={device.value for device in Device}))


def dataset_key(source: Source, config: Config) -> str:
    """The same for the same repository, commit, dataset section and tokenizer: such a dataset is built once."""
    told = {
        "repository": source.repository,
        "commit": source.commit,
        "since": source.since,
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


def _identity(repository: str) -> str:
    """A URL as it is, a path in full: `.` means another repository in another folder."""
    return repository if is_url(repository) else str(Path(shown(repository)).expanduser().resolve())


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
