"""The repositories that a dataset is built from: what they are called, and where the future of each begins.

Repositories that share commits are of one family (a fork, a clone). Of a family every commit is learned once, and what
the first of them holds back as its future is held back from the others, too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from jobs import repository
from jobs.dataset.files import shown_path
from jobs.dataset.groups import Groups
from jobs.dataset.history import count_commits, cut_commit, newest_without, reached
from jobs.dataset.reading import Reader
from jobs.shards import DatasetError
from jobs.spec import DatasetSection, Pinned, Source
from jobs.stages import Stages

#: Commits of the future at most: an adapter should know the repository as it is now, not as it was years ago.
_FUTURE_COMMITS = 64


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A repository that a dataset is built from."""

    git_dir: Path
    pinned: Pinned
    #: What it is called in samples.
    name: str
    #: What stands before its paths for people where there are several repositories: "" or "name/".
    label: str
    #: What stands before its paths where they must be unique: "" for the main one.
    key: str
    #: The key of the first of its family.
    family: str
    #: Training sees what is reachable from here.
    cut: str
    #: Commits after the cut that are measured.
    future_commits: int
    #: Commits that earlier repositories of the family have, which are learned there.
    known: frozenset[str]
    reader: Reader

    @property
    def weight(self) -> float | None:
        """Training tokens of it for one of the main repository, which has 1; None takes all of it."""
        return self.pinned.weight if self.key else 1.0

    @property
    def has_future(self) -> bool:
        """Whether what its newest commits added is measured."""
        return self.future_commits > 0

    @property
    def holds_back(self) -> bool:
        """Whether its newest commits are neither learned nor measured: they build on the future of another."""
        return self.cut != self.pinned.commit and not self.has_future


@dataclass(frozen=True)
class _Cut:
    commit: str
    future_commits: int
    known: frozenset[str] = frozenset()


def open_origins(
    source: Source,
    git_dirs: Sequence[Path],
    section: DatasetSection,
    read: Callable[[Path], Reader],
    stages: Stages,
) -> list[Origin]:
    """The repositories of `source`, in its order.

    Args:
        source: says which.
        git_dirs: where they are, in the same order.
        section: says how much of each is its future.
        read: makes what reads one.
        stages: of the build.

    Raises:
        RepositoryError: one of them cannot be read, or a range holds no commit.
        DatasetError: one holds nothing but the future of another.
    """
    places = list(zip(git_dirs, source.repositories, strict=True))
    several = len(places) > 1
    for git_dir, pinned in places:
        if pinned.since is not None:
            repository.refuse_empty_range(git_dir, pinned.since, pinned.commit)
    # What each reaches is asked only where it can matter: it takes as long as counting.
    reach = [reached(git_dir, pinned.commit) if several else frozenset() for git_dir, pinned in places]
    families = _families(reach)
    names = [repository_name(pinned.repository) for _, pinned in places]
    labels = list(_unique(names))
    keys = ["", *(f"{label.encode().decode('latin-1')}\0" for label in labels[1:])]
    origins: list[Origin] = []
    for number, (git_dir, pinned) in enumerate(places):
        stages.start("resolve", f"{names[number]} is learned from at {pinned.commit[:12]}.")
        earlier = [place for place in range(number) if not reach[place].isdisjoint(reach[number])]
        cut = (
            _cut_beside(git_dir, pinned, reach[number], [(origins[place], reach[place]) for place in earlier])
            if earlier
            else _cut_alone(git_dir, pinned, section)
        )
        origin = Origin(
            git_dir=git_dir,
            pinned=pinned,
            name=names[number],
            label=f"{labels[number]}/" if several else "",
            key=keys[number],
            family=keys[families[number]],
            cut=cut.commit,
            future_commits=cut.future_commits,
            known=cut.known,
            reader=read(git_dir),
        )
        if origin.holds_back:
            stages.start("resolve", f"{origin.name} is learned until {origin.cut[:12]}: then comes another's future.")
        origins.append(origin)
    return origins


def _families(reach: Sequence[frozenset[str]]) -> list[int]:
    """Of every repository, the first one of those that are connected with it by commits they share."""
    groups = Groups(len(reach))
    for number, one in enumerate(reach):
        for other in range(number):
            if not one.isdisjoint(reach[other]):
                groups.join(number, other)
    first = {number: min(group) for group in groups.all() for number in group}
    return [first[number] for number in range(len(reach))]


def _unique(names: Sequence[str]) -> Iterator[str]:
    """The names, numbered where two are the same."""
    taken: set[str] = set()
    for name in names:
        numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
        label = next(one for one in numbered if one not in taken)
        taken.add(label)
        yield label


def _cut_alone(git_dir: Path, pinned: Pinned, section: DatasetSection) -> _Cut:
    cut = cut_commit(git_dir, pinned.commit, _future_share(git_dir, pinned, section)) or pinned.commit
    return _Cut(cut, 0 if cut == pinned.commit else count_commits(git_dir, pinned.commit, cut))


def _future_share(git_dir: Path, pinned: Pinned, section: DatasetSection) -> float:
    """The share of all commits that are only measured: a part of those asked for, and no more than a measure needs."""
    if not section.future:
        return 0.0
    total = count_commits(git_dir, pinned.commit)
    asked = total if pinned.since is None else count_commits(git_dir, pinned.commit, pinned.since)
    return min(section.future * asked, _FUTURE_COMMITS) / total


def _cut_beside(
    git_dir: Path, pinned: Pinned, reach: frozenset[str], earlier: Sequence[tuple[Origin, frozenset[str]]]
) -> _Cut:
    """The cut of a repository that shares commits with earlier ones: before all that these hold back."""
    futures = [reached(one.git_dir, one.pinned.commit, one.cut) for one, _ in earlier if one.cut != one.pinned.commit]
    barred = frozenset().union(*futures) & reach
    cut = newest_without(git_dir, pinned.commit, barred) if barred else pinned.commit
    if cut is None:
        raise DatasetError(
            f"Repository {repository.shown(pinned.repository)} holds nothing but what the newest commits of "
            f"{earlier[0][0].name} are measured by: leave it out, or set dataset.future to 0."
        )
    return _Cut(cut, 0, frozenset().union(*(commits for _, commits in earlier)) & reach)


def repository_name(repository_: str) -> str:
    """What a repository is called, of its path or URL: `requests` of `https://h/psf/requests.git`."""
    name = repository.shown(repository_).rstrip("/").removesuffix("/.git").removesuffix(".git")
    name = name.rpartition("/")[2].rpartition(":")[2].strip(".")
    return shown_path(name.encode("utf-8", "surrogateescape")) or "repository"
