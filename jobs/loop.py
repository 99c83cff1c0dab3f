"""The loop of a run, read top to bottom. A resumed run enters it where its checkpoint left it.

Each step ends in a line of `metrics.jsonl`; checkpoints make the run resumable at any step, exactly.
"""

import time
from collections.abc import Callable

from backends.throughput import Range, time_text
from jobs.ahead import ahead
from jobs.best import is_best
from jobs.context import JobContext
from jobs.events import Note, StageStarted, StepDone
from jobs.healing import step_that_fits
from jobs.measuring import is_due, measure_if_due
from jobs.metrics import Speed
from jobs.order import Position
from jobs.run import REMEDY, Diverged, Run, Step
from jobs.saving import add_metrics, leave, save_best, save_checkpoint
from jobs.schedule import make_rate
from jobs.seam import measure_gap
from jobs.stopping import Verdict, suggestion

#: Skipped steps in a row after which a run is given up. With a gradient scaler the first steps of a healthy run
#: overflow until the scale fits: from 65536 down to 1 takes 16.
MAX_SKIPPED = 5
MAX_SKIPPED_WITH_SCALER = 20


def run_steps(run: Run) -> None:
    """Train to the last step, measuring and saving where it is due; the model is then what is to be published.

    Raises:
        Diverged: the numbers are no longer finite, or far worse than at the start.
        StopRequested: asked to leave; a checkpoint was saved if there was anything to save.
    """
    _train(run)
    if run.ema is not None:
        run.ema.settle()


def _train(run: Run) -> None:
    state, order, context = run.state, run.order, run.context
    rate = make_rate(run.config.optimization, order.total_steps)
    speed = Speed()
    measure_gap(run)
    if _has_ended(run):
        return
    _tell_start(run)
    for numbers, position in order.steps_from(state.position):
        lr = rate.at(state.step + 1)
        step = step_that_fits(run, [run.data.train[number] for number in numbers], lr)
        _count(run, step, position)
        speed.add(step.tokens, step.seconds)
        run.eta.step(len(numbers), step.seconds)
        run.expectation.step_done(len(numbers) * run.data.sequence_length, step.seconds, _teller(context))
        _tell_step(run, step, lr, speed)
        if not step.is_finite:
            _tell_skipped(run)
        _watch(run, run.watchdog.stepped(step.loss, _base_loss(run)))
        if context.should_stop():
            leave(run)
        if is_due(run) and run.clock.is_due_before(run.measuring_seconds):
            save_checkpoint(run)
        if _has_ended(run):
            return
        if state.step > run.clock.step and (run.clock.is_due(state.step) or state.step == order.total_steps):
            save_checkpoint(run)


def _has_ended(run: Run) -> bool:
    """Measure where it is due; whether early stopping ends the run here, or ended it before it was resumed."""
    had_stopped, began = run.watchdog.has_stopped, time.monotonic()
    with run.averaged():
        measured = measure_if_due(run)
    if measured is None:
        return had_stopped
    run.measuring_seconds = time.monotonic() - began
    verdict = run.watchdog.measured(measured, _base_loss(run))
    _watch(run, verdict)
    if is_best(run, measured):
        save_best(run, measured)
    if verdict is Verdict.STOP_EARLY and run.state.step < run.order.total_steps:
        _stop_early(run)
        return True
    return False


def _stop_early(run: Run) -> None:
    """Tell of it, and save the state that knows."""
    measurements = run.config.training.early_stopping
    message = (
        f"Stopped early after step {run.state.step} of {run.order.total_steps}: the held-out loss did not fall in "
        f"{measurements} measurements in a row"
    )
    run.happened("stopped_early", message)
    save_checkpoint(run)


def _watch(run: Run, verdict: Verdict) -> None:
    """Keep what the watchdog has seen, and end a run that has diverged."""
    run.state.stopping = run.watchdog.saved()
    if verdict is Verdict.DIVERGED:
        raise Diverged(
            f"The training diverged by step {run.state.step}: its loss is far above that of the model that it began "
            f"with. To try again, {suggestion(run.config)}."
        )


def _base_loss(run: Run) -> float | None:
    """Held-out loss of the model that the run began with; None where it is not measured yet."""
    return next((one.loss for one in run.state.measurements if one.step == 0), None)


def _tell_start(run: Run) -> None:
    """How much is left to do, and how long it will take where that can be told."""
    left, length = ahead(run), run.data.sequence_length
    run.context.emit(StageStarted(stage="train", message=f"{left.steps} optimizer steps to go"))
    seconds = run.eta.left(left)
    if seconds is None:
        sentence = run.expectation.time_sentence(left.rows * length, left.steps, left.measured_rows * length)
    else:
        sentence = f"About {time_text(Range(seconds, seconds))} to the end, from the steps before the checkpoint"
    if sentence:
        run.context.emit(Note(message=sentence))


def _count(run: Run, step: Step, position: Position) -> None:
    """Move the state, and the average of the adapter, on by one step."""
    state = run.state
    state.step += 1
    state.position = position
    state.tokens += step.tokens
    state.seconds += step.seconds
    state.skipped += not step.is_finite
    state.skipped_in_a_row = 0 if step.is_finite else state.skipped_in_a_row + 1
    if run.ema is not None and step.is_finite:
        run.ema.update()


def _tell_step(run: Run, step: Step, lr: float, speed: Speed) -> None:
    """Write the step's line of the metrics, and tell of it and of what came up meanwhile."""
    state, total = run.state, run.order.total_steps
    done = StepDone(
        step=state.step,
        total_steps=total,
        loss=step.loss,
        lr=lr,
        grad_norm=step.grad_norm,
        tokens=state.tokens,
        tokens_per_second=speed.tokens_per_second,
        memory_bytes=run.loaded.memory_in_use(),
        eta_seconds=run.eta.left(ahead(run)),
    )
    add_metrics(run, done)
    run.context.emit(done)
    for line in run.loaded.news():
        run.context.emit(Note(message=line))


def _tell_skipped(run: Run) -> None:
    """A step without finite numbers was skipped; several in a row end the run."""
    limit = MAX_SKIPPED if run.accelerator.scaler is None else MAX_SKIPPED_WITH_SCALER
    in_a_row, step = run.state.skipped_in_a_row, run.state.step
    if in_a_row >= limit:
        raise Diverged(
            f"Loss or gradient was not a finite number {in_a_row} steps in a row, up to step {step}: {REMEDY}"
        )
    message = f"Step {step} was skipped: its loss or gradient is not a finite number ({in_a_row} in a row)"
    run.context.emit(Note(level="warning", message=message))


def _teller(context: JobContext) -> Callable[[str], None]:
    return lambda sentence: context.emit(Note(message=sentence))
