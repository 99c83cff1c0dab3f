"""Held-out loss while a run trains: before the first step, after the last, and every so many steps between."""

import math
import time

from jobs.evaluation import HeldOut, evaluation_rows, measure
from jobs.events import Evaluated, StageStarted
from jobs.run import REMEDY, Diverged, Run
from jobs.saving import leave
from jobs.stages import throttled_progress


def measure_if_due(run: Run) -> HeldOut | None:
    """Measure where it is due and not done yet; None where not.

    Raises:
        Diverged: the loss is no usable number.
        StopRequested: asked to leave; a checkpoint was saved if there was anything to save.
    """
    if not _is_due(run):
        return None
    state = run.state
    run.context.emit(StageStarted(stage="evaluate", message=f"held-out loss after {state.step} steps"))
    began = time.perf_counter()
    measured = _measure(run)
    run.eta.evaluated(len(held_out_numbers(run)), time.perf_counter() - began)
    if not math.isfinite(measured.perplexity):
        raise Diverged(
            f"The held-out loss after {state.step} steps is no usable number ({measured.loss:.0f}): {REMEDY}"
        )
    state.measurements.append(measured)
    run.context.emit(
        Evaluated(step=state.step, loss=measured.loss, perplexity=measured.perplexity, tokens=measured.tokens)
    )
    return measured


def held_out_numbers(run: Run) -> list[int]:
    """Which rows of the held-out split are measured, the same ones every time."""
    return evaluation_rows(len(run.data.held_out), run.config.training.evaluation_rows)


def _is_due(run: Run) -> bool:
    state, every = run.state, run.config.training.evaluate_every_steps
    at_an_end = state.step == 0 or state.step >= run.order.total_steps
    due = at_an_end or (every is not None and state.step % every == 0)
    return due and all(measurement.step != state.step for measurement in state.measurements)


def _measure(run: Run) -> HeldOut:
    numbers = held_out_numbers(run)
    tell = throttled_progress(run.context, "evaluate", "rows", total=len(numbers))

    def on_progress(done: int, _total: int) -> None:
        tell(done)
        if run.context.should_stop():
            leave(run)

    return measure(
        run.loss,
        [run.data.held_out[number] for number in numbers],
        micro_batch=run.execution.micro_batch,
        device=run.loaded.torch_device,
        step=run.state.step,
        on_progress=on_progress,
    )
