"""Checkpoints of a run: writes one of the step that it is at, and leaves with one."""

import time
from pathlib import Path
from typing import NoReturn

from jobs import checkpoint, snapshot
from jobs.context import StopRequested
from jobs.events import Checkpointed
from jobs.run import Run

#: Folder of a run's checkpoints below its output.
CHECKPOINTS = "checkpoints"


def save_checkpoint(run: Run) -> None:
    """Write all that a resumed run needs, then tell of it."""
    began = time.perf_counter()
    run.state.eta = run.eta.state()

    def write(folder: Path) -> None:
        snapshot.write_snapshot(
            folder,
            state=run.state,
            identity=run.identity,
            config=run.config,
            model=run.loaded.model,
            optimizer=run.optimizer,
            scaler=run.accelerator.scaler,
            metrics_so_far=run.metrics.content(),
            ema=run.ema,
        )

    folder = run.context.output / CHECKPOINTS
    path = checkpoint.save(folder, run.state.step, write, run.config.output.keep_checkpoints)
    run.clock.saved(run.state.step)
    seconds = time.perf_counter() - began
    run.eta.saved(seconds)
    run.context.emit(Checkpointed(step=run.state.step, path=str(path), seconds=round(seconds, 3)))


def leave(run: Run) -> NoReturn:
    """Save what is not saved yet and say that the job stopped because it was asked to.

    Raises:
        StopRequested: always.
    """
    if run.state.step > run.clock.step:
        save_checkpoint(run)
    raise StopRequested
