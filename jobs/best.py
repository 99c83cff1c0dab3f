"""The checkpoint of the best held-out loss: which it is, that it is kept, and its adapter as the result by choice."""

import shutil
from pathlib import Path

from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from jobs import checkpoint, snapshot
from jobs.checkpoint import CheckpointDamaged
from jobs.evaluation import HeldOut
from jobs.run import Run
from jobs.spec import OutputSection

_WEIGHTS = "adapter_model.safetensors"


def is_kept(section: OutputSection) -> bool:
    """Whether the best checkpoint is kept beside the newest ones."""
    return section.keep_best or section.publish == "best"


def is_best(run: Run, measured: HeldOut) -> bool:
    """Whether `measured` is of the best checkpoint so far. Before the first step there is none to keep."""
    best = run.state.best
    return is_kept(run.config.output) and run.state.step > 0 and (best is None or measured.loss < best["loss"])


def kept_steps(run: Run) -> frozenset[int]:
    """Steps whose checkpoints stay, however old."""
    best = run.state.best
    return frozenset((best["step"],)) if best and is_kept(run.config.output) else frozenset()


def copy_best(run: Run, checkpoints: Path, folder: Path) -> None:
    """Put the best adapter in a checkpoint of a later step, where it is what will be the result.

    Another worker that goes on from that checkpoint has no other one.
    """
    step = _other_step(run)
    adapter = None if step is None else _adapter(run, checkpoints, step)
    if adapter is not None:
        shutil.copytree(adapter, folder / snapshot.BEST)


def take_best(run: Run, checkpoints: Path) -> int:
    """Give the model the weights that are to be the result; returns the step that they are of."""
    step = _other_step(run)
    if step is None:
        return run.state.step
    adapter = _adapter(run, checkpoints, step)
    if adapter is None:
        run.happened(
            "best",
            f"The checkpoint of the best held-out loss, of step {step}, is gone: the adapter is that of the last step",
            level="warning",
        )
        return run.state.step
    set_peft_model_state_dict(run.loaded.model, load_file(adapter / _WEIGHTS))
    run.happened("best", f"The adapter is that of step {step}, which has the best held-out loss")
    return step


def _other_step(run: Run) -> int | None:
    """The step whose adapter is to be the result; None where that is the one that the run is at."""
    best = run.state.best
    if run.config.output.publish != "best" or best is None or best["step"] == run.state.step:
        return None
    return int(best["step"])


def _adapter(run: Run, checkpoints: Path, step: int) -> Path | None:
    """The adapter of the best step: of its own checkpoint, or as the one that this run went on from carries it."""
    own = checkpoints / f"step-{step}"
    candidates = [(own, snapshot.ADAPTER)]
    if run.resumed_from is not None:
        same = checkpoint.step_of(run.resumed_from) == step
        candidates.append((run.resumed_from, snapshot.ADAPTER if same else snapshot.BEST))
    for folder, name in candidates:
        try:
            checkpoint.verify(folder)
        except CheckpointDamaged:
            continue
        if (folder / name / _WEIGHTS).is_file():
            return folder / name
    return None
