"""What a running job says about itself: frozen values, one JSON object a line. Standard library only.

A job calls `context.emit(event)`; who listens is not its business.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """The base of every event; `time` is seconds since the epoch on the machine that runs the job."""

    kind: ClassVar[str] = "event"
    time: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """One line of JSON, the kind first. NaN and infinity, which JSON lacks, become null."""
        return json.dumps({"event": self.kind, **_finite(asdict(self))}, separators=(",", ":"), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """The job entered a stage, e.g. `fetch`, `tokenise`, `load model`, `train`, `evaluate`."""

    kind: ClassVar[str] = "stage"
    stage: str
    #: One sentence for people; may be empty.
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """How far the current stage is. Emitted at most a few times a second."""

    kind: ClassVar[str] = "progress"
    stage: str
    done: float
    #: None where the total is not known.
    total: float | None = None
    #: What is counted: files, tokens, steps, rows, bytes.
    unit: str = ""
    eta_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer step. The same fields are a line of `metrics.jsonl`."""

    kind: ClassVar[str] = "step"
    step: int
    total_steps: int
    #: Mean cross-entropy per predicted token, nats.
    loss: float
    lr: float
    #: Global L2 norm before clipping.
    grad_norm: float
    #: Tokens trained on since the job began, over all attempts.
    tokens: int
    tokens_per_second: float
    #: Memory of the device in use after the step, bytes.
    memory_bytes: int
    eta_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """Loss on rows that are never trained on, at a step."""

    kind: ClassVar[str] = "evaluation"
    step: int
    #: Mean cross-entropy per predicted token over the split, nats.
    loss: float
    #: exp(loss)
    perplexity: float
    tokens: int
    #: `held_out` or `future`.
    split: str = "held_out"


@dataclass(frozen=True, kw_only=True)
class Checkpointed(Event):
    """A checkpoint is complete on this machine's disk (its manifest is written)."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    #: Folder on the machine that runs the job.
    path: str
    #: Whether no checkpoint before it had a better held-out loss.
    best: bool = False
    #: That training stood still for it.
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Healed(Event):
    """Memory ran out in a step, which was done again in smaller parts: the same rows, the same effective batch."""

    kind: ClassVar[str] = "healed"
    step: int
    #: Rows of one forward pass from now on.
    micro_batch: int
    #: Forward passes per optimizer step from now on.
    accumulation: int
    #: One sentence for people.
    message: str


@dataclass(frozen=True, kw_only=True)
class Seam(Event):
    """A run went on with its base held in another way, e.g. on another device; the held-out loss tells the gap."""

    kind: ClassVar[str] = "seam"
    step: int
    #: How the base was held, e.g. `int8 on mps`.
    before: str
    #: How it is held now.
    after: str
    #: Nats; None where it could not be measured.
    loss_before: float | None = None
    loss_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scores(Event):
    """What an evaluation came to on one split: scores by name, of the base alone and with the adapter."""

    kind: ClassVar[str] = "scores"
    #: `held_out` or `future`.
    split: str
    base: dict[str, float]
    adapter: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """One line that a person should read: a choice and its reason, a warning."""

    kind: ClassVar[str] = "note"
    level: str = "info"
    message: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The job is done; `result` is what its record will carry."""

    kind: ClassVar[str] = "finished"
    result: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The job stopped because it was asked to; its last checkpoint is complete."""

    kind: ClassVar[str] = "stopped"
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The job could not go on. `cause` is a value of `jobs.states.Cause`."""

    kind: ClassVar[str] = "failed"
    cause: str
    #: One sentence that says what is wrong and what to do.
    message: str
    #: The traceback where there is one; shown only with --debug.
    details: str = ""
    #: Whether another attempt on this machine would end the same way, however little memory it takes.
    final: bool = False


_KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        StageStarted,
        Progress,
        StepDone,
        Evaluated,
        Checkpointed,
        Healed,
        Seam,
        Scores,
        Note,
        Finished,
        Stopped,
        Failed,
    )
}


def event_from_json(line: str) -> Event:
    """Read a line written by `Event.to_json`.

    Unknown fields are dropped, so that an old reader understands a newer job.

    Raises:
        ValueError: the line is not JSON, or names no known event.
    """
    data = json.loads(line)
    if not isinstance(data, dict) or data.get("event") not in _KINDS:
        msg = f"not an event: {line[:80]!r}"
        raise ValueError(msg)
    cls = _KINDS[data.pop("event")]
    known = {name: value for name, value in data.items() if name in cls.__dataclass_fields__}
    try:
        return cls(**known)
    except TypeError as error:
        raise ValueError(str(error)) from error
