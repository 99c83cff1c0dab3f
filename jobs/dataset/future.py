"""Tomorrow's code: the files that the newest commits touched, of which only the lines are measured that they added."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from jobs.dataset.attributes import Attributes
from jobs.dataset.candidates import lot
from jobs.dataset.files import path_filter
from jobs.dataset.history import changes_between
from jobs.dataset.reading import Reader, Text
from jobs.repository import TreeEntry
from jobs.spec import DatasetSection

#: Lines of a file beyond which lines that stay are told by their text alone: comparing in order takes too long.
_MOST_LINES = 5000


@dataclass(frozen=True)
class FutureFile:
    """The newest version of a file, and where it is new."""

    path: str
    blob: str
    bytes: int
    text: str
    #: Spans of characters that the newest commits added; at least one.
    added: tuple[tuple[int, int], ...]
    redactions: dict[str, int]


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
            yield FutureFile(
                reader.path(change.path),
                change.after or "",
                len(after.text.encode()),
                after.text,
                added,
                dict(after.redactions),
            )


def added_spans(before: str, after: str) -> tuple[tuple[int, int], ...]:
    """Spans of characters of `after` that are lines not in `before`, blank ones left out."""
    old, new = before.splitlines(), after.splitlines()
    starts = [0]
    for line in after.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return tuple(
        (starts[start], starts[stop])
        for start, stop in _added_lines(old, new)
        if any(line.strip() for line in new[start:stop])
    )


def _added_lines(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of indices into `new`."""
    if len(old) + len(new) > _MOST_LINES:
        known = set(old)
        yield from ((place, place + 1) for place, line in enumerate(new) if line not in known)
        return
    for kind, _, _, start, stop in SequenceMatcher(None, old, new).get_opcodes():
        if kind in {"insert", "replace"}:
            yield start, stop
