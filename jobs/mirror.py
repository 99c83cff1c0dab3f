"""Repositories behind URLs as this machine keeps them: a later build fetches only what is new."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from jobs.repository import RepositoryError, fetch_into, fetch_url, has_commit

#: One that nobody asked for so long goes.
KEPT_SECONDS = 60 * 86_400


def place_of(url: str, folder: Path) -> Path:
    """Where in `folder` the repository at `url` is kept once it was fetched."""
    # A URL may hold a password; its hash names the folder.
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:20]}.git"


def mirrored(url: str, commit: str, folder: Path, since: str | None = None) -> Path:
    """A bare repository in `folder` that holds `commit` of the repository at `url` and its history.

    Args:
        url: of the repository.
        commit: full id.
        folder: of all mirrors.
        since: full id of the start of a range, which is there with its history, too.

    Raises:
        RepositoryError: the URL does not answer, has no such commit, or the folder cannot be written.
    """
    place = place_of(url, folder)
    with _locked(place):
        if not place.is_dir():
            fetch_url(url, commit, place, since)
        elif not all(has_commit(place, wanted) for wanted in (commit, since) if wanted):
            fetch_into(place, url, commit, since)
        os.utime(place)
    _forget_old(folder)
    return place


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Let one build at a time fetch into it; a killed one lets go by itself."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise RepositoryError(f"{place.parent} cannot be written ({error.strerror or error}).") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _forget_old(folder: Path) -> None:
    for place in folder.glob("*.git"):
        with contextlib.suppress(OSError):
            if time.time() - place.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(place, ignore_errors=True)
