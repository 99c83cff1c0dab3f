"""From repositories as a person names them to the source of a dataset: each pinned to a commit, none twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.repository import RepositoryError, Resolved, resolve, shown
from jobs.spec import FurtherRepository, Pinned, Source


@dataclass(frozen=True)
class Sources:
    """The repositories of one dataset, resolved."""

    main: Resolved
    also: tuple[Resolved, ...] = ()
    #: Of those in `also`.
    weights: tuple[float | None, ...] = ()

    @property
    def all(self) -> tuple[Resolved, ...]:
        """The main one first."""
        return (self.main, *self.also)

    def pinned(self, name: Callable[[Resolved], str], bundles: Sequence[str | None] = ()) -> Source:
        """What a job's record says of them.

        Args:
            name: what a repository is called in the record.
            bundles: artifact paths, in the order of `all`.
        """
        carried = [*bundles, *[None] * (len(self.all) - len(bundles))]
        facts = [
            {"repository": name(one), "commit": one.commit, "since": one.since, "bundle": bundle}
            for one, bundle in zip(self.all, carried, strict=True)
        ]
        also = [Pinned(**about, weight=weight) for about, weight in zip(facts[1:], self.weights, strict=True)]
        return Source(**facts[0], also=tuple(also))


def resolve_all(repository: str, ref: str | None, also: Sequence[FurtherRepository]) -> Sources:
    """Pin a repository, and those that are to be learned with it.

    Raises:
        RepositoryError: one cannot be read, or two of them are the same.
    """
    main = resolve(repository, ref)
    others = [resolve(one.repository, one.ref) for one in also]
    _refuse_same([main, *others])
    return Sources(main, tuple(others), tuple(one.weight for one in also))


def full_name(resolved: Resolved) -> str:
    """A path in full, a URL as it is: `.` means another repository in another folder."""
    if resolved.git_dir is None:
        return resolved.repository
    return str(Path(resolved.repository).expanduser().resolve())


def _refuse_same(resolved: Sequence[Resolved]) -> None:
    places: set[str] = set()
    for one in resolved:
        place = _place(one)
        if place in places:
            raise RepositoryError(f"Repository {shown(one.repository)} is named twice: name each once.")
        places.add(place)


def _place(resolved: Resolved) -> str:
    """The same for two names of one repository: work trees share their objects, URLs their host and path."""
    if resolved.git_dir is not None:
        return str(resolved.git_dir.resolve())
    url = shown(resolved.repository).rstrip("/").removesuffix("/.git").removesuffix(".git").rstrip("/")
    if url.startswith("file://"):
        path = Path(url.removeprefix("file://"))
        return str((path / ".git" if (path / ".git").is_dir() else path).resolve())
    return url
