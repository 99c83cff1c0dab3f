"""Looks for devices, in a process of its own: `python -m workers.probe` prints what it found as one JSON object.

It imports torch, which takes hundreds of megabytes and opens the GPU; the worker must do neither. `workers.machine`
runs it and chooses.

    {"devices": [{"device": "cuda", "device_name": "NVIDIA RTX 2060", "memory_bytes": 6442450944}, …],
     "absent": {"mps": "Metal needs a Mac; this is Linux."},
     "versions": {"python": "3.11.9", "torch": "2.13.0"}}
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

from backends import processor
from backends.devices import Device
from backends.kinds import installed

_REPORTED = ("repotune", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "celery")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def main() -> None:
    """Print what this machine offers."""
    json.dump(probe(), sys.stdout)


def probe() -> dict[str, Any]:
    """Every device of this machine, a sentence for each that is absent, and the versions installed."""
    found: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    try:
        import torch
    except ImportError as error:
        sentence = f"PyTorch cannot be imported here ({error}): install it with `pip install 'repotune[worker]'`."
        return {"devices": [], "absent": dict.fromkeys(Device, sentence), "versions": versions()}
    for device, look in ((Device.CUDA, _cuda), (Device.MPS, _mps), (Device.CPU, _cpu)):
        result = look(torch)
        if isinstance(result, str):
            absent[device] = result
        else:
            found.append({"device": device.value, "device_name": result[0], "memory_bytes": result[1]})
    return {"devices": found, "absent": absent, "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide how a job runs; packages not installed are left out."""
    own = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return own | installed(_REPORTED)


def _cuda(torch: Any) -> tuple[str, int] | str:
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return f"PyTorch {torch.__version__} was built without CUDA: install its CUDA build to use an NVIDIA GPU."
        return "PyTorch finds no NVIDIA GPU: check with nvidia-smi that the driver runs and that a GPU is visible."
    try:
        torch.ones(1, device="cuda").add_(1)
        properties = torch.cuda.get_device_properties(0)
    except RuntimeError as error:
        return f"the NVIDIA GPU does not compute ({_first_line(error)}): check driver and PyTorch build."
    return properties.name, properties.total_memory


def _mps(torch: Any) -> tuple[str, int] | str:
    if sys.platform != "darwin":
        return f"Metal (mps) needs a Mac; this is {platform.system()}."
    if not torch.backends.mps.is_available():
        return "Metal does not answer: PyTorch needs macOS 14 or newer on Apple silicon."
    try:
        torch.ones(1, device="mps").add_(1)
    except RuntimeError as error:
        return f"Metal does not compute ({_first_line(error)}): update macOS and PyTorch."
    return processor.name(), _memory_bytes()


def _cpu(_torch: Any) -> tuple[str, int]:
    return processor.name(), _memory_bytes()


def _memory_bytes() -> int:
    """RAM in bytes, or the container's limit where that is smaller."""
    import psutil

    return min([int(psutil.virtual_memory().total), *_container_limits()])


def _container_limits() -> list[int]:
    limits = []
    for file in _CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return limits


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


if __name__ == "__main__":
    main()
