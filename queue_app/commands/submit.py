"""`repotune submit`, also `submit-job`: a repository in, a LoRA adapter out."""

import json
import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from queue_app.commands.options import finish, json_flag, print_json, say
from queue_app.commands.request import read_request, request_flags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from queue_app.connection import Connection
    from queue_app.plan import Plan, Request
    from queue_app.submission import Submission


@click.command()
@request_flags
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="0 to 9; 9 runs first.")
@click.option("--name", default="", help="What to call the job. Default: the repository's name.")
@click.option("--key", help="Two submissions with one key are one job. Default: every submission is a new one.")
@click.option("--local", is_flag=True, help="Run it here and now: an embedded broker, a worker of this machine.")
@click.option("--wait", is_flag=True, help="Follow the job to its end; Ctrl-C stops following, not the job.")
@click.option("--dry-run", is_flag=True, help="Print the plan (commit, size, need, queue, workers); start nothing.")
@click.option("--yes", is_flag=True, help="Start without asking. Only a person at a terminal is asked at all.")
@json_flag
def submit(*, local: bool, wait: bool, dry_run: bool, yes: bool, as_json: bool, **flags: Any) -> None:
    """Fine-tune a model on a git repository: a dataset job, then a training job that yields a LoRA adapter.

    The broker is the one that REPOTUNE_BROKER_URL names; with --local nothing needs to be set up.
    """
    from backends.errors import ExitCode
    from queue_app.confirmation import confirmed

    request = read_request(**flags)
    plan, probe = _checked(request, local=local, as_json=as_json)
    if dry_run:
        _dry_run(plan, local=local, as_json=as_json)
    elif not confirmed(plan, yes=yes or as_json):
        finish(ExitCode.INTERRUPTED)
    elif local:
        _submit_local(request, plan, probe, as_json=as_json)
    else:
        _submit(request, plan, wait=wait, as_json=as_json)


def _checked(request: "Request", *, local: bool, as_json: bool) -> "tuple[Plan, dict[str, Any]]":
    """What `validate` checks, too: a fail ends the command, a warning is told.

    Returns:
        The plan, and what was found on this machine where it was looked at.
    """
    from queue_app.preflight.checks import Preflight
    from queue_app.preflight.line import Place
    from queue_app.settings import load_settings

    checks = Preflight(request, load_settings(), Place.HERE if local else Place.QUEUE)
    plan, warnings = checks.to_plan()
    for line in warnings:
        say(line.for_people(), as_json=as_json)
    return plan, checks.probe


def _dry_run(plan: "Plan", *, local: bool, as_json: bool) -> None:
    from queue_app.connection import connect
    from queue_app.plan_text import plan_as_json, plan_lines
    from queue_app.store import StoreUnreachable

    try:
        workers = connect(local=local).store.workers()
    except StoreUnreachable:
        workers = None
    for label, text in plan_lines(plan, workers):
        say(f"{label + ':':<12}{text}", as_json=as_json)
    if as_json:
        print_json(plan_as_json(plan, workers))


def _submit(request: "Request", plan: "Plan", *, wait: bool, as_json: bool) -> None:
    from queue_app.connection import connect

    connection = connect()
    done = _record(request, plan, connection, as_json=as_json)
    _say_who_takes_it(done, connection, as_json=as_json)
    if warning := _artifacts_are_here_only(connection):
        say(warning, as_json=as_json)
    if wait:
        _follow(done.training.id, connection, as_json=as_json)
        return
    say(f"Follow it: repotune follow {done.training.id}", as_json=as_json)
    if as_json:
        print_json({"job": done.training.id, "dataset_job": done.dataset.id, "state": done.training.state})


def _submit_local(request: "Request", plan: "Plan", probe: dict[str, Any], *, as_json: bool) -> None:
    from queue_app.connection import connect_embedded

    with connect_embedded() as connection, _known_to_the_worker(probe):
        done = _record(request, plan, connection, as_json=as_json)
        finish_locally(done.training.id, connection, as_json=as_json)


@contextmanager
def _known_to_the_worker(probe: dict[str, Any]) -> "Iterator[None]":
    """Spare the worker of this machine another look, which imports torch once more."""
    variable = "REPOTUNE_PROBE"
    if not probe or variable in os.environ:
        yield
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
        json.dump(probe, file)
        file.flush()
        os.environ[variable] = file.name
        try:
            yield
        finally:
            del os.environ[variable]


def finish_locally(job_id: str, connection: "Connection", *, as_json: bool) -> None:
    """Run a job of the embedded broker to its end on this machine, tell how it ended, leave with its exit code."""
    from backends.errors import ExitCode
    from queue_app.ending import exit_code, result_as_json, say_result
    from queue_app.follow import make_view
    from queue_app.local_run import run_locally

    job, interrupted = run_locally(connection, job_id, make_view(to_stderr=as_json))
    say_result(job, connection.settings, local=True, to_stderr=as_json)
    if as_json:
        print_json(result_as_json(job, connection.settings))
    finish(ExitCode.INTERRUPTED if interrupted else exit_code(job))


def _record(request: "Request", plan: "Plan", connection: "Connection", *, as_json: bool) -> "Submission":
    from queue_app.ending import open_artifacts
    from queue_app.submission import submit as submit_jobs

    done = submit_jobs(request, plan, connection, open_artifacts(connection.settings))
    reused = " (built before, serves again)" if done.dataset_reused else ""
    say(f"{done.dataset.id}  dataset of {plan.name} at {plan.source.commit[:12]}{reused}", as_json=as_json)
    reused = " (submitted before with this key)" if done.training_reused else ""
    say(f"{done.training.id}  training, queue {done.training.queue}{reused}", as_json=as_json)
    if done.unpublished:
        say(
            f"The jobs are recorded, but their tickets could not be sent ({done.unpublished}); "
            "the next worker that looks will send them.",
            as_json=as_json,
        )
    return done


def _say_who_takes_it(done: "Submission", connection: "Connection", *, as_json: bool) -> None:
    from queue_app.plan import why_nobody

    nobody = why_nobody(done.training.queue, connection.store.workers())
    if nobody:
        say(f"{nobody} Until then the job waits.", as_json=as_json)


def _artifacts_are_here_only(connection: "Connection") -> str:
    """A warning where workers of other machines could not fetch what this one uploads; "" where they can."""
    from urllib.parse import urlsplit

    settings = connection.settings
    host = urlsplit(settings.broker_url).hostname
    if settings.artifacts or host in {None, "localhost", "127.0.0.1", "::1"}:
        return ""
    return (
        f"Artifacts go to {settings.artifacts_url} on this machine: workers elsewhere need REPOTUNE_ARTIFACTS, "
        "the same place for all (s3://, sftp://, a shared folder)."
    )


def _follow(job_id: str, connection: "Connection", *, as_json: bool) -> None:
    from queue_app.commands.follow import follow_to_the_end

    follow_to_the_end(job_id, connection, local=False, as_json=as_json)
