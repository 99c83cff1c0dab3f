"""Merges adapters into quantised weights: dequantise, add, quantise again, and say how much that rounded away.

Codes and scales from before are kept beside the layer, so that taking the adapter out again gives back every bit.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_KEPT = "_before_merge"
_ERROR = "_merge_error"


@dataclass(frozen=True)
class MergeReport:
    """What merging an adapter into a quantised model rounded away.

    Attributes:
        layers: Layers that hold a merged adapter.
        mean_error: Mean over layers of |stored - exact| / |exact|, Frobenius norms.
        worst_error: The largest of them.
    """

    layers: int
    mean_error: float
    worst_error: float


def is_quantized(base: Any) -> bool:
    """Whether a layer holds its weights in another form than `weight` shows, and can store new ones."""
    return hasattr(base, "store") and hasattr(base, "dequantize")


def merge(layer: Any, names: Sequence[str]) -> None:
    """Add the adapters `names` of a LoRA layer to its quantised base.

    Raises:
        ValueError: an adapter's update is not finite, or it is of a kind that cannot be merged here; the layer is as it
            was.
    """
    base = layer.get_base_layer()
    exact = base.dequantize()
    for name in names:
        exact = _with_adapter(layer, name, exact)
    if not torch.isfinite(exact).all():
        raise ValueError(f"The adapter {', '.join(names)} is not finite and cannot be merged: train it again.")
    layer.__dict__.setdefault(_KEPT, {key: value.clone() for key, value in base.state_dict().items()})
    layer.__dict__[_ERROR] = base.store(exact)
    layer.merged_adapters.extend(names)


def unmerge(layer: Any) -> None:
    """Put back the base as it was before the first merge."""
    kept = layer.__dict__.pop(_KEPT)
    base = layer.get_base_layer()
    # New tensors, as when they were stored: what is kept beside the old ones (`backends.int8.packed`) must not be used.
    for key, value in kept.items():
        now = getattr(base, key)
        back = value.to(now.device)
        setattr(base, key, nn.Parameter(back, requires_grad=False) if isinstance(now, nn.Parameter) else back)
    layer.__dict__.pop(_ERROR, None)
    layer.merged_adapters.clear()


def report(model: Any) -> MergeReport | None:
    """The rounding of all merged layers of a model; None where no adapter is merged into quantised weights."""
    errors = [module.__dict__[_ERROR] for module in model.modules() if _ERROR in module.__dict__]
    if not errors:
        return None
    return MergeReport(len(errors), statistics.fmean(errors), max(errors))


def _with_adapter(layer: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    if layer.lora_bias.get(name):
        raise ValueError(f"The adapter {name} trains biases, which quantised layers cannot take over: do not merge it.")
    update = weight + layer.get_delta_weight(name).to(weight.dtype)
    if name not in layer.lora_variant:
        return update
    factors = layer.row_factors(name)
    if factors is None or layer.merged:
        raise ValueError(f"The adapter {name} is of a kind that cannot be merged into quantised weights.")
    return update * factors.to(weight.dtype).unsqueeze(1)
