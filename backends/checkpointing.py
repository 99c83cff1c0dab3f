"""Recomputed activations that see the random numbers of the first time, on every device.

`torch.utils.checkpoint` restores the generators of the CPU and of devices whose module has an `_initialized`. That of
Metal has none: dropout then draws fresh masks when activations are computed again, and gradients are silently wrong
(by 28 % at a rate of 0.05). The pair of contexts here restores a generator that torch forgets.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from backends.devices import Device


class Generator(Protocol):
    """Random numbers of a device, as the modules `torch`, `torch.cuda` and `torch.mps` offer them."""

    def get_rng_state(self) -> Any:
        """The state, a uint8 tensor on the CPU."""

    def set_rng_state(self, new_state: Any) -> None:
        """Put a state back."""


def arguments(device: Device) -> dict[str, Any]:
    """How to call `torch.utils.checkpoint.checkpoint` on `device`; also what transformers takes for it."""
    if device is not Device.MPS:
        return {"use_reentrant": False}
    import torch

    return {"use_reentrant": False, "context_fn": restoring(torch.mps)}


def restoring(generator: Generator) -> Callable[[], tuple["_Remember", "_Replay"]]:
    """A `context_fn`: contexts of the first computation and of its repetition, which draws the same numbers."""

    def contexts() -> tuple[_Remember, _Replay]:
        first = _Remember(generator)
        return first, _Replay(generator, first)

    return contexts


class _Remember:
    """Takes the generator's state on entry."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.state: Any = None

    def __enter__(self) -> None:
        self.state = self._generator.get_rng_state()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """The numbers drawn are drawn: the generator goes on behind them."""


class _Replay:
    """Puts the remembered state in place, and the state of now back at the end. Entered again, it does so again."""

    def __init__(self, generator: Generator, first: _Remember) -> None:
        self._generator = generator
        self._first = first
        self._now: Any = None

    def __enter__(self) -> None:
        self._now = self._generator.get_rng_state()
        self._generator.set_rng_state(self._first.state)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._generator.set_rng_state(self._now)
