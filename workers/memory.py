"""What memory is free right now: a machine that could hold a job may be busy with something else."""

from backends.devices import GIB, Device, Machine
from backends.free_memory import free_ram

#: Part of the need that must be free. On cuda all of it. macOS compresses and swaps what other programs leave idle, so
#: half is enough there; on a CPU the page cache counts as free already.
_MUST_BE_FREE = {Device.CUDA: 1.0, Device.MPS: 0.5, Device.CPU: 1.0}


def shortage(machine: Machine, need_bytes: int) -> str:
    """One sentence when the device is too busy for a job of this need; "" when there is room or nobody can tell."""
    free = free_bytes(machine.device)
    if free is None or free >= need_bytes * _MUST_BE_FREE[machine.device]:
        return ""
    return (
        f"The job needs {need_bytes / GIB:.1f} GiB, and {machine.device_name} ({machine.device}) has "
        f"{free / GIB:.1f} GiB of {machine.memory_bytes / GIB:.1f} GiB free: another program uses it."
    )


def free_bytes(device: Device) -> int | None:
    """Free memory of a device in bytes; None where it cannot be read without loading torch."""
    return _cuda_free() if device is Device.CUDA else free_ram()


def _cuda_free() -> int | None:
    """Of the first visible GPU, asked from the driver. None without nvidia-ml-py."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - not installed, or no driver: then nobody can tell
        return None
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(_first_gpu(pynvml)).free)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _first_gpu(pynvml: object) -> object:
    """The GPU that torch calls cuda:0, which CUDA_VISIBLE_DEVICES may have chosen by number or by UUID."""
    import os

    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first and not first.isdigit():
        return pynvml.nvmlDeviceGetHandleByUUID(first)  # type: ignore[attr-defined]
    return pynvml.nvmlDeviceGetHandleByIndex(int(first or 0))  # type: ignore[attr-defined]
