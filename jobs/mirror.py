"""Repositories behind URLs as this machine keeps them: a later build fetches only what is new."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from backends.locks import locked
from jobs.repository import RepositoryError, fetch_into, fetch_url, has_commit

#: One that nobody asked for so long goes.
KEPT_SECONDS = 60 * 86_400
_LOCK, _GONE = ".lock", ".gone"


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
    with _fetching(place):
        if not place.is_dir():
            fetch_url(url, commit, place, since)
        elif not all(has_commit(place, wanted) for wanted in (commit, since) if wanted):
            fetch_into(place, url, commit, since)
        # Under the lock: who forgets looks again once it has it, so that what was asked for just now stays.
        os.utime(place)
    _forget_old(folder)
    return place


@contextlib.contextmanager
def _fetching(place: Path) -> Iterator[None]:
    """Let one build at a time fetch into it."""
    with contextlib.ExitStack() as stack:
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            stack.enter_context(locked(place.with_suffix(_LOCK)))
        except OSError as error:
            raise RepositoryError(f"{place.parent} cannot be written ({error.strerror or error}).") from error
        yield


def _forget_old(folder: Path) -> None:
    """Remove what is old; one that somebody fetches into now is not."""
    for place in folder.glob("*.git"):
        with contextlib.suppress(OSError):
            if _is_old(place):
                _forget(place)
    for gone in folder.glob(f"*{_GONE}"):
        shutil.rmtree(gone, ignore_errors=True)


def _forget(place: Path) -> None:
    with locked(place.with_suffix(_LOCK), wait=False) as held:
        if held and _is_old(place):
            # Another name first: a removal that is killed half-way leaves nothing that looks like a repository.
            place.replace(place.with_suffix(_GONE))


def _is_old(place: Path) -> bool:
    return time.time() - place.stat().st_mtime > KEPT_SECONDS
