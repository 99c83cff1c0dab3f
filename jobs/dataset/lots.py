"""Chance that hangs on a seed and a name alone: the same on any machine, in any order; for each purpose another."""

import hashlib


def drawn(seed: int, name: bytes, purpose: bytes, size: int = 8) -> bytes:
    """`size` bytes, at most 64, that are as good as chance.

    Args:
        seed: not negative.
        name: what draws.
        purpose: what for, at most 16 bytes.
        size: bytes.
    """
    return hashlib.blake2b(name, digest_size=size, key=seed.to_bytes(16, "little"), person=purpose).digest()


def lot(seed: int, name: str) -> int:
    """A number below 2^64."""
    return int.from_bytes(drawn(seed, name.encode(), b"lot"), "little")
