"""Turns files into samples: token ids of one document each, at most a row long.

Small files of one folder stand together in a document, as a repository's files do in the data of code models, so that
one explains the other. A file longer than a row is cut between lines where one is near; every piece begins with the
file's path and is a document of its own. Only what ends a file, or a filled-in middle, ends with the end-of-text token.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.fim import Cut, Draw, Layout, Mode, Part
from jobs.dataset.syntax import SyntaxCutter
from jobs.dataset.tokens import Ids, Vocabulary
from jobs.spec import DatasetSection

#: Tokens that a piece may lose so that it ends with a line, and the share of a row that they are at most.
_LINE_SEARCH, _LINE_SEARCH_SHARE = 8, 8
#: Tokens by which a filled-in text may grow: its words are cut at two places.
_CUT_SLACK = 4
#: Tokens of a filled-in document beside its head and text: prefix, suffix, middle, end.
_FILL_TOKENS = 4
#: A file of at most a row's quarter is small: joined ones leave gaps that other small samples fill.
_SMALL_SHARE = 4
#: One file in so many begins a unit whatever stands before it.
_UNIT = 32
_NEWLINE, _RETURN = 0x0A, 0x0D

Spans = tuple[tuple[int, int], ...]


class SampleKind(StrEnum):
    """What a sample teaches."""

    CONTEXT = "context"
    FILL = "fill"
    EDIT = "edit"
    MESSAGE = "message"
    DOCS = "docs"


@dataclass(frozen=True)
class Document:
    """A file to be learned or measured."""

    path: str
    text: str
    #: Held-out files are never filled in nor joined: their loss must mean the same for every model and every setting.
    held_out: bool
    #: Code or documentation; only code is filled in.
    kind: SampleKind = SampleKind.CONTEXT
    #: Spans of characters that are learned, in order; None: all. Such a file is neither filled in nor joined.
    learned: Spans | None = None

    @property
    def stands_alone(self) -> bool:
        """Written from left to right, with no other file beside it."""
        return self.held_out or self.learned is not None


@dataclass(frozen=True)
class Earlier:
    """What stands in a file before one of its pieces: at most as much as a row holds."""

    #: uint32 [n]
    ids: NDArray[np.uint32]
    #: int32, ascending: before which of the ids a line begins, or the line end before it.
    lines: NDArray[np.int32]


@dataclass(frozen=True)
class Sample:
    """One document of a row."""

    #: uint32 [at most T]
    ids: NDArray[np.uint32]
    mode: Mode
    kind: SampleKind
    #: Index of the first file in what `render` was given.
    document: int
    #: bool [as ids]: which tokens are learned; None: all.
    labels: NDArray[np.bool_] | None
    #: Bytes of the text, from `start` of the first file to `stop` of the last.
    start: int
    stop: int
    #: Tokens before which a further file begins, of consecutive ones that share the document.
    borders: tuple[int, ...] = ()
    #: int32 [n, 2]: tokens before which a piece of a long file may be cut in two, after a line, and their bytes.
    seams: NDArray[np.int32] | None = None
    #: Tokens before the file's own, which begin both parts then.
    head: int = 0
    #: Of a piece that may be shown what stands before it: that.
    earlier: Earlier | None = None
    #: Tokens after the head that are shown once more, as room was left, and never learned here.
    shown: int = 0

    @property
    def joined(self) -> int:
        """Consecutive files that it holds."""
        return len(self.borders) + 1

    @property
    def sizes(self) -> list[int]:
        """Tokens of each file that it holds, its path's among them; the first has the repository's name, too."""
        return [stop - start for start, stop in pairwise([0, *self.borders, len(self.ids)])]

    @property
    def learned(self) -> NDArray[np.bool_]:
        """Which tokens are learned: bool [as ids]. The first of a document never is, whatever this says."""
        return np.ones(len(self.ids), np.bool_) if self.labels is None else self.labels


@dataclass(frozen=True)
class _Body:
    """A file with its tokens, where they begin in its bytes, and the tokens that name it."""

    place: int
    document: Document
    raw: bytes
    ids: Ids
    starts: NDArray[np.int64]
    #: File token and path; empty where they would take too much of a row.
    entry: Ids
    path_text: str


@dataclass(frozen=True)
class _Draft:
    """A sample before its middle is tokenised."""

    plain: Ids
    labels: NDArray[np.bool_] | None
    files: Sequence[_Body]
    start: int
    stop: int
    mode: Mode = Mode.PLAIN
    #: The filled-in form.
    parts: Sequence[Part | Ids] = ()
    seams: NDArray[np.int32] | None = None
    head: int = 0
    earlier: Earlier | None = None

    @property
    def borders(self) -> tuple[int, ...]:
        """Tokens before which every file but the first begins, whichever form is taken: the last one's stand last."""
        if len(self.files) == 1:
            return ()
        sizes = [len(body.entry) + len(body.ids) for body in self.files]
        head = len(self.plain) - sum(sizes) - 1
        return tuple(head + end for end in accumulate(sizes[:-1]))


def units(documents: Sequence[Document]) -> list[range]:
    """The runs of files that may share a document: what `render` makes of each hangs on no file of another.

    A run is of one folder and kind; names that chance has chosen begin one, so that a new file changes its own only.
    """
    borders = [place for place in range(1, len(documents)) if _begins_unit(documents[place - 1], documents[place])]
    return [range(start, stop) for start, stop in pairwise([0, *borders, len(documents)]) if start < stop]


def _begins_unit(previous: Document, document: Document) -> bool:
    if previous.stands_alone or document.stands_alone or previous.kind is not document.kind:
        return True
    if previous.path.rpartition("/")[0] != document.path.rpartition("/")[0]:
        return True
    return hashlib.blake2b(document.path.encode(), digest_size=1, person=b"unit").digest()[0] % _UNIT == 0


class Renderer:
    """Writes the files of one repository the way one model reads them."""

    def __init__(self, vocabulary: Vocabulary, layout: Layout, repository: str, section: DatasetSection) -> None:
        self._vocabulary = vocabulary
        self._layout = layout
        self._section = section
        self._length = section.sequence_length
        self._syntax = SyntaxCutter()
        file: list[Part] = [layout.file] if layout.file is not None else []
        head: list[Part | Ids] = [*layout.head(repository)]
        self._file, self._repository = joined_ids(vocabulary, [file, head[: len(head) - len(file)]])
        #: Files may stand together: something tells where one ends and the next begins.
        self._joins = layout.file is not None or bool(layout.path_line)

    @property
    def syntax(self) -> str:
        """What the pieces of syntax hang on: grammars and their versions."""
        return self._syntax.version

    def render(self, documents: Sequence[Document]) -> list[Sample]:
        """The samples of some files, in their order; a file of which nothing is learned has none."""
        bodies = self._bodies(documents)
        drafts = [draft for unit in units(documents) for draft in self._drafts([bodies[place] for place in unit])]
        filled = iter(joined_ids(self._vocabulary, [draft.parts for draft in drafts if draft.parts]))
        return [self._sample(draft, next(filled) if draft.parts else None) for draft in drafts]

    def _sample(self, draft: _Draft, filled: Ids | None) -> Sample:
        """The filled-in form if it fits a row, else the plain one."""
        fits = filled is not None and len(filled) <= self._length
        ids, mode = (filled, draft.mode) if filled is not None and fits else (draft.plain, Mode.PLAIN)
        first = draft.files[0]
        kind = SampleKind.FILL if fits else first.document.kind
        labels = None if fits else draft.labels
        return Sample(
            ids.astype(np.uint32),
            mode,
            kind,
            first.place,
            labels,
            draft.start,
            draft.stop,
            borders=draft.borders,
            seams=None if fits else draft.seams,
            head=0 if fits else draft.head,
            earlier=None if fits else draft.earlier,
        )

    # ---- Files as tokens --------------------------------------------------------------------------------------------

    def _bodies(self, documents: Sequence[Document]) -> list[_Body]:
        lines = [self._layout.path_text(document.path) for document in documents]
        texts = self._vocabulary.encode([document.text for document in documents])
        paths = self._vocabulary.encode(lines)
        rows = enumerate(zip(documents, texts, lines, paths, strict=True))
        return [self._body(place, *row) for place, row in rows]

    def _body(self, place: int, document: Document, ids: Ids, line: str, path: Ids) -> _Body:
        raw = document.text.encode()
        starts = self._vocabulary.byte_starts(ids, len(raw))
        entry = np.concatenate([self._file, path])
        if 2 * (len(self._repository) + len(entry)) > self._length:
            # A name as long as the row would leave no room for the file itself.
            entry, line = entry[:0], ""
        return _Body(place, document, raw, ids, starts, entry, line)

    def _room(self, body: _Body) -> int:
        """Tokens of the file that a whole document may hold beside its path and its end."""
        return self._length - len(body.entry) - 1

    def _drafts(self, unit: Iterable[_Body]) -> Iterator[_Draft]:
        """Small files together, others alone, long ones in pieces."""
        group: list[_Body] = []
        for body in unit:
            if group and not self._takes(group, body):
                yield from self._group(group)
                group = []
            if 0 < len(body.ids) <= self._room(body):
                group.append(body)
            else:
                yield from self._pieces(body)
        if group:
            yield from self._group(group)

    def _takes(self, group: Sequence[_Body], body: _Body) -> bool:
        """True where one more file may share the document, with room for a filled-in form."""
        small = all(len(file.entry) + len(file.ids) <= self._length // _SMALL_SHARE for file in (*group, body))
        named = len(body.entry) > 0 and len(group[-1].entry) > 0
        apart = self._layout.file is not None or group[-1].raw.endswith(b"\n")
        size = len(self._repository) + sum(len(file.entry) + len(file.ids) for file in (*group, body))
        return self._joins and small and named and apart and size + _FILL_TOKENS + _CUT_SLACK <= self._length

    # ---- Whole files ------------------------------------------------------------------------------------------------

    def _group(self, group: Sequence[_Body]) -> Iterator[_Draft]:
        """One document of all files; filled-in ones apart where the model knows no files before a filled-in one."""
        mode = self._mode(group[-1], self._draw(group[-1], 0))
        alone = mode is not Mode.PLAIN and not self._layout.fills_after_files
        for files in [[body] for body in group] if alone else [group]:
            draft = self._whole(files, mode, self._draw(files[-1], 0))
            if _teaches(draft):
                yield draft

    def _whole(self, files: Sequence[_Body], mode: Mode, draw: Draw) -> _Draft:
        last = files[-1]
        end = np.array([self._vocabulary.end], np.int64)
        told = [part for body in files for part in (body.entry, body.ids)]
        head = self._head(last, sum(map(len, told)) + 1)
        plain = np.concatenate([head, *told, end])
        labels = self._labels(last, len(plain) - len(last.ids) - 1, 0, len(last.ids), 1)
        parts: list[Part | Ids] = []
        if mode is not Mode.PLAIN:
            before = [head, *told[:-2]] if len(files) > 1 else []
            parts = [*before, *self._filled(last, mode, self._cut(last, last.document.text, draw))]
        return _Draft(plain, labels, files, 0, len(last.raw), mode, parts)

    def _head(self, body: _Body, size: int) -> Ids:
        """The repository's name, where a document of `size` tokens leaves room for it."""
        fits = len(body.entry) > 0 and len(self._repository) + size <= self._length
        return self._repository if fits else self._repository[:0]

    # ---- Pieces of a long file --------------------------------------------------------------------------------------

    def _pieces(self, body: _Body) -> Iterator[_Draft]:
        start, index = 0, 0
        while start < len(body.ids):
            draw = self._draw(body, index)
            mode = self._mode(body, draw)
            stop = self._stop(body, start, mode)
            draft = self._piece(body, start, stop, mode, draw)
            if _teaches(draft):
                yield draft
            start, index = stop, index + 1

    def _stop(self, body: _Body, start: int, mode: Mode) -> int:
        """The token before which a piece from `start` ends, after a line if one ends near."""
        if len(body.ids) - start <= self._room(body):
            return len(body.ids)
        head = len(self._head(body, 0)) if mode is Mode.PLAIN else _FILL_TOKENS + _CUT_SLACK
        room = self._length - len(body.entry) - head
        # A piece that does not end the file has no end-of-text token, whose place it may take.
        most = min(start + room, len(body.ids) - 1)
        return _line_stop(body, start, most, min(_LINE_SEARCH, room // _LINE_SEARCH_SHARE))

    def _piece(self, body: _Body, start: int, stop: int, mode: Mode, draw: Draw) -> _Draft:
        last = stop == len(body.ids)
        end = np.array([self._vocabulary.end] if last else [], np.int64)
        head = self._head(body, len(body.entry) + stop - start + len(end))
        plain = np.concatenate([head, body.entry, body.ids[start:stop], end])
        labels = self._labels(body, len(head) + len(body.entry), start, stop, len(end))
        first_byte, last_byte = int(body.starts[start]), int(body.starts[stop])
        text = body.raw[first_byte:last_byte].decode("utf-8", "ignore")
        parts: list[Part | Ids] = []
        if mode is not Mode.PLAIN and text:
            parts = self._filled(body, mode, self._cut(body, text, draw))
        before = len(head) + len(body.entry)
        seams = _seams(body, start, stop, before)
        # Earlier pieces fill a row; of those that are cut to fill another, the parts know what they were cut from.
        earlier = _earlier(body, start, self._length) if last and start else None
        return _Draft(plain, labels, [body], first_byte, last_byte, mode, parts, seams, before, earlier)

    # ---- Filling in -------------------------------------------------------------------------------------------------

    def _draw(self, body: _Body, index: int) -> Draw:
        return Draw.of(self._section.seed, f"{body.document.path}\0{index}".encode())

    def _mode(self, body: _Body, draw: Draw) -> Mode:
        code = body.document.kind is SampleKind.CONTEXT and not body.document.stands_alone
        if not code or self._length < 2 * (len(body.entry) + _FILL_TOKENS + _CUT_SLACK):
            return Mode.PLAIN
        return draw.mode(self._layout, self._section.fim_rate, self._section.fim_spm_rate)

    def _cut(self, body: _Body, text: str, draw: Draw) -> Cut:
        syntax = draw.syntax < self._section.fim_syntax_rate
        return (self._syntax.cut(body.document.path, text, draw) if syntax else None) or draw.cut(text)

    def _filled(self, body: _Body, mode: Mode, cut: Cut) -> list[Part | Ids]:
        end = self._layout.fill_end
        parts = self._layout.filled(mode, body.path_text, cut)
        return [*parts, self._vocabulary.end if end is None else end]

    def _labels(self, body: _Body, before: int, start: int, stop: int, after: int) -> NDArray[np.bool_] | None:
        """Which tokens of a document are learned: of the file's own, those that end inside a learned span."""
        if body.document.learned is None:
            return None
        learned = learned_tokens(body.starts, byte_spans(body.document.text, body.document.learned))
        return np.concatenate([np.zeros(before, np.bool_), learned[start:stop], np.zeros(after, np.bool_)])


def _teaches(draft: _Draft) -> bool:
    """True where something is predicted: never a document's first token."""
    return draft.labels is None or bool(draft.labels[1:].any())


def _line_stop(body: _Body, start: int, stop: int, search: int) -> int:
    """The last token border from `stop` down to `search` before it that a line ends at, else one between characters."""
    for place in range(stop, max(start, stop - search), -1):
        if body.raw[body.starts[place] - 1] == _NEWLINE:
            return place
    while stop > start + 1 and _is_inside_character(body.raw, int(body.starts[stop])):
        stop -= 1
    return stop


def _seams(body: _Body, start: int, stop: int, before: int) -> NDArray[np.int32]:
    """Where a line ends in a piece: tokens of its document, `before` of which come first, and bytes of the file.

    A line ends before its line end where that is of one token with the blanks that the next line begins with.
    """
    places = body.starts[start + 1 : stop]
    raw = np.frombuffer(body.raw + b" ", np.uint8)
    previous, following = raw[places - 1], raw[places]
    ends = (previous == _NEWLINE) | ((following == _NEWLINE) & (previous != _RETURN))
    at = np.flatnonzero(ends)
    return np.stack([before + 1 + at, places[at]], axis=1).astype(np.int32)


def _earlier(body: _Body, stop: int, most: int) -> Earlier:
    first = max(0, stop - most)
    lines = _seams(body, first, stop, 0)[:, 0]
    return Earlier(body.ids[first:stop].astype(np.uint32), lines if first else np.insert(lines, 0, 0))


def _is_inside_character(raw: bytes, place: int) -> bool:
    return place < len(raw) and raw[place] & 0xC0 == 0x80  # noqa: PLR2004 - a UTF-8 continuation byte


# ---- Parts and spans -------------------------------------------------------------------------------------------------


def joined_ids(vocabulary: Vocabulary, documents: Sequence[Sequence[Part | Ids]]) -> list[Ids]:
    """The ids of documents given in parts, all their text tokenised at once, each part by itself."""
    texts = [part for parts in documents for part in parts if isinstance(part, str)]
    encoded = iter(vocabulary.encode(texts))
    empty = np.zeros(0, np.int64)
    found = []
    for parts in documents:
        pieces = [_ids(part) if not isinstance(part, str) else next(encoded) for part in parts]
        found.append(np.concatenate([empty, *pieces]))
    return found


def _ids(part: int | Ids) -> Ids:
    return np.array([part], np.int64) if isinstance(part, int) else part


def byte_spans(text: str, spans: Spans) -> Spans:
    """Spans of characters, in order, as spans of the text's UTF-8 bytes."""
    if text.isascii():
        return spans
    found, place, size = [], 0, 0
    for start, stop in spans:
        first = size + len(text[place:start].encode())
        place, size = stop, first + len(text[start:stop].encode())
        found.append((first, size))
    return tuple(found)


def learned_tokens(starts: NDArray[np.int64], spans: Spans) -> NDArray[np.bool_]:
    """Which tokens end inside one of the spans: [tokens].

    Args:
        starts: where each token begins, and the text's end: [tokens + 1].
        spans: bytes that are learned. A token of a line's end and the next line's blanks belongs to the next.
    """
    # One byte more than the text, never learned: what an empty first token ends on.
    learned = np.zeros(int(starts[-1]) + 1, np.bool_)
    for start, stop in spans:
        learned[start:stop] = True
    learned[-1] = False
    return learned[starts[1:] - 1]
