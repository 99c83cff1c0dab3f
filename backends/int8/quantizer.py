"""Int8 and int4 weights as a quantisation method of transformers: quantise while loading, save, load what was saved.

Importing this module registers the method. A folder saved in it must be loaded after this import: transformers skips
methods that it does not know, with a warning only.
"""

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from backends.int8.int4 import GROUP_SIZE as INT4_GROUP_SIZE
from backends.int8.layer import layer_class
from backends.int8.quantized import QuantizedLinear

METHOD = "repotune_int8"
USUAL_GROUP_SIZE = 128


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """For `from_pretrained(..., quantization_config=Int8Config())`; written into config.json when the model is saved.

    Args:
        group_size: Weights of a row that share one scale; None gives each row one. With 4 bits it is always 64.
        bits: Of a weight, 8 or 4.
        compute: "exact" multiplies with the dequantised weights; "int8" puts activations in int8 too, which is faster
            and less exact, and needs 8 bits and one scale per row.
        modules_to_not_convert: Names of modules that stay as they are, beside the output head.

    Raises:
        ValueError: a value is none of these, or two do not go together.
    """

    def __init__(
        self,
        group_size: int | None = USUAL_GROUP_SIZE,
        bits: int = 8,
        compute: str = "exact",
        modules_to_not_convert: list[str] | None = None,
        **others: Any,
    ) -> None:
        _check_types(group_size, bits, modules_to_not_convert)
        _check_others(others)
        kind = layer_class(bits)
        if kind.bits == 4 and group_size == USUAL_GROUP_SIZE:  # noqa: PLR2004 - what nobody chose
            group_size = INT4_GROUP_SIZE
        kind.check(group_size, compute)
        self.quant_method = METHOD
        self.bits = bits
        self.group_size = group_size
        self.compute = compute
        self.modules_to_not_convert = modules_to_not_convert


def _check_types(group_size: Any, bits: Any, names: Any) -> None:
    """What equals a number without being one, such as true in a config.json, would pass the checks of values."""
    if type(bits) is not int:
        raise ValueError(f"Weights of {bits!r} bits are not possible: choose 8 or 4.")
    if group_size is not None and type(group_size) is not int:
        raise ValueError(f"A group size of {group_size!r} is not possible: give a number, or None for whole rows.")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"modules_to_not_convert is a list of names or None, not {names!r}.")


def _check_others(others: dict[str, Any]) -> None:
    """What a config.json may hold beside our own; anything else is a slip, or of a version that knows more."""
    method = others.pop("quant_method", METHOD)
    if method != METHOD:
        raise ValueError(f"These are the settings of another quantisation method, {method!r}: name an own model.")
    if others:
        raise ValueError(f"Int8Config knows no {', '.join(sorted(others))}: correct the name, or update repotune.")


class _QuantizeOnLoad(ConversionOps):
    """Turns one float weight into codes and what belongs to them as it comes from the file."""

    def __init__(self, config: Int8Config) -> None:
        self.config = config

    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any = None, **__: Any) -> dict[str, torch.Tensor]:
        """The tensors that replace each weight, under the names of the layer's parameter and buffers."""
        result: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            if model is not None and not _is_weight(model, name):
                result[name] = weight  # one tensor of a file can hold several of the model's, not all of them codes
                continue
            prefix = name.removesuffix("weight")
            result |= {prefix + own: tensor for own, tensor in self._state(weight).items()}
        return result

    def _state(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        try:
            return layer_class(self.config.bits).quantize(weight, self.config.group_size)
        except ValueError:
            # transformers would report that something went wrong; the check after loading says where and what.
            return {"weight": weight}


def _is_weight(model: Any, name: str) -> bool:
    """Whether this name is the weight of a quantised layer."""
    module, own = get_module_from_name(model, name)
    return own == "weight" and isinstance(module, QuantizedLinear)


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Replaces linear layers before the weights come, quantises each weight as it comes."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config = self.quantization_config
        in_fp32 = getattr(model, "_keep_in_fp32_modules", None)
        kept = self.get_modules_to_not_convert(model, config.modules_to_not_convert, in_fp32, add_default_skips=True)
        chosen = [
            (name, module)
            for name, module in model.named_modules()
            if type(module) is nn.Linear and should_convert_module(name, kept)
        ]
        if not chosen:
            raise ValueError(
                f"No layer of this {type(model).__name__} can be held in {config.bits} bits, it has no linear layer "
                "but its head: load it without quantisation."
            )
        for name, module in chosen:
            model.set_submodule(name, self._skeleton(module))

    def _skeleton(self, linear: nn.Linear) -> QuantizedLinear:
        """A layer without weights, to be filled by the loader."""
        config = self.quantization_config
        layer = layer_class(config.bits)(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            group_size=config.group_size,
            compute=config.compute,
            dtype=linear.weight.dtype,
            device="meta",
        )
        if not self.pre_quantized:
            # transformers up to 5.17 casts what it reads to the type found here, before anything quantises it: floats
            # cast to int8 would be zeros.
            layer.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"), requires_grad=False)
        return layer

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        for name, module in model.named_modules():
            if not isinstance(module, QuantizedLinear):
                continue
            if module.weight.is_floating_point():
                raise ValueError(f"The layer {name} could not be quantised: not all of its weights are finite numbers.")
            if not module.weight.is_meta and not all(bool(torch.isfinite(part).all()) for part in module.buffers()):
                raise ValueError(
                    f"The layer {name} holds no finite scales after loading: update transformers, or quantise the "
                    "model again."
                )

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether this name is the float weight of a layer that becomes int8 or int4."""
        return not self.pre_quantized and _is_weight(model, param_name)

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Scales keep the type that they were saved in."""
        target = (getattr(converter, "target_patterns", None) or [""])[0]
        return None if target.endswith((".scales", ".zeros")) else super().get_new_dtype(converter, param, dtype)

    def get_quantize_ops(self) -> ConversionOps:
        """What the loader applies to each weight that needs it."""
        return _QuantizeOnLoad(self.quantization_config)

    @property
    def quantized_element_size(self) -> float:
        """Bytes per weight, scales aside."""
        bits: int = self.quantization_config.bits
        return bits / 8

    def is_serializable(self) -> bool:
        """`save_pretrained` writes codes and what belongs to them."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top; the weights themselves are frozen."""
        return True
