import subprocess
import sys

import pytest

# Blocks of a megabyte come and go among small ones that stay; tells how much is held in the end beyond the beginning.
PROGRAM = """
import ctypes, sys
from pathlib import Path
from backends.allocator import return_large_blocks

def anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

print(return_large_blocks() if sys.argv[1] == "ours" else False)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = anonymous()
libc.free(ctypes.c_void_p(libc.malloc(30 << 20)))  # from here on glibc itself would keep blocks of this size
large, small = [], []
for _ in range(100):
    large.append(libc.malloc(1 << 20))
    ctypes.memset(large[-1], 1, 1 << 20)
    small.append(libc.malloc(4096))
for block in large:
    libc.free(ctypes.c_void_p(block))
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_large_blocks_go_back_to_the_system_when_they_are_freed():
    held = {}
    for kind in ("ours", "glibc's"):
        answer = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
        was_set, left = answer.stdout.split()
        held[kind] = int(left)
        if kind == "ours" and was_set == "False":
            pytest.skip("another C library")
    assert held["ours"] < 10_000_000
    assert held["glibc's"] > 90_000_000


def test_what_a_person_has_set_stays(monkeypatch):
    from backends.allocator import return_large_blocks

    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert not return_large_blocks()
