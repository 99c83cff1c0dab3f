"""How a job ended: its exit code, its lines for people, its JSON."""

import shutil
import sys
from pathlib import Path
from typing import Any

import click

from backends.errors import ExitCode
from jobs.states import Cause, State
from queue_app.artifacts import ArtifactStore
from queue_app.records import JobRecord
from queue_app.settings import Settings
from queue_app.tables import result_lines

#: Keys of a training's result that are numbers to compare.
METRICS = (
    "loss_before",
    "loss_after",
    "perplexity_before",
    "perplexity_after",
    "future_loss_before",
    "future_loss_after",
    "future_interval",
    "steps",
    "tokens",
    "seconds",
)


def exit_code(job: JobRecord) -> ExitCode:
    """0 for a job that succeeded, else 1."""
    return ExitCode.OK if job.state == State.SUCCEEDED else ExitCode.JOB_FAILED


def result_folder(job: JobRecord, settings: Settings) -> Path | None:
    """The folder of the job's result on this machine; None where the artifact store is elsewhere, or there is none."""
    artifact = job.result.get("artifact")
    return open_artifacts(settings).local_path(artifact) if artifact else None


def open_artifacts(settings: Settings) -> ArtifactStore:
    """The artifact store that the settings name."""
    return ArtifactStore(settings.artifacts_url, settings.cache / "artifacts", settings.cache_gigabytes)


def result_as_json(job: JobRecord, settings: Settings) -> dict[str, Any]:
    """What scripts want to know of a job that ended: state, adapter on this machine, metrics."""
    folder = result_folder(job, settings)
    return {
        "job": job.id,
        "state": job.state,
        "cause": job.cause,
        "reason": job.reason,
        "adapter": _path(folder, job, "adapter"),
        "report": _path(folder, job, "report"),
        "artifact": job.result.get("artifact"),
        "metrics": {key: job.result[key] for key in METRICS if key in job.result},
    }


def say_result(job: JobRecord, settings: Settings, *, local: bool, to_stderr: bool) -> None:
    """Tell people how the job ended, where things are, and what to try next."""
    cause = f" ({job.cause})" if job.cause else ""
    reason = f": {job.reason}" if job.reason else "."
    click.echo(f"{job.id} {job.state}{cause}{reason}", err=to_stderr)
    for label, text in (*result_lines(job.result), *places(job, settings)):
        click.echo(f"  {label + ':':<15}{text}", err=to_stderr)
    click.echo("Try next:", err=to_stderr)
    for command in next_commands(job, local=local):
        click.echo(f"  {command}", err=to_stderr)


def next_commands(job: JobRecord, *, local: bool) -> list[str]:
    """Commands worth a try now."""
    flag = " --local" if local else ""
    repotune, submit_job = typed("repotune"), typed("submit-job")
    if job.state != State.SUCCEEDED:
        culprit = job.depends_on if job.cause == Cause.DEPENDENCY_FAILED else job.id
        report = [f"{repotune} pull {job.id}{flag} --to what-is-left"] if "report" in job.result else []
        return [f"{repotune} logs {culprit}{flag}", *report, f"{repotune} retry {job.id}{flag}"]
    if "adapter" not in job.result:
        return [f"{repotune} show {job.id}{flag}"]
    return [
        f"{repotune} show {job.id}{flag}",
        f"{repotune} pull {job.id}{flag} --to my-adapter",
        f"{submit_job} --repo path/to/your/repository{flag}",
    ]


def typed(program: str) -> str:
    """How to type one of our programs here: by its name where PATH leads to it, else by its path."""
    beside = Path(sys.argv[0]).with_name(program)
    found = shutil.which(program)
    if not beside.is_file() or (found and beside.samefile(found)):
        return program
    beside = beside.absolute()
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def places(job: JobRecord, settings: Settings) -> list[tuple[str, str]]:
    """Where adapter and report are on this machine."""
    folder = result_folder(job, settings)
    paths = [(name, _path(folder, job, name)) for name in ("adapter", "report")]
    return [(name, path) for name, path in paths if path]


def _path(folder: Path | None, job: JobRecord, name: str) -> str | None:
    return str(folder / job.result[name]) if folder and name in job.result else None
