"""Copies the result of a job from the artifact store into a folder of the person's choice, whole or not at all."""

import shutil
import tempfile
from pathlib import Path

from backends.errors import ExitCode, RepotuneError
from jobs.context import OutputExists
from jobs.states import TERMINAL
from queue_app.artifacts import MANIFEST
from queue_app.ending import open_artifacts
from queue_app.records import JobRecord
from queue_app.settings import Settings


class NothingToPull(RepotuneError):
    """The job has no result."""

    exit_code = ExitCode.JOB_FAILED


def pull_result(job: JobRecord, settings: Settings, folder: Path) -> None:
    """Copy the result of `job` into `folder`, which must be new or empty.

    Raises:
        OutputExists: `folder` holds something.
        NothingToPull: the job has not succeeded, nor left a report.
        ArtifactError: the artifact store is away, or the result is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExists(f"{folder} exists already and is not empty: name a new folder with --to.")
    artifact = job.result.get("artifact")
    if job.state not in TERMINAL or not artifact:
        raise NothingToPull(
            f"{job.id} is {job.state}: only a job that SUCCEEDED has a result to pull, and a training that ended "
            "otherwise its report, if it came so far."
        )
    fetched = open_artifacts(settings).fetch(artifact)
    _copy(fetched, folder)


def _copy(source: Path, folder: Path) -> None:
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as beside:
            unfinished = Path(beside) / "result"
            shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns(MANIFEST))
            if folder.is_dir():
                folder.rmdir()
            unfinished.replace(folder)
    except OSError as error:
        raise NothingToPull(f"The result cannot be written to {folder} ({error.strerror or error}).") from error
