"""Files that one process at a time may hold; the operating system lets go of them should the holder die."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold `file`, which is made where it is missing and stays: a name that goes can be held twice.

    Args:
        file: stands for what is guarded, and holds nothing.
        wait: until another holder has let go; else the block is told that it has none.

    Yields:
        Whether it is held; always true of one that waited.

    Raises:
        OSError: it cannot be made.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        held = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(handle)
