"""One training run: what its parts share from the first step to the last, what a step comes to, and how it can fail."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from backends.contract import LoadedModel
from backends.errors import RepotuneError
from jobs.context import JobContext
from jobs.ema import Ema
from jobs.eta import Eta
from jobs.execution import Execution
from jobs.expectation import Expectation
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

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model is what will be published: the average of the adapter where there is one."""
        return nullcontext() if self.ema is None else self.ema.applied()


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
