"""Frozen weights behind one shape: a product forward and a product back, whatever form the weights are held in.

The products are plain functions of tensors, outside autograd: the functions that use them (`backends.fused`, the layers
themselves) say what the backward pass needs, and nobody keeps a dequantised weight.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class FrozenWeight(Protocol):
    """A matrix W [out, in] that is never trained."""

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows @ W.T: [n, in] to a fresh, writable [n, out] in the type of `rows`."""

    def multiply_back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """Gradient @ W: [n, out] to [n, in], added to `onto` in place where it is given."""


@dataclass(frozen=True)
class PlainWeight:
    """Full precision, [out, in]."""

    weight: torch.Tensor

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """See `FrozenWeight`."""
        return rows @ self.weight.t()

    def multiply_back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """See `FrozenWeight`."""
        return gradient @ self.weight if onto is None else onto.addmm_(gradient, self.weight)


def frozen_weight(layer: Any) -> FrozenWeight | None:
    """The weight of a linear layer in this shape; None where the layer does not offer it (bitsandbytes' own layers)."""
    if hasattr(layer, "frozen_weight"):
        weight: FrozenWeight = layer.frozen_weight()
        return weight
    if type(layer) is nn.Linear:
        return PlainWeight(layer.weight)
    return None
