"""How this process gets memory from the system, where memory is what it is short of.

glibc keeps freed blocks of up to 32 MB for itself, between blocks that live on. In a training, where tensors of a few
megabytes come and go among others that stay until the backward pass, up to a quarter of the peak was such holes
(benchmarks/memory_model.py). Blocks above a fixed size can be mapped instead: each goes back to the system when it is
freed, at the price of a page fault every 4 KiB, some 15 % of a step's CPU time on a small model.
"""

import ctypes
import os
import sys
from typing import Any

#: Smaller blocks stay glibc's: there are too many of them.
_MAPPED_FROM_BYTES = 256 * 1024

#: glibc's name for the setting, as `mallopt` takes it, and its environment variable.
_M_MMAP_THRESHOLD = -3
_VARIABLE = "MALLOC_MMAP_THRESHOLD_"


def return_large_blocks() -> bool:
    """Have large blocks mapped, unless somebody has set glibc's variable; False where the C library is another."""
    if _VARIABLE in os.environ:
        return False
    mallopt = _of_glibc("mallopt")
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES))


def trim() -> bool:
    """Give the system back what is free between blocks that live on; False where there was nothing, or no glibc."""
    malloc_trim = _of_glibc("malloc_trim")
    return bool(malloc_trim and malloc_trim(0))


def _of_glibc(name: str) -> Any:
    """A function of the C library; None where that is another one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:
        return None
