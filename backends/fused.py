"""Base and adapter in one autograd function: less is kept for the backward pass, and fewer passes over memory.

A linear layer with a LoRA adapter computes y = W x + b + s B (A x) with W frozen. Written as separate modules, autograd
keeps the input, its float copy, the scaled product and a sum; here it keeps the input (which its neighbours share) and
A x, `rank` numbers a token. An MLP keeps its input and what comes before the activation; the activation and the product
with the gate are computed again in the backward pass, which is cheap, where keeping them is half of all memory.

Products run in the type of the input; adapters stay fp32 and receive fp32 gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from backends.frozen import FrozenWeight

Activation = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Projection:
    """A frozen linear layer and the adapter on it.

    Attributes:
        weight: W, [out, in].
        bias: [out], frozen.
        down: A, [rank, in], trained; None without an adapter.
        up: B, [out, rank], trained.
        scale: s.
    """

    weight: FrozenWeight
    bias: torch.Tensor | None = None
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    scale: float = 1.0

    @property
    def matrices(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A and B: what autograd must be told about."""
        return self.down, self.up

    def multiply(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """From rows [n, in] to y [n, out] and A x [n, rank]."""
        out = self.weight.multiply(rows)
        if self.bias is not None:
            out += self.bias
        if self.down is None or self.up is None:
            return out, None
        inner = rows @ self.down.to(rows.dtype).t()
        out.addmm_(inner, self.up.to(rows.dtype).t(), alpha=self.scale)
        return out, inner

    def adapter_gradients(
        self, gradient: torch.Tensor, rows: torch.Tensor, inner: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Gradients of A x, A and B from that of y; the base has no part in them."""
        if self.down is None or self.up is None or inner is None:
            return None, None, None
        to_inner = (gradient @ self.up.to(gradient.dtype)).mul_(self.scale)
        to_down = (to_inner.t() @ rows).to(self.down.dtype)
        return to_inner, to_down, (gradient.t() @ inner).mul_(self.scale).to(self.up.dtype)

    def multiply_back(
        self, gradient: torch.Tensor, rows: torch.Tensor, inner: torch.Tensor | None, onto: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Gradients of rows (added to `onto` where it is given), A and B, from that of y."""
        to_rows = self.weight.multiply_back(gradient, onto)
        to_inner, to_down, to_up = self.adapter_gradients(gradient, rows, inner)
        if to_inner is not None and self.down is not None:
            to_rows.addmm_(to_inner, self.down.to(gradient.dtype))
        return to_rows, to_down, to_up


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


class Recipe(Protocol):
    """How the output of a norm is computed again from what the norm keeps anyway."""

    @property
    def kept(self) -> tuple[torch.Tensor | None, ...]:
        """What it takes."""

    def cook(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output, from `kept` as autograd gives it back."""


_RECIPE = "_repotune_recipe"


def _keep(ctx: Any, x: torch.Tensor, *others: torch.Tensor | None) -> None:
    """Save `others`, and `x` or, where there is one, what its recipe needs: the norm has kept that already."""
    recipe, version = getattr(x, _RECIPE, (None, 0))
    # Somebody may have changed the norm's output in place since.
    ctx.recipe = recipe if recipe and version == _version(x) else None
    ctx.others = len(others)
    ctx.save_for_backward(*others, *(ctx.recipe.kept if ctx.recipe else (x,)))


def _version(x: torch.Tensor) -> int:
    return 0 if x.is_inference() else x._version  # noqa: SLF001 - how autograd itself notices changes


def _set_recipe(x: torch.Tensor, recipe: Recipe) -> None:
    setattr(x, _RECIPE, (recipe, _version(x)))


def _kept(ctx: Any) -> tuple[torch.Tensor, ...]:
    """What `_keep` was given: `x` first."""
    saved = ctx.saved_tensors
    others, rest = saved[: ctx.others], saved[ctx.others :]
    return (ctx.recipe.cook(rest) if ctx.recipe else rest[0], *others)


class _Adapted(torch.autograd.Function):
    """One projection."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, _down: torch.Tensor, _up: torch.Tensor, projection: Projection
    ) -> torch.Tensor:
        out, inner = projection.multiply(_flat(x))
        _keep(ctx, x, inner)
        ctx.projection = projection
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner = _kept(ctx)
        if not ctx.needs_input_grad[0]:  # the first layer: what it reads is not trained
            _, to_down, to_up = ctx.projection.adapter_gradients(_flat(gradient), _flat(x), inner)
            return None, to_down, to_up, None
        to_rows, to_down, to_up = ctx.projection.multiply_back(_flat(gradient), _flat(x), inner)
        return to_rows.view(x.shape), to_down, to_up, None


def adapted(x: torch.Tensor, projection: Projection) -> torch.Tensor:
    """[..., in] to [..., out] through base and adapter; keeps `x` and `rank` numbers a token for the backward pass."""
    result: torch.Tensor = _Adapted.apply(x, *projection.matrices, projection)
    return result


@dataclass(frozen=True)
class Magnitudes:
    """What DoRA (Liu et al. 2024) adds to a projection: rows of W + s B A are scaled to learned lengths.

    Attributes:
        learned: m, [out], trained.
        of_weight: Euclidean lengths of the rows of W, [out].
    """

    learned: torch.Tensor
    of_weight: torch.Tensor

    def factors(self, projection: Projection, compute: torch.dtype) -> torch.Tensor:
        """The factors of rows: m over the lengths of the rows of W + s B A, [out].

        The lengths count as constants, as in section 4.3 of the paper.

        Products with W run in the type `compute`.

        |w + s B a|^2 = |w|^2 + 2 s B (A w) + s^2 B (A A^T) B^T row by row: no matrix of W's size is made.
        """
        down, up, scale = projection.down, projection.up, projection.scale
        if down is None or up is None:
            raise ValueError("Magnitudes belong to a projection with an adapter.")
        down, up = down.detach().float(), up.detach().float()
        mixed = projection.weight.multiply(down.to(compute)).float().t()
        square = self.of_weight.square() + 2 * scale * (up * mixed).sum(dim=1)
        square += scale**2 * ((up @ (down @ down.t())) * up).sum(dim=1)
        return self.learned.detach().float() / square.clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()


class _Dora(torch.autograd.Function):
    """f (W x + s B A x) + b, f = m / |W + s B A| per row; keeps x, A x and y."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        _down: torch.Tensor,
        _up: torch.Tensor,
        _learned: torch.Tensor,
        projection: Projection,
        magnitudes: Magnitudes,
    ) -> torch.Tensor:
        factors = magnitudes.factors(projection, x.dtype)
        out, inner = replace(projection, bias=None).multiply(_flat(x))
        out.mul_(factors.to(out.dtype))
        _keep(ctx, x, inner, out, factors)
        ctx.projection, ctx.magnitudes = projection, magnitudes
        # `out` is kept without the bias: the gradient of m needs it so.
        result = out if projection.bias is None else out + projection.bias
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, out, factors = _kept(ctx)
        rows, learned = _flat(gradient), ctx.magnitudes.learned
        along = (rows * out).sum(dim=0, dtype=torch.float32)
        to_learned = torch.where(learned == 0, 0, along / learned).to(learned.dtype)
        scaled = rows * factors.to(rows.dtype)
        to_rows, to_down, to_up = ctx.projection.multiply_back(scaled, _flat(x), inner)
        return to_rows.view(x.shape), to_down, to_up, to_learned, None, None


def adapted_dora(x: torch.Tensor, projection: Projection, magnitudes: Magnitudes) -> torch.Tensor:
    """[..., in] to [..., out] through a base with a weight-decomposed adapter."""
    result: torch.Tensor = _Dora.apply(x, *projection.matrices, magnitudes.learned, projection, magnitudes)
    return result


@dataclass(frozen=True)
class Mlp:
    """The MLP of a decoder layer: narrow(activation(wide(x))), or with a gate narrow(activation(gate(x)) * wide(x))."""

    wide: Projection
    narrow: Projection
    activation: Activation
    gate: Projection | None = None

    @property
    def matrices(self) -> tuple[torch.Tensor | None, ...]:
        """All adapters' A and B, in the order of the gradients of `_AdaptedMlp`."""
        gate = self.gate.matrices if self.gate else (None, None)
        return (*gate, *self.wide.matrices, *self.narrow.matrices)

    def middle(self, gate: torch.Tensor | None, wide: torch.Tensor) -> torch.Tensor:
        """What goes into `narrow`."""
        if gate is None:
            return self.activation(wide)
        active = self.activation(gate)
        # A linear activation gives its input itself, which the backward pass needs as it is.
        return active * wide if active is gate else active.mul_(wide)


class _AdaptedMlp(torch.autograd.Function):
    """A whole MLP; the activation is computed twice."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mlp: Mlp, *_matrices: torch.Tensor) -> torch.Tensor:
        rows = _flat(x)
        gate, gate_inner = mlp.gate.multiply(rows) if mlp.gate else (None, None)
        wide, wide_inner = mlp.wide.multiply(rows)
        out, narrow_inner = mlp.narrow.multiply(mlp.middle(gate, wide))
        _keep(ctx, x, gate, wide, gate_inner, wide_inner, narrow_inner)
        ctx.mlp = mlp
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, gate, wide, gate_inner, wide_inner, narrow_inner = _kept(ctx)
        mlp, rows = ctx.mlp, _flat(x)
        middle, to_sources = _differentiable_middle(mlp, gate, wide)
        to_middle, *of_narrow = mlp.narrow.multiply_back(_flat(gradient), middle.detach(), narrow_inner)
        to_gate, to_wide = to_sources(to_middle)
        del middle, to_middle
        to_rows, *of_wide = mlp.wide.multiply_back(to_wide, rows, wide_inner)
        of_gate: list[torch.Tensor | None] = [None, None]
        if mlp.gate:
            to_rows, *of_gate = mlp.gate.multiply_back(to_gate, rows, gate_inner, onto=to_rows)
        return to_rows.view(x.shape), None, *of_gate, *of_wide, *of_narrow


def _differentiable_middle(
    mlp: Mlp, gate: torch.Tensor | None, wide: torch.Tensor
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor | None, torch.Tensor]]]:
    """The middle once more, and its own backward pass: autograd knows the derivative of every activation."""
    sources = [source.detach().requires_grad_() for source in (gate, wide) if source is not None]
    with torch.enable_grad():
        middle = mlp.activation(sources[0]) if gate is None else mlp.activation(sources[0]) * sources[1]

    def back(gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        gradients = torch.autograd.grad(middle, sources, gradient)
        return (gradients[0] if gate is not None else None), gradients[-1]

    return middle, back


def adapted_mlp(x: torch.Tensor, mlp: Mlp) -> torch.Tensor:
    """[..., hidden] to [..., hidden]; keeps `x` and the inputs of the activation and the gate."""
    result: torch.Tensor = _AdaptedMlp.apply(x, mlp, *mlp.matrices)
    return result


@dataclass(frozen=True)
class _RmsRecipe:
    """x / rms(x) * weight; `kept` is x, 1 / rms(x) and the weight."""

    kept: tuple[torch.Tensor | None, ...]

    def cook(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        x, inverse, weight = kept
        return (x * inverse).to(x.dtype).mul_(weight)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight with a frozen weight: keeps x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.mark_non_differentiable(inverse)
        return _RmsRecipe(()).cook((x, inverse, weight)), inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _inverse: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, inverse, weight = ctx.saved_tensors
        wide = x.to(inverse.dtype)
        weighted = gradient * weight.to(inverse.dtype)
        along = (weighted * wide).sum(dim=-1, keepdim=True)
        along.mul_(inverse.square()).div_(-x.shape[-1])
        return weighted.addcmul_(wide, along).mul_(inverse).to(x.dtype), None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019), statistics in fp32 at least.

    The functions above keep what it was made of instead of the result.
    """
    result, inverse = _RmsNorm.apply(x, weight, epsilon)
    _set_recipe(result, _RmsRecipe((x.detach(), inverse, weight)))
    return result


@dataclass(frozen=True)
class _LayerNormRecipe:
    """(x - mean) * inverse * weight + bias; `kept` is x, mean, inverse deviation, weight and bias."""

    kept: tuple[torch.Tensor | None, ...]

    def cook(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        x, mean, inverse, weight, bias = kept
        result = ((x - mean) * inverse).to(x.dtype)
        if weight is not None:
            result.mul_(weight)
        return result if bias is None else result.add_(bias)


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Layer norm over the last dimension by torch, whose result the functions above make again, not keep."""
    result, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], weight, bias, epsilon)
    _set_recipe(result, _LayerNormRecipe((x.detach(), mean, inverse, weight, bias)))
    return result
