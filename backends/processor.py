"""This machine's processor: its name, whether it has bf16 instructions, and what they gain.

The name and the instructions are read without torch; only the measurement multiplies.
"""

import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_CPU_INFO = Path("/proc/cpuinfo")

#: bf16 instructions as Linux names them: x86 (AVX-512, AMX) and ARM.
_BF16_FLAGS = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
#: And as macOS does.
_BF16_SYSCTL = "hw.optional.arm.FEAT_BF16"

#: bf16 must be this much faster than fp32 to be worth its eight bits of precision.
WORTHWHILE_GAIN = 1.2
#: Size of the measured product: 0.27 GFLOP, some milliseconds, large enough for any tile of AMX.
_SIZE = 512
_ROUNDS = 5


def name() -> str:
    """The processor as its maker names it, e.g. "Apple M1"."""
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string") or "Mac"
    return _cpu_info("model name") or platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 by instructions of its own; emulated, it is several times slower."""
    if sys.platform == "darwin":
        return sysctl(_BF16_SYSCTL) == "1"
    return not _BF16_FLAGS.isdisjoint(_flags())


def bf16_gain() -> float:
    """How many times faster a product of bf16 matrices is than one of fp32; takes some hundredths of a second.

    Instructions alone say little: the build of torch must use them, and a virtual machine may hide what they need.
    """
    import torch

    return _seconds(torch, torch.float32) / _seconds(torch, torch.bfloat16)


def sysctl(key: str) -> str:
    """A value of the macOS kernel; "" where there is none."""
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def _flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())  # ARM kernels call them features


def _cpu_info(key: str) -> str:
    """The first processor's value of `key`; "" where the kernel does not say."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def _seconds(torch: Any, dtype: Any) -> float:
    """The least of a few rounds: others may use the machine."""
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    torch.mm(matrix, matrix)  # the first one packs and allocates
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
