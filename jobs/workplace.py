"""A folder that appears whole or not at all: work is done beside it and renamed in the end.

A dataset that is there already is replaced by the new one at that moment, and stays as it is if there is none.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from backends.errors import DISK_FULL
from jobs.context import OutputExists
from jobs.shards import DATASET_NAMES, MANIFEST, DatasetError


@contextlib.contextmanager
def workplace(output: Path) -> Iterator[Path]:
    """A folder to work in that becomes `output` when the block ends well, and goes away when it does not.

    What a killed run left behind is removed. `output` may be there already if it is empty or a dataset.

    Raises:
        OutputExists: something else is in `output`.
        DatasetError: another run works on it now, the disk is full, or the place cannot be written.
    """
    output = output.resolve()
    try:
        _refuse_occupied(output)
        folder = output.with_name(f".{output.name}.unfinished")
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, output):
            try:
                _restore(output)
                _clear(folder)
                yield folder
                _put_in_place(folder, output)
                _sync(output.parent)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise _sentence(output, error) from error


def _refuse_occupied(output: Path) -> None:
    if may_be_replaced(output):
        return
    raise OutputExists(f"{output} holds something that is no dataset: name another folder, or remove it.")


def may_be_replaced(output: Path) -> bool:
    """True where a dataset may be put: nothing is there, an empty folder, or a dataset."""
    if not output.exists():
        return True
    return output.is_dir() and (not any(output.iterdir()) or _is_dataset(output))


def _is_dataset(folder: Path) -> bool:
    """True for a folder that holds what a build wrote and nothing else: many programs write a `manifest.json`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(manifest, dict) and {"format", "files", "sequence_length", "tokenizer"} <= set(manifest)
    return ours and {path.name for path in folder.iterdir()} <= DATASET_NAMES


def _restore(output: Path) -> None:
    """Put back a dataset that was out of the way when a run was killed between two renames."""
    old = _aside(output)
    if old.exists() and not output.exists():
        old.replace(output)


def _aside(output: Path) -> Path:
    return output.with_name(f".{output.name}.replaced")


def _put_in_place(folder: Path, output: Path) -> None:
    """Rename, the old dataset out of the way first: a folder that is not empty cannot be renamed over."""
    old = _aside(output)
    shutil.rmtree(old, ignore_errors=True)
    if output.exists() and any(output.iterdir()):
        output.replace(old)
    try:
        folder.replace(output)
    except OSError:
        if old.exists():
            old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold the folder; a killed holder lets go of it by itself."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DatasetError(f"Another run is writing {output}: wait for it, or name another folder.") from None
    if not folder.exists() or os.fstat(handle).st_ino != folder.stat().st_ino:
        os.close(handle)  # the run that held it has just ended and taken the folder with it
        raise DatasetError(f"Another run has just ended writing {output}: try again.")
    try:
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _sync(folder: Path) -> None:
    """Put a rename on the disk for good; some file systems cannot."""
    handle = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)


def _sentence(output: Path, error: OSError) -> DatasetError:
    if error.errno in DISK_FULL:
        return DatasetError(f"The disk of {output} is full: free some space there, or name another folder.")
    return DatasetError(f"{output} cannot be written ({error.strerror or error}): name another folder.")
