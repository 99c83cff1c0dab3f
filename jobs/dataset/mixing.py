"""Chooses what is trained on: all code, and as much of documentation and commits as their shares allow.

Shares are reached by leaving out, never by repeating: nothing is written twice.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.dataset.chronicle import Told
from jobs.dataset.lots import lot
from jobs.dataset.samples import Document, Renderer, Sample, SampleKind, units
from jobs.dataset.survey import File
from jobs.spec import DatasetSection

#: Bytes of text that are in memory at once, beside the token ids.
_BATCH_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file that a sample holds a part of; of a commit the first one that it shows."""

    path: str
    blob: str | None = None
    #: SPDX identifier that it states.
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A sample and where it is from."""

    sample: Sample
    #: As many as the sample has `sizes`.
    parts: tuple[FilePart, ...]
    commit: str | None = None

    @property
    def path(self) -> str:
        """Of the first file."""
        return self.parts[0].path

    @property
    def about(self) -> dict[str, Any]:
        """What people are told of it."""
        return {
            "kind": str(self.sample.kind),
            "mode": str(self.sample.mode),
            "commit": self.commit,
            "paths": [part.path for part in self.parts],
            "tokens": len(self.sample.ids),
        }


@dataclass(frozen=True)
class Shares:
    """Tokens of each kind beside code in training."""

    docs: int
    commits: int

    @classmethod
    def of(cls, section: DatasetSection, code_tokens: int) -> "Shares":
        """What documentation and commits may take beside so much code."""
        total = code_tokens / (1 - section.commit_share - section.doc_share)
        return cls(int(total * section.doc_share), int(total * section.commit_share))


def code_limit(section: DatasetSection) -> int | None:
    """Tokens of code at most; None takes all."""
    if section.tokens is None:
        return None
    return int(section.tokens * (1 - section.commit_share - section.doc_share))


def by_lot(files: Sequence[File], seed: int) -> list[File]:
    """Files in an order that hangs on their names alone."""
    return sorted(files, key=lambda file: (lot(seed, file.name), file.name))


def file_items(
    files: Sequence[File],
    kind: SampleKind,
    renderer: Renderer,
    texts: Callable[[Sequence[File]], Iterator[str]],
    *,
    held_out: bool,
) -> Iterator[list[Item]]:
    """The samples of files, some at a time: a list for every batch that is in memory at once."""
    for batch in _batches(files, kind, held_out=held_out):
        documents = [
            Document(file.path, text, held_out=held_out, kind=kind)
            for file, text in zip(batch, texts(batch), strict=True)
        ]
        for_files = [FilePart(file.path, file.blob, file.licence) for file in batch]
        yield [
            Item(sample, tuple(for_files[sample.document : sample.document + sample.joined]))
            for sample in renderer.render(documents)
        ]


def _batches(files: Sequence[File], kind: SampleKind, *, held_out: bool) -> Iterator[list[File]]:
    """Files in batches that end where no file shares a document with the next."""
    names = [Document(file.path, "", held_out=held_out, kind=kind) for file in files]
    batch: list[File] = []
    size = 0
    for unit in units(names):
        batch += files[unit.start : unit.stop]
        size += sum(file.size for file in files[unit.start : unit.stop])
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokens(items: Iterable[Item]) -> int:
    """Tokens of all of them."""
    return sum(len(item.sample.ids) for item in items)


def until(batches: Iterable[list[Item]], limit: int | None) -> list[Item]:
    """The items of the first batches that together reach `limit` tokens, of the last batch no more than it takes."""
    chosen: list[Item] = []
    count = 0
    for batch in batches:
        for item in batch:
            if limit is not None and count >= limit:
                return chosen
            chosen.append(item)
            count += len(item.sample.ids)
    return chosen


def commit_items(told: Told) -> list[Item]:
    """The samples of a commit."""
    return [Item(sample, (FilePart(told.path),), told.commit.id) for sample in told.samples]
