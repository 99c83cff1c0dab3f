"""What torch finds on this machine: whether a device is there, the precision it computes in, the memory in use.

The policies of one device live here, so that no backend and no training loop asks for device names.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backends import mps, processor
from backends.devices import Device

#: First NVIDIA generation (compute capability) whose tensor cores multiply bf16: Ampere.
AMPERE = (8, 0)

#: What torch says when memory ran out, in lower case; only cuda has a type of its own for it.
_OUT_OF_MEMORY = (
    "mps backend out of memory",
    "invalid buffer size",  # a tensor larger than Metal's largest buffer
    "cuda out of memory",
    "cuda error: out of memory",
    "cuda driver error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",  # DefaultCPUAllocator on Linux and macOS
    "not enough memory",  # elsewhere
    "cannot allocate memory",
    "bad_alloc",  # what C++ throws, in libraries that torch calls
)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The type that matrix products run in on a device."""

    #: A `torch.dtype`.
    dtype: Any
    #: Whether gradients must be scaled lest small ones vanish (fp16).
    needs_scaler: bool = False
    #: One line for people: the type, and why.
    reason: str


def missing(device: Device) -> str | None:
    """None when torch can use `device` on this machine; otherwise one sentence that says why not and what to do."""
    import torch

    if device is Device.CUDA and not torch.cuda.is_available():
        return (
            "torch finds no NVIDIA GPU on this machine: install its driver and a CUDA build of torch, "
            "or choose --device cpu."
        )
    if device is Device.MPS and not torch.backends.mps.is_available():
        return (
            "torch finds no Apple GPU on this machine: mps needs a Mac with an M-series chip, "
            "elsewhere choose --device cuda or --device cpu."
        )
    return None


def precision(device: Device) -> Precision:
    """The precision that suits `device`; the device must be there."""
    import torch

    if device is Device.MPS:
        return mps_precision(processor.name(), platform.mac_ver()[0])
    if device is Device.CUDA:
        return cuda_precision(torch.cuda.get_device_capability())
    return Precision(dtype=torch.float32, reason="fp32 on CPUs: exact, and faster than emulated bf16")


def mps_precision(chip: str, macos: str) -> Precision:
    """bf16 on Apple chips that have it, fp16 with a gradient scaler on M1 and M2; adapters are in fp32 either way.

    Args:
        chip: As the system names it, e.g. "Apple M1 Pro".
        macos: Its version, e.g. "14.5".
    """
    import torch

    kept = "adapters, their gradients and updates, softmax and loss stay in fp32 (not measured on a Mac yet)"
    if mps.has_native_bf16(chip, macos):
        reason = f"bf16: the GPU of {chip} multiplies it natively, and it overflows no sooner than fp32; {kept}"
        return Precision(dtype=torch.bfloat16, reason=reason)
    reason = f"fp16 with a gradient scaler: bf16 would be emulated on {chip or 'this chip'}; {kept}"
    return Precision(dtype=torch.float16, needs_scaler=True, reason=reason)


def cuda_precision(capability: tuple[int, int]) -> Precision:
    """bf16 where tensor cores have it, fp16 with a gradient scaler on older cards."""
    import torch

    generation = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= AMPERE:
        return Precision(dtype=torch.bfloat16, reason=f"bf16: {generation} multiplies it natively")
    return Precision(dtype=torch.float16, needs_scaler=True, reason=f"fp16 with a gradient scaler: {generation}")


def cpu_precision() -> Precision:
    """bf16 where this CPU has instructions for it and they are measured to help, else fp32.

    For backends whose weights are approximate anyway: the exact ones stay in fp32 (`precision`).
    """
    import torch

    if not processor.has_bf16():
        return Precision(dtype=torch.float32, reason="fp32: this CPU has no bf16 instructions")
    gain = processor.bf16_gain()
    if gain < processor.WORTHWHILE_GAIN:
        reason = f"fp32: this CPU has bf16 instructions, but products in bf16 were {gain:.1f} times as fast"
        return Precision(dtype=torch.float32, reason=reason)
    return Precision(dtype=torch.bfloat16, reason=f"bf16: {gain:.1f} times as fast as fp32 on this CPU")


def prepare(device: Device) -> None:
    """Set what must be set once per process before the first tensor on `device`."""
    if device is Device.MPS:
        mps.prepare()


def policy_notes(device: Device) -> tuple[str, ...]:
    """What is done on `device` for memory, speed and right results that a person would not expect, a line each."""
    return mps.policy_notes() if device is Device.MPS else ()


def watch(device: Device, model: Any) -> Callable[[], tuple[str, ...]]:
    """A function to call after each step: lines for people about what `device` did unexpectedly."""
    return mps.watch(model) if device is Device.MPS else tuple


def memory_in_use(device: Device) -> int:
    """Bytes that this process holds of the device's memory now: VRAM on cuda, Metal's on mps, resident set on cpu."""
    import torch

    if device is Device.CUDA:
        return int(torch.cuda.memory_allocated())
    if device is Device.MPS:
        return int(torch.mps.driver_allocated_memory())
    import psutil

    return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _OUT_OF_MEMORY)
