"""The version of this package's own code, so that nothing made by other code is taken for what this one would make."""

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_version() -> str:
    """A hash of every source file that data hangs on: the modules of this package and those that read repositories."""
    here = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for file in [*sorted(here.glob("*.py")), here.parent / "repository.py", here.parent / "globs.py"]:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()
