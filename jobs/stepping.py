"""One optimizer step in two parts: the gradients over the rows of an effective batch, then one update of the adapter.

A step takes `micro_batch x accumulation` rows, a micro-batch at a time, and divides the summed loss once by the label
tokens of all of them: splitting a step differently changes the memory it needs and nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.loss import count_labels, make_batch
from jobs.optimizer import set_rate, trainable
from jobs.run import Run
from jobs.stages import throttled_progress


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What the gradients of a step, now in the adapter's parameters, came to."""

    #: Mean loss over the label tokens, nats.
    mean: float
    #: Global L2 norm before clipping.
    norm: float
    #: Label tokens.
    tokens: int


def gather_gradients(run: Run, rows: Sequence[Any]) -> Gradients:
    """Gradients of the mean loss of `rows`, clipped.

    Raises:
        RuntimeError: also where memory ran out, as the device tells it (`backends.hardware.is_out_of_memory`).
    """
    tokens = count_labels(rows)
    total = _backward(run, rows, tokens)
    parameters = trainable(run.loaded.model).values()
    norm = run.accelerator.clip_grad_norm_(parameters, run.config.optimization.max_grad_norm)
    return Gradients(mean=float(total) / max(tokens, 1), norm=float(norm), tokens=tokens)


def update(run: Run, gradients: Gradients, lr: float) -> None:
    """Move the adapter by the learning rate `lr`, unless the gradients are not finite.

    Raises:
        RuntimeError: as above; the gradients are still there.
    """
    set_rate(run.optimizer, lr)
    # The scaler must see overflowing gradients to lower its scale; it skips the update by itself.
    if run.accelerator.scaler is not None or (math.isfinite(gradients.mean) and math.isfinite(gradients.norm)):
        run.optimizer.step()
    run.optimizer.zero_grad()


def _backward(run: Run, rows: Sequence[Any], tokens: int) -> torch.Tensor:
    """Gather the gradients of the mean loss; returns the summed loss, fp32 on the device."""
    total = torch.zeros((), dtype=torch.float32, device=run.loaded.torch_device)
    micro_batch = run.execution.micro_batch
    tell = throttled_progress(run.context, "train", "steps", first=run.state.step, total=run.order.total_steps)
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        loss = run.loss(make_batch(part, run.loaded.torch_device))
        run.accelerator.backward(loss / max(tokens, 1))
        total += loss.detach()
        tell((start + len(part)) / len(rows))
    return total
