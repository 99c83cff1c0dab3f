"""Looks at every file of a commit, once by its name and once by its text, and says of each whether it is learned."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs import repository
from jobs.dataset.attributes import Attributes
from jobs.dataset.files import Drop, Reason, is_documentation, path_filter, shown_path
from jobs.dataset.languages import language_of
from jobs.dataset.licences import is_licence_file, licence_of
from jobs.dataset.reading import Reader, Text
from jobs.repository import TreeEntry
from jobs.spec import DatasetSection
from jobs.stages import Stages

#: Bytes of candidate files up to which every shingle of theirs is held in memory; beyond, one in `_THIN`.
_ALL_SHINGLES = 64 << 20
_THIN = 16
#: Fewer hashes of a text tell nothing of what others share with it (`jobs.dataset.postings`); how many of a small one
#: are held instead, so that no commit gives it away.
_TELLING, LEAST_GUARDED = 16, 64
_ATTRIBUTES = b".gitattributes"


@dataclass(frozen=True)
class File:
    """A file that is learned or measured."""

    path: str
    #: The path's bytes as Latin-1: unlike what is shown, no two files share it.
    name: str
    blob: str
    #: Bytes.
    size: int
    #: Of the text without line ends and trailing blanks: the same for the same text, however it is stored.
    digest: str
    documentation: bool
    licence: str | None
    redactions: dict[str, int] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        """The path as git stores it."""
        return self.name.encode("latin-1")


@dataclass(frozen=True)
class Survey:
    """What a commit holds."""

    files: list[File]
    drops: list[Drop]
    #: What the commit's own `.gitattributes` say of paths, old ones too.
    attributes: Attributes
    #: Of each file, hashes of its runs of words (`jobs.dataset.reading`); thinned where there are very many.
    near: list[NDArray[np.uint64]]
    leak: list[NDArray[np.uint64]]
    #: Path and SPDX identifier, or None where its text is of no licence that we know, of every licence file.
    licences: list[tuple[str, str | None]]
    #: One run of words in so many is in `near` and `leak`: those whose hashes it divides.
    thin: int = 1


class _Entry(NamedTuple):
    """A path of the tree that is worth reading."""

    entry: TreeEntry
    #: As people and the model see it.
    path: str
    #: All that its text is judged by: where it is equal, files are read once.
    judged_by: tuple[object, ...]


def survey_files(
    git_dir: Path,
    commit: str,
    section: DatasetSection,
    reader: Reader,
    stages: Stages,
    *,
    known: Collection[str] = frozenset(),
) -> Survey:
    """Survey the tree of `commit`.

    Args:
        git_dir: the repository.
        commit: full id.
        section: what is taken.
        reader: of the repository.
        stages: of the build.
        known: blobs that other repositories of the dataset have: another is a copy.

    Raises:
        RepositoryError: the commit cannot be listed.
    """
    stages.start("enumerate", f"Listing commit {commit[:12]}.")
    entries = list(repository.list_files(git_dir, commit))
    attributes = read_attributes(git_dir, entries)
    candidates, drops = _by_name(entries, section, attributes, reader, stages)
    stages.start("read", f"Reading {len(candidates)} files. {attributes.note}".rstrip())
    thin = sum(entry.size for entry, *_ in candidates) > _ALL_SHINGLES
    survey = Survey([], drops, attributes, [], [], [], thin=_THIN if thin else 1)
    first: dict[tuple[object, ...], tuple[str, str]] = {}
    for entry, path, judged_by in candidates:
        first.setdefault(judged_by, (path, entry.blob))
    texts = reader.read(list(first.values()))
    told: dict[tuple[object, ...], Reason] = {}
    seen = set(known)
    for done, (entry, path, judged_by) in enumerate(candidates, 1):
        stages.progress(done, len(candidates), "files")
        verdict: Text | Reason | None = told.get(judged_by)
        if verdict is None:
            verdict = next(texts)
            told[judged_by] = Reason.DUPLICATE if isinstance(verdict, Text) else verdict
        if isinstance(verdict, Text):
            verdict = Reason.DUPLICATE if entry.blob in seen else verdict
            seen.add(entry.blob)
        _take(survey, entry, path, verdict)
    survey.drops.sort(key=lambda drop: (drop.path, drop.blob))
    stages.start("redact", _hidden(survey.files))
    stages.start("filter", f"{len(survey.files)} files are kept, {len(survey.drops)} left out.")
    return survey


def _hidden(files: Sequence[File]) -> str:
    """How much of the files is hidden."""
    counts = [sum(file.redactions.values()) for file in files if file.redactions]
    return f"{sum(counts)} secrets and e-mail addresses are hidden in {len(counts)} files."


def read_attributes(git_dir: Path, entries: Sequence[TreeEntry]) -> Attributes:
    """The attributes that a tree's own files give, read as data."""
    files = [
        entry for entry in entries if entry.path.rpartition(b"/")[2] == _ATTRIBUTES and entry.mode.startswith("100")
    ]
    contents = repository.read_blobs(git_dir, [entry.blob for entry in files], 1 << 20)
    return Attributes.parse(
        (entry.path.rpartition(b"/")[0], content or b"") for entry, (_, content) in zip(files, contents, strict=True)
    )


def _by_name(
    entries: Sequence[TreeEntry],
    section: DatasetSection,
    attributes: Attributes,
    reader: Reader,
    stages: Stages,
) -> tuple[list[_Entry], list[Drop]]:
    """The entries whose text is worth reading, and the others with their reasons."""
    reason_of = path_filter(section, attributes.says)
    drops: list[Drop] = []
    candidates = []
    for entry in entries:
        stages.check()
        reason, path = reason_of(entry), reader.path(entry.path)
        if reason is None:
            name = shown_path(entry.path)
            candidates.append(_Entry(entry, path, (entry.blob, language_of(name), is_documentation(name))))
        else:
            drops.append(Drop(path=path, blob=entry.blob, bytes=entry.size, reason=reason))
    return candidates, drops


def _take(survey: Survey, entry: TreeEntry, path: str, verdict: Text | Reason) -> None:
    if isinstance(verdict, Reason):
        survey.drops.append(Drop(path=path, blob=entry.blob, bytes=entry.size, reason=verdict))
        return
    said = survey.attributes.is_documentation(entry.path)
    if is_licence_file(path):
        survey.licences.append((path, licence_of(verdict.text)))
    survey.files.append(
        File(
            path=path,
            name=entry.path.decode("latin-1"),
            blob=entry.blob,
            size=entry.size,
            digest=verdict.digest,
            documentation=is_documentation(path) if said is None else said,
            licence=verdict.licence,
            redactions=dict(verdict.redactions),
        )
    )
    survey.near.append(thinned(verdict.near, survey.thin))
    survey.leak.append(thinned(verdict.leak, survey.thin, LEAST_GUARDED))


def thinned(hashes: NDArray[np.uint64], thin: int, least: int = 0) -> NDArray[np.uint64]:
    """All hashes, or the one in `thin` that any text would keep: shares of two texts stay comparable.

    Args:
        hashes: sorted.
        thin: 1 keeps all.
        least: where that leaves too few to tell anything (a text of about a kilobyte), so many of the smallest instead.
            Held against texts that are not thinned, as commits are, they are as good a sample; held against thinned
            ones they say no more than too few did.
    """
    if thin == 1:
        return hashes
    kept = hashes[hashes % np.uint64(thin) == 0]
    return kept if len(kept) >= _TELLING else np.array(hashes[:least] if least else kept)


def texts(files: Sequence[File], reader: Reader) -> Iterator[str]:
    """The texts of files that a survey kept, read a second time: all of them may not fit in memory."""
    for verdict in reader.read([(file.path, file.blob) for file in files]):
        assert isinstance(verdict, Text)  # noqa: S101 - the survey read the same blob by the same rules
        yield verdict.text


def reasons(drops: Sequence[Drop]) -> Counter[str]:
    """How many were left out, by reason, in the order of the reasons' names."""
    return Counter(sorted(str(drop.reason) for drop in drops))


def why_left_out(survey: Survey) -> str:
    """A clause for a sentence on what is missing: the reasons that left out most; empty where nothing was left out."""
    counts = reasons(survey.drops).most_common(4)
    return f" (left out: {', '.join(f'{count} {reason}' for reason, count in counts)})" if counts else ""
