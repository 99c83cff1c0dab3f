"""Reads the history of a commit: who followed whom, what each commit changed, which paths are one file's lineage.

`read_history` streams the commits from one git process; `cut_commit` says where the newest part of a history begins.
Contents are not read here: a change carries blob ids, which `jobs.repository.read_blobs` takes.
"""

import contextlib
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from jobs import repository
from jobs.repository import RepositoryError

#: Modes that are no file: what is learned must not follow them.
SYMLINK = "120000"
SUBMODULE = "160000"

#: Characters of a message that are kept: a commit may carry a log of many megabytes as its message.
MESSAGE_LIMIT = 1 << 16

#: Added and deleted files of one commit up to which git compares contents to find renames; beyond, only equal contents
#: are renames. Comparing costs the product of both.
RENAME_LIMIT = 200

#: A future that takes more of the history than this is no cut: the first parents have too little of it.
_LARGEST_FUTURE = 0.5

#: Digits of the largest time that git can hold.
_DIGITS = 20

_ID = "(?:[0-9a-f]{40}|[0-9a-f]{64})"
_COMMIT = re.compile(_ID.encode("ascii"))
_PARENTS = re.compile(f"(?:{_ID}(?: {_ID})*)?".encode("ascii"))
#: What `--raw` says before the paths. The first change of a commit has a line feed before it.
_ABOUT = re.compile(rf"\n?:([0-7]{{6}}) ([0-7]{{6}}) ({_ID}) ({_ID}) ([AMDTRC])[0-9]{{0,3}}")
#: Encodings that a commit may name and that Python reads in linear time.
_ENCODING = re.compile(
    r"(?:iso[-_]?8859[-_]?\d{1,2}|latin[-_]?1|windows[-_]?125\d|cp\d{3,4}|koi8[-_][rtu]|euc[-_](?:jp|kr)|shift[-_]jis"
    r"|sjis|iso[-_]2022[-_](?:jp|kr)|gbk|gb2312|gb18030|big5|us[-_]ascii|ascii|utf[-_]?8)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Change:
    """One path that a commit added, changed, deleted or renamed."""

    #: A added (also as a copy), M modified, D deleted, R renamed, T another type, such as a file made a symlink.
    kind: str
    #: The path after the commit; of a deletion, the path that went. Any bytes but NUL.
    path: bytes
    #: The path before the commit; unlike `path` only for a rename.
    before_path: bytes
    #: Object id of the content before; None for an addition.
    before: str | None
    #: Object id of the content after; None for a deletion.
    after: str | None
    #: File mode after the commit; before it, for a deletion.
    mode: str


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit and what it changed against its parent."""

    #: Full hexadecimal id.
    id: str
    #: Ids of the parents, the first one first.
    parents: tuple[str, ...]
    #: Seconds since 1970, by the committer's clock.
    when: int
    #: Subject and body, without blank lines around them, at most `MESSAGE_LIMIT` characters.
    message: str
    #: In the order of the paths' bytes; none for a merge, nor where a shallow clone's history was cut.
    changes: tuple[Change, ...]


def read_history(git_dir: Path, tip: str, exclude: str | None = None) -> Generator[Commit, None, None]:
    """Every commit that `tip` reaches, the newest first, from one git process.

    Renames are found by git, with changed contents too. Where that fails (a partial clone lacks contents, or they are
    too large to be compared) the history is read on with renames of equal contents only.

    Args:
        git_dir: the repository.
        tip: full id of a commit.
        exclude: full id of a commit; what it reaches is left out.

    Raises:
        RepositoryError: a commit or a tree is missing.
    """
    done = 0
    cuts = repository.shallow_commits(git_dir)
    try:
        with contextlib.closing(_log(git_dir, tip, exclude, "--find-renames")) as commits:
            for commit in commits:
                yield _cut(commit, cuts)
                done += 1
    except RepositoryError:
        with contextlib.closing(_log(git_dir, tip, exclude, "--find-renames=100%")) as commits:
            for commit in islice(commits, done, None):
                yield _cut(commit, cuts)


def _log(git_dir: Path, tip: str, exclude: str | None, renames: str) -> Generator[Commit, None, None]:
    # NUL ends every field, and neither a path nor what git prints of a message can hold one. Of a merge git shows
    # nothing unless asked. Empty files are no renames of one another.
    command = ["log", "-z", "--raw", "--no-abbrev", "--format=%H%x00%P%x00%ct%x00%e%x00%B", "--encoding=UTF-8"]
    command += [renames, f"-l{RENAME_LIMIT}", "--no-rename-empty", tip, *([f"^{exclude}"] if exclude else []), "--"]
    with contextlib.closing(repository.read_output(git_dir, tip, command)) as chunks:
        yield from parse_history(chunks)


def _cut(commit: Commit, cuts: frozenset[str]) -> Commit:
    """The commit; without changes where the clone lacks its parents: the whole tree would look added."""
    return replace(commit, changes=()) if commit.id in cuts else commit


def parse_history(chunks: Iterable[bytes]) -> Iterator[Commit]:
    """The commits in the output of `git log -z --raw` with the format of `read_history`, however it is cut into chunks.

    Fields are taken by their place, never searched for: a message or a path that looks like one is none.

    Raises:
        RepositoryError: the output is not of that shape.
    """
    fields = repository.split_fields(chunks)
    name = next(fields, None)
    while name is not None:
        try:
            parents, when, encoding, message = next(fields), next(fields), next(fields), next(fields)
            changes = []
            following = next(fields, None)
            while following is not None and following.startswith((b":", b"\n:")):
                changes.append(_parse_change(following, fields))
                following = next(fields, None)
        except StopIteration:
            raise RepositoryError("git ended in the middle of a commit.") from None
        if not _COMMIT.fullmatch(name) or not _PARENTS.fullmatch(parents):
            raise RepositoryError(f"git told of a commit in an unknown shape: {name[:80]!r}.")
        yield Commit(
            id=name.decode("ascii"),
            parents=tuple(parents.decode("ascii").split()),
            # A commit that was made by hand may have no readable date.
            when=int(when) if when.isdigit() and len(when) <= _DIGITS else 0,
            message=_decode(message, encoding).strip()[:MESSAGE_LIMIT],
            changes=tuple(changes),
        )
        name = following


def _parse_change(about: bytes, fields: Iterator[bytes]) -> Change:
    """A change, whose paths are the next fields.

    Raises:
        StopIteration: there is no path.
    """
    match = _ABOUT.fullmatch(about.decode("latin-1"))
    if match is None:
        raise RepositoryError(f"git told of a change in an unknown shape: {about[:120]!r}.")
    mode_before, mode, before, after, kind = match.groups()
    before_path = path = next(fields)
    if kind in "RC":
        path = next(fields)
    if not path or not before_path:
        raise RepositoryError("git told of a change without a path.")
    if kind == "D":
        return Change(kind, path, path, before, None, mode_before)
    if kind in "AC":
        return Change("A", path, path, None, after, mode)
    return Change(kind, path, before_path, before, after, mode)


def _decode(raw: bytes, encoding: bytes) -> str:
    """Text of a message, which git gives as UTF-8 where it knows the encoding that the commit names.

    Else the bytes are as they were written: in the encoding that is named, or Latin-1, which fits any bytes.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        named = encoding.decode("ascii", "replace")
        if _ENCODING.fullmatch(named):
            with contextlib.suppress(UnicodeDecodeError, LookupError):
                return raw.decode(named)
        return raw.decode("latin-1")


def changes_between(git_dir: Path, before: str, after: str) -> list[Change]:
    """What is different in the tree of one commit against another's, renames found, in the order of the paths.

    Raises:
        RepositoryError: a commit or a tree is missing.
    """
    command = ["diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--find-renames", f"-l{RENAME_LIMIT}"]
    command += ["--no-rename-empty", before, after, "--"]
    with contextlib.closing(repository.read_output(git_dir, after, command)) as chunks:
        fields = repository.split_fields(chunks)
        return [_parse_change(about, fields) for about in fields]


def count_commits(git_dir: Path, tip: str, exclude: str | None = None) -> int:
    """How many commits `tip` reaches, itself included, and `exclude` does not.

    Raises:
        RepositoryError: one of them is missing.
    """
    span = [tip, *([f"^{exclude}"] if exclude else [])]
    return int(b"".join(repository.read_output(git_dir, tip, ["rev-list", "--count", *span, "--"])))


def reached(git_dir: Path, tip: str, exclude: str | None = None) -> frozenset[str]:
    """The ids of the commits that `tip` reaches, itself included, and `exclude` does not.

    Raises:
        RepositoryError: one of them is missing.
    """
    span = [tip, *([f"^{exclude}"] if exclude else [])]
    return frozenset(b"".join(repository.read_output(git_dir, tip, ["rev-list", *span, "--"])).decode("ascii").split())


def newest_without(git_dir: Path, tip: str, barred: Collection[str]) -> str | None:
    """The newest of `tip` and its first parents that reaches none of the commits `barred`; None if all do.

    Raises:
        RepositoryError: a commit is missing.
    """
    command = ["rev-list", "--topo-order", "--reverse", "--parents", tip, "--"]
    reaches: set[str] = set()
    first: dict[str, str] = {}
    with contextlib.closing(repository.read_output(git_dir, tip, command)) as chunks:
        for line in _lines(chunks):
            name, *parents = line.decode("ascii").split()
            if name in barred or not reaches.isdisjoint(parents):
                reaches.add(name)
            if parents:
                first[name] = parents[0]
    found: str | None = tip
    while found in reaches:
        found = first.get(found)
    return found


def cut_commit(git_dir: Path, tip: str, share: float) -> str | None:
    """Where the newest `share` of a history begins: the newest ancestor by first parents that does not reach that many.

    One `git rev-list`, one pass, memory by the number of first parents and of branches that are open at a time.

    Args:
        git_dir: the repository.
        tip: full id of a commit.
        share: of the commits, from 0 to 1.

    Returns:
        Full id of the commit; None where `share` is 0, is less than one whole commit, or cannot be had without losing
        more than half of the history (a merge whose first parent is the smaller side).

    Raises:
        RepositoryError: a commit is missing.
    """
    if share <= 0:
        return None
    command = ["rev-list", "--topo-order", "--parents", tip, "--"]
    with contextlib.closing(repository.read_output(git_dir, tip, command)) as chunks:
        return _cut_of(_lines(chunks), tip, share)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _cut_of(lines: Iterable[bytes], tip: str, share: float) -> str | None:
    """The cut of a history given as lines of `id parent…`, children before their parents.

    Every commit is counted under the oldest commit of the trunk (the tip and its first parents) that reaches it: what
    the trunk's k-th commit does not reach is then what was counted under the first k.
    """
    trunk: list[bytes] = []
    counts: list[int] = []
    #: Commits whose children were seen: the place in the trunk of the oldest commit that reaches them.
    oldest: dict[bytes, int] = {}
    following: bytes | None = tip.encode("ascii")
    for line in lines:
        name, *parents = line.split()
        place = oldest.pop(name, 0)
        if name == following:
            place = len(trunk)
            trunk.append(name)
            counts.append(0)
            following = parents[0] if parents else None
        counts[place] += 1
        for parent in parents:
            oldest[parent] = max(oldest.get(parent, 0), place)
    total, lost = sum(counts), 0
    if share * total < 1:
        return None
    for name, count in zip(trunk[1:], counts, strict=False):
        lost += count
        if lost >= share * total:
            return name.decode("ascii") if lost <= _LARGEST_FUTURE * total else None
    return None


class Lineages:
    """Which paths are one file under the names it had: paths that renames connect.

    The same lineages whatever the order in which commits are added.
    """

    def __init__(self) -> None:
        #: For a path that was renamed: a smaller path of the same lineage.
        self._smaller: dict[bytes, bytes] = {}

    @classmethod
    def of_history(cls, commits: Iterable[Commit]) -> "Lineages":
        """The lineages of a history."""
        lineages = cls()
        for commit in commits:
            lineages.add(commit)
        return lineages

    def add(self, commit: Commit) -> None:
        """Learn the renames of one more commit."""
        for change in commit.changes:
            if change.kind == "R":
                self._join(change.before_path, change.path)

    def learn(self, other: "Lineages") -> None:
        """Learn the renames that another history told of the same files."""
        for one, another in other.renames:
            self._join(one, another)

    @property
    def renames(self) -> list[tuple[bytes, bytes]]:
        """Pairs of paths of one lineage, enough of them to connect every one."""
        return list(self._smaller.items())

    def _join(self, one: bytes, other: bytes) -> None:
        first, second = sorted((self.of(one), self.of(other)))
        if first != second:
            self._smaller[second] = first

    def of(self, path: bytes) -> bytes:
        """The lineage's name: the smallest of its paths; the path itself where it was never renamed."""
        root = path
        while (smaller := self._smaller.get(root)) is not None:
            root = smaller
        # Later questions about these paths take one step.
        while (smaller := self._smaller.get(path)) is not None and smaller != root:
            self._smaller[path] = root
            path = smaller
        return root
