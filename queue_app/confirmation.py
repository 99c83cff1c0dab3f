"""Asks a person before a submission: what will be learned, by which model, with how much memory. Asks no script."""

import sys
from typing import TYPE_CHECKING

import click

from queue_app.plan_text import model_line, needs_lines, source_line

if TYPE_CHECKING:
    from queue_app.plan import Plan


def confirmed(plan: "Plan", *, yes: bool) -> bool:
    """Whether to go on: the answer of a person at a terminal; True where nobody sits at one, and with `yes`."""
    if yes or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    click.echo(f"Repository:  {source_line(plan)} at {plan.source.commit[:12]}")
    click.echo(f"Model:       {model_line(plan)}")
    for line in needs_lines(plan):
        click.echo(f"Memory:      {line}")
    if click.confirm("Start?", default=True):
        return True
    click.echo("Nothing was started.")
    return False
