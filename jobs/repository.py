"""Reads a git repository from its object store, never from the work tree. Standard library only.

`resolve` pins what a person named to a commit; `write_bundle` and `open_bundle` carry the history to another machine;
`list_files` and `read_blobs` read the files of a commit. Only git's plumbing runs, so that nothing a repository holds
(hooks, filters, text converters, symlinks, its own configuration) acts on this machine.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from backends.errors import ExitCode, RepotuneError

#: The ref under which a bundle carries the commit.
SOURCE_REF = "refs/repotune/source"
#: The refs under which a bundle of a shallow clone carries the commits where its history was cut.
SHALLOW_REFS = "refs/repotune/shallow/"

#: Seconds that a server gets to list its refs.
LIST_TIMEOUT = 60.0
#: Seconds that a whole fetch may take; a stalled https transfer ends earlier (see `_CONFIG`).
FETCH_TIMEOUT = 3600.0

_SCHEMES = ("https", "ssh", "file")
_SCP_LIKE = re.compile(r"(?:\w[\w.-]*@)?(\w[\w.-]*):(?!:)[^\s:].*", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
_CHUNK = 1 << 16

#: Laid over the repository's own configuration, which may name commands. `safe.directory=*` lets us read a repository
#: that belongs to another user (containers, shared disks): git's refusal guards against that same configuration, and
#: nothing of it can start a program here.
_CONFIG = {
    "safe.directory": "*",
    "core.hooksPath": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.fsmonitor": "false",
    "core.askPass": "",
    "credential.helper": "",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "init.defaultBranch": "main",
}


class RepositoryError(RepotuneError):
    """The repository, or the ref in it, cannot be read as asked."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A repository pinned to a commit."""

    #: As the person named it.
    repository: str
    #: Full hexadecimal id.
    commit: str
    #: Where its objects are on this machine; None for a URL.
    git_dir: Path | None
    #: True where the clone holds only the newest part of its history.
    shallow: bool


@dataclass(frozen=True, kw_only=True)
class TreeEntry:
    """One path of a commit: a file, an executable, a symlink (120000) or a submodule (160000)."""

    mode: str
    #: Object id of the content; of a commit for a submodule.
    blob: str
    #: Bytes; 0 for a submodule, -1 where the object is missing.
    size: int
    #: Bytes as git stores them: any byte but NUL.
    path: bytes


def is_url(repository: str) -> bool:
    """True for an https, ssh or file URL and for `user@host:path`; False for a path on this machine.

    Raises:
        RepositoryError: neither: a leading dash, a remote helper such as `ext::`, or a scheme we do not fetch from.
    """
    if not repository or repository != repository.strip() or "\0" in repository:
        raise RepositoryError("The repository's name is empty or has blanks around it: give a path or a URL.")
    if repository.startswith("-"):
        raise RepositoryError(f"Repository {repository!r} starts with a dash: write ./{repository} if it is a folder.")
    if re.match(r"[\w+.-]+::", repository):
        raise RepositoryError(f"Repository {shown(repository)!r} names a git remote helper: give a path or a URL.")
    if "://" in repository:
        return _is_fetchable(repository)
    return not Path(repository).exists() and _SCP_LIKE.fullmatch(repository) is not None


def _is_fetchable(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise RepositoryError(f"URL {shown(url)!r} has a scheme that is not fetched: use https, ssh or file.")
    if not rest or rest.startswith("-") or "@-" in rest or any(blank in rest for blank in "\n\r\t "):
        raise RepositoryError(f"URL {shown(url)!r} names no host or path that git could fetch from.")
    return True


def shown(repository: str) -> str:
    """The name without the user and password that a URL may carry: for messages and manifests."""
    return repository if repository.startswith("ssh://") else _PASSWORD.sub("", repository)


def resolve(repository: str, ref: str | None = None) -> Resolved:
    """Pin a path (work tree, bare or linked) or URL to the commit that `ref`, or HEAD, names now.

    Raises:
        RepositoryError: not a repository, an empty one, an unknown ref, or a URL that does not answer.
    """
    if ref is not None and (not ref or ref.startswith("-") or "\0" in ref):
        raise RepositoryError(f"Ref {ref!r} is not a branch, tag or commit.")
    if is_url(repository):
        return _resolve_url(repository, ref)
    path = Path(repository).expanduser()
    git_dir, shallow = _locate(path)
    # Asked from the path itself: a linked work tree has a HEAD of its own.
    commit = _commit_of(ref, "-C", str(path))
    if commit is None:
        raise _no_such_commit(repository, ref, empty=not _ask(git_dir, "for-each-ref", "--count=1").stdout)
    return Resolved(repository=repository, commit=commit, git_dir=git_dir, shallow=shallow)


def _locate(path: Path) -> tuple[Path, bool]:
    """The folder with the objects of the repository at `path`, and whether its history is cut."""
    if not path.exists():
        raise RepositoryError(f"Repository {path} does not exist: check the path.")
    if not path.is_dir():
        raise RepositoryError(f"{path} is not a git repository: it is a file.")
    questions = ("--path-format=absolute", "--git-common-dir", "--is-shallow-repository")
    done = _run(["-C", str(path), "rev-parse", *questions])
    if done.returncode:
        raise RepositoryError(f"{path} is not a git repository ({_reason(done.stderr)}).")
    folder, shallow = os.fsdecode(done.stdout).removesuffix("\n").rsplit("\n", 1)
    return Path(folder), shallow == "true"


def _commit_of(ref: str | None, *where: str) -> str | None:
    done = _run([*where, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref or 'HEAD'}^{{commit}}"])
    commit = done.stdout.decode("ascii", "replace").strip()
    return commit if done.returncode == 0 and _COMMIT.fullmatch(commit) else None


def _no_such_commit(repository: str, ref: str | None, *, empty: bool) -> RepositoryError:
    name = shown(repository)
    if empty:
        return RepositoryError(f"Repository {name} is empty: commit something first.")
    if ref is None:
        return RepositoryError(f"HEAD of repository {name} names no commit: say which branch with --ref.")
    return RepositoryError(f"Repository {name} has no branch, tag or commit {ref!r}: check --ref.")


def _resolve_url(url: str, ref: str | None) -> Resolved:
    if ref is not None and _COMMIT.fullmatch(ref):
        # Servers list tips, not commits: whether it is there shows when the worker fetches it.
        return Resolved(repository=url, commit=ref, git_dir=None, shallow=False)
    # From no repository: the one we may stand in could redirect the URL by its configuration.
    done = _run([f"--git-dir={os.devnull}", "ls-remote", "--", url], network=url, timeout=LIST_TIMEOUT)
    if done.returncode:
        raise RepositoryError(f"{shown(url)} cannot be reached as a git repository ({_reason(done.stderr)}).")
    refs = _refs(os.fsdecode(done.stdout))
    names = [ref, f"refs/{ref}", f"refs/tags/{ref}", f"refs/heads/{ref}"] if ref else ["HEAD"]
    # A tag that is an object of its own is listed twice; the line with ^{} names the commit.
    commit = next((refs[found] for name in names for found in (f"{name}^{{}}", name) if found in refs), None)
    if commit is None or not _COMMIT.fullmatch(commit):
        raise _no_such_commit(url, ref, empty=not refs)
    return Resolved(repository=url, commit=commit, git_dir=None, shallow=False)


def _refs(listing: str) -> dict[str, str]:
    """Names and object ids from lines of `id name`."""
    pairs = (line.split(maxsplit=1) for line in listing.splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}  # noqa: PLR2004


def write_bundle(git_dir: Path, commit: str, file: Path) -> None:
    """Write everything reachable from `commit` to `file`, a git bundle. The repository itself is not touched.

    Raises:
        RepositoryError: an object is missing (a partial clone), or the disk is full.
    """
    with _beside(file) as folder:
        # A bundle names refs, and the user's repository must not get one: a bare twin borrows its objects.
        twin = _init(folder / "twin", commit)
        (twin / "objects" / "info" / "alternates").write_bytes(_quoted(git_dir.resolve() / "objects") + b"\n")
        refs = {SOURCE_REF: commit} | {f"{SHALLOW_REFS}{cut}": cut for cut in _shallow_cuts(git_dir, commit, twin)}
        _set_refs(twin, refs)
        unfinished = folder / "bundle"
        done = _ask(twin, "bundle", "create", "--quiet", str(unfinished), *refs)
        if done.returncode:
            raise RepositoryError(f"{git_dir} cannot be packed ({_reason(done.stderr)}).")
        unfinished.replace(file)


def _quoted(path: Path) -> bytes:
    """A path as a line of `objects/info/alternates`: quoted as in C where a plain line would not do."""
    raw = os.fsencode(path)
    if not raw.startswith((b'"', b"#")) and b"\n" not in raw:
        return raw
    return b'"' + raw.replace(b"\\", rb"\\").replace(b'"', rb"\"").replace(b"\n", rb"\n") + b'"'


def _shallow_cuts(git_dir: Path, commit: str, twin: Path) -> list[str]:
    """The commits reachable from `commit` where a shallow clone's history ends; also told to its `twin`."""
    shallow = git_dir / "shallow"
    if not shallow.exists():
        return []
    shutil.copyfile(shallow, twin / "shallow")
    reachable = _ask(twin, "rev-list", commit).stdout.decode("ascii").split()
    return sorted(set(shallow.read_text(encoding="ascii").split()) & set(reachable))


def open_bundle(file: Path, commit: str, into: Path) -> Path:
    """Unpack a bundle into the new bare repository `into`, whole or not at all, and return its folder.

    Raises:
        RepositoryError: the file is no bundle, or does not carry `commit`.
    """
    with _unfinished(into) as folder:
        git_dir = _init(folder, commit)
        done = _ask(git_dir, "bundle", "unbundle", str(file.absolute()))
        if done.returncode:
            raise RepositoryError(f"Bundle {file} cannot be read ({_reason(done.stderr)}).")
        refs = _refs(done.stdout.decode("ascii", "replace"))
        if refs.get(SOURCE_REF) != commit:
            raise RepositoryError(f"Bundle {file} does not carry commit {commit}.")
        cuts = [cut for name, cut in refs.items() if name.startswith(SHALLOW_REFS)]
        if cuts:
            (git_dir / "shallow").write_text("".join(f"{cut}\n" for cut in cuts), encoding="ascii")
        _set_refs(git_dir, {SOURCE_REF: commit})
    return into


def fetch_url(url: str, commit: str, into: Path) -> Path:
    """Fetch `commit` and its history into the new bare repository `into`, whole or not at all.

    Raises:
        RepositoryError: the URL does not answer, or has no such commit.
    """
    if not is_url(url):
        raise RepositoryError(f"{url!r} is not a URL that a worker could fetch from.")
    with _unfinished(into) as folder:
        git_dir = _init(folder, commit)
        done = _fetch(git_dir, url, f"{commit}:{SOURCE_REF}")
        if done.returncode:
            # Some servers hand out only what a branch or tag names: take those and look inside.
            done = _fetch(git_dir, url, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
            if done.returncode:
                raise RepositoryError(f"{shown(url)} cannot be fetched ({_reason(done.stderr)}).")
            if _commit_of(commit, f"--git-dir={git_dir}") is None:
                raise RepositoryError(f"{shown(url)} has no commit {commit}: it may have been rewritten meanwhile.")
            _set_refs(git_dir, {SOURCE_REF: commit})
    return into


def _fetch(git_dir: Path, url: str, *refspecs: str) -> subprocess.CompletedProcess[bytes]:
    flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
    command = [f"--git-dir={git_dir}", "fetch", *flags, "--", url, *refspecs]
    return _run(command, network=url, timeout=FETCH_TIMEOUT)


@contextlib.contextmanager
def _unfinished(into: Path) -> Iterator[Path]:
    """A new folder beside `into` that takes its name in the end, or goes away."""
    with _beside(into) as parent:
        folder = parent / "git"
        yield folder
        folder.replace(into)


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A folder beside `place` that goes away in the end."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as folder:
            yield Path(folder)
    except OSError as error:
        raise RepositoryError(f"{place} cannot be written ({error.strerror or error}).") from error


def _init(folder: Path, commit: str) -> Path:
    kind = "sha1" if len(commit) == 40 else "sha256"  # noqa: PLR2004 - hexadecimal digits of a SHA-1
    done = _run(["init", "--quiet", "--bare", "--template=", f"--object-format={kind}", str(folder)])
    if done.returncode:
        raise RepositoryError(f"{folder.parent} cannot hold a repository ({_reason(done.stderr)}).")
    (folder / "objects" / "info").mkdir(parents=True, exist_ok=True)
    return folder


def _set_refs(git_dir: Path, refs: Mapping[str, str]) -> None:
    orders = "".join(f"create {name} {commit}\n" for name, commit in refs.items())
    done = _run([f"--git-dir={git_dir}", "update-ref", "--stdin"], stdin=orders.encode())
    if done.returncode:
        raise RepositoryError(f"Commit {next(iter(refs.values()))} cannot be read ({_reason(done.stderr)}).")


def is_shallow(git_dir: Path) -> bool:
    """True where the repository holds only the newest part of its history."""
    return (git_dir / "shallow").exists()


def list_files(git_dir: Path, commit: str) -> Iterator[TreeEntry]:
    """Every path of `commit`, in git's order (bytes of the path).

    Raises:
        RepositoryError: the commit or one of its trees is missing.
    """
    command = [f"--git-dir={git_dir}", "ls-tree", "-r", "-z", "--long", "--full-tree", commit]
    with _process(command) as (process, errors):
        assert process.stdout is not None  # noqa: S101 - tells the type checker of the pipe
        yield from parse_tree(iter(lambda: process.stdout.read(_CHUNK), b""))  # type: ignore[union-attr]
        if process.wait():
            raise RepositoryError(f"Commit {commit} cannot be listed ({_reason(_text(errors))}).")


def parse_tree(chunks: Iterable[bytes]) -> Iterator[TreeEntry]:
    """The entries in the output of `git ls-tree -rz --long`, however it is cut into chunks.

    Raises:
        RepositoryError: the output is not of that shape.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\0")
        yield from map(_parse_entry, lines)
    if rest:
        raise RepositoryError("git ended in the middle of a list of files.")


def _parse_entry(line: bytes) -> TreeEntry:
    about, tab, path = line.partition(b"\t")
    parts = about.decode("ascii", "replace").split()
    if len(parts) != 4 or not tab or not path:  # noqa: PLR2004 - mode, type, id, size
        raise RepositoryError(f"git listed a file in an unknown shape: {line[:80]!r}.")
    mode, kind, blob, size = parts
    if size.isascii() and size.isdigit():
        return TreeEntry(mode=mode, blob=blob, size=int(size), path=path)
    return TreeEntry(mode=mode, blob=blob, size=0 if kind == "commit" else -1, path=path)


def read_blobs(git_dir: Path, blobs: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The content of every blob, in the order asked for, from one `git cat-file --batch`.

    Raises:
        RepositoryError: an object is missing or is not a blob.
    """
    with _process([f"--git-dir={git_dir}", "cat-file", "--batch", "--buffer"]) as (process, errors):
        assert process.stdin is not None  # noqa: S101 - tells the type checker of the pipe
        assert process.stdout is not None  # noqa: S101
        # Git writes while it still reads: asking from here would block as soon as both pipes are full.
        asker = threading.Thread(target=_ask_for, args=(process.stdin, blobs), daemon=True)
        asker.start()
        while header := process.stdout.readline():
            yield _read_blob(header, process.stdout)
        asker.join()
        if process.wait():
            raise RepositoryError(f"Objects of {git_dir} cannot be read ({_reason(_text(errors))}).")


def _ask_for(stdin: IO[bytes], blobs: Iterable[str]) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError), stdin:
        for blob in blobs:
            stdin.write(f"{blob}\n".encode("ascii"))


def _read_blob(header: bytes, stdout: IO[bytes]) -> tuple[str, bytes]:
    parts = header.decode("ascii", "replace").split()
    if len(parts) != 3 or parts[1] != "blob":  # noqa: PLR2004 - id, type, size
        raise RepositoryError(
            f"Object {parts[0] if parts else '?'} is missing: run `git fetch --refetch` or `git fsck`."
        )
    size = int(parts[2])
    content = stdout.read(size + 1)
    if len(content) != size + 1:
        raise RepositoryError(f"git ended in the middle of object {parts[0]}.")
    return parts[0], content[:size]


def _ask(git_dir: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    return _run([f"--git-dir={git_dir}", *command])


def _environment(network: str | None) -> dict[str, str]:
    """The environment of every git: no configuration but ours, no prompt, no protocol but the one asked for."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {
        "LC_ALL": "C",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        # A partial clone would otherwise fetch what it lacks, by a command that its own configuration names.
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "none",
    }
    if network is not None:
        scheme = network.partition("://")[0] if "://" in network else "ssh"
        env["GIT_ALLOW_PROTOCOL"] = scheme
        ssh = os.environ.get("GIT_SSH_COMMAND", "ssh")
        env["GIT_SSH_COMMAND"] = f"{ssh} -oBatchMode=yes -oConnectTimeout=20"
    return env


def _arguments(command: Sequence[str]) -> list[str]:
    overlay = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]
    return ["git", "--no-pager", *overlay, *command]


def _start(command: Sequence[str], network: str | None, errors: int | IO[bytes]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            _arguments(command),
            env=_environment(network),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # Its own session: no terminal to ask for a password on, and a group that ends as one.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise RepositoryError("git is not installed, or is not on PATH.") from None


def _run(
    command: Sequence[str], *, stdin: bytes = b"", network: str | None = None, timeout: float | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run git to its end; past `timeout` seconds its whole process group is ended.

    Raises:
        RepositoryError: it took too long.
    """
    process = _start(command, network, subprocess.PIPE)
    try:
        output, errors = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RepositoryError(f"{shown(network or 'git')} did not answer within {timeout:.0f} seconds.") from None
    finally:
        _end(process)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def _process(command: Sequence[str]) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """A git whose output is read as it comes; its errors go to a file, since an unread pipe would block it."""
    with tempfile.TemporaryFile() as errors:
        process = _start(command, None, errors)
        try:
            yield process, errors
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Make sure that neither git nor a helper it started outlives us, and close its pipes."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _text(errors: IO[bytes]) -> bytes:
    errors.seek(0)
    return errors.read()


def _reason(errors: bytes) -> str:
    """The line of git's complaint that says most: its first `fatal:` or `error:`, without the word."""
    lines = [line.strip() for line in shown(errors.decode("utf-8", "replace")).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines or ["git said nothing"]
    return told[0].removeprefix("fatal:").removeprefix("error:").strip().rstrip(".")
