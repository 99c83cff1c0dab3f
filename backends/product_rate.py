"""How many floating-point operations a second a device does in matrix products of a model's own sizes."""

import time
from typing import Any

from backends.shape import Shape

#: Rows of the inputs and of the weight at most: a product of this size is as fast per operation as a larger one, and
#: takes a few megabytes while a model is about to fill the memory.
_TOKENS = 256
_ROWS = 2048

#: The part of a training's time that measuring may take, and the time below which one product must do.
_PART = 0.005
_LEAST = 0.05


def measure_product_rate(shape: Shape, tokens: int, dtype: Any, device: Any, seconds: float = 2.0) -> float:
    """Floating-point operations a second, the best of the rounds: other programs can only slow one down.

    Args:
        shape: Of the model.
        tokens: Of one forward pass.
        dtype: `torch.dtype` of the products.
        device: `torch.device`.
        seconds: To spend at most. One round is always made, and one before it that does not count.
    """
    import torch

    # Not random: a training's stream of random numbers must not depend on how long was measured.
    rows = torch.full((min(tokens, _TOKENS), shape.hidden), 0.5, dtype=dtype, device=device)
    weight = torch.full((min(shape.intermediate, _ROWS), shape.hidden), 0.5, dtype=dtype, device=device)
    operations = 2.0 * rows.shape[0] * weight.numel()
    ended = time.perf_counter() + seconds
    _seconds_of(rows, weight, repeats=1)
    repeats = _repeats(rows, weight, seconds)
    best = _seconds_of(rows, weight, repeats)
    while time.perf_counter() + best < ended:
        best = min(best, _seconds_of(rows, weight, repeats))
    return float(operations * repeats / best)


def seconds_worth(training_seconds: float, most: float = 2.0) -> float:
    """How long to measure before a training of about this length; 0: one product must do."""
    worth = min(most, training_seconds * _PART)
    return worth if worth >= _LEAST else 0.0


def _repeats(rows: Any, weight: Any, seconds: float) -> int:
    """Products per round, so that a round is a tenth of the time and its clock does not matter."""
    once = max(_seconds_of(rows, weight, repeats=1), 1e-6)
    return max(1, min(1000, int(seconds / 10 / once)))


def _seconds_of(rows: Any, weight: Any, repeats: int) -> float:
    _wait(rows)
    began = time.perf_counter()
    for _ in range(repeats):
        rows @ weight.t()
    _wait(rows)
    return time.perf_counter() - began


def _wait(tensor: Any) -> None:
    """Products on GPUs run on after the call: reading a number waits for all of them."""
    tensor[:1, :1].sum().item()
