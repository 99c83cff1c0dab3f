"""`repotune follow`: watch a job to its end."""

from typing import TYPE_CHECKING

import click

from queue_app.commands.options import finish, job_argument, json_flag, local_flag, print_json

if TYPE_CHECKING:
    from queue_app.connection import Connection


@click.command()
@job_argument
@local_flag
@json_flag
def follow(job_id: str, local: bool, as_json: bool) -> None:
    """Follow a job to its end: stage, step, loss, tokens/s, ETA.

    Ctrl-C stops following, never the job. Exits with 0 when the job succeeded, else 1.
    """
    from queue_app.connection import connect

    follow_to_the_end(job_id, connect(local=local), local=local, as_json=as_json)


def follow_to_the_end(job_id: str, connection: "Connection", *, local: bool, as_json: bool) -> None:
    """Follow, tell how the job ended, and leave with its exit code."""
    from queue_app.ending import exit_code, result_as_json, say_result
    from queue_app.follow import follow_pipeline, make_view

    connection.store.get(job_id)
    try:
        job = follow_pipeline(connection.store, job_id, make_view(to_stderr=as_json))
    except KeyboardInterrupt:
        flag = " --local" if local else ""
        click.echo(f"\nStopped following; the job goes on. Follow it again: repotune follow {job_id}{flag}", err=True)
        raise
    say_result(job, connection.settings, local=local, to_stderr=as_json)
    if as_json:
        print_json(result_as_json(job, connection.settings))
    finish(exit_code(job))
