"""Which commits of a history may be learned, and in which order they are tried.

Every commit draws a lot of its own; a dataset takes commits in the order of their lots until it has enough tokens. So
the choice spreads over the whole history, and one more commit moves no other.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.dataset.attributes import Attributes
from jobs.dataset.files import path_filter
from jobs.dataset.history import SUBMODULE, SYMLINK, Change, Commit, Lineages, read_history
from jobs.dataset.lots import lot
from jobs.dataset.messages import message_reason
from jobs.repository import TreeEntry
from jobs.spec import DatasetSection
from jobs.stages import Stages

#: Commits that are remembered while a history streams by: those with the smallest lots.
REMEMBERED = 50_000
#: A commit that changes more files is a sweep (a rename, a licence header, a formatter), and teaches little.
MOST_FILES = 64
#: Files of one commit that are shown, in the order of their paths.
SHOWN_FILES = 8
_LINKS = (SYMLINK, SUBMODULE)


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
    candidates: list[Commit]
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
    heap: list[tuple[int, str, Commit]] = []
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
        item = (-lot(seed, commit.id), commit.id, commit)
        heapq.heappush(heap, item) if len(heap) < REMEMBERED else heapq.heappushpop(heap, item)
    candidates = [commit for _, _, commit in sorted(heap, reverse=True)]
    return History(total, merges, eligible, lineages, candidates, reasons)


class Learned:
    """What of a commit is learned."""

    def __init__(self, section: DatasetSection, attributes: Attributes) -> None:
        self._reason_of = path_filter(section, attributes.says)

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
        blob = change.after or change.before or ""
        # Both names must be learned: the text before is shown, too.
        entries = [TreeEntry(mode=change.mode, blob=blob, size=1, path=path) for path in _names(change)]
        return all(self._reason_of(entry) is None for entry in entries)


def _names(change: Change) -> set[bytes]:
    return {change.path, change.before_path}


def apart_from(
    candidates: list[Commit], lineage: Callable[[bytes], bytes], held_out: Collection[bytes]
) -> Iterator[Commit]:
    """The candidates that touch no file of the held-out lineages, in their order; `lineage` tells that of a path."""
    for commit in candidates:
        touched = {path for change in commit.changes for path in _names(change)}
        if not any(lineage(path) in held_out for path in touched):
            yield commit
