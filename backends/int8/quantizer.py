"""Int8 weights as a quantisation method of transformers: quantise while loading, save, and load what was saved.

Importing this module registers the method. A folder saved in int8 must be loaded after this import: transformers skips
methods that it does not know, with a warning only.
"""

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from backends.int8.linear import GROUP_SIZES, Int8Linear, quantize

METHOD = "repotune_int8"


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """For `from_pretrained(..., quantization_config=Int8Config())`.

    Args:
        group_size: Weights of a row that share one scale.
        modules_to_not_convert: Names of modules that stay as they are, beside the output head.

    Raises:
        ValueError: the group size is none of GROUP_SIZES.
    """

    def __init__(
        self, group_size: int = 128, modules_to_not_convert: list[str] | None = None, **_from_file: Any
    ) -> None:
        if group_size not in GROUP_SIZES:
            raise ValueError(f"A group size of {group_size} is not possible: choose one of {GROUP_SIZES}.")
        self.quant_method = METHOD
        self.group_size = group_size
        self.modules_to_not_convert = modules_to_not_convert


class _QuantizeOnLoad(ConversionOps):
    """Turns one float weight into codes and scales as it comes from the file."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size

    def convert(self, input_dict: dict[str, Any], *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        """Codes and scales under the names of the layer's parameter and buffer."""
        result = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            codes, scales = quantize(weight, self.group_size)
            result[name] = codes
            result[f"{name.removesuffix('weight')}scales"] = scales
        return result


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Replaces linear layers before the weights come, quantises each weight as it comes."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        config = self.quantization_config
        in_fp32 = getattr(model, "_keep_in_fp32_modules", None)
        kept = self.get_modules_to_not_convert(model, config.modules_to_not_convert, in_fp32, add_default_skips=True)
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and should_convert_module(name, kept):
                model.set_submodule(name, self._skeleton(module))

    def _skeleton(self, linear: nn.Linear) -> Int8Linear:
        """A layer without weights, to be filled by the loader."""
        layer = Int8Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            group_size=self.quantization_config.group_size,
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
            if isinstance(module, Int8Linear) and not self._is_whole(module):
                raise ValueError(f"The layer {name} holds no int8 weights with finite scales after loading.")

    @staticmethod
    def _is_whole(layer: Int8Linear) -> bool:
        if layer.weight.dtype is not torch.int8:
            return False
        return layer.weight.is_meta or bool(torch.isfinite(layer.scales).all())

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether this name is the float weight of a layer that becomes int8."""
        if self.pre_quantized or not param_name.endswith("weight"):
            return False
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Scales keep the type that they were saved in."""
        targets = getattr(converter, "target_patterns", None) or [""]
        return None if targets[0].endswith(".scales") else super().get_new_dtype(converter, param, dtype)

    def get_quantize_ops(self) -> ConversionOps:
        """What the loader applies to each weight that needs it."""
        return _QuantizeOnLoad(self.quantization_config.group_size)

    @property
    def quantized_element_size(self) -> float:
        """Bytes per weight, scales aside."""
        return 1.0

    def is_serializable(self) -> bool:
        """`save_pretrained` writes codes and scales."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained on top; the weights themselves are frozen."""
        return True
