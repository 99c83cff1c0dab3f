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


def _further(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[dict[str, Any]]:
    return [_one_further(value) for value in values]


def _one_further(text: str) -> dict[str, Any]:
    """`REPO` or `REPO=WEIGHT`; what follows the last `=` is part of the name where it is no number."""
    name, separator, last = text.rpartition("=")
    try:
        weight = float(last)
    except ValueError:
        separator = ""
    if not separator:
        return {"repository": text}
    if not (name and 0 < weight < float("inf")):
        raise click.BadParameter(f"{text}: write REPO=WEIGHT with a weight above 0, or REPO alone to take all of it.")
    return {"repository": name, "weight": weight}


also_flag = click.option(
    "--also",
    multiple=True,
    metavar="REPO[=WEIGHT]",
    callback=_further,
    help="Learn this repository, too: all of it, or WEIGHT training tokens for one of --repo. May be given more than "
    "once; stands for dataset.also of the configuration.",
)


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
