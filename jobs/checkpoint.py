"""Checkpoints on disk: a folder `step-N` is whole or it is not there.

Everything is written into a hidden folder beside the final one and flushed; the manifest (size and sha256 of every
file) is written last, then one rename publishes the folder. A process killed anywhere leaves at most a hidden folder,
which the next save removes. Where a step is saved again, its folder is `step-N.old` until the new one stands: it still
counts if the process dies between the two renames. What a checkpoint holds is its writer's business: this module knows
files only.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.errors import DISK_FULL, RepotuneError

MANIFEST = "manifest.json"
FORMAT = 1

_PREFIX = "step-"
_OLD = ".old"
_PARTIAL = ".partial-"


class CheckpointDamaged(RepotuneError):
    """A checkpoint's files are not what its manifest says."""


class DiskFull(RepotuneError):
    """The disk (or a quota) has no room left."""


def save(
    folder: Path, step: int, write: Callable[[Path], None], keep: int, beside: frozenset[int] = frozenset()
) -> Path:
    """Publish `folder/step-N` with the files that `write(path)` makes, then remove all but the newest `keep`.

    Checkpoints of later steps go too: they are damaged, or of a course that was given up by resuming before them.
    Those of the steps `beside` stay.

    Raises:
        DiskFull: no room; the checkpoints that were there before are untouched.
    """
    target = folder / f"{_PREFIX}{step}"
    partial = folder / f"{_PARTIAL}{step}"
    with disk_full_as_sentence(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        try:
            partial.mkdir()
            write(partial)
            _write_manifest(partial, step)
            _publish(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    _prune(folder, step, keep, beside)
    return target


def make_room(folder: Path, beside: frozenset[int] = frozenset()) -> bool:
    """Remove every checkpoint but the newest whole one and those of the steps `beside`; whether there was any."""
    newest = latest(folder)
    if newest is None:
        return False
    spare = [path for path in steps(folder) if path != newest and step_of(path) not in beside]
    for path in spare:
        _remove(path)
    return bool(spare)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; None when there is none."""
    return newest_whole(folder)[0]


def newest_whole(folder: Path, up_to: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint in `folder` (not beyond step `up_to`), and a sentence for each damaged one passed."""
    problems = []
    for path in reversed(steps(folder)):
        if up_to is not None and (step_of(path) or 0) > up_to:
            continue
        try:
            verify(path)
        except CheckpointDamaged as error:
            problems.append(str(error))
        else:
            return path, problems
    return None, problems


def steps(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, whole or not, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if step_of(path) is not None]
    return sorted(found, key=lambda path: (step_of(path) or 0, path.suffix != _OLD))


def step_of(path: Path) -> int | None:
    """The step that a checkpoint's folder name carries; None when it is no checkpoint's name."""
    digits = path.name.removeprefix(_PREFIX).removesuffix(_OLD)
    return int(digits) if path.name.startswith(_PREFIX) and digits.isdecimal() else None


def verify(path: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointDamaged: a file is missing, cut short or changed, or there is no manifest.
    """
    for name, entry in _manifest_files(path).items():
        file = path / name
        if not file.is_file():
            raise CheckpointDamaged(f"Checkpoint {path} is damaged: {name} is missing.")
        if file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
            raise CheckpointDamaged(f"Checkpoint {path} is damaged: {name} is not what was written.")


def sha256_of(file: Path) -> str:
    """The sha256 of a file, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(file: Path, data: Any) -> None:
    """Write JSON so that the file is the old one or the new one, never a part, even after a power cut."""
    replace_file(file, (json.dumps(data, indent=1, allow_nan=False) + "\n").encode())


def replace_file(file: Path, content: bytes) -> None:
    """Put `content` in `file` in one step: the file is the old one or the new one, never a part."""
    beside = file.with_name(f".{file.name}.new")
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except OSError:
        beside.unlink(missing_ok=True)  # on a full disk it would take what little room there is
        raise


@contextmanager
def disk_full_as_sentence(folder: Path) -> Iterator[None]:
    """Turn "no space left" from Python, torch or safetensors into `DiskFull`."""
    try:
        yield
    except Exception as error:
        if not _means_full(error):
            raise
        raise DiskFull(
            f"No room left on the disk (or quota) that holds {folder}: free some space and resume; "
            "the last whole checkpoint is untouched."
        ) from error


def _means_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    # safetensors and torch report the operating system's error as text only.
    text = str(error)
    return any(f"os error {number}" in text or os.strerror(number) in text for number in DISK_FULL)


def _manifest_files(path: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if not all(isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in files.values()):
            raise TypeError  # noqa: TRY301 - the same sentence as for any other damage
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointDamaged(f"Checkpoint {path} is damaged: its {MANIFEST} is missing or unreadable.") from None
    if manifest.get("format") != FORMAT:
        raise CheckpointDamaged(f"Checkpoint {path} was written by another version of repotune: it cannot be read.")
    return dict(files)


def _write_manifest(path: Path, step: int) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        _flush(file)
    entries = {
        file.relative_to(path).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files
    }
    for folder in {file.parent for file in files}:
        _flush(folder)
    write_json(path / MANIFEST, {"format": FORMAT, "step": step, "files": entries})
    _flush(path)


def _publish(partial: Path, target: Path) -> None:
    aside = target.with_name(f"{target.name}{_OLD}")
    if target.exists():  # a damaged one, or the same step reached again after a fall back
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    partial.rename(target)
    _flush(target.parent)
    _remove(aside)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, step: int, keep: int, beside: frozenset[int]) -> None:
    found = steps(folder)
    later = [path for path in found if (step_of(path) or 0) > step]
    for path in later + found[: len(found) - len(later)][:-keep]:
        if step_of(path) not in beside:
            _remove(path)


def _remove(path: Path) -> None:
    # Without its manifest a half removed checkpoint cannot pass for a whole one.
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{_PREFIX}*{_OLD}"):
        if path.with_suffix("").exists():
            _remove(path)
