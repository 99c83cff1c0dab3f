"""Puts the fused functions into a model: its modules keep names, parameters and types, and change how they compute.

A module's class becomes a subclass of itself with another `forward`, so saved adapters, PEFT's own methods and checks
by type work as before. Nothing is taken on trust: an MLP or a norm is changed only when, on a few random rows, the new
forward gives what the old one gave.
"""

from typing import Any

import torch
from torch import nn

from backends import merging
from backends.frozen import frozen_weight
from backends.fused import Magnitudes, Mlp, Projection, adapted, adapted_dora, adapted_mlp, layer_norm, rms_norm

#: Names by which families call the layers of their MLP: gate, the other into the wide part, the one out of it.
_MLPS = (
    ("gate_proj", "up_proj", "down_proj"),
    (None, "c_fc", "c_proj"),
    (None, "fc1", "fc2"),
    (None, "dense_h_to_4h", "dense_4h_to_h"),
)
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
#: How loud the random rows of a probe are: some MLPs clamp what is large, and only that.
_LOUDNESS = (1.0, 4.0, 16.0)


def fuse(model: Any) -> int:
    """Let the linear layers, MLPs and norms of a PEFT model compute with less memory; returns how many modules do.

    Layers that are not simple (dropout on the adapter, merged or disabled adapters, several adapters) go on as PEFT
    computes them, decided at every call.
    """
    like = _computing_tensor(model)
    changed = 0
    for module in list(model.modules()):
        changed += _fuse_linear(module) or _fuse_mlp(module, like) or _fuse_norm(module, like)
    return changed


def projection_of(layer: Any) -> Projection | None:
    """`layer` as the fused functions take it; None where its result is more than W x + b + s B (A x)."""
    if not _is_lora(layer):
        return _base_projection(layer)
    name = _only_adapter(layer)
    # The magnitudes of DoRA scale what the adapter's layer gives.
    return _lora_projection(layer, name) if name is None or name not in layer.lora_variant else None


def _base_projection(layer: Any) -> Projection | None:
    weight = frozen_weight(layer)
    if weight is None or any(parameter.requires_grad for parameter in layer.parameters()):
        return None
    return Projection(weight, layer.bias)


def _lora_projection(layer: Any, name: str | None) -> Projection | None:
    """Base and the adapter `name`; None where dropout or a merged weight makes it more than that."""
    base = _base_projection(layer.base_layer)
    if base is None or name is None:
        return None
    dropout = layer.lora_dropout[name]
    drops = layer.training and not isinstance(dropout, nn.Identity) and dropout.p > 0
    if drops or layer.lora_bias.get(name):
        return None
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Projection(base.weight, base.bias, down, up, float(layer.scaling[name]))


def _only_adapter(layer: Any) -> str | None:
    """The adapter that is at work, where it is one, neither merged nor switched off."""
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return names[0] if len(names) == 1 else None


def _is_lora(layer: Any) -> bool:
    from peft.tuners.lora.layer import Linear

    return isinstance(layer, Linear)


class _Fused:
    """A module whose class was made here: pickled as the two classes that it was made of."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        mixin, original = type(self).__bases__
        return (_blank, (mixin, original), *super().__reduce_ex__(protocol)[2:])


class _FusedLinear(_Fused):
    """`forward` of a LoRA layer whose base and adapter are one function."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = None if args or kwargs else _only_adapter(self)
        projection = _lora_projection(self, name)
        variant = self.lora_variant.get(name)
        if projection is None or (variant and not _is_dora(variant)):
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        return adapted_dora(x, projection, self._magnitudes(name)) if variant else adapted(x, projection)

    def merge(self: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's, and also into quantised weights (`backends.merging`)."""
        if not merging.is_quantized(self.base_layer):
            super().merge(safe_merge, adapter_names)  # type: ignore[misc]
            return
        from peft.tuners.tuners_utils import check_adapters_to_merge

        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if names:
            merging.merge(self, names)

    def unmerge(self: Any) -> None:
        """As PEFT's; quantised weights come back bit by bit."""
        if self.merged and merging.is_quantized(self.base_layer):
            merging.unmerge(self)
        else:
            super().unmerge()  # type: ignore[misc]

    def row_factors(self: Any, name: str) -> torch.Tensor | None:
        """What DoRA scales the rows of base and adapter by; None for other variants."""
        projection = _lora_projection(self, name)
        if projection is None or not _is_dora(self.lora_variant.get(name)):
            return None
        magnitudes: Magnitudes = self._magnitudes(name)
        in_codes = merging.is_quantized(self.base_layer)
        return magnitudes.factors(projection, torch.float32 if in_codes else self.base_layer.weight.dtype)

    def _magnitudes(self: Any, name: str) -> Magnitudes:
        learned = self.lora_magnitude_vector[name].weight
        lengths = self.__dict__.get("_row_lengths")
        if lengths is None or lengths.device != learned.device:
            lengths = self.__dict__["_row_lengths"] = _row_lengths(self.base_layer)
        return Magnitudes(learned, lengths)


def _is_dora(variant: Any) -> bool:
    from peft.tuners.lora.variants import DoraLinearVariant

    return variant is DoraLinearVariant or isinstance(variant, DoraLinearVariant)


def _row_lengths(base: Any) -> torch.Tensor:
    weight = base.dequantize() if hasattr(base, "dequantize") else base.weight
    return torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32)


class _FusedMlp(_Fused):
    """`forward` of an MLP that is one function."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        mlp = None if args or kwargs else _mlp_of(self)
        if mlp is None:
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        return adapted_mlp(x, mlp)


class _FusedLayerNorm(_Fused):
    """`forward` of a layer norm whose result need not be kept."""

    def forward(self: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in nn.LayerNorm
        return layer_norm(input, self.weight, self.bias, self.eps)


class _FusedNorm(_Fused):
    """`forward` of a root-mean-square norm that keeps its input only."""

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        # Norms of state-space layers take a gate, too.
        if args or kwargs or self.weight.requires_grad:
            result: torch.Tensor = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
            return result
        return rms_norm(hidden_states, self.weight, _first(self, _EPSILONS))


def _blank(mixin: type, original: type) -> Any:
    made: Any = _subclass(mixin, original)
    return made.__new__(made)


_subclasses: dict[tuple[type, type], type] = {}


def _subclass(mixin: type, original: type) -> type:
    known = _subclasses.get((mixin, original))
    if known is None:
        known = _subclasses[mixin, original] = type(f"Fused{original.__name__}", (mixin, original), {})
    return known


def _fuse_linear(module: Any) -> bool:
    from peft.tuners.lora.layer import Linear

    # PEFT has other classes for the layers of other libraries; those stay.
    if type(module) is not Linear or frozen_weight(module.base_layer) is None:
        return False
    module.__class__ = _subclass(_FusedLinear, type(module))
    return True


def _fuse_mlp(module: Any, like: torch.Tensor) -> bool:
    if _mlp_of(module) is None:
        return False
    return _change_if_equal(module, _FusedMlp, _probe(_width(module), like))


def _fuse_norm(module: Any, like: torch.Tensor) -> bool:
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        module.__class__ = _subclass(_FusedLayerNorm, nn.LayerNorm)
        return True
    weight = getattr(module, "weight", None)
    is_norm = "RMSNorm" in type(module).__name__ and isinstance(weight, nn.Parameter) and weight.ndim == 1
    if not is_norm or weight is None or weight.requires_grad or _first(module, _EPSILONS) is None:
        return False
    return _change_if_equal(module, _FusedNorm, _probe(weight.shape[0], like))


def _mlp_of(module: Any) -> Mlp | None:
    """The MLP in a module, where it has the layers and the activation of one and all are simple."""
    for gate, wide, narrow in _MLPS:
        names = [name for name in (gate, wide, narrow) if name]
        if all(isinstance(getattr(module, name, None), nn.Module) for name in names):
            return _assembled(module, gate, wide, narrow)
    return None


def _assembled(module: Any, gate: str | None, wide: str, narrow: str) -> Mlp | None:
    activation = _first(module, _ACTIVATIONS)
    # Dropout inside the MLP is between its parts.
    drops = module.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in module.children())
    residual = module.training and getattr(module, "residual_dropout", 0) > 0
    if not callable(activation) or drops or residual:
        return None
    by_gate = projection_of(getattr(module, gate)) if gate else None
    widening, narrowing = projection_of(getattr(module, wide)), projection_of(getattr(module, narrow))
    if widening is None or narrowing is None or (gate is not None and by_gate is None):
        return None
    return Mlp(gate=by_gate, wide=widening, narrow=narrowing, activation=activation)


def _width(module: Any) -> int:
    _, wide, _ = next(names for names in _MLPS if hasattr(module, names[1]))
    return int(getattr(module, wide).in_features)


def _probe(width: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(len(_LOUDNESS), width, generator=generator) * torch.tensor(_LOUDNESS)[:, None]
    return rows.to(like.device, like.dtype)


def _change_if_equal(module: Any, mixin: type, rows: torch.Tensor) -> bool:
    original = type(module)
    try:
        with torch.no_grad():
            wanted = module(rows)
            module.__class__ = _subclass(mixin, original)
            same = _equal(module(rows), wanted)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        same = False  # what does not take rows alone is another kind of module: a whole decoder layer, a gated norm
    if not same:
        module.__class__ = original
    return same


def _equal(found: Any, wanted: Any) -> bool:
    """Whether both are the same up to rounding, row by row: one loud row must not hide the others' differences."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    tolerance = 1e-5 if found.dtype in (torch.float32, torch.float64) else 2e-2
    allowed = tolerance * (1 + wanted.abs().amax(dim=-1, keepdim=True))
    return bool(((found - wanted).abs() <= allowed).all())


def _computing_tensor(model: Any) -> torch.Tensor:
    """A tensor of the type and on the device that the frozen model computes in: the embedding, as a rule."""
    frozen = (one for one in model.parameters() if one.is_floating_point() and not one.requires_grad)
    return next(frozen, torch.zeros(()))


def _first(module: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(module, name) for name in names if getattr(module, name, None) is not None), None)
