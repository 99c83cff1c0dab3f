"""Which commits of a history may be learned, and in which order they are tried.

Every commit draws a lot of its own; a dataset takes commits in the order of their lots until it has enough tokens. So
the choice spreads over the whole history, and one more commit moves no other.
"""

import heapq
import marshal
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jobs.dataset.attributes import Attributes
from jobs.dataset.files import path_filter
from jobs.dataset.history import SUBMODULE, SYMLINK, Change, Commit, Lineages, read_history
from jobs.dataset.lots import lot
from jobs.dataset.messages import message_reason
from jobs.repository import TreeEntry
from jobs.spec import DatasetSection
from jobs.stages import Stages

#: Commits that are remembered while a history streams by, and the bytes that they may take together: as many of those
#: with the smallest lots as fit both. A commit takes some 600 bytes, one of 64 files or a long message many times that.
REMEMBERED = 50_000
REMEMBERED_BYTES = 64 << 20
#: What Python needs to hold one of them, beside its content.
_HOLDING_BYTES = 176
#: A commit that changes more files is a sweep (a rename, a licence header, a formatter), and teaches little.
MOST_FILES = 64
#: Files of one commit that are shown, in the order of their paths.
SHOWN_FILES = 8
#: Names whose judgement is remembered while a history is read.
_NAMES = 1 << 14
_LINKS = (SYMLINK, SUBMODULE)


class Candidates:
    """Commits in few bytes, each made whole when it is asked for: many are remembered, and few are looked at."""

    def __init__(self, packed: list[bytes]) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[Commit]:
        return map(_unpacked, self._packed)

    def where(self, holds: Callable[[set[bytes]], bool]) -> "Candidates":
        """Those of whose files, by their paths before and after, something holds; in their order."""
        return Candidates([packed for packed in self._packed if holds(_paths(packed))])


class _Remembered:
    """The commits with the smallest lots, as many as fit; the same ones in whatever order they come."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._left = most_bytes
        #: The largest lot on top.
        self._heap: list[tuple[int, bytes]] = []
        #: No lot from here on fits. Without it a small commit would slip in behind a large one that did not.
        self._end = 1 << 64

    def add(self, lot_: int, commit: Commit) -> None:
        """Remember a commit, in the place of others if need be."""
        if lot_ >= self._end:
            return
        packed = _packed(commit)
        heapq.heappush(self._heap, (-lot_, packed))
        self._left -= len(packed) + _HOLDING_BYTES
        while len(self._heap) > self._most or self._left < 0:
            largest, packed = heapq.heappop(self._heap)
            self._left += len(packed) + _HOLDING_BYTES
            self._end = -largest

    def candidates(self) -> Candidates:
        """They, in the order of their lots."""
        return Candidates([packed for _, packed in sorted(self._heap, reverse=True)])


def _packed(commit: Commit) -> bytes:
    """Two fifths of the bytes that the objects take, for this process alone."""
    changes = tuple(
        (change.kind, change.path, change.before_path, change.before, change.after, change.mode)
        for change in commit.changes
    )
    return marshal.dumps((commit.id, commit.parents, commit.when, commit.message, changes))


def _paths(packed: bytes) -> set[bytes]:
    *_, changes = marshal.loads(packed)  # noqa: S302 - as below
    return {path for _, *paths, _, _, _ in changes for path in paths}


def _unpacked(packed: bytes) -> Commit:
    name, parents, when, message, changes = marshal.loads(packed)  # noqa: S302 - made by `_packed`, in this process
    return Commit(name, parents, when, message, tuple(Change(*change) for change in changes))


@dataclass(frozen=True)
class History:
    """What a history holds for training."""

    total: int
    #: Learned from by what their parents changed.
    merges: int
    #: Those that may be learned, remembered or not.
    eligible: int
    lineages: Lineages
    #: Those that may be learned, in the order of their lots.
    candidates: "Candidates"
    #: Why the others are not.
    reasons: Counter[str]


def read_candidates(
    git_dir: Path,
    span: tuple[str | None, str],
    learned: "Learned",
    seed: int,
    stages: Stages,
    *,
    known: Collection[str] = frozenset(),
) -> History:
    """Read a history once, as it streams out of git.

    Args:
        git_dir: the repository.
        span: the commit whose history is left out, and the one whose history is read.
        learned: what of a commit is learned.
        seed: of the lots.
        stages: of the build.
        known: commits of other repositories, which are learned there: of them only the renames are taken.

    Raises:
        RepositoryError: it cannot be read.
    """
    since, tip = span
    stages.start("history", f"Reading the history of {tip[:12]}.")
    lineages = Lineages()
    reasons: Counter[str] = Counter()
    remembered = _Remembered(REMEMBERED, REMEMBERED_BYTES)
    total = merges = eligible = 0
    for commit in read_history(git_dir, tip, since):
        stages.check()
        lineages.add(commit)
        if commit.id in known:
            continue
        total += 1
        if len(commit.parents) > 1:
            merges += 1
            continue
        reason = learned.reason(commit)
        if reason is not None:
            reasons[reason] += 1
            continue
        eligible += 1
        remembered.add(lot(seed, commit.id), commit)
    return History(total, merges, eligible, lineages, remembered.candidates(), reasons)


class Learned:
    """What of a commit is learned."""

    def __init__(self, section: DatasetSection, attributes: Attributes) -> None:
        self._reason_of = path_filter(section, attributes.says)
        # A history names the same files over and over.
        self._is_learned = lru_cache(_NAMES)(self._by_name)

    def reason(self, commit: Commit) -> str | None:
        """Why a commit is not learned, told by its message and the names of its files."""
        if len(commit.changes) > MOST_FILES:
            return "too many files"
        told = message_reason(commit.message)
        if told is not None:
            return told
        return None if any(map(self._takes, commit.changes)) else "no file to learn"

    def changes(self, commit: Commit) -> list[Change]:
        """The changes that are shown to the model."""
        return [change for change in commit.changes if self._takes(change)][:SHOWN_FILES]

    def _takes(self, change: Change) -> bool:
        """Whether a change is of a text that is learned, told by its name."""
        # A file that was a link before would show where that led.
        if change.mode in _LINKS or change.kind == "T" or change.before == change.after:
            return False
        # Both names must be learned: the text before is shown, too.
        return all(self._is_learned(path, change.mode) for path in _names(change))

    def _by_name(self, path: bytes, mode: str) -> bool:
        return self._reason_of(TreeEntry(mode=mode, blob="", size=1, path=path)) is None


def _names(change: Change) -> set[bytes]:
    return {change.path, change.before_path}


def apart_from(candidates: Candidates, lineage: Callable[[bytes], bytes], held_out: Collection[bytes]) -> Candidates:
    """The candidates that touch no file of the held-out lineages, in their order; `lineage` tells that of a path."""
    known: dict[bytes, bool] = {}

    def is_held_out(path: bytes) -> bool:
        # A history names the same files over and over.
        if path not in known:
            known[path] = lineage(path) in held_out
        return known[path]

    return candidates.where(lambda paths: not any(map(is_held_out, paths)))
