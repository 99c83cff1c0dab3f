"""int8 products on x86 CPUs without VNNI: by torch's fbgemm, whose AVX2 kernels want a packed copy of the weight.

Those kernels add pairs of products in 16 bits. Activations therefore have seven bits here: with eight, sums of large
values would be cut off silently. Packing takes as long as one product, so that the copies are kept, one for each
direction: 3 bytes a weight in all, where fp32 has 4.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_ENGINES = ("x86", "fbgemm")


@dataclass
class _Copies:
    """The packed forms of one weight, made when they are first needed."""

    version: int
    packed: dict[bool, Any] = field(default_factory=dict)


#: They die with the weight's codes.
_copies: Any = WeakTensorKeyDictionary()


def available() -> bool:
    """Whether this torch has the kernels."""
    return _engine() is not None and hasattr(torch.ops.quantized, "linear_dynamic")


def product(values: torch.Tensor, codes: torch.Tensor, *, back: bool) -> torch.Tensor:
    """Give values @ codes.T, or values @ codes for the product back.

    Args:
        values: fp32 [n, in], or [n, out] for the product back, each row's largest absolute value 1 (or 0).
        codes: int8 [out, in], the layer's own tensor: copies are kept as long as it lives and stays unchanged.
        back: Which of the two.
    """
    result: torch.Tensor = torch.ops.quantized.linear_dynamic(values, _packed(codes, back), True)  # noqa: FBT003
    return result


def _packed(codes: torch.Tensor, back: bool) -> Any:
    version = -1 if codes.is_inference() else codes._version  # noqa: SLF001 - it has no other name
    copies = _copies.get(codes)
    if copies is None or copies.version != version:
        copies = _copies[codes] = _Copies(version)
    if back not in copies.packed:
        copies.packed[back] = _pack(codes.detach().t().contiguous() if back else codes.detach())
    return copies.packed[back]


def _pack(codes: torch.Tensor) -> Any:
    with _chosen_engine(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that quantised tensors will move to another package
        quantised = torch._make_per_tensor_quantized_tensor(codes, 1.0, 0)  # noqa: SLF001 - the way from plain int8
        return torch.ops.quantized.linear_prepack(quantised, None)


def _engine() -> str | None:
    return next((name for name in _ENGINES if name in torch.backends.quantized.supported_engines), None)


@contextmanager
def _chosen_engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = _engine()
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
