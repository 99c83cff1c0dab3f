"""What is left of a run at the step that it is at, counted: steps, rows, measurements."""

from jobs.eta import Ahead
from jobs.order import Order, Position
from jobs.run import Run

#: Base and adapter.
_SIDES = 2
#: The rest of a line, and a middle.
_PROMPTS_OF_A_PLACE = 2
#: Places lie anywhere in a row, half of it on the average; the line that is completed takes another quarter.
_ROWS_OF_A_PROMPT = 0.75


def ahead(run: Run) -> Ahead:
    """Of the run as it is now."""
    state, order, training = run.state, run.order, run.config.training
    rows = min(len(run.data.held_out), training.evaluation_rows)
    return Ahead(
        steps=max(0, order.total_steps - state.step),
        rows=max(0, total_rows(order) - rows_before(order, state.position)),
        measured_rows=rows * measurements_left(run),
        steps_between_saves=training.checkpoint_every_steps,
        seconds_between_saves=60 * training.checkpoint_every_minutes,
        compared_rows=compared_rows(run),
        trained_seconds=state.seconds,
        evaluation_minutes=run.config.evaluation.minutes,
    )


def compared_rows(run: Run) -> float:
    """What the evaluation at the end asks of the model if it has the time, in forward passes of a row."""
    section, data = run.config.evaluation, run.data
    measured = min(len(data.held_out), section.rows) + min(len(data.future), section.future_rows)
    return _SIDES * (measured + _PROMPTS_OF_A_PLACE * _ROWS_OF_A_PROMPT * section.prompts)


def total_rows(order: Order) -> int:
    """Rows that all steps train on, each as often as it is seen: the last step of an epoch may be smaller."""
    if not order.rows:
        return 0
    epochs, steps = divmod(order.total_steps, order.steps_per_epoch)
    return epochs * order.rows + min(steps * order.effective_batch, order.rows)


def rows_before(order: Order, position: Position) -> int:
    """Rows trained on at `position`."""
    return position.epoch * order.rows + position.index


def measurements_left(run: Run) -> int:
    """Measurements of the held-out loss that are due and not done yet: of the base, on the way, of the end."""
    every, total = run.config.training.evaluate_every_steps, run.order.total_steps
    due = {0, total} | (set(range(every, total, every)) if every else set())
    done = {measurement.step for measurement in run.state.measurements}
    return sum(step == 0 or step >= run.state.step for step in due - done)
