"""Products with a weight that is held in few bits: dequantised tile by tile in scratch memory, never as a whole.

A tile is a share of the product's columns, so that each part of the result is written once. Fewer tiles read the other
factor less often; more of them need less memory. On two cores of an AVX2 machine dequantising adds 1 to 4 % to the
product of 512 tokens whatever the tile, as long as it is a few hundred columns wide.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch

#: Floats in a tile: 16 MiB of fp32 on a CPU. GPUs want few launches, and a bound only for the largest layers.
CPU_TILE = 2**22
GPU_TILE = 2**26
#: A narrower tile makes a product slower than its dequantisation.
NARROWEST = 512

_FULL = (torch.float32, torch.float64)


class TiledWeight(ABC):
    """A frozen matrix W [out, in] that can write any part of itself as floats (a `backends.frozen.FrozenWeight`)."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """Tiles of columns begin at multiples of this."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Rows and columns: [out, in]."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its tensors are."""

    @abstractmethod
    def write(self, rows: slice, columns: slice, out: torch.Tensor) -> None:
        """Put W[rows, columns] into `out`, which is fp32 or fp64 on a CPU."""

    def multiply(self, rows: torch.Tensor) -> torch.Tensor:
        """See `FrozenWeight`."""
        outputs, inputs = self.shape
        result = rows.new_empty(rows.shape[0], outputs)
        for tile in _tiles(outputs, inputs, self.device, 1):
            torch.mm(rows, self._tile(tile, slice(0, inputs), rows.dtype).t(), out=result[:, tile])
        return result

    def multiply_back(self, gradient: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """See `FrozenWeight`."""
        outputs, inputs = self.shape
        result = gradient.new_empty(gradient.shape[0], inputs) if onto is None else onto
        for tile in _tiles(inputs, outputs, self.device, self.unit):
            weight = self._tile(slice(0, outputs), tile, gradient.dtype)
            if onto is None:
                torch.mm(gradient, weight, out=result[:, tile])
            else:
                result[:, tile].addmm_(gradient, weight)
        return result

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The float weights, [out, in], in fresh memory."""
        outputs, inputs = self.shape
        result = torch.empty(outputs, inputs, dtype=dtype, device=self.device)
        for tile in _tiles(outputs, inputs, self.device, 1):
            result[tile] = self._tile(tile, slice(0, inputs), dtype)
        return result

    def _tile(self, rows: slice, columns: slice, dtype: torch.dtype) -> torch.Tensor:
        """W[rows, columns], valid until the next tile is asked for."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        out = _scratch.take(*shape, self.device, dtype)
        if self.device.type != "cpu" or dtype in _FULL:
            self.write(rows, columns, out)
            return out
        # CPUs have no half-precision arithmetic of their own; torch would make the same copy, in fresh memory.
        full = _scratch.take(*shape, self.device, torch.float32)
        self.write(rows, columns, full)
        return out.copy_(full)


def release() -> None:
    """Let go of this thread's scratch memory; the next product takes it anew."""
    _scratch.buffers.clear()


def _tiles(width: int, depth: int, device: torch.device, unit: int) -> Iterator[slice]:
    """Shares of `width`, alike in size, each with `depth` numbers per column."""
    most = CPU_TILE if device.type == "cpu" else GPU_TILE
    count = -(-width // max(most // max(depth, 1), NARROWEST, unit))
    step = -(-width // max(count, 1) // unit) * unit
    for start in range(0, width, max(step, 1)):
        yield slice(start, min(start + step, width))


class _Scratch(threading.local):
    """One buffer per thread and type, reused by all layers of a CPU: fresh memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, torch.Tensor] = {}

    def take(self, rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised [rows, columns] on `device`, valid until the next call for the type."""
        if device.type != "cpu":  # caching allocators of GPUs know streams; a buffer of ours would not
            return torch.empty(rows, columns, dtype=dtype, device=device)
        buffer = self.buffers.get(dtype)
        if buffer is None or buffer.numel() < rows * columns:
            with torch.inference_mode(mode=False):  # a tensor made inside that mode cannot be written to outside
                buffer = self.buffers[dtype] = torch.empty(rows * columns, dtype=dtype)
        return buffer[: rows * columns].view(rows, columns)


_scratch = _Scratch()
