"""A frozen linear layer with int8 weights: one byte a weight, one scale per group of weights of a row.

Products are exact in the sense that nothing but the weights is quantised: the layer gives what `nn.Linear` gives with
the dequantised weights. Those exist only tile by tile in a scratch buffer, in the forward and again in the backward
pass; autograd keeps the codes and scales, which exist anyway. Gradients flow to the input and the bias, never to the
weights.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import nn
from torch.autograd.function import once_differentiable

GROUP_SIZES = (32, 64, 128, 256)
#: Codes are in [-127, 127]: symmetric, so that zero is exact and the sign costs nothing.
LARGEST_CODE = 127
#: Rows of the weight that are dequantised at a time on a CPU: the tile is used while it is in the cache.
TILE_ROWS = 512

_SMALLEST_SCALE = 2.0**-24  # of fp16: a group of zeros has some scale to be divided by


def quantize(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a weight matrix; every element is off by at most half its group's scale.

    Args:
        weight: [out, in], any float type, any strides, finite.
        group_size: Weights of a row that share one scale; the last group of a row may be shorter.

    Returns:
        Codes, int8 [out, in], and scales, fp16 [out, ceil(in / group_size)], or fp32 where fp16 would overflow.

    Raises:
        ValueError: a weight is not finite, or the group size is none of GROUP_SIZES.
    """
    if group_size not in GROUP_SIZES:
        raise ValueError(f"A group size of {group_size} is not possible: choose one of {GROUP_SIZES}.")
    parts = [_quantize_rows(rows, group_size) for rows in weight.detach().split(TILE_ROWS)]
    codes = torch.cat([codes for codes, _ in parts])
    scales = torch.cat([scales for _, scales in parts])
    if not torch.isfinite(scales).all():
        raise ValueError("A weight is not finite: the layer cannot be quantised.")
    return codes, _stored_scales(scales)


def _quantize_rows(rows: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows.float()
    padding = -rows.shape[1] % group_size
    groups = nn.functional.pad(rows, (0, padding)).unflatten(1, (-1, group_size))
    scales = _representable(groups.abs().amax(dim=-1) / LARGEST_CODE)
    codes = (groups / scales.unsqueeze(-1)).round_().clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.int8)
    return codes.flatten(1)[:, : rows.shape[1]].contiguous(), scales


def _representable(scales: torch.Tensor) -> torch.Tensor:
    """The next fp16 numbers that are not smaller, as fp32: rounded down, the largest weight would be clipped."""
    stored = scales.clamp(min=_SMALLEST_SCALE).half()
    above = (stored.view(torch.int16) + 1).view(torch.float16)  # bits of positive floats count upward
    stored = torch.where(stored.float() < scales, above, stored).float()
    return torch.where(torch.isfinite(stored), stored, scales)


def _stored_scales(scales: torch.Tensor) -> torch.Tensor:
    return scales.half() if bool((scales <= torch.finfo(torch.float16).max).all()) else scales


def dequantize(
    codes: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The weights that codes [rows, in] and scales [rows, groups] stand for, written to `out` where it is given."""
    if out is None:
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    # Products are rounded once: they are exact in fp32, and bf16 could not hold a scale.
    if dtype is not torch.float16:
        scales = scales.float()
    whole = codes.shape[1] // group_size * group_size
    if whole:
        groups = out[:, :whole].unflatten(1, (-1, group_size))
        torch.mul(codes[:, :whole].unflatten(1, (-1, group_size)), scales[:, : whole // group_size, None], out=groups)
    if whole < codes.shape[1]:
        torch.mul(codes[:, whole:], scales[:, -1:], out=out[:, whole:])
    return out


class _Scratch(threading.local):
    """One buffer per thread and type, reused by all layers of a CPU: fresh memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, torch.Tensor] = {}

    def take(self, rows: int, columns: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised [rows, columns] on the device of `like`, valid until the next call."""
        if like.device.type != "cpu":  # caching allocators of GPUs know streams; a buffer of ours would not
            return torch.empty(rows, columns, dtype=dtype, device=like.device)
        buffer = self.buffers.get(dtype)
        if buffer is None or buffer.numel() < rows * columns:
            with torch.inference_mode(mode=False):  # a tensor made inside that mode cannot be written to outside
                buffer = self.buffers[dtype] = torch.empty(rows * columns, dtype=dtype)
        return buffer[: rows * columns].view(rows, columns)


_scratch = _Scratch()


def _tiles(
    codes: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of the weight, dequantised; each tile is valid until the next is asked for."""
    rows, columns = codes.shape
    # One tile on GPUs: launches are dear there, caches are not what limits.
    step = TILE_ROWS if codes.device.type == "cpu" else rows
    for start in range(0, rows, step):
        tile = slice(start, min(start + step, rows))
        buffer = _scratch.take(tile.stop - tile.start, columns, codes, dtype)
        yield tile, dequantize(codes[tile], scales[tile], group_size, dtype, out=buffer)


class _Product(torch.autograd.Function):
    """x @ W.T + b with W dequantised on the way; saves codes and scales, no float weight."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, group_size: int
    ) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.group_size = group_size
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(rows.shape[0], codes.shape[0])
        for tile, weight in _tiles(codes, scales, group_size, x.dtype):
            torch.mm(rows, weight.t(), out=out[:, tile])
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], codes.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, None, None, torch.Tensor | None, None]:
        codes, scales = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_input = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = rows.new_zeros(rows.shape[0], codes.shape[1])
            for tile, weight in _tiles(codes, scales, ctx.group_size, grad.dtype):
                to_input.addmm_(rows[:, tile], weight)
            to_input = to_input.view(*grad.shape[:-1], codes.shape[1])
        if ctx.needs_input_grad[3]:
            to_bias = rows.sum(dim=0)
        return to_input, None, None, to_bias, None


class Int8Linear(nn.Linear):
    """`nn.Linear` with frozen int8 weights; a subclass, so that PEFT and transformers treat it as the linear it is.

    Attributes:
        weight: Codes, int8 [out_features, in_features].
        scales: [out_features, ceil(in_features / group_size)], fp16 (fp32 where a weight is beyond fp16's range).
        bias: As in `nn.Linear`.
    """

    scales: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int = 128,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        # nn.Linear would make and initialise a float weight first.
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        groups = -(-in_features // group_size)
        codes = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        # A buffer: parameters are cast and made trainable by the tools around.
        self.register_buffer("scales", torch.ones(out_features, groups, dtype=torch.float16, device=device))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, group_size: int = 128) -> Self:
        """The same layer with its weights quantised, on the same device; `linear` is left as it is.

        Raises:
            ValueError: a weight is not finite, or the group size is none of GROUP_SIZES.
        """
        codes, scales = quantize(linear.weight, group_size)
        layer = cls(linear.in_features, linear.out_features, bias=False, group_size=group_size, device="meta")
        layer.weight = nn.Parameter(codes, requires_grad=False)
        layer.scales = scales
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        layer.train(linear.training)
        return layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in nn.Linear
        """[..., in_features] to [..., out_features], in the type of `input`."""
        result: torch.Tensor = _Product.apply(input, self.weight, self.scales, self.bias, self.group_size)
        return result

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The float weights, [out_features, in_features]."""
        return dequantize(self.weight, self.scales, self.group_size, dtype)

    @property
    def W_q(self) -> torch.Tensor:  # noqa: N802 - the name that PEFT looks for
        """The codes. PEFT asks layers with this name for `dequantize()`: DoRA's row norms are then the true ones."""
        return self.weight

    def reset_parameters(self) -> None:
        """Nothing to initialise: weights come from a float layer or a file."""

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        return f"{super().extra_repr()}, group_size={self.group_size}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but never cast the scales: codes were rounded for these very scales."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self
