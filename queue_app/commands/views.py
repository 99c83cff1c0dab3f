"""`repotune jobs`, `show`, `logs`, `workers`: what the store knows, for people and as JSON."""

import time

import click

from queue_app.commands.options import job_argument, json_flag, local_flag, print_json


@click.command()
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(
        ["WAITING", "QUEUED", "RUNNING", "SUSPECT", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED"], case_sensitive=False
    ),
    help="Only jobs in this state; may be given more than once. Default: all.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many jobs.")
@local_flag
@json_flag
def jobs(states: tuple[str, ...], limit: int, local: bool, as_json: bool) -> None:
    """List jobs, the newest first."""
    from jobs.states import State
    from queue_app import tables
    from queue_app.connection import connect

    records = connect(local=local).store.jobs([State(state) for state in states] or None, limit)
    if as_json:
        print_json({"jobs": [tables.as_json(record) for record in records]})
    elif records:
        tables.print_jobs(records)
    else:
        click.echo("No jobs. Submit one: submit-job --repo PATH_OR_URL")


@click.command()
@job_argument
@local_flag
@json_flag
def show(job_id: str, local: bool, as_json: bool) -> None:
    """Show one job, and why it waits or how it ended."""
    from queue_app import tables
    from queue_app.connection import connect
    from queue_app.ending import places
    from queue_app.explanation import explain

    connection = connect(local=local)
    job = connection.store.get(job_id)
    why = explain(connection.store, job)
    if as_json:
        print_json({**tables.as_json(job), "why": why})
        return
    for label, text in (*tables.job_lines(job, why), *places(job, connection.settings)):
        click.echo(f"{label + ':':<15}{text}")


@click.command()
@job_argument
@click.option("--follow", "-f", "following", is_flag=True, help="Go on until the job ends.")
@local_flag
@json_flag
def logs(job_id: str, following: bool, local: bool, as_json: bool) -> None:
    """Print what a job wrote: its own output and that of its libraries."""
    from jobs.states import TERMINAL
    from queue_app.connection import connect

    store = connect(local=local).store
    lines, after = [], "0"
    while True:
        ended = store.get(job_id).state in TERMINAL or not following
        while batch := store.logs(job_id, after):
            after = batch[-1][0]
            lines += [entry for _, entry in batch] if as_json else []
            for _, entry in batch:
                click.echo(entry["line"], err=as_json)
        if ended:
            break
        time.sleep(0.5)
    if as_json:
        print_json({"job": job_id, "lines": lines})


@click.command()
@local_flag
@json_flag
def workers(local: bool, as_json: bool) -> None:
    """List the workers that live: device, memory, the queues they serve, what they do."""
    from queue_app import tables
    from queue_app.connection import connect

    records = connect(local=local).store.workers()
    if as_json:
        print_json({"workers": [tables.as_json(record) for record in records]})
    elif records:
        tables.print_workers(records)
    else:
        click.echo("No worker is registered. Start one on the machine that shall train: device-worker")
