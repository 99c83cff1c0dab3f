"""The name of a kind of training on this machine: what measurements of one hold for."""

import platform
from collections.abc import Iterable
from importlib import metadata

from backends import calibration
from backends.devices import Device

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def kind_of_training(device: Device, family: str, quantization: str) -> str:
    """Device, versions of the libraries, architecture and quantization as one key."""
    return calibration.kind_of(device.value, _device_name(device), family, quantization, installed(_LIBRARIES))


def _device_name(device: Device) -> str:
    if device is Device.CUDA:
        import torch

        return str(torch.cuda.get_device_name())
    return platform.processor() or platform.machine()


def installed(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those libraries that are installed, in the order given."""
    found = {}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
