"""Brings what a job needs onto this machine's disk: repository, dataset, checkpoint."""

import os
from pathlib import Path
from typing import Any

from jobs.mirror import mirrored
from jobs.repository import open_bundle
from jobs.spec import InvalidSpec, JobSpec, Kind, Pinned
from queue_app.artifacts import ArtifactStore
from queue_app.records import JobRecord
from queue_app.store import JobStore
from workers.assignment import Assignment
from workers.caches import mirrors
from workers.uploads import link_aside


def prepare(record: JobRecord, device: str, workdir: Path, store: JobStore, artifacts: ArtifactStore) -> Assignment:
    """Fetch the inputs of a claimed job.

    Raises:
        InvalidSpec: the spec cannot be run.
        RepositoryError: the repository or its commit cannot be had.
        ArtifactError: an input is not in the artifact store, or that is away.
    """
    spec = JobSpec.model_validate_json(record.spec)
    inputs: dict[str, Any] = {}
    if spec.kind is Kind.DATASET:
        if spec.source is None:
            raise InvalidSpec("A dataset job needs a source: submit it again with a repository.")
        inputs["git_dir"] = str(_repository(spec.source, workdir / "repository.git", artifacts))
        inputs["also"] = [
            str(_repository(one, workdir / f"repository-{number}.git", artifacts))
            for number, one in enumerate(spec.source.also, 2)
        ]
    else:
        # Linked aside: the cache may drop what it holds while a job of hours still reads it.
        inputs["dataset"] = str(link_aside(artifacts.fetch(_dataset(spec, record, store)), workdir / "dataset"))
        if record.checkpoint:
            step = f"step-{record.checkpoint['step']}"
            fetched = artifacts.fetch(record.checkpoint["artifact"])
            inputs["resume_from"] = str(link_aside(fetched, workdir / "resume" / step))
    return Assignment(
        spec=record.spec,
        device=device,
        parent_pid=os.getpid(),
        micro_batch_divisor=2**record.memory_halvings,
        **inputs,
    )


def _repository(source: Pinned, into: Path, artifacts: ArtifactStore) -> Path:
    if source.bundle is None:
        return mirrored(source.repository, source.commit, mirrors(), source.since)
    return open_bundle(artifacts.fetch(source.bundle), source.commit, into)


def _dataset(spec: JobSpec, record: JobRecord, store: JobStore) -> str:
    """Artifact path of the dataset. The store knows best which job stands in for the one that was submitted."""
    job_id = record.depends_on or spec.dataset_job
    if not job_id:
        raise InvalidSpec("A training job needs the result of a dataset job: submit it again.")
    artifact = store.get(job_id).result.get("artifact")
    if not artifact:
        raise InvalidSpec(f"The dataset job {job_id} has no result: retry it first.")
    return str(artifact)
