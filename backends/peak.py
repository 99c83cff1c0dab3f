"""The peak of this process's memory on its device over a stretch of work, as the system counted it.

On cpu only anonymous memory counts, with what is mapped from the model's files: pages of shared libraries can be
dropped and read again. Linux resets its high-water mark on request; macOS has only one of the whole process's life,
loading included, which says nothing about a training.
"""

from pathlib import Path

from backends.devices import Device

_PROC = Path("/proc/self")
_KIB = 1024
_WEIGHTS = (".safetensors",)
#: What writing this to clear_refs does: the high-water mark of the resident set becomes its size now.
_RESET_MARK = "5"


class Peak:
    """Watches from its creation on."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._libraries = _mapped_bytes()
        self._is_reset = _reset(device)

    def bytes(self) -> int:
        """The most that was held at a time since the beginning, in bytes; 0 where the system does not tell."""
        if not self._is_reset:
            return 0
        if self._device is Device.CPU:
            return max(0, _status().get("VmHWM", 0) - self._libraries)
        return _gpu_peak(self._device)


def _reset(device: Device) -> bool:
    """Whether the mark now starts from what is held."""
    if device is Device.CUDA:
        import torch

        torch.cuda.reset_peak_memory_stats()
    if device is Device.CPU:
        try:
            (_PROC / "clear_refs").write_text(_RESET_MARK, encoding="ascii")
        except OSError:  # no Linux, or a container that forbids it
            return False
    return True


def _gpu_peak(device: Device) -> int:
    import torch

    if device is Device.CUDA:
        free, whole = torch.cuda.mem_get_info()
        # What the driver's context takes is on the device beside torch's own memory; other programs' too.
        context = max(0, int(whole) - int(free) - int(torch.cuda.memory_reserved()))
        return int(torch.cuda.max_memory_allocated()) + min(context, _LARGEST_CONTEXT)
    return int(torch.mps.driver_allocated_memory())


#: A context beyond this is another program's memory.
_LARGEST_CONTEXT = 600 * 1024**2


def _mapped_bytes() -> int:
    """Resident pages of files, those of weights aside: libraries."""
    return max(0, _status().get("RssFile", 0) - _mapped_weights())


def _mapped_weights() -> int:
    """Resident pages of files of weights: full precision that was stored in the compute type stays mapped."""
    try:
        lines = (_PROC / "smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    of_weights, resident = False, 0
    for line in lines:
        name, *values = line.split()
        if not name.endswith(":"):  # the first line of a mapping ends in its file
            of_weights = line.endswith(_WEIGHTS)
        elif of_weights and name == "Rss:":
            resident += int(values[0]) * _KIB
    return resident


def _status() -> dict[str, int]:
    """Sizes in bytes that Linux tells of this process; {} elsewhere."""
    try:
        lines = (_PROC / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.startswith(("Vm", "Rss")))
    return {name.rstrip(":"): int(size) * _KIB for name, size, *_ in fields}
