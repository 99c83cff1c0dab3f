"""Reads a git repository from its object store, never from the work tree. Standard library only.

`resolve` pins what a person named to a commit; `write_bundle` and `open_bundle` carry the history to another machine;
`list_files`, `read_blobs` and `read_output` read what a commit reaches. Only git's plumbing runs, so that nothing a
repository holds (hooks, filters, text converters, symlinks, its own configuration) acts on this machine.

Once a commit is known, git is asked from a borrowing repository: an empty one, gone afterwards, that has the objects of
the person's repository and nothing else of it. Its configuration, refs, replacements, grafts and promised objects
are then not neutralised one by one but never looked at.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

from backends.errors import ExitCode, RepotuneError

#: The ref under which a bundle carries the commit.
SOURCE_REF = "refs/repotune/source"
#: The ref under which it carries the start of a range, which the commit need not reach.
SINCE_REF = "refs/repotune/since"
#: The refs under which a bundle of a shallow clone carries the commits where its history was cut.
SHALLOW_REFS = "refs/repotune/shallow/"

#: Seconds that a server gets to list its refs, and a repository on this machine to name a commit.
LIST_TIMEOUT = 60.0
#: Seconds that a whole fetch may take; a stalled https transfer ends earlier (see `_CONFIG`).
FETCH_TIMEOUT = 3600.0

_SCHEMES = ("https", "ssh", "file")
_SCP_LIKE = re.compile(r"(?:\w[\w.-]*@)?(\w[\w.-]*):(?!:)[^\s:].*", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PASSWORD = re.compile(r"(?<=://)[^/\s]+@")
_SSH_PASSWORD = re.compile(r"(?<=^ssh://)([^/@:\s]*):[^/\s]*@")
#: Where a token may stand.
_QUERY = re.compile(r"(?<=://)([^?#\s]*)[?#][^\s]*")
_CHUNK = 1 << 16
#: Questions that are put to git at once.
_LUMP = 256

#: What git says where an object is there and cannot be read: then the object is left out, and the next one read.
_BROKEN = ("corrupt", "unable to stream", "inflate", "object file", "bad object header", "cannot be read")
#: Broken objects of one reading: a disk with more is not to be learned from.
_BROKEN_LIMIT = 1000
#: What git may allocate at once while it lists: enough for any tree, too little for two huge files to be compared.
_MEMORY_LIMIT = "256m"

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
    # Always one pack, which is there whole or not at all; loose objects of a fetch that was killed stay without theirs.
    "fetch.unpackLimit": "1",
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
    #: Of a range `A..B`, where it starts: the commit whose history is left out; None for the whole history.
    since: str | None = None
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
    if repository.startswith("ssh://"):
        return _SSH_PASSWORD.sub(r"\1@", repository)
    return _QUERY.sub(r"\1", _PASSWORD.sub("", repository))


def resolve(repository: str, ref: str | None = None) -> Resolved:
    """Pin a path (work tree, bare or linked) or URL to the commit that `ref`, or HEAD, names now.

    Args:
        repository: path or URL.
        ref: branch, tag or commit, or a range `A..B` of them: what B reaches and A does not. A missing side is HEAD.

    Raises:
        RepositoryError: not a repository, an empty one, an unknown ref, a range without commits, or a URL that does
            not answer.
    """
    since, tip = _sides(ref)
    if is_url(repository):
        return _resolve_url(repository, since, tip)
    path = Path(repository).expanduser()
    git_dir, shallow = _locate(path)

    # Asked from the path itself: a linked work tree has a HEAD of its own.
    def commit_of(name: str | None) -> str:
        commit = _commit_of(name, "-C", str(path))
        if commit is None:
            raise _no_such_commit(repository, name, empty=not _ask(git_dir, "for-each-ref", "--count=1").stdout)
        return commit

    commit = commit_of(tip)
    start = None if since is None else commit_of(since)
    if start is not None:
        refuse_empty_range(git_dir, start, commit)
    return Resolved(repository=repository, commit=commit, since=start, git_dir=git_dir, shallow=shallow)


def _sides(ref: str | None) -> tuple[str | None, str | None]:
    """The start and the end of a range `A..B`; of a plain ref no start."""
    if ref is None:
        return None, None
    if not ref or ref.startswith("-") or "\0" in ref:
        raise RepositoryError(f"Ref {ref!r} is not a branch, tag or commit.")
    # No ref may hold two dots; a search such as HEAD^{/a..b} may.
    if ".." not in ref or "{" in ref or ref.startswith(":"):
        return None, ref
    since, _, tip = ref.partition("..")
    if tip.startswith((".", "-")) or ".." in tip or not (since or tip):
        raise RepositoryError(f"Range {ref!r} is not understood: write it as START..END.")
    return since or "HEAD", tip or None


def refuse_empty_range(git_dir: Path, since: str, commit: str) -> None:
    """Let no range pass whose end is part of the history of its start.

    Raises:
        RepositoryError: there is no commit in it, or one of its ends is missing.
    """
    counted = read_output(git_dir, commit, ["rev-list", "--count", "--max-count=1", commit, f"^{since}", "--"])
    if b"".join(counted).strip() == b"0":
        raise _empty_range(since, commit)


def _empty_range(since: str, commit: str) -> RepositoryError:
    span = f"{since[:12]}..{commit[:12]}"
    return RepositoryError(f"Range {span} holds no commit: its end is part of the history of its start.")


def _locate(path: Path) -> tuple[Path, bool]:
    """The folder with the objects of the repository at `path`, and whether its history is cut."""
    if not path.exists():
        raise RepositoryError(f"Repository {path} does not exist: check the path.")
    if not path.is_dir():
        raise RepositoryError(f"{path} is not a git repository: it is a file.")
    questions = ("--path-format=absolute", "--git-common-dir", "--is-shallow-repository")
    # A configuration may include a pipe that nobody fills.
    done = _run(["-C", str(path), "rev-parse", *questions], timeout=LIST_TIMEOUT)
    if done.returncode:
        raise RepositoryError(f"{path} is not a git repository ({_reason(done.stderr)}).")
    folder, shallow = os.fsdecode(done.stdout).removesuffix("\n").rsplit("\n", 1)
    return Path(folder), shallow == "true"


def _commit_of(ref: str | None, *where: str) -> str | None:
    question = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref or 'HEAD'}^{{commit}}"]
    done = _run([*where, *question], timeout=LIST_TIMEOUT)
    commit = done.stdout.decode("ascii", "replace").strip()
    return commit if done.returncode == 0 and _COMMIT.fullmatch(commit) else None


def _no_such_commit(repository: str, ref: str | None, *, empty: bool) -> RepositoryError:
    name = shown(repository)
    if empty:
        return RepositoryError(f"Repository {name} is empty: commit something first.")
    if ref is None:
        return RepositoryError(f"HEAD of repository {name} names no commit: say which branch with --ref.")
    return RepositoryError(f"Repository {name} has no branch, tag or commit {ref!r}: check --ref.")


def _resolve_url(url: str, since: str | None, tip: str | None) -> Resolved:
    asked = [since, tip] if since is not None else [tip]
    # Servers list tips, not commits: whether a commit is there shows when the worker fetches it.
    listed = {} if all(name and _COMMIT.fullmatch(name) for name in asked) else _list_refs(url)
    commits = [_named(url, name, listed) for name in asked]
    start = commits[0] if since is not None else None
    # Whether its end lies before its start is not known before both are here.
    if start == commits[-1]:
        raise _empty_range(start, start)
    return Resolved(repository=url, commit=commits[-1], since=start, git_dir=None, shallow=False)


def _list_refs(url: str) -> dict[str, str]:
    # From no repository: the one we may stand in could redirect the URL by its configuration.
    done = _run([f"--git-dir={os.devnull}", "ls-remote", "--", url], network=url, timeout=LIST_TIMEOUT)
    if done.returncode:
        raise RepositoryError(f"{shown(url)} cannot be reached as a git repository ({_reason(done.stderr)}).")
    return _refs(os.fsdecode(done.stdout))


def _named(url: str, ref: str | None, refs: Mapping[str, str]) -> str:
    """The commit that a server's list gives `ref`, or HEAD; a full id is taken at its word."""
    if ref is not None and _COMMIT.fullmatch(ref):
        return ref
    names = [ref, f"refs/{ref}", f"refs/tags/{ref}", f"refs/heads/{ref}"] if ref else ["HEAD"]
    # A tag that is an object of its own is listed twice; the line with ^{} names the commit.
    commit = next((refs[found] for name in names for found in (f"{name}^{{}}", name) if found in refs), None)
    if commit is None or not _COMMIT.fullmatch(commit):
        raise _no_such_commit(url, ref, empty=not refs)
    return commit


def _refs(listing: str) -> dict[str, str]:
    """Names and object ids from lines of `id name`."""
    pairs = (line.split(maxsplit=1) for line in listing.splitlines())
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}  # noqa: PLR2004


def write_bundle(git_dir: Path, commit: str, file: Path, since: str | None = None) -> None:
    """Write everything reachable from `commit` to `file`, a git bundle. The repository itself is not touched.

    Args:
        git_dir: the repository.
        commit: full id.
        file: takes the bundle.
        since: full id of the start of a range, which is carried, too.

    Raises:
        RepositoryError: an object is missing (a partial clone), or the disk is full.
    """
    # A bundle names refs, and the user's repository must not get one: the borrowing one gets them.
    with _beside(file) as folder, _borrowing(git_dir, commit) as (twin, variables):
        tips = [commit, *([since] if since else [])]
        refs = dict(zip((SOURCE_REF, SINCE_REF), tips, strict=False))
        refs |= {f"{SHALLOW_REFS}{cut}": cut for cut in _shallow_cuts(git_dir, tips)}
        _set_refs(twin, refs, variables)
        unfinished = folder / "bundle"
        command = [f"--git-dir={twin}", "bundle", "create", "--quiet", str(unfinished), *refs]
        done = _run(command, variables=variables)
        if done.returncode:
            raise RepositoryError(f"{git_dir} cannot be packed ({_reason(done.stderr)}).")
        unfinished.replace(file)


def _shallow_cuts(git_dir: Path, tips: Sequence[str]) -> list[str]:
    """The commits reachable from `tips` where a shallow clone's history ends."""
    cuts = shallow_commits(git_dir)
    if not cuts:
        return []
    reachable = b"".join(read_output(git_dir, tips[0], ["rev-list", *tips, "--"])).decode("ascii").split()
    return sorted(cuts & set(reachable))


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
        _set_refs(git_dir, {name: refs[name] for name in (SOURCE_REF, SINCE_REF) if name in refs})
    return into


def fetch_url(url: str, commit: str, into: Path, since: str | None = None) -> Path:
    """Fetch `commit` and its history, and those of `since`, into the new bare repository `into`, whole or not at all.

    Raises:
        RepositoryError: the URL does not answer, or has no such commit.
    """
    if not is_url(url):
        raise RepositoryError(f"{url!r} is not a URL that a worker could fetch from.")
    with _unfinished(into) as folder:
        fetch_into(_init(folder, commit), url, commit, since)
    return into


def fetch_into(git_dir: Path, url: str, commit: str, since: str | None = None) -> None:
    """Fetch what the repository `git_dir`, which no person works in, lacks of `commit`, `since` and their history.

    Raises:
        RepositoryError: the URL does not answer, or has no such commit.
    """
    refs = {SOURCE_REF: commit} | ({SINCE_REF: since} if since else {})
    done = _fetch(git_dir, url, *(f"+{wanted}:{name}" for name, wanted in refs.items()))
    if done.returncode:
        # Some servers hand out only what a branch or tag names: take those and look inside.
        done = _fetch(git_dir, url, "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        if done.returncode:
            raise RepositoryError(f"{shown(url)} cannot be fetched ({_reason(done.stderr)}).")
        for wanted in refs.values():
            if not has_commit(git_dir, wanted):
                raise RepositoryError(f"{shown(url)} has no commit {wanted}: it may have been rewritten meanwhile.")
        _set_refs(git_dir, refs)


def has_commit(git_dir: Path, commit: str) -> bool:
    """Whether the repository holds a commit."""
    return _commit_of(commit, f"--git-dir={git_dir}") is not None


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


def _set_refs(git_dir: Path, refs: Mapping[str, str], variables: Mapping[str, str] | None = None) -> None:
    orders = "".join(f"update {name} {commit}\n" for name, commit in refs.items())
    done = _run([f"--git-dir={git_dir}", "update-ref", "--stdin"], stdin=orders.encode(), variables=variables)
    if done.returncode:
        raise RepositoryError(f"Commit {next(iter(refs.values()))} cannot be read ({_reason(done.stderr)}).")


def is_shallow(git_dir: Path) -> bool:
    """True where the repository holds only the newest part of its history."""
    return (git_dir / "shallow").exists()


def shallow_commits(git_dir: Path) -> frozenset[str]:
    """The commits where a shallow clone's history was cut: without their parents, what they changed is unknown."""
    if not is_shallow(git_dir):
        return frozenset()
    return frozenset((git_dir / "shallow").read_text(encoding="ascii", errors="replace").split())


def lacks(git_dir: Path) -> str:
    """What changes when objects arrive that a shallow or partial clone lacked; "" where nothing is known to be missing.

    A shallow clone is told by the commits where it was cut, a partial one by its packs and folders of loose objects:
    a few hundred looks at the disk, and no git.
    """
    told = sorted(shallow_commits(git_dir))
    packs = git_dir / "objects" / "pack"
    if any(packs.glob("*.promisor")):
        told += sorted(file.name for file in packs.glob("*.pack"))
        loose = sorted((git_dir / "objects").glob("[0-9a-f][0-9a-f]"))
        told += [f"{folder.name} {folder.stat().st_mtime_ns}" for folder in loose]
    return hashlib.sha256("\n".join(told).encode()).hexdigest() if told else ""


@contextlib.contextmanager
def _borrowing(git_dir: Path, commit: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """An empty bare repository that git opens in the place of `git_dir`, and the variables that lend it the objects.

    Args:
        git_dir: the person's repository.
        commit: any full id of an object in it: its length tells which hash names the objects.

    Raises:
        RepositoryError: `git_dir` has no objects, or `commit` is no full id.
    """
    if not _COMMIT.fullmatch(commit):
        raise RepositoryError(f"{commit!r} is not a full object id.")
    if not (git_dir / "objects").is_dir():
        raise RepositoryError(f"{git_dir} is not a git repository: it has no objects.")
    with tempfile.TemporaryDirectory(prefix="repotune-git-") as folder:
        twin = Path(folder)
        (twin / "refs").mkdir()
        (twin / "HEAD").write_text("ref: refs/heads/none\n", encoding="ascii")
        kind = "sha1" if len(commit) == 40 else "sha256"  # noqa: PLR2004 - hexadecimal digits of a SHA-1
        settings = "[core]\nrepositoryformatversion = 1\nbare = true\n"
        settings += "" if kind == "sha1" else f"[extensions]\nobjectformat = {kind}\n"
        (twin / "config").write_text(settings, encoding="ascii")
        if is_shallow(git_dir):
            shutil.copyfile(git_dir / "shallow", twin / "shallow")
        yield twin, {"GIT_OBJECT_DIRECTORY": str(git_dir.absolute() / "objects")}


def read_output(git_dir: Path, commit: str, command: Sequence[str]) -> Generator[bytes, None, None]:
    """What a plumbing command of git says about the objects of `git_dir`, as it comes.

    Args:
        git_dir: the person's repository; of it only the objects are seen.
        commit: any full id of an object in it.
        command: a command that starts no program: no diff as text, no work tree.

    Raises:
        RepositoryError: git failed. It is raised in the place of the output's end: what was cut never looks whole.
    """
    with _git(git_dir, commit, command, GIT_ALLOC_LIMIT=_MEMORY_LIMIT) as (process, errors):
        stdout = _opened(process.stdout)
        while chunk := stdout.read(_CHUNK):
            yield chunk
        if process.wait():
            raise RepositoryError(f"{git_dir} cannot be read at {commit[:12]} ({_reason(_text(errors))}).")


def split_fields(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The fields of output that ends each with NUL (git's `-z`), however it is cut into chunks.

    Raises:
        RepositoryError: the last field has no end.
    """
    begun: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\0")
        begun.append(first)
        if others:
            yield b"".join(begun)
            yield from others[:-1]
            begun = [others[-1]]
    if any(begun):
        raise RepositoryError("git ended in the middle of a list.")


def list_files(git_dir: Path, commit: str) -> Iterator[TreeEntry]:
    """Every path of `commit`, in git's order (bytes of the path).

    Raises:
        RepositoryError: the commit or one of its trees is missing.
    """
    command = ["ls-tree", "-r", "-z", "--long", "--full-tree", commit]
    with contextlib.closing(read_output(git_dir, commit, command)) as chunks:
        yield from parse_tree(chunks)


def parse_tree(chunks: Iterable[bytes]) -> Iterator[TreeEntry]:
    """The entries in the output of `git ls-tree -rz --long`, however it is cut into chunks.

    Raises:
        RepositoryError: the output is not of that shape.
    """
    return map(_parse_entry, split_fields(chunks))


def _parse_entry(line: bytes) -> TreeEntry:
    about, tab, path = line.partition(b"\t")
    parts = about.decode("ascii", "replace").split()
    if len(parts) != 4 or not tab or not path:  # noqa: PLR2004 - mode, type, id, size
        raise RepositoryError(f"git listed a file in an unknown shape: {line[:80]!r}.")
    mode, kind, blob, size = parts
    if size.isascii() and size.isdigit():
        return TreeEntry(mode=mode, blob=blob, size=int(size), path=path)
    return TreeEntry(mode=mode, blob=blob, size=0 if kind == "commit" else -1, path=path)


def read_blobs(
    git_dir: Path, blobs: Iterable[str], max_bytes: int | None = None, *, large: set[str] | None = None
) -> Generator[tuple[str, bytes | None], None, None]:
    """The content of every blob, in the order asked for, from one `git cat-file --batch`.

    Args:
        git_dir: the repository.
        blobs: full object ids; taken from another thread, some thousands ahead of what was read.
        max_bytes: larger blobs are not read at all: a second git tells the sizes first.
        large: takes the ids of those that are there and larger.

    Yields:
        The id, and the content or None: the object is missing, broken, larger than `max_bytes`, or no blob.

    Raises:
        RepositoryError: git failed in another way, or very many objects are broken.
    """
    lumps = _lumps(iter(blobs))
    if max_bytes is None:
        yield from _contents(git_dir, lumps)
        return
    judged: deque[tuple[str, bool]] = deque()
    with (
        contextlib.closing(_readable(git_dir, lumps, max_bytes, judged, set() if large is None else large)) as wanted,
        contextlib.closing(_contents(git_dir, wanted)) as contents,
    ):
        for answer in contents:
            # Judged before it was asked for: it is there, behind those that were not asked for.
            while not judged[0][1]:
                yield judged.popleft()[0], None
            judged.popleft()
            yield answer
        yield from ((blob, None) for blob, _ in judged)


def _lumps(blobs: Iterator[str]) -> Iterator[list[str]]:
    """Questions to git, many at a time: a thread that woke for each would cost more than git itself."""
    return iter(lambda: list(islice(blobs, _LUMP)), [])


def _readable(
    git_dir: Path, lumps: Iterator[list[str]], max_bytes: int, judged: deque[tuple[str, bool]], large: set[str]
) -> Generator[list[str], None, None]:
    """Those that are blobs of at most `max_bytes`; every one is noted in `judged` before it is given.

    Larger ones are noted in `large`, too.
    """
    first = next(lumps, None)
    if first is None:
        return
    command = ["cat-file", "--batch-check", "--buffer"]
    asked: deque[str] = deque()
    with _conversation(git_dir, first, command, lumps, asked) as (process, errors):
        stdout = _opened(process.stdout)
        while lines := stdout.readlines(_CHUNK):
            verdicts = [_judge(line, asked, max_bytes, large) for line in lines]
            judged.extend(verdicts)
            yield [blob for blob, readable in verdicts if readable]
        if process.wait():
            raise RepositoryError(f"Objects of {git_dir} cannot be read ({_reason(_text(errors))}).")


def _judge(line: bytes, asked: deque[str], max_bytes: int, large: set[str]) -> tuple[str, bool]:
    kind, size = _answered(line, asked)
    blob = asked.popleft()
    if kind == b"blob" and size > max_bytes:
        large.add(blob)
    return blob, kind == b"blob" and size <= max_bytes


def _answered(line: bytes, asked: deque[str]) -> tuple[bytes, int]:
    """Type and size of the object that was asked for first; -1 where it is missing."""
    parts = line.split()
    if not parts or not asked or parts[0] != asked[0].encode("ascii"):
        raise RepositoryError(f"git answered {line[:64]!r} where another object was asked for.")
    return (parts[1], int(parts[2])) if len(parts) == 3 and parts[2].isdigit() else (b"", -1)  # noqa: PLR2004


def _contents(git_dir: Path, lumps: Iterator[list[str]]) -> Generator[tuple[str, bytes | None], None, None]:
    """Id and content of every blob. Git ends over a broken object: it is started again behind it."""
    command = ["cat-file", "--batch", "--buffer"]
    asked: deque[str] = deque()
    for _ in range(_BROKEN_LIMIT):
        # What was asked and not answered is asked again.
        first = list(asked) or next(filter(None, lumps), [])
        if not first:
            return
        asked = deque()
        with _conversation(git_dir, first, command, lumps, asked) as (process, errors):
            stdout = _opened(process.stdout)
            while (header := stdout.readline()).endswith(b"\n"):
                kind, size = _answered(header, asked)
                content = stdout.read(size) if size >= 0 else None
                if content is not None and (len(content) < size or stdout.read(1) != b"\n"):
                    break
                yield asked.popleft(), content if kind == b"blob" else None
            if process.wait():
                _blame(_text(errors), git_dir, asked)
        if asked:
            yield asked.popleft(), None
    raise RepositoryError(f"More than {_BROKEN_LIMIT} objects of {git_dir} are broken: run `git fsck`.")


def _blame(errors: bytes, git_dir: Path, asked: deque[str]) -> None:
    """Do nothing where git ended over the next object that was asked for.

    Raises:
        RepositoryError: it ended for another reason.
    """
    told = errors.decode("utf-8", "replace")
    if not asked or not (asked[0] in told or any(sign in told for sign in _BROKEN)):
        raise RepositoryError(f"Objects of {git_dir} cannot be read ({_reason(errors)}).")


@contextlib.contextmanager
def _conversation(
    git_dir: Path, first: list[str], command: Sequence[str], lumps: Iterator[list[str]], asked: deque[str]
) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """A git that is asked about objects, a line each, while its answers are read.

    Args:
        git_dir: the repository.
        first: full ids, at least one.
        command: what git runs.
        lumps: further ids.
        asked: takes every id before it is asked about; the reader takes it out when it is answered.

    Raises:
        Exception: what `lumps` raised, after the last answer.
    """
    with _git(git_dir, first[0], command) as (process, errors):
        asker = _Asker(_opened(process.stdin), chain([first], lumps), asked)
        asker.start()
        try:
            yield process, errors
        finally:
            # Ended first: the asker may wait in the middle of a question.
            _kill(process)
            asker.join()
        if asker.failure is not None:
            raise asker.failure


class _Asker(threading.Thread):
    """Writes lines to git, which answers while it still reads: one thread for both would block on full pipes."""

    def __init__(self, stdin: IO[bytes], lumps: Iterable[list[str]], asked: deque[str]) -> None:
        super().__init__(name="git-questions", daemon=True)
        self.failure: BaseException | None = None
        self._stdin = stdin
        self._lumps = lumps
        self._asked = asked

    def run(self) -> None:
        try:
            with self._stdin:
                for lump in self._lumps:
                    self._asked.extend(lump)
                    self._stdin.write("".join([f"{blob}\n" for blob in lump]).encode("ascii"))
        except BrokenPipeError:
            pass  # git ended: who reads its answers says why
        except BaseException as failure:  # noqa: BLE001 - raised again in the thread that reads
            self.failure = failure


def _ask(git_dir: Path, *command: str) -> subprocess.CompletedProcess[bytes]:
    return _run([f"--git-dir={git_dir}", *command])


def _environment(network: str | None, variables: Mapping[str, str]) -> dict[str, str]:
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
    env |= variables
    if network is not None:
        scheme = network.partition("://")[0] if "://" in network else "ssh"
        env["GIT_ALLOW_PROTOCOL"] = scheme
        ssh = os.environ.get("GIT_SSH_COMMAND", "ssh")
        env["GIT_SSH_COMMAND"] = f"{ssh} -oBatchMode=yes -oConnectTimeout=20"
    return env


def _arguments(command: Sequence[str]) -> list[str]:
    overlay = [part for key, value in _CONFIG.items() for part in ("-c", f"{key}={value}")]
    return ["git", "--no-pager", *overlay, *command]


def _start(
    command: Sequence[str],
    errors: int | IO[bytes],
    network: str | None = None,
    variables: Mapping[str, str] | None = None,
) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            _arguments(command),
            env=_environment(network, variables or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=_CHUNK,
            # Its own session: no terminal to ask for a password on, and a group that ends as one.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise RepositoryError("git is not installed, or is not on PATH.") from None


def _run(
    command: Sequence[str],
    *,
    stdin: bytes = b"",
    network: str | None = None,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """Run git to its end; past `timeout` seconds its whole process group is ended.

    Raises:
        RepositoryError: it took too long.
    """
    process = _start(command, subprocess.PIPE, network, variables)
    try:
        output, errors = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RepositoryError(f"{shown(network or 'git')} did not answer within {timeout:.0f} seconds.") from None
    finally:
        _end(process)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def _git(
    git_dir: Path, commit: str, command: Sequence[str], **variables: str
) -> Iterator[tuple["subprocess.Popen[bytes]", IO[bytes]]]:
    """A git that reads the objects of `git_dir`; its errors go to a file, since an unread pipe would block it."""
    with _borrowing(git_dir, commit) as (twin, lent), tempfile.TemporaryFile() as errors:
        process = _start([f"--git-dir={twin}", *command], errors, variables=lent | variables)
        try:
            yield process, errors
        finally:
            _end(process)


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # noqa: S101 - tells the type checker that every pipe was asked for
    return pipe


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Make sure that neither git nor a helper it started outlives us, and close its pipes."""
    _kill(process)
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
