"""`repotune cancel`, `retry`: say what shall become of a job."""

import click

from queue_app.commands.options import job_argument, json_flag, local_flag, print_json, say


@click.command()
@job_argument
@local_flag
@json_flag
def cancel(job_id: str, local: bool, as_json: bool) -> None:
    """Cancel a job. A running one saves a checkpoint and leaves; `repotune retry` goes on from there."""
    from jobs.states import State
    from queue_app import tables
    from queue_app.connection import connect

    job = connect(local=local).store.cancel(job_id)
    if job.state == State.CANCELLED:
        say(f"{job.id} is cancelled.", as_json=as_json)
    elif job.state in {State.RUNNING, State.SUSPECT}:
        say(f"{job.id} was asked to stop; it saves a checkpoint first.", as_json=as_json)
    else:
        say(f"{job.id} is {job.state}: there is nothing to cancel.", as_json=as_json)
    if as_json:
        print_json(tables.as_json(job))


@click.command()
@job_argument
@local_flag
@json_flag
def retry(job_id: str, local: bool, as_json: bool) -> None:
    """Queue a failed or cancelled job again; it goes on from its last checkpoint.

    With --local it runs here and now, as `submit --local` does.
    """
    if local:
        _retry_here(job_id, as_json=as_json)
        return
    from jobs.states import State
    from queue_app import tables
    from queue_app.connection import connect
    from queue_app.submission import publish_tickets

    connection = connect()
    before = connection.store.get(job_id)
    tickets = connection.store.retry(job_id)
    problem = publish_tickets(connection.settings.broker_url, tickets)
    job = connection.store.get(job_id)
    if before.state in {State.FAILED, State.CANCELLED}:
        start = f" It goes on from step {job.checkpoint['step']}." if job.checkpoint else ""
        say(f"{job.id} is {job.state} again, attempt {job.attempt}.{start}", as_json=as_json)
    else:
        say(f"{job.id} is {job.state}: only a failed or cancelled job is retried.", as_json=as_json)
    if problem:
        say(f"Its ticket could not be sent ({problem}); the next worker that looks will send it.", as_json=as_json)
    if as_json:
        print_json(tables.as_json(job))


def _retry_here(job_id: str, *, as_json: bool) -> None:
    from queue_app.commands.submit import finish_locally
    from queue_app.connection import connect_embedded
    from queue_app.submission import publish_tickets

    with connect_embedded() as connection:
        publish_tickets(connection.settings.broker_url, connection.store.retry(job_id))
        finish_locally(job_id, connection, as_json=as_json)
