"""The nf4 backend: 4-bit weights by bitsandbytes, its scales quantised once more. The only importer of bitsandbytes."""

import warnings
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from backends import hardware
from backends.contract import LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import ModelNotLoadable
from backends.gguf_cache import first_line
from backends.hardware import Precision
from backends.loading import load_model, require

#: Of a product's result; what nf4 rounds away is a third of this.
_LARGEST_ERROR = 0.3


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
    """Ask bitsandbytes itself: whether its library loads, which devices it names, and whether a product comes true."""
    supported = _supported_devices()
    if supported is None:
        return "bitsandbytes is installed but cannot be loaded: reinstall it, or set quantization.kind to int8."
    if device.value not in supported:
        return f"This version of bitsandbytes has no 4-bit weights on {device}: set quantization.kind to int8."
    problem = _problem(device)
    if problem:
        return f"bitsandbytes does not compute on {device} ({problem}): reinstall it, or set quantization.kind to int8."
    return None


def _supported_devices() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
    except (ImportError, OSError, RuntimeError):
        return None
    return bitsandbytes.supported_torch_devices


def _problem(device: Device) -> str | None:
    """Multiply a small matrix on `device`: a version names devices for which this machine may lack the kernels."""
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            error = _error_of_a_product(torch.device(device.value))
    except (AttributeError, ImportError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError) as raised:
        return first_line(raised)
    return None if error < _LARGEST_ERROR else f"a product was wrong by {error:.0%}"


def _error_of_a_product(device: Any) -> float:
    """Relative error of rows times a matrix held in nf4 with double quantisation; rounding alone makes a tenth."""
    import bitsandbytes
    import torch

    generator = torch.Generator().manual_seed(17)
    weight, rows = (torch.randn(shape, generator=generator) for shape in ((64, 128), (3, 128)))
    layer = bitsandbytes.nn.Linear4bit(
        128, 64, bias=False, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        weight, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    )
    layer.train()
    exact = rows @ weight.t()
    return float((layer.to(device)(rows.to(device)).cpu() - exact).norm() / exact.norm())


def _precision(device: Device) -> Precision:
    """The type that dequantised weights are multiplied in; left alone on CPUs, the library takes bf16 even emulated."""
    return hardware.cpu_precision() if device is Device.CPU else hardware.precision(device)
