"""`repotune worker`, `dataset`, `train`: the commands that run job code on this machine.

The program finds them through the entry points in `pyproject.toml`. Every heavy import stands inside a function.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backends.devices import Device
from queue_app.commands.options import also_flag, finish, json_flag, local_flag, print_json, say
from workers.options import config_flag, device_flag, model_flag, read_config, set_flag

if TYPE_CHECKING:
    from jobs.context import JobContext
    from jobs.sources import Sources
    from jobs.spec import Config, Source


def _worker_name(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise click.BadParameter("use letters, digits, dots and dashes: it names a folder and a Celery node.")
    return value


@click.command()
@device_flag
@click.option("--name", callback=_worker_name, help="Name of this worker. Default: the name of the machine.")
@click.option("--memory-gib", type=click.FloatRange(min=0, min_open=True), help="Memory to offer, in place of all.")
@local_flag
@json_flag
def worker(device: str | None, name: str | None, memory_gib: float | None, local: bool, as_json: bool) -> None:
    """Serve the queue with this machine: take jobs that fit it, one at a time.

    A GPU is first compared with the CPU on a tiny model, and refused if it computes wrongly (REPOTUNE_SELF_TEST=never
    leaves that out).

    The first Ctrl-C (or SIGTERM) lets the running job save a checkpoint and go back to the queue; the second ends
    everything now.
    """
    from queue_app.connection import connect
    from workers.device_test import proven
    from workers.machine import describe, find_machine

    machine = find_machine(Device(device) if device else None, memory_gib)
    connection = connect(local=local)
    connection.store.ping()
    machine = proven(machine, connection.settings.self_test)
    say(describe(machine), as_json=as_json)
    from workers.worker import serve

    finish(serve(machine, name, connection, as_json=as_json))


@click.command()
@click.option(
    "--repo", default=".", metavar="PATH_OR_URL", show_default=True, help="Git repository: a folder or a URL."
)
@click.option("--ref", help="Branch, tag or commit to learn, or a range A..B of commits. Default: HEAD.")
@also_flag
@model_flag
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder for the dataset. With --sample it may be left out."
)
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Print N samples as the model will see them.")
@config_flag
@set_flag
@json_flag
def dataset(
    *,
    repo: str,
    ref: str | None,
    also: list[dict[str, Any]],
    model: str | None,
    output: Path | None,
    sample: int | None,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Build the dataset of a repository here and now, without a queue.

    Writes shards, samples.parquet, stats.json, report.html and, last, manifest.json. A dataset that is in the folder
    already stays if nothing has changed and is replaced otherwise, with only what is new worked out again. Ctrl-C
    leaves the folder as it was. With --sample and no --output nothing stays but the cache: it is a look, no more.
    """
    import tempfile

    from jobs.context import StopRequested
    from workers.foreground import leave_interrupted

    configuration = read_config(config, settings, {"dataset.also": also or None, "model.name": model})
    if output is None and (sample is None or as_json):
        raise click.UsageError("Name the folder for the dataset with --output, or look at it only with --sample N.")
    with tempfile.TemporaryDirectory(prefix="repotune-look-") as look:
        folder = output or Path(look) / "dataset"
        _refuse_filled(folder)
        try:
            result = _dataset(repo, ref, configuration, folder, as_json=as_json)
        except StopRequested:
            leave_interrupted("Stopped: no dataset was written; the next run goes on from here.")
            return
        if sample is not None and not as_json:
            _print_samples(folder, sample)
        if as_json:
            print_json({"dataset": str(folder), **result})


@click.command()
@click.option(
    "--dataset",
    "dataset_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder that `repotune dataset` wrote.",
)
@model_flag
@device_flag
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for adapter and report.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after so many steps. Default: the epochs decide.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint in the output folder.")
@config_flag
@set_flag
@json_flag
def train(
    *,
    dataset_folder: Path,
    model: str | None,
    device: str | None,
    output: Path,
    max_steps: int | None,
    resume: bool,
    config: Path | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train an adapter on a dataset here and now, without a queue.

    The first Ctrl-C saves a checkpoint and leaves (`--resume` goes on from it); the second ends at once.
    """
    from backends.calibration import FILE as CALIBRATION
    from jobs.context import JobContext, StopRequested
    from queue_app.settings import load_settings
    from workers.device_test import proven
    from workers.event_file import FILE as EVENTS
    from workers.foreground import leave_interrupted, run_in_foreground
    from workers.machine import find_machine

    configuration = read_config(config, settings, {"model.name": model, "training.max_steps": max_steps})
    machine = proven(find_machine(Device(device) if device else None), load_settings().self_test)
    say(f"Training on {machine.device}, {machine.device_name}: {machine.reason}", as_json=as_json)

    def job(context: JobContext) -> dict[str, Any]:
        from workers.run import run_training

        checkpoints = output / "checkpoints" if resume else None
        return run_training(configuration, dataset_folder, machine.device, context, resume_from=checkpoints)

    try:
        result = run_in_foreground(
            job,
            output,
            to_stderr=as_json,
            calibration=load_settings().home / CALIBRATION,
            events=output / EVENTS,
        )
    except StopRequested:
        leave_interrupted(f"Stopped; run the same command with --resume to go on from {output / 'checkpoints'}.")
        return
    say(f"Adapter in {output / result['adapter']}, report in {output / result['report']}.", as_json=as_json)
    if as_json:
        places = {"adapter": str(output / result["adapter"]), "report": str(output / result["report"])}
        print_json({**result, **places})


def _refuse_filled(folder: Path) -> None:
    from jobs.context import OutputExists
    from jobs.workplace import may_be_replaced

    if not may_be_replaced(folder):
        raise OutputExists(f"{folder} holds something that is no dataset: choose another --output, or remove it.")


def _dataset(repo: str, ref: str | None, config: "Config", output: Path, *, as_json: bool) -> dict[str, Any]:
    """Build the dataset, or find that it is there, and say so."""
    from jobs.context import JobContext
    from jobs.repository import shown
    from jobs.sources import full_name, resolve_all
    from workers.foreground import run_in_foreground

    sources = resolve_all(repo, ref, config.dataset.also)
    source = sources.pinned(lambda one: shown(full_name(one)))
    config = config.without_repositories()
    fresh = _fresh(output, sources, source, config)
    if fresh is not None:
        say(f"Dataset in {output} is up to date: nothing has changed since it was built.", as_json=as_json)
        return fresh

    def job(context: JobContext) -> dict[str, Any]:
        return _build(sources, source, config, context)

    result = run_in_foreground(job, output, to_stderr=as_json)
    say(f"Dataset in {output}: {_counts(result)}.", as_json=as_json)
    return result


def _fresh(output: Path, sources: "Sources", source: "Source", config: "Config") -> dict[str, Any] | None:
    """What the command says of a dataset that is there already and is the one asked for; None if it is not."""
    import json

    from jobs.dataset.identity import identity, is_fresh
    from jobs.shards import MANIFEST

    if not (output / MANIFEST).is_file():
        return None
    from backends.models import tokenizer_folder
    from jobs.dataset.tokens import tokenizer_key
    from jobs.mirror import place_of
    from workers.caches import mirrors

    key = tokenizer_key(tokenizer_folder(config.model.name, config.model.revision))
    git_dirs = [one.git_dir or place_of(one.repository, mirrors()) for one in sources.all]
    if not is_fresh(output, identity(source, config.dataset, key, git_dirs)):
        return None
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    rows = {f"{split}_{unit}": count for split, counts in manifest["splits"].items() for unit, count in counts.items()}
    return {"commit": source.commit, "up_to_date": True, **rows}


def _build(sources: "Sources", source: "Source", config: "Config", context: "JobContext") -> dict[str, Any]:
    """Build from the repositories on this machine, and from those fetched for the purpose."""
    from jobs.events import StageStarted
    from jobs.mirror import mirrored
    from jobs.repository import shown
    from workers.caches import mirrors
    from workers.run import run_dataset

    git_dirs = []
    for one in sources.all:
        if one.git_dir is None:
            context.emit(StageStarted(stage="fetch", message=f"{shown(one.repository)} at {one.commit[:12]}"))
        git_dirs.append(one.git_dir or mirrored(one.repository, one.commit, mirrors(), one.since))
    return run_dataset(git_dirs, source, config, context)


def _print_samples(output: Path, count: int) -> None:
    import json

    from rich.console import Console

    from jobs.dataset.viewer import print_examples

    print_examples(json.loads((output / "examples.json").read_text(encoding="utf-8")), count, Console())


def _counts(result: dict[str, Any]) -> str:
    return (
        f"{result['train_rows']} rows to train on, {result['held_out_rows']} held out, "
        f"{result['future_rows']} of newer commits, from {result['files']} files and {result['commits']} commits"
    )
