"""A frozen linear layer with int8 weights: one byte a weight, one scale per group of weights of a row."""

from dataclasses import dataclass

import torch
from torch import nn

from backends.frozen import FrozenWeight
from backends.int8.integer import IntegerWeight
from backends.int8.quantized import QuantizedLinear
from backends.int8.tiles import TiledWeight

GROUP_SIZES = (32, 64, 128, 256)
#: Codes are in [-127, 127]: symmetric, so that zero is exact and the sign costs nothing.
LARGEST_CODE = 127

_SMALLEST_SCALE = 2.0**-24  # of fp16: a group of zeros has some scale to be divided by
_ROW_UNIT = 64  # columns of a tile where no group says how many


@dataclass(frozen=True)
class Int8Weight(TiledWeight):
    """Codes, int8 [out, in], scales [out, groups], and the weights of a row that share one (None: all of them)."""

    codes: torch.Tensor
    scales: torch.Tensor
    group_size: int | None

    @property
    def unit(self) -> int:
        """See `TiledWeight`."""
        return self.group_size or _ROW_UNIT

    @property
    def shape(self) -> tuple[int, int]:
        """See `TiledWeight`."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """See `TiledWeight`."""
        return self.codes.device

    def write(self, rows: slice, columns: slice, out: torch.Tensor) -> None:
        """See `TiledWeight`."""
        codes, size = self.codes[rows, columns], self.group_size
        # Products are rounded once: they are exact in fp32, and bf16 could not hold a scale.
        scales = self.scales[rows] if out.dtype is torch.float16 else self.scales[rows].float()
        if size is None:
            _scale(codes, scales, out)
            return
        scales = scales[:, columns.start // size : -(-columns.stop // size)]
        whole = codes.shape[1] // size * size
        if whole:
            groups = scales[:, : whole // size, None]
            _scale(codes[:, :whole].unflatten(1, (-1, size)), groups, out[:, :whole].unflatten(1, (-1, size)))
        if whole < codes.shape[1]:
            _scale(codes[:, whole:], scales[:, -1:], out[:, whole:])


def _scale(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    if out.device.type == "cpu":  # in two steps: torch would make a copy of the codes as floats, in fresh memory
        out.copy_(codes).mul_(scales)
    else:
        torch.mul(codes, scales, out=out)


class Int8Linear(QuantizedLinear):
    """See `QuantizedLinear`.

    Attributes:
        weight: Codes, int8 [out_features, in_features].
        scales: [out_features, ceil(in_features / group_size)], fp16 (fp32 where a weight is beyond fp16's range).
    """

    bits = 8
    group_sizes = (*GROUP_SIZES, None)
    computes = ("exact", "int8")

    scales: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int | None = 128,
        compute: str = "exact",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features, bias, group_size=group_size, compute=compute, dtype=dtype, device=device
        )

    @classmethod
    def check(cls, group_size: int | None, compute: str = "exact") -> None:
        """See `QuantizedLinear`."""
        super().check(group_size, compute)
        if compute == "int8" and group_size is not None:
            raise ValueError("Products in int8 need one scale per row: set group_size to None.")

    @classmethod
    def blank(
        cls, outputs: int, inputs: int, group_size: int | None, device: torch.device | str | None
    ) -> dict[str, torch.Tensor]:
        """See `QuantizedLinear`."""
        groups = 1 if group_size is None else -(-inputs // group_size)
        return {
            "weight": torch.zeros(outputs, inputs, dtype=torch.int8, device=device),
            "scales": torch.ones(outputs, groups, dtype=torch.float16, device=device),
        }

    @classmethod
    def encode(cls, rows: torch.Tensor, group_size: int | None) -> dict[str, torch.Tensor]:
        """Every element is off by at most half its group's scale. See `QuantizedLinear`."""
        size = group_size or rows.shape[1]
        missing = -rows.shape[1] % size
        # Padding by nothing would be a copy.
        groups = (nn.functional.pad(rows, (0, missing)) if missing else rows).unflatten(1, (-1, size))
        # Two passes, neither of which writes: torch's aminmax is ten times as slow on a CPU.
        scales = at_least(torch.maximum(-groups.amin(dim=-1), groups.amax(dim=-1)) / LARGEST_CODE)
        codes = (groups / scales.unsqueeze(-1)).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
        return {"weight": codes.flatten(1)[:, : rows.shape[1]], "scales": scales}

    def exact_weight(self) -> TiledWeight:
        """See `QuantizedLinear`."""
        return Int8Weight(self.weight, self.scales, self.group_size)

    def frozen_weight(self) -> FrozenWeight:
        """See `QuantizedLinear`."""
        return IntegerWeight(self.weight, self.scales) if self.compute == "int8" else self.exact_weight()


def quantize(weight: torch.Tensor, group_size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a weight [out, in]: see `QuantizedLinear.quantize`."""
    state = Int8Linear.quantize(weight, group_size)
    return state["weight"], state["scales"]


def at_least(scales: torch.Tensor) -> torch.Tensor:
    """The next positive fp16 numbers that are not smaller, as fp32: rounded down, the largest weight would be clipped.

    What fp16 cannot hold stays as it is.
    """
    stored = scales.clamp(min=_SMALLEST_SCALE).half()
    above = (stored.view(torch.int16) + 1).view(torch.float16)  # bits of positive floats count upward
    stored = torch.where(stored.float() < scales, above, stored).float()
    return torch.where(torch.isfinite(stored), stored, scales)
