"""Writes a LoRA adapter as GGUF, which llama.cpp takes beside a base model (`--lora`), with the package `gguf` alone.

The format is that of llama.cpp's own convert_lora_to_gguf.py: tensors `blk.N.attn_q.weight.lora_a` [rank, in] and
`.lora_b` [out, rank]; llama.cpp scales their product by `adapter.lora.alpha` / rank. That script takes alpha as it
stands in PEFT's file, which is too small by sqrt(rank) where the adapter is rsLoRA; here it is told right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.errors import ModelNotLoadable
from jobs.published import NoAdapter, Published

Weights = NDArray[np.float32]

_PREFIX = "base_model.model."
_SIDES = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}
_TYPES = {"f16": np.float16, "f32": np.float32}


@dataclass(frozen=True)
class _Family:
    #: As GGUF names the architecture.
    architecture: str
    #: Whether llama.cpp wants the rows of queries and keys in another order than transformers has them.
    reorders: bool = False


#: By transformers' `model_type`. Llama's rotary embedding pairs neighbouring rows in llama.cpp, halves in transformers.
_FAMILIES = {
    "llama": _Family("llama", reorders=True),
    "mistral": _Family("llama", reorders=True),
    "qwen2": _Family("qwen2"),
    "starcoder2": _Family("starcoder2"),
}


def architecture_of(model_config: Any) -> str | None:
    """The base's architecture as GGUF names it; None where adapters of it cannot be written here."""
    family = _FAMILIES.get(model_config.model_type)
    return family.architecture if family else None


def write_gguf_adapter(adapter: Published, model_config: Any, file: Path, *, name: str, outtype: str = "f16") -> int:
    """Write the adapter to `file`; returns its number of adapted layers.

    Args:
        adapter: LoRA or rsLoRA.
        model_config: Of the base, as transformers has it.
        file: Must not be there.
        name: What the adapter calls itself.
        outtype: f16 or f32.

    Raises:
        NoAdapter: a DoRA adapter, or one with weights that are not finite or belong to no layer of the base.
        ModelNotLoadable: a base of an architecture whose adapters cannot be written here.
    """
    from gguf import GGUFWriter

    refuse_unwritable(adapter, model_config)
    tensors = list(_tensors(adapter, model_config, outtype))
    writer = GGUFWriter(file, _FAMILIES[model_config.model_type].architecture)
    try:
        _describe(writer, adapter, name)
        for tensor, values in tensors:
            writer.add_tensor(tensor, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return len(tensors) // len(_SIDES)


def refuse_unwritable(adapter: Published, model_config: Any) -> None:
    """Raise what `write_gguf_adapter` would raise of the kinds of adapter and base."""
    if adapter.is_dora:
        raise NoAdapter("GGUF has no DoRA adapters: export merged weights instead (--gguf merged).")
    if architecture_of(model_config) is None:
        raise ModelNotLoadable(
            f"Adapters of the architecture {model_config.model_type} cannot be written as GGUF here "
            f"(only {', '.join(sorted(_FAMILIES))}): export merged weights instead (--gguf merged)."
        )


def _describe(writer: Any, adapter: Published, name: str) -> None:
    from gguf import GGML_QUANT_VERSION, GGUFType, Keys

    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, adapter.alpha)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _tensors(adapter: Published, model_config: Any, outtype: str) -> Iterator[tuple[str, NDArray[Any]]]:
    from safetensors.numpy import load_file

    names = _names(model_config)
    weights = load_file(adapter.weights)
    for key in sorted(weights):
        module, side = _split(key)
        target = names.get_name(f"{module}.weight", try_suffixes=(".weight",)) if side else None
        if target is None:
            raise NoAdapter(f"The adapter's tensor {key} belongs to no layer that GGUF knows.")
        values = _reordered(weights[key].astype(np.float32), module, side, model_config)
        yield f"{target}{side}", _narrowed(values, key, outtype)


def _names(model_config: Any) -> Any:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = _FAMILIES[model_config.model_type].architecture
    number = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    return get_tensor_name_map(number, model_config.num_hidden_layers)


def _split(key: str) -> tuple[str, str]:
    """The module of a tensor and which of the two matrices it is; "" where it is neither."""
    for ending, side in _SIDES.items():
        if key.startswith(_PREFIX) and key.endswith(ending):
            return key.removeprefix(_PREFIX).removesuffix(ending), side
    return key, ""


def _reordered(values: Weights, module: str, side: str, model_config: Any) -> Weights:
    """The rows of a query's or key's second matrix in the order of llama.cpp."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
    if heads is None or side != ".lora_b" or not _FAMILIES[model_config.model_type].reorders:
        return values
    out, rank = values.shape
    count = getattr(model_config, heads)
    return values.reshape(count, 2, out // count // 2, rank).swapaxes(1, 2).reshape(out, rank)


def _narrowed(values: Weights, key: str, outtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values.astype(_TYPES[outtype]))
    if not np.isfinite(narrow).all():
        raise NoAdapter(f"The adapter's tensor {key} has values that are not finite in {outtype}: train it again.")
    return narrow
