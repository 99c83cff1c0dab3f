"""The int8 backend: exact products with weights of one byte, on any device that torch knows."""

from dataclasses import replace

from backends import hardware
from backends.contract import LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import ModelNotLoadable
from backends.loading import load_model, require


class Int8:
    """Holds the base's linear layers in int8 (`quantization.kind: int8`); embedding, norms and head stay float."""

    name = "int8"

    def check(self, device: Device) -> str | None:
        """None when torch can use `device` here; otherwise why not."""
        return hardware.missing(device)

    def load(self, request: ModelRequest) -> LoadedModel:
        """Quantise the base tensor by tensor while it loads, and attach the adapter."""
        require(self.check(request.device))
        from backends.int8.linear import Int8Linear
        from backends.int8.quantizer import Int8Config

        config = Int8Config(group_size=request.group_size)
        loaded = load_model(request, hardware.precision(request.device), config)
        layers = sum(isinstance(module, Int8Linear) for module in loaded.model.modules())
        if layers == 0:
            raise ModelNotLoadable(f"No layer of {request.name} can be held in int8: set quantization.kind to none.")
        return replace(loaded, notes=(f"{layers} layers in int8, groups of {request.group_size}", *loaded.notes))
