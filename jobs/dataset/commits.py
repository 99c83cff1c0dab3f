"""Turns commits into samples: a change made of its message and the code before, or a message told from its change.

By chance, half of the commits are written either way. A model that knows pull requests or commits gets its own tokens
(StarCoder2: arXiv 2402.19173, section 5.2; StarCoder: CommitPack, arXiv 2308.07124); others get plain text under clear
headings. Code that was there before is context and is not learned: it would be learned again with every commit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.fim import CommitTokens, Layout, Mode, Part, PullRequestTokens, chances
from jobs.dataset.hunks import MOST_CONTEXT, ChangedPart, Hunk, Window, hull, hunks, unified, window
from jobs.dataset.messages import clean_message, message_reason, subject_and_body
from jobs.dataset.samples import Sample, SampleKind, Spans, byte_spans, learned_tokens
from jobs.dataset.tokens import Ids, Vocabulary
from jobs.spec import DatasetSection

#: Characters a token at most, on average: a text that needs more to fit is not tokenised.
_DENSEST = 5
#: Lines around a change in the code before, and in a hunk, drawn between these (The Stack v2: up to 32, and 3 to 10).
_CONTEXT, _HUNK_CONTEXT = (3, MOST_CONTEXT), (3, 10)
#: Rounds of fewer files: half of them each time.
_HALVINGS = 8


@dataclass(frozen=True)
class FileEdit:
    """A file that a commit changed, or the part of it around the change; `before` is empty where it is new."""

    path: str
    before_path: str
    before: str
    after: str
    #: Lines of the file that stand before the part.
    offset: int = 0

    @property
    def window(self) -> Window | None:
        """What changed, with the file's own line numbers."""
        changed = window(self.before, self.after)
        return replace(changed, offset=changed.offset + self.offset) if changed else None


@dataclass(frozen=True)
class CommitText:
    """A commit as text, redacted."""

    id: str
    message: str
    files: tuple[FileEdit, ...]


class _Told(NamedTuple):
    """A part of a document, and which of its characters are learned."""

    part: Part
    learned: Spans


@dataclass(frozen=True)
class _Scope:
    """How much of a change is written: lines around it, files."""

    context: int
    hunk_context: int
    files: int


@dataclass(frozen=True)
class _Changed:
    """A file's path and what changed in it."""

    path: str
    before_path: str
    window: Window

    @property
    def is_new(self) -> bool:
        """Nothing was there before."""
        return not self.window.before

    @property
    def lines(self) -> int:
        """Lines that changed, on both sides."""
        return sum(len(edit.before) + len(edit.after) for edit in self.window.edits)


@dataclass(frozen=True)
class _Change:
    """A commit that can be learned."""

    place: int
    message: str
    files: tuple[_Changed, ...]
    kind: SampleKind
    #: Which lines of context and which file, each between 0 and 1.
    draws: tuple[float, ...]

    def scopes(self) -> Iterator[_Scope]:
        """Ways to write it, each shorter than the one before."""
        context, hunk_context = _drawn(_CONTEXT, self.draws[0]), _drawn(_HUNK_CONTEXT, self.draws[1])
        count = len(self.files)
        yield _Scope(context, hunk_context, count)
        yield _Scope(_CONTEXT[0], _HUNK_CONTEXT[0], count)
        yield _Scope(1, 1, count)
        for _ in range(_HALVINGS):
            if count == 1:
                break
            count = (count + 1) // 2
            yield _Scope(1, 1, count)

    def taken(self, scope: _Scope) -> list[_Changed]:
        """The files of a scope, in the commit's order: those that changed least, where not all."""
        order = sorted(range(len(self.files)), key=lambda place: (self.files[place].lines, place))
        return [self.files[place] for place in sorted(order[: scope.files])]


def _drawn(limits: tuple[int, int], chance: float) -> int:
    return limits[0] + int(chance * (limits[1] - limits[0] + 1))


class CommitRenderer:
    """Writes the commits of one repository the way one model reads them."""

    def __init__(self, vocabulary: Vocabulary, layout: Layout, repository: str, section: DatasetSection) -> None:
        self._vocabulary = vocabulary
        self._layout = layout
        self._repository = repository
        self._seed = section.seed
        self._length = section.sequence_length

    def is_too_long(self, part: ChangedPart) -> bool:
        """Whether so much was added or removed that no sample of it fits a row, told without looking at the lines."""
        return abs(len(part.after) - len(part.before)) > _DENSEST * self._length

    def render(self, commits: Sequence[CommitText]) -> list[Sample]:
        """The samples of some commits, in their order, at most one each; `Sample.document` is the commit's index.

        A commit has none when its message says too little, when no line changed or too many did, and when not even one
        of its files fits a row.
        """
        changes = [change for place, commit in enumerate(commits) if (change := self._change(place, commit))]
        waiting = [(change, change.scopes()) for change in changes]
        found: list[Sample] = []
        while waiting:
            drafts = [(change, scopes, self._next(change, scopes)) for change, scopes in waiting]
            tried = [(change, scopes, draft) for change, scopes, draft in drafts if draft]
            samples = self._samples([(change, draft) for change, _, draft in tried])
            found += [sample for sample in samples if sample]
            waiting = [
                (change, scopes) for (change, scopes, _), sample in zip(tried, samples, strict=True) if sample is None
            ]
        return sorted(found, key=lambda sample: sample.document)

    def _change(self, place: int, commit: CommitText) -> _Change | None:
        """What a commit changed, None where there is nothing to learn; files that were removed teach nothing."""
        if message_reason(commit.message) is not None:
            return None
        edits = [edit for edit in commit.files if edit.after]
        windows = [(edit, edit.window) for edit in edits]
        files = tuple(_Changed(edit.path, edit.before_path, changed) for edit, changed in windows if changed)
        if not files:
            return None
        kind, *draws = chances(self._seed, commit.id.encode(), b"commit", 4)
        told = SampleKind.EDIT if kind < 0.5 else SampleKind.MESSAGE  # noqa: PLR2004 - half and half
        return _Change(place, clean_message(commit.message), files, told, tuple(draws))

    def _next(self, change: _Change, scopes: Iterator[_Scope]) -> list[_Told]:
        """The next shorter form that may fit a row, empty when there is none."""
        for scope in scopes:
            draft = self._written(change, scope)
            if sum(len(told.part) for told in draft if isinstance(told.part, str)) <= _DENSEST * self._length:
                return draft
        return []

    def _written(self, change: _Change, scope: _Scope) -> list[_Told]:
        end = _learned(self._vocabulary.end)
        if change.kind is SampleKind.MESSAGE:
            return [_message_text(change, scope), *end]
        if self._layout.pull_request is not None:
            return [*self._pull_request(change, scope, self._layout.pull_request), *end]
        if self._layout.commit is not None:
            return [*_before_and_after(change, scope, self._layout.commit), *end]
        return [_edit_text(change, scope), *end]

    def _pull_request(self, change: _Change, scope: _Scope, tokens: PullRequestTokens) -> Iterator[_Told]:
        subject, body = subject_and_body(change.message)
        yield from _context(tokens.start)
        yield from _learned(f"Title: {subject}" + (f"\nusername_0: {body}" if body else ""))
        yield from _context(tokens.status, "opened")
        if self._layout.repository is not None:
            yield from _context(self._layout.repository, self._repository)
        files = change.taken(scope)
        yield from _context(tokens.base)
        for file in files:
            if file.is_new:
                continue
            yield from _context(tokens.file, file.before_path)
            for hunk in hunks(file.window, scope.context):
                yield from _context(tokens.base_code, _text(file.window.before, hunk.before))
        yield from _learned(tokens.diff)
        for file in files:
            yield from _learned(tokens.file, file.path)
            for hunk in hunks(file.window, scope.hunk_context):
                yield from _learned(tokens.hunk, "\n".join([*unified(file.window, hunk), ""]))

    def _samples(self, drafts: Sequence[tuple[_Change, list[_Told]]]) -> list[Sample | None]:
        """The drafts as samples, None for one that is longer than a row."""
        texts = [told.part for _, draft in drafts for told in draft if isinstance(told.part, str)]
        encoded = iter(self._vocabulary.encode(texts))
        found: list[Sample | None] = []
        for change, draft in drafts:
            pieces = [self._piece(told, next(encoded) if isinstance(told.part, str) else None) for told in draft]
            ids = np.concatenate([piece for piece, _ in pieces])
            labels = np.concatenate([learned for _, learned in pieces])
            size = sum(len(told.part.encode()) for told in draft if isinstance(told.part, str))
            sample = Sample(ids.astype(np.uint32), Mode.PLAIN, change.kind, change.place, labels, 0, size)
            found.append(sample if len(ids) <= self._length else None)
        return found

    def _piece(self, told: _Told, ids: Ids | None) -> tuple[Ids, NDArray[np.bool_]]:
        """Ids and labels of one part."""
        if ids is None or not isinstance(told.part, str):
            return np.array([told.part], np.int64), np.array([bool(told.learned)])
        if told.learned in ((), ((0, len(told.part)),)):
            return ids, np.full(len(ids), bool(told.learned))
        starts = self._vocabulary.byte_starts(ids, len(told.part.encode()))
        return ids, learned_tokens(starts, byte_spans(told.part, told.learned))


def _learned(*parts: Part) -> list[_Told]:
    return [_Told(part, ((0, len(part) if isinstance(part, str) else 1),)) for part in parts]


def _context(*parts: Part) -> list[_Told]:
    return [_Told(part, ()) for part in parts]


def _text(lines: Sequence[str], taken: range) -> str:
    return "".join(f"{line}\n" for line in lines[taken.start : taken.stop])


# ---- Layouts without tokens for pull requests ------------------------------------------------------------------------


def _before_and_after(change: _Change, scope: _Scope, tokens: CommitTokens) -> Iterator[_Told]:
    """One file that changed, from its first changed line to its last, as StarCoder reads commits."""
    files = change.taken(scope)
    file = files[int(change.draws[2] * len(files))]
    hunk = hull(file.window, scope.context)
    yield from _context(tokens.before, _text(file.window.before, hunk.before))
    yield from _learned(tokens.message, change.message)
    yield from _learned(tokens.after, _text(file.window.after, hunk.after))


class _Page:
    """A text that grows piece by piece and remembers which pieces are learned."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._spans: list[tuple[int, int]] = []
        self._size = 0

    def add(self, text: str, *, learned: bool = False) -> None:
        """Write `text` after what stands there."""
        stop = self._size + len(text)
        if learned and self._spans and self._spans[-1][1] == self._size:
            self._spans[-1] = (self._spans[-1][0], stop)
        elif learned:
            self._spans.append((self._size, stop))
        self._pieces.append(text)
        self._size = stop

    def told(self) -> _Told:
        """The text as one part, tokenised in one go."""
        return _Told("".join(self._pieces), tuple(self._spans))


def _edit_text(change: _Change, scope: _Scope) -> _Told:
    """The message, the code before, and the diff."""
    page = _Page()
    page.add(f"Commit message:\n{change.message}\n", learned=True)
    files = change.taken(scope)
    for file in files:
        for hunk in () if file.is_new else hunks(file.window, scope.context):
            page.add(f"\nBefore, {file.before_path}:\n{_text(file.window.before, hunk.before)}")
    page.add("\nChanges:\n", learned=True)
    for file in files:
        page.add(_diff_head(file), learned=True)
        for hunk in hunks(file.window, scope.hunk_context):
            page.add("\n".join([*unified(file.window, hunk), ""]), learned=True)
    return page.told()


def _message_text(change: _Change, scope: _Scope) -> _Told:
    """The diff, of which the new lines are learned, and the message."""
    page = _Page()
    page.add("Changes:\n")
    for file in change.taken(scope):
        page.add(_diff_head(file))
        for hunk in hunks(file.window, scope.hunk_context):
            _add_hunk(page, file.window, hunk)
    page.add("\nCommit message:\n")
    page.add(change.message, learned=True)
    return page.told()


def _diff_head(file: _Changed) -> str:
    before = "/dev/null" if file.is_new else f"a/{file.before_path}"
    return f"--- {before}\n+++ b/{file.path}\n"


def _add_hunk(page: _Page, changed: Window, hunk: Hunk) -> None:
    for line in unified(changed, hunk):
        page.add(f"{line}\n", learned=line.startswith("+"))
