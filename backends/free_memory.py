"""How much memory a training that starts now may take on a device of this machine; and giving unused memory back."""

from pathlib import Path

from backends.devices import Device

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: Device) -> int:
    """Free memory of `device` in bytes, as torch and the operating system see it; the device must be there."""
    if device is Device.CUDA:
        import torch

        return int(torch.cuda.mem_get_info()[0])
    if device is Device.MPS:
        import torch

        # Beyond Metal's working set the machine swaps.
        room = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return min(int(room), free_ram())
    return free_ram()


def limit_bytes(device: Device) -> int:
    """The most that a training may come to take, other programs set aside: more than that is not begun."""
    if device is not Device.MPS:
        return free_bytes(device)
    import torch

    # macOS compresses and swaps what other programs leave idle; Metal's working set it does not exceed.
    room = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(int(room), 2 * free_ram())


def release_unused(device: Device) -> None:
    """Let go of memory that is kept for the next time: torch's own on a GPU, the scratch of quantised products."""
    import torch

    from backends.int8 import tiles

    tiles.release()
    if device is Device.CUDA:
        torch.cuda.empty_cache()
    if device is Device.MPS:
        torch.mps.empty_cache()


def free_ram() -> int:
    """Free memory of this machine, or of the container that this process lives in, in bytes. Loads no torch."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_room()])


def _container_room() -> list[int]:
    """What a container's limit leaves, its page cache counted as free; [] is no limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return []
    cache = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return [max(0, limit - used + cache)]
