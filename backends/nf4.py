"""The nf4 backend: 4-bit weights by bitsandbytes, its scales quantised once more. The only importer of bitsandbytes."""

import warnings
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from backends import hardware
from backends.contract import LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import ModelNotLoadable
from backends.hardware import Precision
from backends.loading import load_model, require


class Nf4:
    """Holds the base's linear layers in 4-bit NormalFloat (`quantization.kind: nf4`)."""

    name = "nf4"

    def check(self, device: Device) -> str | None:
        """None when bitsandbytes is installed and works on `device` here; otherwise why not."""
        return hardware.missing(device) or _missing_library() or _unsupported(device)

    def load(self, request: ModelRequest) -> LoadedModel:
        """Quantise the base tensor by tensor while it loads, and attach the adapter."""
        require(self.check(request.device))
        import bitsandbytes
        from transformers import BitsAndBytesConfig

        precision = _precision(request.device)
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision.dtype,
        )
        loaded = load_model(request, precision, config)
        layers = sum(isinstance(module, bitsandbytes.nn.Linear4bit) for module in loaded.model.modules())
        if layers == 0:
            raise ModelNotLoadable(f"No layer of {request.name} can be held in nf4: set quantization.kind to none.")
        return replace(loaded, notes=(f"{layers} layers in nf4 with double quantisation", *loaded.notes))


def _missing_library() -> str | None:
    if find_spec("bitsandbytes") is None:
        return (
            "The nf4 backend needs bitsandbytes, which is not installed: run `pip install 'repotune[cuda]'`, "
            "or set quantization.kind to int8."
        )
    return None


def _unsupported(device: Device) -> str | None:
    """Ask bitsandbytes itself: whether its library loads, and which devices that version has kernels for."""
    supported = _supported_devices()
    if supported is None:
        return "bitsandbytes is installed but cannot be loaded: reinstall it, or set quantization.kind to int8."
    if device.value not in supported:
        return f"This version of bitsandbytes has no 4-bit weights on {device}: set quantization.kind to int8."
    return None


def _supported_devices() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
    except (ImportError, OSError, RuntimeError):
        return None
    return bitsandbytes.supported_torch_devices


def _precision(device: Device) -> Precision:
    """On CPUs with bf16 instructions bitsandbytes is faster in bf16; elsewhere as the device has it."""
    if device is Device.CPU and _cpu_has_bf16():
        import torch

        return Precision(dtype=torch.bfloat16, reason="bf16: this CPU multiplies it natively")
    return hardware.precision(device)


def _cpu_has_bf16() -> bool:
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, bool)() for probe in probes)
