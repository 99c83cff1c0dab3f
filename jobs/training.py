"""The training job: packed rows in, a LoRA adapter out.

`jobs.preparation` makes the run, `jobs.loop` trains, `jobs.results` writes what is left behind. See `jobs.order` for
the end of an epoch, `jobs.loss` for packing, `jobs.snapshot` for what a checkpoint holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from backends.contract import Backend
from backends.devices import Device
from backends.hardware import is_out_of_memory
from jobs import checkpoint, snapshot
from jobs.context import JobContext, OutputExists
from jobs.events import Note, StageStarted
from jobs.leaving import reported
from jobs.loop import run_steps
from jobs.preparation import prepare
from jobs.results import save_results
from jobs.run import OutOfMemory
from jobs.saving import CHECKPOINTS
from jobs.shards import DatasetError, PackedDataset, open_dataset, verify
from jobs.sinks import feeding
from jobs.snapshot import Identity, Snapshot
from jobs.spec import Config, InvalidSpec


def train(  # noqa: PLR0917 - callers name them
    config: Config,
    dataset: Path,
    backend: Backend,
    device: Device,
    context: JobContext,
    resume_from: Path | None = None,
    micro_batch_divisor: int = 1,
    open_backend: Callable[[str], Backend] | None = None,
) -> dict[str, Any]:
    """Train an adapter on a packed dataset.

    Writes `adapter/`, `checkpoints/step-N/`, `metrics.jsonl`, `report.html` and, last, `result.json` below
    `context.output`.

    Args:
        config: As it holds on `device` (`Config.for_device`).
        dataset: Folder that `jobs.dataset` wrote.
        backend: Holds the model.
        device: Where to train.
        context: Where to write, whom to tell, when to stop.
        resume_from: A checkpoint, or a folder of checkpoints of which the newest whole one is taken.
        micro_batch_divisor: Divides the micro-batch after a lack of memory; the effective batch stays.
        open_backend: Opens the backend of another kind on `device`: a run that began on that measures the gap.

    Returns:
        The result: adapter, report, steps, tokens, seconds, loss and perplexity before and after.

    Raises:
        OutputExists: the output holds a run already and `resume_from` is None.
        Diverged: the report shows the curve, the checkpoints stay.
        OutOfMemory: halve the micro-batch and resume.
        StopRequested: `context.should_stop()`; a checkpoint was saved if there was anything to save.
        RepotuneError: anything else that a person can act on.
    """
    with _errors_as_sentences(context.output):
        _refuse_existing(context.output, resume_from)
        _make_folder(context.output)
        data = _checked(dataset, context)
        identity = Identity.of(config, data.manifest)
        known = _find_snapshot(resume_from, identity, context) if resume_from else None
        run = prepare(
            config,
            data,
            identity=identity,
            backend=backend,
            device=device,
            context=context,
            known=known,
            micro_batch_divisor=micro_batch_divisor,
            open_backend=open_backend,
        )
        with feeding(run):
            with reported(run):
                run_steps(run)
            return save_results(run)


def _checked(dataset: Path, context: JobContext) -> PackedDataset:
    """The dataset, every file of it compared with its manifest.

    Raises:
        DatasetError: names the file that is cut or altered; or there is nothing to train on.
    """
    context.emit(StageStarted(stage="check dataset", message=str(dataset)))
    data = open_dataset(dataset)
    verify(dataset)
    if len(data.train) == 0:
        raise DatasetError(
            f"Dataset {dataset} has no rows to train on: build it of a repository with more code, or with a smaller "
            "dataset.sequence_length."
        )
    return data


def _find_snapshot(resume_from: Path, identity: Identity, context: JobContext) -> Snapshot | None:
    found, problems = snapshot.find_snapshot(resume_from, identity)
    for problem in problems:
        context.emit(Note(level="warning", message=problem))
    if found:
        context.emit(Note(message=f"Resumes after step {found.state.step} from {found.path}"))
    else:
        context.emit(Note(message=f"There is no checkpoint in {resume_from}: starts from the beginning"))
    return found


def _refuse_existing(output: Path, resume_from: Path | None) -> None:
    if resume_from is not None:
        return
    if (output / snapshot.ADAPTER).exists():
        raise OutputExists(f"{output} already holds an adapter: choose another output folder, or resume to go on.")
    if checkpoint.steps(output / CHECKPOINTS):
        raise OutputExists(f"{output} holds checkpoints of a run: resume to go on, or choose another output folder.")


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InvalidSpec(
            f"{output} cannot be made a folder ({error.strerror}): choose another output folder."
        ) from error


@contextmanager
def _errors_as_sentences(output: Path) -> Iterator[None]:
    """Tell a lack of memory and a full disk from defects."""
    try:
        with checkpoint.disk_full_as_sentence(output):
            yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            "The device ran out of memory: lower optimization.micro_batch or dataset.sequence_length, set "
            "training.gradient_checkpointing to on, or use a machine with more memory."
        ) from error
