"""What frozen linear layers with quantised weights have in common, whatever the bits of a weight.

Products are exact in the sense that nothing but the weights is quantised (unless the layer is asked to compute in
integers): the layer gives what `nn.Linear` gives with the dequantised weights. Those exist only tile by tile in scratch
memory, in the forward and again in the backward pass; autograd keeps nothing. Gradients flow to the input and the bias,
never to the weights.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from backends.frozen import FrozenWeight
from backends.int8.tiles import TiledWeight

#: Weights that are quantised at a time: a few MiB of floats, small beside any weight and in the cache.
BLOCK_WEIGHTS = 2**20


class _Product(torch.autograd.Function):
    """x @ W.T + b with a frozen W; keeps no tensor but those of the layer."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, weight: FrozenWeight) -> torch.Tensor:
        # Not saved as tensors: tools that move what is saved away would move the model.
        ctx.weight = weight
        out = weight.multiply(x.reshape(-1, x.shape[-1]))
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], out.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        rows = grad.reshape(-1, grad.shape[-1])
        to_input = to_bias = None
        if ctx.needs_input_grad[0]:
            to_input = ctx.weight.multiply_back(rows)
            to_input = to_input.view(*grad.shape[:-1], to_input.shape[1])
        if ctx.needs_input_grad[1]:
            to_bias = rows.sum(dim=0)
        return to_input, to_bias, None


class QuantizedLinear(nn.Linear):
    """`nn.Linear` with frozen quantised weights; a subclass, so that PEFT and transformers see what it is.

    Attributes:
        weight: Codes; their shape and type are the subclass's.
        bias: As in `nn.Linear`.
        group_size: Weights of a row that share one scale; None where the whole row does.
        compute: "exact", or "int8" where the product is one of integers.
    """

    bits: ClassVar[int]
    #: Sizes of groups on offer; the first is the usual one.
    group_sizes: ClassVar[tuple[int | None, ...]]
    computes: ClassVar[tuple[str, ...]] = ("exact",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int | None,
        compute: str = "exact",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.check(group_size, compute)
        # nn.Linear would make and initialise a float weight first.
        nn.Module.__init__(self)
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = group_size
        self.compute = compute
        for name, tensor in self.blank(out_features, in_features, group_size, device).items():
            if name == "weight":
                self.weight = nn.Parameter(tensor, requires_grad=False)
            else:  # buffers: parameters are cast and made trainable by the tools around
                self.register_buffer(name, tensor)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device), requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def check(cls, group_size: int | None, compute: str = "exact") -> None:
        """Raise ValueError with a sentence where a layer of this kind cannot be made so."""
        if group_size not in cls.group_sizes:
            choices = ", ".join("None (whole rows)" if size is None else str(size) for size in cls.group_sizes)
            raise ValueError(f"A group size of {group_size} is not possible: choose one of {choices}.")
        if compute not in cls.computes:
            raise ValueError(f"{cls.bits}-bit weights cannot compute {compute!r}: choose one of {cls.computes}.")

    @classmethod
    @abstractmethod
    def blank(
        cls, outputs: int, inputs: int, group_size: int | None, device: torch.device | str | None
    ) -> dict[str, torch.Tensor]:
        """Tensors for a weight [outputs, inputs] of zeros, by the names that they have in the layer."""

    @classmethod
    @abstractmethod
    def encode(cls, rows: torch.Tensor, group_size: int | None) -> dict[str, torch.Tensor]:
        """The tensors for a few fp32 rows, scales and the like in fp32; not finite where a weight is not."""

    @abstractmethod
    def exact_weight(self) -> TiledWeight:
        """The weight for products of floats."""

    def frozen_weight(self) -> FrozenWeight:
        """The weight in the shape that functions with a frozen factor take (`backends.frozen`)."""
        return self.exact_weight()

    @classmethod
    def quantize(cls, weight: torch.Tensor, group_size: int | None) -> dict[str, torch.Tensor]:
        """The tensors of a layer that holds `weight`, by name.

        Args:
            weight: [out, in], any float type, any strides, finite.
            group_size: Weights of a row that share one scale; the last group of a row may be shorter.

        Raises:
            ValueError: a weight is not finite, or the group size is not on offer.
        """
        cls.check(group_size)
        outputs, inputs = weight.shape
        state = cls.blank(outputs, inputs, group_size, weight.device)
        # fp32 until it is known whether fp16 can hold all of them.
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for block in _blocks(*weight.shape):
            for name, part in cls.encode(weight.detach()[block].float(), group_size).items():
                state[name][block] = part
        floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
        if not all(bool(torch.isfinite(state[name]).all()) for name in floats):
            raise ValueError("A weight is not finite: the layer cannot be quantised.")
        return {name: _stored(tensor) if name in floats else tensor for name, tensor in state.items()}

    @classmethod
    def from_linear(cls, linear: nn.Linear, group_size: int | None = 128, *, compute: str = "exact") -> Self:
        """The same layer with its weights quantised, on the same device; `linear` is left as it is.

        Raises:
            ValueError: a weight is not finite, or such a layer is not on offer.
        """
        cls.check(group_size, compute)
        state = cls.quantize(linear.weight, group_size)
        layer = cls(
            linear.in_features, linear.out_features, bias=False, group_size=group_size, compute=compute, device="meta"
        )
        layer._hold(state)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        layer.train(linear.training)
        return layer

    def store(self, weight: torch.Tensor) -> float:
        """Hold another weight from now on; the layer is left as it is where that weight is refused.

        Args:
            weight: [out_features, in_features], any float type, finite.

        Returns:
            What quantising changed: the norm of the difference over that of `weight`.

        Raises:
            ValueError: the shape is another, or a weight is not finite.
        """
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(
                f"A weight of shape {tuple(weight.shape)} does not fit {self.out_features} x {self.in_features}."
            )
        device = self.weight.device
        state = self.quantize(weight, self.group_size)
        self._hold({name: tensor.to(device) for name, tensor in state.items()})
        return self._error(weight)

    def _hold(self, state: dict[str, torch.Tensor]) -> None:
        self.weight = nn.Parameter(state["weight"], requires_grad=False)
        for name in state.keys() - {"weight"}:
            setattr(self, name, state[name])

    def _error(self, weight: torch.Tensor) -> float:
        held = self.exact_weight()
        difference = total = 0.0
        for block in _blocks(self.out_features, self.in_features):
            rows = weight.detach()[block].to(held.device, torch.float32)
            found = torch.empty_like(rows, memory_format=torch.contiguous_format)
            held.write(block, slice(0, self.in_features), found)
            difference += float((found - rows).square_().sum())
            total += float(rows.square().sum())
        return (difference / total) ** 0.5 if total else 0.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in nn.Linear
        """[..., in_features] to [..., out_features], in the type of `input`."""
        result: torch.Tensor = _Product.apply(input, self.bias, self.frozen_weight())
        return result

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The float weights, [out_features, in_features]."""
        return self.exact_weight().dequantize(dtype)

    @property
    def W_q(self) -> torch.Tensor:  # noqa: N802 - the name that PEFT looks for
        """The codes. PEFT asks layers with this name for `dequantize()`: DoRA's row norms are then the true ones."""
        return self.weight

    def reset_parameters(self) -> None:
        """Nothing to initialise: weights come from a float layer or a file."""

    def extra_repr(self) -> str:
        """What `print` shows between the parentheses."""
        return f"{super().extra_repr()}, group_size={self.group_size}, compute={self.compute}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move, but never cast what belongs to the codes: they were rounded for these very scales."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            now = getattr(self, name)
            if now.dtype != tensor.dtype:
                setattr(self, name, tensor.to(now.device))
        return self


def _blocks(rows: int, columns: int) -> list[slice]:
    """Rows of a weight in blocks of about BLOCK_WEIGHTS."""
    height = max(1, BLOCK_WEIGHTS // columns)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def _stored(values: torch.Tensor) -> torch.Tensor:
    return values.half() if bool((values.abs() <= torch.finfo(torch.float16).max).all()) else values
