"""One training run: what its parts share from the first step to the last, what a step comes to, and how it can fail."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.contract import LoadedModel
from backends.errors import RepotuneError
from jobs.context import JobContext
from jobs.ema import Ema
from jobs.eta import Eta
from jobs.evaluation import HeldOut
from jobs.events import Note
from jobs.execution import Execution
from jobs.expectation import Expectation
from jobs.incident import Incident
from jobs.loss import NextTokenLoss
from jobs.metrics import Metrics
from jobs.order import Order
from jobs.schedule import CheckpointClock
from jobs.shards import PackedDataset
from jobs.snapshot import Identity, TrainingState
from jobs.spec import Config
from jobs.stopping import Watchdog

#: What to do about a run that gives no finite numbers, to end a sentence with.
REMEDY = "lower optimization.learning_rate, or check that the model gives finite numbers on this device."


class OutOfMemory(RepotuneError):
    """The device has no memory left for a step."""


class Diverged(RepotuneError):
    """The loss or the gradient is no longer a number."""


@dataclass(frozen=True, kw_only=True)
class OldBase:
    """The base that a resumed run computed on before."""

    execution: Execution
    #: With the adapter of the checkpoint; None where it could not be measured.
    held_out: HeldOut | None
    #: Why it could not, as a clause.
    reason: str


@dataclass(kw_only=True)
class Run:
    """All of it is fixed but `state`, which each step changes, and `execution`, which may be replaced."""

    config: Config
    context: JobContext
    data: PackedDataset
    identity: Identity
    loaded: LoadedModel
    accelerator: Any
    optimizer: Any
    loss: NextTokenLoss
    order: Order
    metrics: Metrics
    clock: CheckpointClock
    state: TrainingState
    expectation: Expectation
    execution: Execution
    eta: Eta
    watchdog: Watchdog
    #: None where no average is asked for.
    ema: Ema | None
    #: That the last measurement of the held-out loss took.
    measuring_seconds: float = 0.0
    #: Until the gap to it is measured; None where the run is new or its checkpoint does not tell.
    old_base: OldBase | None = None
    #: The checkpoint that this process went on from.
    resumed_from: Path | None = None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model is what will be published: the average of the adapter where there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()

    def happened(
        self, kind: str, message: str, *, level: str = "info", numbers: Mapping[str, float] | None = None
    ) -> None:
        """Tell a person of something that the curve does not, and keep it; the arguments are those of `Incident`."""
        incident = Incident(kind=kind, step=self.state.step, message=message, numbers=dict(numbers or {}))
        self.state.incidents.append(incident.to_json())
        self.context.emit(Note(level=level, message=message))


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step came to."""

    #: Mean over the label tokens of its rows, nats.
    loss: float
    #: Global L2 norm before clipping.
    grad_norm: float
    #: Label tokens.
    tokens: int
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether the step moved the adapter."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)
