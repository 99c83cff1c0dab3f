"""The int8 and int4 backends: weights of one byte or half of one, on any device that torch knows."""

from dataclasses import replace

from backends import hardware
from backends.contract import LoadedModel, ModelRequest
from backends.devices import Device
from backends.errors import BackendUnavailable, ModelNotLoadable
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
        if request.compute != "int8":
            return _load(request, 8, request.group_size)
        note = _integer_note(request.device)
        loaded = _load(request, 8, None)
        return replace(loaded, notes=(note, *loaded.notes))


class Int4:
    """Holds the base's linear layers in int4 (`quantization.kind: int4`), in groups of 64; otherwise as int8."""

    name = "int4"

    def check(self, device: Device) -> str | None:
        """None when torch can use `device` here; otherwise why not."""
        return hardware.missing(device)

    def load(self, request: ModelRequest) -> LoadedModel:
        """Quantise the base tensor by tensor while it loads, and attach the adapter."""
        require(self.check(request.device))
        from backends.int8.int4 import GROUP_SIZE

        if request.compute != "exact":
            raise BackendUnavailable("Products in int8 need quantization.kind int8: set quantization.compute to exact.")
        return _load(request, 4, GROUP_SIZE)


def _integer_note(device: Device) -> str:
    """What int8 products gain on `device`, measured before the model is loaded."""
    from backends.int8.integer import integer_gain

    found = integer_gain(device)
    if not found.usable:
        raise BackendUnavailable(found.sentence)
    return found.sentence


def _load(request: ModelRequest, bits: int, group_size: int | None) -> LoadedModel:
    from backends.int8.quantized import QuantizedLinear
    from backends.int8.quantizer import Int8Config

    config = Int8Config(group_size=group_size, bits=bits, compute=request.compute)
    loaded = load_model(request, hardware.precision(request.device), config)
    layers = sum(isinstance(module, QuantizedLinear) for module in loaded.model.modules())
    if layers == 0:
        raise ModelNotLoadable(f"No layer of {request.name} can be held in int{bits}: set quantization.kind to none.")
    groups = "one scale per row" if group_size is None else f"groups of {group_size}"
    return replace(loaded, notes=(f"{layers} layers in int{bits}, {groups}", *loaded.notes))
