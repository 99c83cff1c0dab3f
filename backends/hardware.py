"""What torch finds on this machine: whether a device is there, the precision it computes in, the memory in use.

The policies of one device live here, so that no backend and no training loop asks for device names.
"""

from dataclasses import dataclass
from typing import Any

from backends.devices import Device

#: Share of Metal's recommended working set that a process may take. Unlimited, torch takes 1.7 times that set, which on
#: an 8 GB Mac is more than the memory: the machine then swaps to a standstill where an error would have helped.
MPS_MEMORY_FRACTION = 0.95

#: First NVIDIA generation (compute capability) whose tensor cores multiply bf16: Ampere.
AMPERE = (8, 0)

#: What torch says when memory ran out, in lower case; only cuda has a type of its own for it.
_OUT_OF_MEMORY = (
    "mps backend out of memory",
    "cuda out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "can't allocate memory",  # DefaultCPUAllocator on Linux and macOS
    "not enough memory",  # elsewhere
    "cannot allocate memory",
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
        reason = "fp16 on Apple GPUs: M1 and M2 have no bf16 arithmetic (not measured on a Mac yet)"
        return Precision(dtype=torch.float16, needs_scaler=True, reason=reason)
    if device is Device.CUDA:
        return cuda_precision(torch.cuda.get_device_capability())
    return Precision(dtype=torch.float32, reason="fp32 on CPUs: bf16 is slower on most of them")


def cuda_precision(capability: tuple[int, int]) -> Precision:
    """bf16 where tensor cores have it, fp16 with a gradient scaler on older cards."""
    import torch

    generation = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= AMPERE:
        return Precision(dtype=torch.bfloat16, reason=f"bf16: {generation} multiplies it natively")
    return Precision(dtype=torch.float16, needs_scaler=True, reason=f"fp16 with a gradient scaler: {generation}")


def prepare(device: Device) -> None:
    """Set what must be set once per process before the first tensor on `device`."""
    if device is Device.MPS:
        import torch

        torch.mps.set_per_process_memory_fraction(MPS_MEMORY_FRACTION)


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
