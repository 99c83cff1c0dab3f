"""A frozen linear layer with int4 weights: 4.5 bits a weight, for bases that int8 would not let into the memory.

Asymmetric: a group of 64 weights has 16 steps from its smallest to its largest, since with so few of them the sign of a
symmetric code would waste one bit in many groups.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from backends.int8.linear import at_least
from backends.int8.quantized import QuantizedLinear
from backends.int8.tiles import TiledWeight

GROUP_SIZE = 64
LARGEST_CODE = 15

_BYTES = GROUP_SIZE // 2  # of a group: the first half of its codes in the low bits, the second in the high bits


@dataclass(frozen=True)
class Int4Weight(TiledWeight):
    """Packed codes, uint8 [out, 32 x groups], and the scale and the zero of each group, [out, groups]."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    #: Columns of the weight; the last group may hold more, of no meaning.
    inputs: int

    @property
    def unit(self) -> int:
        """See `TiledWeight`."""
        return GROUP_SIZE

    @property
    def shape(self) -> tuple[int, int]:
        """See `TiledWeight`."""
        return self.codes.shape[0], self.inputs

    @property
    def device(self) -> torch.device:
        """See `TiledWeight`."""
        return self.codes.device

    def write(self, rows: slice, columns: slice, out: torch.Tensor) -> None:
        """See `TiledWeight`."""
        first, width = columns.start // GROUP_SIZE, columns.stop - columns.start
        whole = width // GROUP_SIZE
        if whole:
            groups = out[:, : whole * GROUP_SIZE].unflatten(1, (-1, GROUP_SIZE))
            self._write_groups(rows, slice(first, first + whole), groups)
        if whole * GROUP_SIZE < width:
            last = out.new_empty(out.shape[0], 1, GROUP_SIZE)
            self._write_groups(rows, slice(first + whole, first + whole + 1), last)
            out[:, whole * GROUP_SIZE :] = last[:, 0, : width - whole * GROUP_SIZE]

    def _write_groups(self, rows: slice, groups: slice, out: torch.Tensor) -> None:
        """Put these groups of each row into `out`, [rows, groups, 64]."""
        packed = self.codes[rows, groups.start * _BYTES : groups.stop * _BYTES].unflatten(1, (-1, _BYTES))
        out[..., :_BYTES] = packed & LARGEST_CODE
        out[..., _BYTES:] = packed >> 4
        scales, zeros = (part[rows, groups, None].to(out.dtype) for part in (self.scales, self.zeros))
        torch.addcmul(zeros, out, scales, out=out)


class Int4Linear(QuantizedLinear):
    """See `QuantizedLinear`.

    Attributes:
        weight: Two codes a byte, uint8 [out_features, 32 x ceil(in_features / 64)].
        scales: Step between two codes, [out_features, ceil(in_features / 64)], fp16 (fp32 where it cannot hold them).
        zeros: What code 0 stands for, the smallest weight of its group; as `scales`.
    """

    bits = 4
    group_sizes = (GROUP_SIZE,)

    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int | None = GROUP_SIZE,
        compute: str = "exact",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            in_features, out_features, bias, group_size=group_size, compute=compute, dtype=dtype, device=device
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, group_size: int | None = GROUP_SIZE, *, compute: str = "exact") -> Self:
        """See `QuantizedLinear`."""
        return super().from_linear(linear, group_size, compute=compute)

    @classmethod
    def blank(
        cls, outputs: int, inputs: int, group_size: int | None, device: torch.device | str | None
    ) -> dict[str, torch.Tensor]:
        """See `QuantizedLinear`."""
        groups = -(-inputs // (group_size or GROUP_SIZE))
        return {
            "weight": torch.zeros(outputs, groups * _BYTES, dtype=torch.uint8, device=device),
            "scales": torch.ones(outputs, groups, dtype=torch.float16, device=device),
            "zeros": torch.zeros(outputs, groups, dtype=torch.float16, device=device),
        }

    @classmethod
    def encode(cls, rows: torch.Tensor, group_size: int | None) -> dict[str, torch.Tensor]:
        """Every element is off by at most half its group's scale. See `QuantizedLinear`."""
        size = group_size or GROUP_SIZE
        # The last weight again rather than zeros: a short group keeps its own range.
        padded = torch.cat([rows, rows[:, -1:].expand(-1, -rows.shape[1] % size)], dim=1)
        groups = padded.unflatten(1, (-1, size))
        zeros = _at_most(groups.amin(dim=-1))
        scales = at_least((groups.amax(dim=-1) - zeros) / LARGEST_CODE)
        codes = ((groups - zeros.unsqueeze(-1)) / scales.unsqueeze(-1)).round_().clamp_(0, LARGEST_CODE)
        low, high = codes.to(torch.uint8).split(_BYTES, dim=-1)
        return {"weight": (low | (high << 4)).flatten(1), "scales": scales, "zeros": zeros}

    def exact_weight(self) -> TiledWeight:
        """See `QuantizedLinear`."""
        return Int4Weight(self.weight, self.scales, self.zeros, self.in_features)


def _at_most(values: torch.Tensor) -> torch.Tensor:
    """The next fp16 numbers that are not larger, as fp32; what fp16 cannot hold stays as it is."""
    nearest = values.half()
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    stored = torch.where(nearest.float() > values, below, nearest)
    return torch.where(torch.isfinite(nearest) & torch.isfinite(stored), stored.float(), values)
