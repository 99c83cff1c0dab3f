"""Held-out loss: the mean over label tokens of rows that are never trained on, the same rows every time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from backends.errors import RepotuneError
from jobs.loss import NextTokenLoss, count_labels, make_batch


class NoHeldOutRows(RepotuneError):
    """The dataset has nothing to measure on."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One measurement."""

    step: int
    #: Mean cross-entropy per label token, nats; may be NaN where the model has diverged.
    loss: float
    #: Label tokens measured.
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinity where that is beyond a float."""
        return math.exp(self.loss) if self.loss < math.log(1e308) else math.inf


def evaluation_rows(available: int, wanted: int) -> list[int]:
    """Which held-out rows are measured: evenly spaced, because rows are packed file by file.

    Raises:
        NoHeldOutRows: there are none.
    """
    if available == 0:
        raise NoHeldOutRows(
            "The dataset has no held-out rows to measure on: raise dataset.held_out and build it again."
        )
    count = min(available, wanted)
    return [number * available // count for number in range(count)]


def measure(
    loss: NextTokenLoss,
    rows: Sequence[Any],
    *,
    micro_batch: int,
    device: torch.device,
    step: int,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> HeldOut:
    """The held-out loss of the model as it is; dropout off, no gradients, no random numbers drawn.

    Args:
        loss: Of the model to measure.
        rows: Held-out rows.
        micro_batch: Rows of one forward pass.
        device: Of the model.
        step: Optimizer steps done so far.
        on_progress: Told after each forward pass how many rows are done, of how many.
    """
    training = loss.model.training
    loss.model.eval()
    total = torch.zeros((), dtype=torch.float64)
    try:
        with torch.no_grad():
            for start in range(0, len(rows), micro_batch):
                part = rows[start : start + micro_batch]
                total += loss(make_batch(part, device)).cpu().double()
                on_progress(start + len(part), len(rows))
    finally:
        loss.model.train(training)
    tokens = count_labels(rows)
    if tokens == 0:
        raise NoHeldOutRows("The held-out rows have no token to predict: raise dataset.held_out and build it again.")
    return HeldOut(step=step, loss=float(total) / tokens, tokens=tokens)
