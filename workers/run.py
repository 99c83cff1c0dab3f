"""Runs one job on this machine: opens the backend, loads the tokenizer, calls the job. Loads torch.

Shared by the trainer process and by the foreground commands, so that both run the same code.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import mps
from backends.devices import Device
from jobs.context import JobContext
from jobs.events import StageStarted
from jobs.spec import Config, InvalidSpec, JobSpec, Kind, Source
from workers.assignment import Assignment
from workers.caches import dataset_cache

if TYPE_CHECKING:
    from jobs.published import Published
    from jobs.trial import Cursor


def run_assignment(assignment: Assignment, context: JobContext) -> dict[str, Any]:
    """Run the job of an assignment and return its result.

    Raises:
        StopRequested: the job was asked to stop, saved, and left.
        RepotuneError: what is wrong, in a sentence.
    """
    spec = JobSpec.model_validate_json(assignment.spec)
    device = Device(assignment.device)
    if spec.kind is Kind.DATASET:
        if spec.source is None or assignment.git_dir is None:
            raise InvalidSpec("A dataset job needs a source: submit it again with a repository.")
        git_dirs = [Path(assignment.git_dir), *map(Path, assignment.also)]
        return run_dataset(git_dirs, spec.source, spec.config.for_device(device), context)
    if assignment.dataset is None:
        raise InvalidSpec("A training job needs the result of a dataset job: submit it again.")
    return run_training(
        spec.config,
        Path(assignment.dataset),
        device,
        context,
        resume_from=Path(assignment.resume_from) if assignment.resume_from else None,
        micro_batch_divisor=assignment.micro_batch_divisor,
    )


def run_dataset(git_dirs: Sequence[Path], source: Source, config: Config, context: JobContext) -> dict[str, Any]:
    """Build the dataset of a source, whose repositories are in `git_dirs`, with the model's own tokenizer."""
    _prepare_process()
    from backends.models import read_tokenizer, tokenizer_folder
    from backends.tokenizer_files import light_tokenizer

    # A .gguf file is converted here once, which takes most of a minute.
    context.emit(StageStarted(stage="load tokenizer", message=config.model.name))
    folder = tokenizer_folder(config.model.name, config.model.revision)
    # Reading a tokenizer's file does not hold up Python, which imports what builds a dataset meanwhile.
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizer") as reader:
        light = reader.submit(light_tokenizer, folder)
        from jobs.dataset.build import build_dataset
        from jobs.dataset.tokens import tokenizer_key
    return build_dataset(
        git_dirs[0],
        source,
        config,
        light.result() or read_tokenizer(folder),
        context,
        also=git_dirs[1:],
        cache_folder=dataset_cache(),
        tokenizer_key=tokenizer_key(folder),
    )


def run_training(
    config: Config,
    dataset: Path,
    device: Device,
    context: JobContext,
    *,
    resume_from: Path | None = None,
    micro_batch_divisor: int = 1,
) -> dict[str, Any]:
    """Train the adapter on `device`, with the backend that the configuration names for it."""
    _prepare_process()
    from backends.registry import open_backend
    from jobs.training import train

    config = config.for_device(device)
    backend = open_backend(config.quantization.kind, device)
    return train(
        config,
        dataset,
        backend,
        device,
        context,
        resume_from=resume_from,
        micro_batch_divisor=micro_batch_divisor,
        open_backend=partial(open_backend, device=device),
    )


def run_evaluation(
    config: Config, dataset: Path, adapter: "Published | None", device: Device, context: JobContext
) -> dict[str, Any]:
    """Compare an adapter with its base on `device`, or measure the base alone."""
    _prepare_process()
    from backends.registry import open_backend
    from jobs.adapter_evaluation import evaluate

    config = config.for_device(device)
    return evaluate(config, dataset, adapter, open_backend(config.quantization.kind, device), device, context)


def run_trial(  # noqa: PLR0917 - callers name them
    config: Config, adapter: "Published", cursor: "Cursor", device: Device, context: JobContext, new_tokens: int
) -> dict[str, Any]:
    """Complete at a cursor on `device`, without the adapter and with it."""
    _prepare_process()
    from backends.registry import open_backend
    from jobs.trial import try_adapter

    config = config.for_device(device)
    backend = open_backend(config.quantization.kind, device)
    return try_adapter(config, adapter, cursor, backend, device, context, new_tokens=new_tokens)


def _prepare_process() -> None:
    """Set what libraries read once, when they are imported."""
    mps.set_environment()
    _wait_patiently()


def _wait_patiently() -> None:
    """Let OpenMP's threads spin only briefly while they wait for each other; heeded where torch is not loaded yet.

    By default they spin on, which wastes CPU seconds on a machine that does something else as well; sleeping at once
    (OMP_WAIT_POLICY=PASSIVE) is slow on an idle one. Measured by benchmarks/busy_machine.py.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
