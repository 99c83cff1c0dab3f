"""A moving average of the adapter: what is measured, saved and published where `training.ema` asks for it.

Training itself goes on with the weights as they are trained. A checkpoint's `adapter/` is the average, so that whoever
takes it gets what was measured; the trained weights lie beside it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file

from jobs.checkpoint import CheckpointDamaged
from jobs.optimizer import trainable

#: Beside the adapter in a checkpoint: the weights as trained, and how many steps went into the average.
FILE = "ema.safetensors"
_UPDATES = "updates"


class Ema:
    """The average of one model's adapter, in fp32 on the adapter's device."""

    def __init__(self, model: Any, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._parameters = trainable(model)
        #: The weights that are not in the model: the average, and while it is applied the trained ones.
        self._aside = {name: _copy(parameter) for name, parameter in self._parameters.items()}
        self._is_applied = False

    @classmethod
    def of(cls, model: Any, decay: float | None) -> Self | None:
        """The average of `model`, which begins with its adapter as it is now; None where `decay` is None."""
        return None if decay is None else cls(model, decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step in.

        The first steps weigh more than the decay says, or the average would long be that of an adapter which does
        nothing: (1 + n) / (10 + n) after n steps, as TensorFlow's average has it.
        """
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        for name, parameter in self._parameters.items():
            self._aside[name].lerp_(parameter.detach().float(), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model is the average; inside another one, nothing changes."""
        if self._is_applied:
            yield
            return
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def settle(self) -> None:
        """Let the model be the average from now on: nothing is trained any more."""
        if not self._is_applied:
            self._swap()

    def save(self, folder: Path) -> None:
        """Write the trained weights to `folder`; those of the average are the adapter's own files."""
        trained = self._aside if self._is_applied else self._parameters
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
        save_file(tensors | {_UPDATES: torch.tensor(self._updates)}, folder / FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, with the adapter of the same checkpoint in the model.

        Raises:
            CheckpointDamaged: there is nothing, or it is of other weights.
        """
        file = folder / FILE
        trained = load_file(file) if file.is_file() else {}
        if trained.keys() != self._parameters.keys() | {_UPDATES}:
            raise CheckpointDamaged(f"Checkpoint {folder} holds no trained weights of this adapter beside its average.")
        self._updates = int(trained.pop(_UPDATES))
        for name, parameter in self._parameters.items():
            self._aside[name] = _copy(parameter)
            parameter.copy_(trained[name])

    def _swap(self) -> None:
        self._is_applied = not self._is_applied
        for name, parameter in self._parameters.items():
            self._aside[name], parameter.data = parameter.data, self._aside[name].to(parameter.dtype)


def _copy(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.detach().clone().float()
