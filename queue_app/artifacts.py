"""The artifact store: files too large for Redis, at an fsspec URL that submitters and workers share.

An artifact is a folder `{path}/` with its files and, written last, `.manifest.json` with the size and sha256 of each.
What has no manifest does not exist. An artifact on this machine's disk (`file://`) is read in place; all others are
copied into a cache whose entries are whole or absent.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from backends.errors import DISK_FULL, ExitCode, RepotuneError

MANIFEST = ".manifest.json"
_FORMAT = 1
_CHUNK = 1 << 20
# What was fetched so recently may be in use by a running job, here or in another worker of this machine.
_IN_USE_SECONDS = 24 * 3600.0


class ArtifactError(RepotuneError):
    """The artifact store does not answer, or there is no room for an artifact: later, or elsewhere, it may work."""

    exit_code = ExitCode.UNREACHABLE


class ArtifactNotFound(ArtifactError):
    """There is no whole artifact of this name."""

    exit_code = ExitCode.JOB_FAILED


class ArtifactDamaged(ArtifactError):
    """What the store holds is not what its manifest promises."""

    exit_code = ExitCode.JOB_FAILED


class InvalidArtifactPath(ArtifactError):
    """A path that would lead out of the artifact store."""

    exit_code = ExitCode.USAGE


class ArtifactStore:
    """Artifacts at a URL, each named by a path of plain parts such as `train-x7k2m9qz/1/output`."""

    def __init__(self, url: str, cache: Path, cache_gigabytes: float = 20.0) -> None:
        """Nothing is opened yet.

        Args:
            url: fsspec URL: file://, s3://, sftp://, memory://…
            cache: folder for copies of artifacts that are elsewhere.
            cache_gigabytes: size of those copies at most; those unused for longest go first.
        """
        self._url = url
        self._cache = cache
        self._cache_bytes = int(cache_gigabytes * 1e9)

    def put_file(self, file: Path, path: str) -> None:
        """Store one file as the artifact `path`; `fetch` then returns a file.

        Raises:
            ArtifactError: the store does not answer or is full; there is no such artifact then.
        """
        if not file.is_file():
            raise ArtifactNotFound(f"{file} is no file: it cannot become artifact {path}.")
        self._put({file.name: file}, "file", path)

    def put_folder(self, folder: Path, path: str) -> None:
        """Store the files of a folder and of those below it. An artifact of this name is replaced.

        Raises:
            ArtifactError: the store does not answer or is full; the artifact is then what it was, or absent.
        """
        if not folder.is_dir():
            raise ArtifactNotFound(f"{folder} is no folder: it cannot become artifact {path}.")
        files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        files.pop(MANIFEST, None)  # of the artifact that the folder was fetched from
        self._put(files, "folder", path)

    def exists(self, path: str) -> bool:
        """Whether the artifact is there, whole."""
        path = _checked(path)
        if self._folder is not None and not self._folder.is_dir():
            return False  # nothing was ever put
        try:
            self._read_manifest(path)
        except ArtifactNotFound:
            return False
        return True

    def fetch(self, path: str) -> Path:
        """The artifact on this machine, every byte verified: a folder, or a file where one was put. Read only.

        Raises:
            ArtifactNotFound: there is none.
            ArtifactDamaged: a file is missing, or is not what the manifest promises.
            ArtifactError: the store does not answer, or the cache is full.
        """
        path = _checked(path)
        manifest, text = self._read_manifest(path)
        if self._folder is not None:
            with self._reaching(path):
                _verify(self._folder / path, manifest, path)
            return _inside(self._folder / path, manifest)
        entry = self._cache / hashlib.sha256(f"{self._url}\n{path}\n{text}".encode()).hexdigest()[:32]
        with self._reaching(path):
            if _is_whole(entry, manifest):
                os.utime(entry)
            else:
                self._download(path, manifest, entry)
                with suppress(OSError):  # another worker trims the same cache
                    _trim(self._cache, self._cache_bytes)
        return _inside(entry, manifest)

    def remove(self, path: str) -> None:
        """Forget an artifact, its manifest first: what is left of it after a breakdown counts as absent.

        Raises:
            ArtifactError: the store does not answer. An artifact that is not there is no error.
        """
        path = _checked(path)
        with self._reaching(path):
            if self._folder is not None:
                (self._folder / path / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(self._folder / path, ignore_errors=True)
                return
            file_system, root = self._remote
            if file_system.exists(f"{root}/{path}/{MANIFEST}"):
                file_system.rm_file(f"{root}/{path}/{MANIFEST}")
                file_system.rm(f"{root}/{path}", recursive=True)

    def local_path(self, path: str) -> Path | None:
        """Where the artifact is on this machine's disk; None where it is elsewhere or does not exist."""
        path = _checked(path)
        if self._folder is None or not (self._folder / path / MANIFEST).is_file():
            return None
        return _inside(self._folder / path, self._read_manifest(path)[0])

    @cached_property
    def _folder(self) -> Path | None:
        """The store's own folder, where it is one of this machine."""
        parts = urlsplit(self._url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """The file system that the URL names, and the store's root in it."""
        import fsspec

        with self._reaching(""):
            file_system, root = fsspec.core.url_to_fs(self._url)
            return file_system, root.rstrip("/")

    def _put(self, files: Mapping[str, Path], kind: str, path: str) -> None:
        path = _checked(path)
        with self._reaching(path):
            if self._folder is not None:
                _put_in_folder(files, kind, self._folder / path)
            else:
                self._upload(files, kind, path)

    def _upload(self, files: Mapping[str, Path], kind: str, path: str) -> None:
        file_system, root = self._remote
        manifest_at = f"{root}/{path}/{MANIFEST}"
        if file_system.exists(manifest_at):
            file_system.rm_file(manifest_at)
        facts = {}
        for name, file in files.items():
            target = f"{root}/{path}/{name}"
            file_system.makedirs(target.rpartition("/")[0], exist_ok=True)
            with file.open("rb") as source, file_system.open(target, "wb") as sink:
                facts[name] = _copy(source, sink)
        file_system.makedirs(f"{root}/{path}", exist_ok=True)
        file_system.pipe_file(manifest_at, _manifest_text(facts, kind).encode())

    def _download(self, path: str, manifest: dict[str, Any], entry: Path) -> None:
        file_system, root = self._remote
        with _beside(entry) as unfinished:
            for name, promised in manifest["files"].items():
                target = unfinished / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with file_system.open(f"{root}/{path}/{name}", "rb") as source, target.open("xb") as sink:
                    if _copy(source, sink) != promised:
                        raise ArtifactDamaged(_damaged(path, name))
            _put_in_place(unfinished, entry)

    def _read_manifest(self, path: str) -> tuple[dict[str, Any], str]:
        try:
            with self._reaching(path):
                text = self._manifest_text(path)
            manifest = _parsed(text)
        except (ValueError, TypeError, LookupError, AttributeError, InvalidArtifactPath):
            raise ArtifactDamaged(_damaged(path, MANIFEST)) from None
        return manifest, text

    def _manifest_text(self, path: str) -> str:
        if self._folder is not None:
            return (self._folder / path / MANIFEST).read_text(encoding="utf-8")
        file_system, root = self._remote
        return str(file_system.cat_file(f"{root}/{path}/{MANIFEST}").decode())

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Turn what a file system raises into one sentence; what could hold a password is not shown."""
        shown = _shown(self._url)
        try:
            yield
        except (RepotuneError, ValueError, TypeError, KeyError) as error:
            if path or isinstance(error, RepotuneError):
                raise
            raise ArtifactError(f"{shown} is no artifact store: check REPOTUNE_ARTIFACTS.") from None
        except ImportError:
            scheme = urlsplit(self._url).scheme
            text = (
                f"Artifacts at {shown} need a package: install repotune[{scheme}], or see fsspec's page on {scheme}://."
            )
            raise ArtifactError(text) from None
        except FileNotFoundError as error:
            if self._folder is not None and not self._folder.is_dir():
                text = f"The artifact store {shown} is not there: mount it, or check REPOTUNE_ARTIFACTS."
                raise ArtifactError(text) from None
            raise ArtifactNotFound(f"There is no artifact {path} at {shown} ({_name_of(error)} is missing).") from None
        except Exception as error:  # noqa: BLE001 - each file system raises errors of its own library
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                text = f"No room for artifact {path}: free space at {shown} or in {self._cache}."
                raise ArtifactError(text) from None
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
            text = f"The artifact store {shown} cannot be used ({why}): check REPOTUNE_ARTIFACTS."
            raise ArtifactError(text) from None


def _checked(path: str) -> str:
    """The path, where it has plain parts only."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(bad in path for bad in ("\\", "\0", "\n")):
        raise InvalidArtifactPath(f"{path!r} cannot name an artifact: expected parts such as job/1/output.")
    return "/".join(parts)


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "this address"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _name_of(error: OSError) -> str:
    return Path(str(error.filename)).name if error.filename else "it"


def _damaged(path: str, name: str) -> str:
    return f"Artifact {path} is damaged ({name} is not what was stored): run the job that made it again."


def _manifest_text(facts: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    return json.dumps({"format": _FORMAT, "kind": kind, "files": facts}, indent=1)


def _parsed(text: str) -> dict[str, Any]:
    """A manifest, whose names and figures are what they must be: anybody may write to a store."""
    raw = json.loads(text)
    files = {
        _checked(name): {"bytes": int(facts["bytes"]), "sha256": str(facts["sha256"])}
        for name, facts in raw["files"].items()
    }
    if raw["kind"] not in {"file", "folder"} or (raw["kind"] == "file" and len(files) != 1):
        raise ValueError(raw["kind"])
    return {"kind": raw["kind"], "files": files}


def _copy(source: IO[bytes], sink: IO[bytes] | None) -> dict[str, Any]:
    """Copy, or only read; returns the bytes and sha256 of what went by."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if sink is not None:
            sink.write(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _verify(folder: Path, manifest: Mapping[str, Any], path: str) -> None:
    for name, promised in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != promised["bytes"]:
            raise ArtifactDamaged(_damaged(path, name))
        with file.open("rb") as source:
            if _copy(source, None) != promised:
                raise ArtifactDamaged(_damaged(path, name))


def _is_whole(entry: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the cache has the entry as it was stored: somebody may have written into it."""
    try:
        _verify(entry, manifest, entry.name)
    except ArtifactDamaged:
        return False
    return entry.is_dir()


def _inside(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """The folder, or its one file where a file was put."""
    return folder / next(iter(manifest["files"])) if manifest["kind"] == "file" else folder


def _put_in_folder(files: Mapping[str, Path], kind: str, target: Path) -> None:
    """Files are copied, never linked: their owner may go on writing to them."""
    with _beside(target) as unfinished:
        facts = {}
        for name, file in files.items():
            copy = unfinished / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, copy.open("xb") as sink:
                facts[name] = _copy(source, sink)
                _to_disk(sink)
        with (unfinished / MANIFEST).open("xb") as sink:
            sink.write(_manifest_text(facts, kind).encode())
            _to_disk(sink)
        _put_in_place(unfinished, target)
    _name_to_disk(target.parent)


def _to_disk(sink: IO[bytes]) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _name_to_disk(folder: Path) -> None:
    """Make a rename inside `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot
        return
    finally:
        os.close(descriptor)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder beside `target` to fill and rename; whatever is left of it goes away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(unfinished: Path, target: Path) -> None:
    """Rename a complete folder to its name, in place of what has that name."""
    if target.exists():
        # A folder cannot be renamed over another. For a moment there is no such artifact, and never half of one.
        with suppress(FileNotFoundError):
            _remove(target)
    try:
        unfinished.rename(target)
    except OSError as error:
        # Somebody else put the same artifact there in that moment.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise


def _remove(folder: Path) -> None:
    """Remove a folder so that nobody sees half of it."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _trim(cache: Path, most_bytes: int) -> None:
    """Remove entries, the one unused for longest first, until the rest has `most_bytes` at most."""
    entries = sorted(((_last_use(entry), entry) for entry in cache.iterdir()), reverse=True)
    total = 0
    for used, entry in entries:
        total += sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
        if total > most_bytes and time.time() - used > _IN_USE_SECONDS:
            _remove(entry)


def _last_use(entry: Path) -> float:
    return entry.stat().st_mtime
