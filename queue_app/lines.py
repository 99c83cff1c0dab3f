"""Events of a job as lines for people."""

from collections.abc import Callable, Mapping
from typing import Any

from jobs.states import State
from queue_app.tables import duration, number

#: Between two lines of plain progress, on the job's own clock.
PLAIN_SECONDS = 5.0

Event = Mapping[str, Any]


def describe(event: Event) -> str | None:
    """An event as a line for people; None where it says nothing to them."""
    words = _WORDS.get(str(event.get("event")))
    return words(event) if words else None


def is_echo(event: Event) -> bool:
    """Progress in steps says again what the events of the steps say better."""
    return event.get("event") == "progress" and event.get("unit") == "steps"


class Pace:
    """Lets a line of its kind through every few seconds, by the job's own clock, which may jump."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def is_too_soon(self, event: Event, job: str = "") -> bool:
        """Whether one like it was let through a moment ago. What is the last of its kind never is."""
        if event.get("event") not in {"step", "progress"} or is_last(event):
            return False
        key, moment = f"{job} {event['event']} {event.get('stage', '')}", float(event.get("time") or 0)
        too_soon = key in self._last and 0 <= moment - self._last[key] < PLAIN_SECONDS
        if not too_soon:
            self._last[key] = moment
        return too_soon


def is_last(event: Event) -> bool:
    """Whether a step or progress is the last of its stage."""
    if event.get("event") == "step":
        return bool(event.get("step") == event.get("total_steps"))
    return bool(event.get("done") == event.get("total"))


def _step(event: Event) -> str:
    return (
        f"train  step {event.get('step')}/{event.get('total_steps')}  loss {number(event.get('loss'))}"
        f"  {number(event.get('tokens_per_second'))} tokens/s{_eta(event)}"
    )


def _progress(event: Event) -> str:
    done, total = event.get("done") or 0, event.get("total")
    amount = f"{done:,.0f}/{total:,.0f}" if total else f"{done:,.0f}"
    return f"{event.get('stage')}  {amount} {event.get('unit', '')}".rstrip() + _eta(event)


def _eta(event: Event) -> str:
    seconds = event.get("eta_seconds")
    if not isinstance(seconds, int | float) or (event.get("event") == "progress" and is_last(event)):
        return ""
    return f"  ETA {duration(float(seconds))}"


def _stage(event: Event) -> str:
    message = event.get("message") or ""
    return f"{event.get('stage')}{f': {message}' if message else ''}"


def _evaluation(event: Event) -> str:
    return (
        f"{_split(event)} loss {number(event.get('loss'))}, perplexity {number(event.get('perplexity'))} "
        f"at step {event.get('step')}"
    )


def _split(event: Event) -> str:
    """What was measured, in words."""
    return "newer commits:" if event.get("split") == "future" else "held-out"


def _checkpoint(event: Event) -> str:
    return f"checkpoint at step {event.get('step')}{', the best so far' if event.get('best') else ''}"


def _seam(event: Event) -> str:
    losses = event.get("loss_before"), event.get("loss_after")
    gap = f": held-out loss {number(losses[0])} there, {number(losses[1])} here" if None not in losses else ""
    return f"goes on at step {event.get('step')} on {event.get('after')}, begun on {event.get('before')}{gap}"


def _scores(event: Event) -> str:
    base, adapter = event.get("base") or {}, event.get("adapter") or {}
    both = [
        f"{name.replace('_', ' ')} {number(base[name])} -> {number(adapter[name])}" for name in base if name in adapter
    ]
    return f"{_split(event)} base -> adapter: {', '.join(both)}"


def _state(event: Event) -> str:
    worker = f" on {event['worker']}" if event.get("worker") and event.get("state") == State.RUNNING else ""
    reason = f": {event['reason']}" if event.get("reason") else ""
    return f"{event.get('state')}{worker}{reason}"


def _note(event: Event) -> str:
    level = event.get("level", "info")
    return f"{'' if level == 'info' else f'{level}: '}{event.get('message', '')}"


_WORDS: dict[str, Callable[[Event], str]] = {
    "step": _step,
    "progress": _progress,
    "stage": _stage,
    "evaluation": _evaluation,
    "state": _state,
    "note": _note,
    "checkpoint": _checkpoint,
    "healed": lambda event: f"step {event.get('step')}: {event.get('message', '')}",
    "seam": _seam,
    "scores": _scores,
    "stopped": lambda _event: "stopped, its last checkpoint is complete",
    "failed": lambda event: f"failed: {event.get('message', '')}",
}
