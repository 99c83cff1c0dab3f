"""`repotune pull`: the adapter and the report of a job, as a folder."""

from pathlib import Path

import click

from queue_app.commands.options import job_argument, json_flag, local_flag, print_json, say


@click.command()
@job_argument
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    help="New or empty folder to put it into. Default: a folder named after the job.",
)
@local_flag
@json_flag
def pull(job_id: str, folder: Path | None, local: bool, as_json: bool) -> None:
    """Fetch the adapter, the metrics and the report of a job that succeeded; of a training that did not, the report."""
    from queue_app.connection import connect
    from queue_app.pulling import pull_result

    connection = connect(local=local)
    job = connection.store.get(job_id)
    folder = folder or Path(job.id)
    pull_result(job, connection.settings, folder)
    for name in ("adapter", "report"):
        if name in job.result:
            say(f"{name + ':':<9}{folder / job.result[name]}", as_json=as_json)
    if "adapter" not in job.result:
        say(f"result:  {folder}", as_json=as_json)
    if as_json:
        paths = {
            name: str((folder / job.result[name]).absolute()) for name in ("adapter", "report") if name in job.result
        }
        print_json({"job": job.id, "folder": str(folder.absolute()), **paths})
