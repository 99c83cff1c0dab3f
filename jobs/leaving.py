"""A report for every end: of a run that was asked to leave, that diverged, or that failed of anything else."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from backends.errors import RepotuneError
from backends.throughput import Range, time_text
from jobs import picture, report
from jobs.ahead import ahead
from jobs.context import StopRequested
from jobs.events import Note
from jobs.metrics import FILE as METRICS
from jobs.metrics import read_metrics
from jobs.run import Run


@contextmanager
def reported(run: Run) -> Iterator[None]:
    """Whatever ends the run, a report tells how far it came and why it ended."""
    try:
        yield
    except StopRequested:
        _try_report(run, f"Stopped after {_place(run)}, as asked: its checkpoint lets it go on{_time_left(run)}.")
        raise
    except (RepotuneError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        _try_report(run, f"Ended after {_place(run)}: {reason}")
        raise


def write_pages(run: Run, result: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write the report of a finished run and, where matplotlib is installed, the picture of the curve.

    Args:
        run: At its end.
        result: What `result.json` will hold.
        evaluation: What `evaluation.json` holds; None where nothing was compared.

    Returns:
        What the result says of them: names of files, None for one that could not be made.
    """
    early = [one["message"] for one in run.state.incidents if one["kind"] == "stopped_early"]
    _write_report(run, result, evaluation, f"{early[-1]}." if early and result.get("ended") == "early" else "")
    return {"report": report.FILE, "curve": _drawn(run)}


def _drawn(run: Run) -> str | None:
    """The name of the picture; None, with the reason, where there is none: no training may be lost for it."""
    output = run.context.output
    title, steps = report.title(run.config.model.name), read_metrics(output / METRICS)
    try:
        drawn = picture.write_picture(output, title, steps, run.state.measurements)
    except Exception as error:  # noqa: BLE001 - whatever another library does
        run.context.emit(Note(level="warning", message=f"No {picture.FILE}: {error}"))
        return None
    if drawn is None:
        message = f"No {picture.FILE}: matplotlib is not installed; {report.FILE} shows the same curve"
        run.context.emit(Note(message=message))
    return drawn.name if drawn else None


def _write_report(run: Run, result: Mapping[str, Any], evaluation: Mapping[str, Any] | None, ending: str) -> None:
    facts = report.Facts(
        config=run.config,
        result=result,
        measurements=run.state.measurements,
        manifest=run.data.manifest,
        device=run.execution.device,
        notes=run.loaded.notes,
        execution=run.execution.to_json(),
        incidents=run.state.incidents,
        evaluation=evaluation,
        ending=ending,
    )
    report.write_report(run.context.output, facts)


def _try_report(run: Run, ending: str) -> None:
    """A report that cannot be written must not hide why the run ended."""
    state = run.state
    result = {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds}
    try:
        _write_report(run, result, None, ending)
    except (RepotuneError, OSError) as error:
        run.context.emit(Note(level="warning", message=f"The report could not be written: {error}"))


def _place(run: Run) -> str:
    return f"step {run.state.step:,} of {run.order.total_steps:,}"


def _time_left(run: Run) -> str:
    seconds = run.eta.left(ahead(run))
    return "" if seconds is None else f", for about {time_text(Range(seconds, seconds))}"
