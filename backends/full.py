"""Full precision: the base weights as they are, fp32 on cpu and 16-bit on GPUs. The reference for the others."""

from backends import hardware
from backends.contract import LoadedModel, ModelRequest
from backends.devices import Device
from backends.loading import load_model, require


class FullPrecision:
    """Keeps the base weights unquantised (`quantization.kind: none`)."""

    name = "none"

    def check(self, device: Device) -> str | None:
        """None when torch can use `device` here; otherwise why not."""
        return hardware.missing(device)

    def load(self, request: ModelRequest) -> LoadedModel:
        """Load the base and attach the adapter."""
        require(self.check(request.device))
        return load_model(request, hardware.precision(request.device))
