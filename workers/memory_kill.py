"""Tells whether the system ended a trainer for want of memory: such an end is a bare SIGKILL, which says nothing.

The kernel counts its kills, for a container and for the whole machine. Where it does not count (macOS), or the counter
is not ours to read, the last look tells: a process that held much while next to nothing was free.
"""

import signal
import time
from pathlib import Path

import psutil

from backends.devices import GIB
from backends.free_memory import free_ram

#: Kills for want of memory: of the container (cgroup v2, then v1), and of the machine.
_COUNTERS = (
    (Path("/sys/fs/cgroup/memory.events"), "oom_kill"),
    (Path("/sys/fs/cgroup/memory/memory.oom_control"), "oom_kill"),
    (Path("/proc/vmstat"), "oom_kill"),
)

_LOOK_SECONDS = 1.0

#: Free memory below this part of the machine's, and a process that holds this part, are a lack of memory.
_NEXT_TO_NOTHING = 0.05
_MUCH = 0.25


class KillWatch:
    """Watches one process from its start."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _kills()
        self._held = 0
        self._free = psutil.virtual_memory().total
        self._looked = 0.0

    def look(self) -> None:
        """Note what the process holds and what is free, once a second at most."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            held = int(psutil.Process(self._pid).memory_info().rss)
        except psutil.Error:
            return
        if held:  # a process that is being ended holds nothing any more
            self._held, self._free = held, free_ram()

    def verdict(self, exit_code: int) -> str:
        """A clause that says how the system ended the process for want of memory; "" where it did not, as far as known.

        Args:
            exit_code: Of the process; negative is the signal that ended it.
        """
        if exit_code != -signal.SIGKILL:
            return ""
        if _kills() > self._before:
            return f"the system killed it for want of memory, while it held {self._held / GIB:.1f} GiB"
        total = psutil.virtual_memory().total
        if self._free < _NEXT_TO_NOTHING * total and self._held > _MUCH * total:
            return f"it was killed while it held {self._held / GIB:.1f} GiB and {self._free / GIB:.1f} GiB were free"
        return ""


def _kills() -> int:
    """The counters' sum: one that cannot be read never rises."""
    return sum(_read(file, name) for file, name in _COUNTERS)


def _read(file: Path, name: str) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
