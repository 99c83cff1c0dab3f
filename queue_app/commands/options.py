"""Flags that many commands share, and how they print. Standard library, click and vocabulary only."""

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

json_flag = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object last on standard output; lines for people go to stderr.",
)

local_flag = click.option(
    "--local", is_flag=True, help="Ask the broker of `submit --local` runs instead of REPOTUNE_BROKER_URL."
)

job_argument = click.argument("job_id", metavar="JOB")


def print_json(data: Any) -> None:
    """One JSON object on one line of standard output."""
    click.echo(json.dumps(data, allow_nan=False, default=str))


def say(text: str, *, as_json: bool) -> None:
    """A line for people: beside `--json` it goes to standard error."""
    click.echo(text, err=as_json)


def finish(code: int) -> None:
    """Leave the command with an exit code."""
    sys.stdout.flush()
    click.get_current_context().exit(code)
