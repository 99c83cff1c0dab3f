"""`repotune try`: what an adapter writes at a cursor, beside what its base writes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backends.devices import Device
from queue_app.commands.options import json_flag, print_json
from workers.options import adapter_flag, config_flag, device_flag, model_flag, read_config_of, set_flag

if TYPE_CHECKING:
    from jobs.context import JobContext


@click.command("try")
@adapter_flag
@click.option(
    "--prompt-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="File to complete in, named as its repository names it.",
)
@click.option("--line", type=int, metavar="N", help="Cursor at the end of line N. Default: the end of the file.")
@model_flag
@device_flag
@click.option(
    "--tokens", type=click.IntRange(1, 1024), default=64, show_default=True, help="New tokens of each side at most."
)
@config_flag
@set_flag
@json_flag
def try_(
    *,
    adapter_folder: Path,
    prompt_file: Path,
    line: int | None,
    model: str | None,
    device: str | None,
    tokens: int,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Complete at a cursor, base and adapter side by side.

    A model that fills in sees what stands behind the cursor, too. The likeliest token is taken each time, so the same
    file gives the same text again.
    """
    from jobs.context import StopRequested
    from jobs.published import open_published
    from jobs.trial import read_cursor
    from queue_app.settings import load_settings
    from workers.device_test import proven
    from workers.foreground import leave_interrupted, run_in_foreground
    from workers.machine import find_machine

    adapter = open_published(adapter_folder)
    configuration = read_config_of(adapter, config, settings, model)
    cursor = read_cursor(prompt_file, line)
    machine = proven(find_machine(Device(device) if device else None), load_settings().self_test)

    def job(context: "JobContext") -> dict[str, Any]:
        from workers.run import run_trial

        return run_trial(configuration, adapter, cursor, machine.device, context, tokens)

    try:
        result = run_in_foreground(job, Path(), to_stderr=as_json)
    except StopRequested:
        leave_interrupted("Stopped.")
        return
    if as_json:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    """Both sides, as they would stand in the file; text is never taken for markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(), Table()
    for side in ("base", "adapter"):
        table.add_column(side, ratio=1, overflow="fold")
    table.add_row(Text(result["base"].rstrip("\n")), Text(result["adapter"].rstrip("\n")))
    console.print(Text(f"{result['path']}, end of line {result['line']}", style="italic"))
    console.print(table)
