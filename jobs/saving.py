"""Checkpoints of a run: writes one of the step that it is at, and leaves with one.

A full disk ends no run: the last good checkpoint stands, training goes on, and the next one is tried when it is due.
"""

import json
import time
from pathlib import Path
from typing import NoReturn

from jobs import checkpoint, snapshot
from jobs.best import copy_best, kept_steps
from jobs.checkpoint import DiskFull
from jobs.context import StopRequested
from jobs.evaluation import HeldOut
from jobs.events import Checkpointed, StepDone
from jobs.run import Run

#: Folder of a run's checkpoints below its output.
CHECKPOINTS = "checkpoints"

#: What happened to the run, one JSON object a line; as its newest checkpoint knows it.
INCIDENTS = "incidents.jsonl"


def save_checkpoint(run: Run) -> bool:
    """Write all that a resumed run needs, then tell of it; False where the disk is full."""
    state, began = run.state, time.perf_counter()
    state.eta = run.eta.state()
    path = _written(run)
    if path is None:
        run.clock.failed(state.step)
        return False
    run.clock.saved(state.step)
    best = state.best is not None and state.best["step"] == state.step
    seconds = time.perf_counter() - began
    run.eta.saved(seconds)
    run.context.emit(Checkpointed(step=state.step, path=str(path), best=best, seconds=round(seconds, 3)))
    return True


def save_best(run: Run, measured: HeldOut) -> None:
    """Write a checkpoint that is kept for its held-out loss."""
    before = run.state.best
    run.state.best = {"step": measured.step, "loss": measured.loss}
    if not save_checkpoint(run):
        run.state.best = before


def leave(run: Run) -> NoReturn:
    """Save what is not saved yet and say that the job stopped because it was asked to.

    Raises:
        StopRequested: always.
    """
    if run.state.step > run.clock.step:
        save_checkpoint(run)
    raise StopRequested


def add_metrics(run: Run, done: StepDone) -> None:
    """Write the line of a step; on a full disk it waits, which is told once."""
    waited = run.metrics.waits
    run.metrics.append(done)
    if run.metrics.waits and not waited:
        run.happened(
            "disk_full",
            f"No room left on the disk for {run.metrics.file}: its lines wait until there is some, training goes on",
            level="warning",
        )


def write_incidents(run: Run) -> None:
    """Write what happened to the run so far beside its metrics."""
    lines = "".join(json.dumps(incident) + "\n" for incident in run.state.incidents)
    checkpoint.replace_file(run.context.output / INCIDENTS, lines.encode())


def _written(run: Run) -> Path | None:
    """The checkpoint's folder; None where the disk is full, even without all checkpoints that can be spared."""
    folder = run.context.output / CHECKPOINTS
    try:
        return _write(run, folder)
    except DiskFull:
        if checkpoint.make_room(folder, kept_steps(run)):
            try:
                return _write(run, folder)
            except DiskFull:
                pass
    newest = checkpoint.latest(folder)
    stands = f"the last one, of step {checkpoint.step_of(newest)}, stands" if newest else "there is none yet"
    run.happened(
        "disk_full",
        f"No room left on the disk for a checkpoint of step {run.state.step}: {stands}. Training goes on, and the "
        f"next one is tried when it is due: free some space on the disk that holds {folder}",
        level="warning",
    )
    return None


def _write(run: Run, folder: Path) -> Path:
    def write(into: Path) -> None:
        snapshot.write_snapshot(
            into,
            state=run.state,
            identity=run.identity,
            config=run.config,
            model=run.loaded.model,
            optimizer=run.optimizer,
            scaler=run.accelerator.scaler,
            metrics_so_far=run.metrics.content(),
            ema=run.ema,
        )
        copy_best(run, folder, into)

    with checkpoint.disk_full_as_sentence(folder):
        write_incidents(run)
        return checkpoint.save(folder, run.state.step, write, run.config.output.keep_checkpoints, kept_steps(run))
