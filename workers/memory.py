"""What memory is free right now: a machine that could hold a job may be busy with something else."""

from pathlib import Path

from backends.devices import GIB, Device, Machine

#: Part of the need that must be free. On cuda all of it. macOS compresses and swaps what other programs leave idle, so
#: half is enough there; on a CPU the page cache counts as free already.
_MUST_BE_FREE = {Device.CUDA: 1.0, Device.MPS: 0.5, Device.CPU: 1.0}

_CGROUP = Path("/sys/fs/cgroup")


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
    return _cuda_free() if device is Device.CUDA else _ram_free()


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


def _ram_free() -> int:
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_free()])


def _container_free() -> list[int]:
    """What a container's limit leaves, its page cache counted as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # no cgroup v2 here, or no limit
        return []
    cache = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return [max(0, limit - used + cache)]
