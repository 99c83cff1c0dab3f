"""`repotune evaluate`: base and adapter side by side, here and now. Every heavy import stands inside a function."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backends.devices import Device
from queue_app.commands.options import json_flag, print_json, say
from workers.options import config_flag, device_flag, model_flag, read_config, read_config_of, set_flag

if TYPE_CHECKING:
    from jobs.context import JobContext


@click.command()
@click.option(
    "--dataset",
    "dataset_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder that `repotune dataset` wrote.",
)
@click.option(
    "--adapter",
    "adapter_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of an adapter, or the folder that `train` or `pull` put it into. Default: none, only the base.",
)
@model_flag
@device_flag
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for evaluation.json.")
@config_flag
@set_flag
@json_flag
def evaluate(
    *,
    dataset_folder: Path,
    adapter_folder: Path | None,
    model: str | None,
    device: str | None,
    output: Path | None,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Measure base and adapter on held-out files and newer commits.

    Loss, perplexity, bits per byte; lines completed from what stands before them and, by models that fill in, from
    both sides; each with its 95 % interval, and by language. The section `evaluation` of the configuration says how
    much is measured, and for how many minutes at most.
    """
    from jobs.context import StopRequested
    from jobs.published import open_published
    from queue_app.settings import load_settings
    from workers.device_test import proven
    from workers.foreground import leave_interrupted, run_in_foreground
    from workers.machine import find_machine

    adapter = None if adapter_folder is None else open_published(adapter_folder)
    if adapter is None:
        configuration = read_config(config, settings, {"model.name": model})
    else:
        configuration = read_config_of(adapter, config, settings, model)
    machine = proven(find_machine(Device(device) if device else None), load_settings().self_test)
    say(f"Evaluating on {machine.device}, {machine.device_name}: {machine.reason}", as_json=as_json)

    def job(context: "JobContext") -> dict[str, Any]:
        from jobs.evaluate import write_evaluation
        from workers.run import run_evaluation

        found = run_evaluation(configuration, dataset_folder, adapter, machine.device, context)
        if output is not None:
            write_evaluation(output, found)
        return found

    try:
        result = run_in_foreground(job, output or Path(), to_stderr=as_json)
    except StopRequested:
        leave_interrupted("Stopped: nothing was written.")
        return
    if as_json:
        print_json(result)
    else:
        _show(result)


def _show(result: Mapping[str, Any]) -> None:
    from rich.console import Console

    from workers.evaluation_table import samples, tables

    console = Console()
    for table in tables(result):
        console.print(table)
    for sample in samples(result):
        console.print(sample)
