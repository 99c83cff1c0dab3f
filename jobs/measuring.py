"""Held-out loss while a run trains: of the base model, every so many steps, and after the last.

The base is measured a few steps late, with the adapter switched off, which gives what step 0 would have given: a
person sees within seconds that the training moves, and not after the minutes that a measurement takes.
"""

import math
import time
from contextlib import nullcontext

from jobs.context import StopRequested
from jobs.evaluation import HeldOut, evaluation_rows, measure
from jobs.events import Evaluated, StageStarted
from jobs.healing import measure_that_fits
from jobs.run import REMEDY, Diverged, Run
from jobs.saving import leave
from jobs.stages import throttled_progress

#: Steps after which the base is measured at the latest; before them where another measurement is due.
BASE_AFTER = 20


def measure_if_due(run: Run) -> HeldOut | None:
    """Measure where it is due and not done yet, the base before anything else.

    Returns:
        The held-out loss after the step that the run is at; None where it is not due. That of the base is only in
        `run.state.measurements`, the first of them.

    Raises:
        Diverged: the loss is no usable number.
        NothingToHalve: memory ran out even for one row at a time.
        StopRequested: asked to leave; a checkpoint was saved if there was anything to save.
    """
    try:
        if _base_is_due(run):
            _measure_and_tell(run, 0)
        return _measure_and_tell(run, run.state.step) if _step_is_due(run) else None
    except StopRequested:
        # Not earlier: with the adapter switched off, a checkpoint would be without its optimizer's state.
        leave(run)


def is_due(run: Run) -> bool:
    """Whether anything is to be measured at the step that the run is at, and is not yet."""
    return _base_is_due(run) or _step_is_due(run)


def held_out_numbers(run: Run) -> list[int]:
    """Which rows of the held-out split are measured, the same ones every time."""
    return evaluation_rows(len(run.data.held_out), run.config.training.evaluation_rows)


def _base_is_due(run: Run) -> bool:
    return _has_none_of(run, 0) and (run.state.step >= BASE_AFTER or _step_is_due(run))


def _step_is_due(run: Run) -> bool:
    step, every = run.state.step, run.config.training.evaluate_every_steps
    due = step >= run.order.total_steps or (every is not None and step > 0 and step % every == 0)
    return due and _has_none_of(run, step)


def _has_none_of(run: Run, step: int) -> bool:
    return all(measured.step != step for measured in run.state.measurements)


def _measure_and_tell(run: Run, step: int) -> HeldOut:
    """Of the model as it is; of its base where `step` is 0."""
    what = f"after {step} steps" if step else "of the base model"
    run.context.emit(StageStarted(stage="evaluate", message=f"held-out loss {what}"))
    began = time.perf_counter()
    with nullcontext() if step else run.loaded.model.disable_adapter():
        measured = _measure(run, step)
    run.eta.evaluated(len(held_out_numbers(run)), time.perf_counter() - began)
    if not math.isfinite(measured.perplexity):
        raise Diverged(f"The held-out loss {what} is no usable number ({measured.loss:.0f}): {REMEDY}")
    run.state.measurements.append(measured)
    run.context.emit(Evaluated(step=step, loss=measured.loss, perplexity=measured.perplexity, tokens=measured.tokens))
    return measured


def _measure(run: Run, step: int) -> HeldOut:
    numbers = held_out_numbers(run)
    rows = [run.data.held_out[number] for number in numbers]
    tell = throttled_progress(run.context, "evaluate", "rows", total=len(numbers))

    def on_progress(done: int, _total: int) -> None:
        tell(done)
        if run.context.should_stop():
            raise StopRequested

    def with_micro_batch(micro_batch: int) -> HeldOut:
        return measure(
            run.loss,
            rows,
            micro_batch=micro_batch,
            device=run.loaded.torch_device,
            step=step,
            on_progress=on_progress,
        )

    return measure_that_fits(run, with_micro_batch)
