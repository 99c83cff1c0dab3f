"""One optimizer step: forward and backward over the rows of an effective batch, then one update of the adapter.

A step takes `micro_batch x accumulation` rows, a micro-batch at a time, and divides the summed loss once by the label
tokens of all of them: splitting a step differently changes the memory it needs and nothing else.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from jobs.loss import count_labels, make_batch
from jobs.optimizer import set_rate, trainable
from jobs.run import Run, Step
from jobs.stages import throttled_progress


def optimizer_step(run: Run, rows: Sequence[Any], lr: float) -> Step:
    """Train on `rows` with the learning rate `lr`.

    Raises:
        RuntimeError: also where memory ran out, as the device tells it (`backends.hardware.is_out_of_memory`).
    """
    began = time.perf_counter()
    accelerator, optimizer = run.accelerator, run.optimizer
    tokens = count_labels(rows)
    total = _backward(run, rows, tokens)
    norm = accelerator.clip_grad_norm_(trainable(run.loaded.model).values(), run.config.optimization.max_grad_norm)
    mean, norm = float(total) / max(tokens, 1), float(norm)
    set_rate(optimizer, lr)
    # The scaler must see overflowing gradients to lower its scale; it skips the update by itself.
    if accelerator.scaler is not None or (math.isfinite(mean) and math.isfinite(norm)):
        optimizer.step()
    optimizer.zero_grad()
    return Step(loss=mean, grad_norm=norm, tokens=tokens, seconds=time.perf_counter() - began)


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
