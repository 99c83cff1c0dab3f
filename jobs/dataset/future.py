"""Tomorrow's code: the files that the newest commits touched, of which only the lines are measured that are new.

New is a line that those commits added, and that no training text holds: code that they moved or copied from elsewhere
is not. A line is known where every word of it stands in runs of thirteen words that some training text holds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from jobs.dataset.attributes import Attributes
from jobs.dataset.files import is_documentation, path_filter
from jobs.dataset.history import Change, changes_between
from jobs.dataset.hunks import window
from jobs.dataset.lots import lot
from jobs.dataset.mixing import FilePart, Item
from jobs.dataset.overlap import Overlap
from jobs.dataset.reading import Reader, Text
from jobs.dataset.samples import Document, Renderer, SampleKind
from jobs.dataset.shingles import Shingles
from jobs.repository import TreeEntry
from jobs.spec import DatasetSection


@dataclass(frozen=True)
class FutureFile:
    """The newest version of a file, and where it is new."""

    path: str
    blob: str
    bytes: int
    text: str
    #: Spans of characters, whole lines, that the newest commits added; at least one.
    added: tuple[tuple[int, int], ...]
    redactions: dict[str, int]
    licence: str | None = None
    documentation: bool = False

    @property
    def lines(self) -> int:
        """Lines that were added and are not blank."""
        return sum(bool(line.strip()) for text in self.parts for line in text.splitlines())

    @property
    def parts(self) -> list[str]:
        """What was added."""
        return [self.text[start:stop] for start, stop in self.added]


@dataclass(frozen=True)
class Future:
    """What is measured of the newest commits."""

    items: list[Item]
    #: The files that the items are of, with what is measured of them.
    files: list[FutureFile]
    #: Lines that were added to the files that were looked at, and those of them that training knows.
    lines: int
    known_lines: int
    #: Files of which nothing is measured, as training knows what was added, or too much of it.
    known_files: int
    #: Of every file, its path and the runs of words in what is measured.
    runs: list[tuple[str, Shingles]]

    def labelled(self, label: str) -> "Future":
        """Under paths that begin with a repository's name."""
        return replace(
            self,
            items=[
                replace(item, parts=tuple(replace(part, path=label + part.path) for part in item.parts))
                for item in self.items
            ],
            files=[replace(file, path=label + file.path) for file in self.files],
            runs=[(label + path, runs) for path, runs in self.runs],
        )

    @property
    def sizes(self) -> dict[tuple[str, str | None], int]:
        """Bytes of the files, by path and blob."""
        return {(file.path, file.blob): file.bytes for file in self.files}


def future_files(
    git_dir: Path, span: tuple[str, str], section: DatasetSection, attributes: Attributes, reader: Reader
) -> Iterator[FutureFile]:
    """The files that differ between the two commits of `span`, as the second has them, in the order of their lots.

    Raises:
        RepositoryError: one of the commits cannot be read.
    """
    reason_of = path_filter(section, attributes.says)
    changes = [
        change
        for change in changes_between(git_dir, *span)
        if change.after
        and change.kind != "T"
        and change.after != change.before
        and reason_of(TreeEntry(mode=change.mode, blob=change.after, size=1, path=change.path)) is None
    ]
    changes.sort(key=lambda change: lot(section.seed, change.path.decode("latin-1")))
    # Of copies the first is new; each by itself would count again.
    first: dict[str | None, Change] = {}
    for change in changes:
        first.setdefault(change.after, change)
    changes = list(first.values())
    wanted = [
        (reader.path(path), blob)
        for change in changes
        for path, blob in ((change.before_path, change.before), (change.path, change.after))
        if blob
    ]
    texts = reader.read(wanted)
    for change in changes:
        before = next(texts) if change.before else None
        after = next(texts)
        if not isinstance(after, Text):
            continue
        added = added_spans(before.text if isinstance(before, Text) else "", after.text)
        if added:
            yield _file(change, reader.path(change.path), after, added, attributes)


def _file(
    change: Change, path: str, text: Text, added: tuple[tuple[int, int], ...], attributes: Attributes
) -> FutureFile:
    said = attributes.is_documentation(change.path)
    return FutureFile(
        path,
        change.after or "",
        len(text.text.encode()),
        text.text,
        added,
        dict(text.redactions),
        text.licence,
        documentation=is_documentation(path) if said is None else said,
    )


def measured(
    files: Iterable[FutureFile], overlap: Overlap, renderer: Renderer, *, tokens: int, most_overlap: float
) -> Future:
    """Samples of what is new in some files, until they have so many tokens.

    Args:
        files: as `future_files` gives them.
        overlap: knows all that is trained on.
        renderer: writes them; what was there before stands beside, and is not measured.
        tokens: at most, but for the last file's.
        most_overlap: a file of which one training source still holds a larger part is left out.
    """
    items: list[Item] = []
    kept: list[FutureFile] = []
    runs: list[tuple[str, Shingles]] = []
    lines = known = known_files = count = 0
    for file in files:
        if count >= tokens:
            break
        new, own = unknown(file, overlap)
        fits = bool(new.added) and overlap.measure([(file.path, own)]).largest <= most_overlap
        lines += file.lines
        known += file.lines - new.lines * fits
        samples = _items(new, renderer) if fits else []
        known_files += not samples
        if samples:
            items += samples
            count += sum(len(item.sample.ids) for item in samples)
            kept.append(new)
            runs.append((file.path, own))
    return Future(items, kept, lines, known, known_files, runs)


def united(futures: Sequence[Future]) -> Future:
    """What is measured of several repositories."""
    return Future(
        [item for one in futures for item in one.items],
        [file for one in futures for file in one.files],
        sum(one.lines for one in futures),
        sum(one.known_lines for one in futures),
        sum(one.known_files for one in futures),
        [pair for one in futures for pair in one.runs],
    )


def _items(file: FutureFile, renderer: Renderer) -> list[Item]:
    kind = SampleKind.DOCS if file.documentation else SampleKind.CONTEXT
    document = Document(file.path, file.text, held_out=True, kind=kind, learned=file.added)
    part = (FilePart(file.path, file.blob, file.licence),)
    return [Item(sample, part) for sample in renderer.render([document])]


def unknown(file: FutureFile, overlap: Overlap) -> tuple[FutureFile, Shingles]:
    """The file with only those lines added that training does not know, none of them perhaps, and the runs in them."""
    lines = file.text.splitlines(keepends=True)
    seen = overlap.seen(file.text)
    line_of = np.searchsorted(np.cumsum([len(line.encode()) for line in lines]), seen.starts, side="right")
    new = np.bincount(line_of[~seen.known], minlength=len(lines)) > 0
    ends = [0, *accumulate(map(len, lines))]
    place = {end: number for number, end in enumerate(ends)}
    spans: list[tuple[int, int]] = []
    for start, stop in file.added:
        spans += _stretches(range(place[start], place[stop]), lines, new.tolist())
    inside = np.zeros(len(lines), np.bool_)
    for start, stop in spans:
        inside[start:stop] = True
    return replace(file, added=tuple((ends[start], ends[stop]) for start, stop in spans)), seen.runs_of(inside[line_of])


def _stretches(numbers: range, lines: Sequence[str], new: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The lines of a span that are new, as ranges; a blank one stays with what stands before it."""
    start: int | None = None
    for number in numbers:
        if start is not None and lines[number].strip() and not new[number]:
            yield start, number
            start = None
        elif start is None and new[number]:
            start = number
    if start is not None:
        yield start, numbers.stop


def added_spans(before: str, after: str) -> tuple[tuple[int, int], ...]:
    """Spans of characters of `after` that are lines not in `before`, blank ones left out."""
    lines = after.split("\n")
    starts = [0, *accumulate(len(line) + 1 for line in lines)]
    # What follows the last line end is a line without one.
    starts[-1] = len(after)
    return tuple(
        (starts[start], starts[stop])
        for start, stop in _added_lines(*(text.replace("\r\n", "\n") for text in (before, after)))
        if any(line.strip() for line in lines[start:stop])
    )


def _added_lines(before: str, after: str) -> Iterator[tuple[int, int]]:
    """Ranges of line numbers of `after`."""
    change = window(before, after)
    if change is not None:
        yield from (
            (change.offset + edit.after.start, change.offset + edit.after.stop) for edit in change.edits if edit.after
        )
    elif before != after:  # too much has changed to be lined up
        known = set(before.split("\n"))
        yield from ((place, place + 1) for place, line in enumerate(after.split("\n")) if line not in known)
