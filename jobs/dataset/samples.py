"""Turns files into samples: token ids of one document each, at most a row long.

A file longer than a row is cut between lines where one is near; every piece begins with the file's path and is a
document of its own. Only what ends a file, or a filled-in middle, ends with the end-of-text token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.fim import Cut, Draw, Layout, Mode, Part
from jobs.spec import DatasetSection
from jobs.dataset.tokens import Ids, Vocabulary

#: Tokens that a piece may lose so that it ends with a line.
_LINE_SEARCH = 8
#: Tokens by which a filled-in text may grow: its words are cut at two places.
_CUT_SLACK = 4
#: Tokens of a filled-in document beside its head and text: prefix, suffix, middle, end.
_FILL_TOKENS = 4
_NEWLINE = 0x0A


@dataclass(frozen=True)
class Document:
    """A file to be learned or measured."""

    path: str
    text: str
    #: Held-out files are never filled in: their loss must mean the same for every model and every setting.
    held_out: bool


@dataclass(frozen=True)
class Sample:
    """One document of a row."""

    #: uint32 [at most T]
    ids: NDArray[np.uint32]
    mode: Mode
    #: Index of the file in what `render` was given.
    document: int


@dataclass(frozen=True)
class _Piece:
    """Tokens `start` to `stop` of a file, and how they are written."""

    start: int
    stop: int
    last: bool
    mode: Mode
    cut: Cut | None


@dataclass(frozen=True)
class _Body:
    """A file with its tokens, where they begin in its bytes, and the tokens that go before each piece."""

    document: Document
    raw: bytes
    ids: Ids
    starts: NDArray[np.int64]
    head: Ids
    #: The same without the repository's name: for a filled-in piece that turns out too long.
    short_head: Ids
    path_text: str


class Renderer:
    """Writes the files of one repository the way one model reads them."""

    def __init__(self, vocabulary: Vocabulary, layout: Layout, repository: str, section: DatasetSection) -> None:
        self._vocabulary = vocabulary
        self._layout = layout
        self._section = section
        self._length = section.sequence_length
        self._head, self._short_head = self._joined([layout.head(repository), layout.head()])

    def render(self, documents: Sequence[Document]) -> list[Sample]:
        """The samples of some files, in their order."""
        bodies = self._bodies(documents)
        pieces = [(place, piece) for place, body in enumerate(bodies) for piece in self._pieces(body)]
        filled = iter(self._filled([(bodies[place], piece) for place, piece in pieces if piece.cut]))
        samples = []
        for place, piece in pieces:
            ids = next(filled) if piece.cut else None
            fits = ids is not None and len(ids) <= self._length
            ids = ids if ids is not None and fits else self._plain(bodies[place], piece)
            mode = piece.mode if fits else Mode.PLAIN
            samples.append(Sample(ids.astype(np.uint32), mode, place))
        return samples

    def _bodies(self, documents: Sequence[Document]) -> list[_Body]:
        lines = [self._layout.path_text(document.path) for document in documents]
        texts = self._vocabulary.encode([document.text for document in documents])
        paths = self._vocabulary.encode(lines)
        return [
            self._body(document, ids, line, path)
            for document, ids, line, path in zip(documents, texts, lines, paths, strict=True)
        ]

    def _body(self, document: Document, ids: Ids, line: str, path: Ids) -> _Body:
        raw = document.text.encode()
        starts = self._vocabulary.byte_starts(ids, len(raw))
        head, short_head = np.concatenate([self._head, path]), np.concatenate([self._short_head, path])
        if 2 * len(head) > self._length:
            # A name as long as the row would leave no room for the file itself.
            head = short_head = np.zeros(0, np.int64)
            line = ""
        return _Body(document, raw, ids, starts, head, short_head, line)

    def _pieces(self, body: _Body) -> Iterator[_Piece]:
        start, index = 0, 0
        while start < len(body.ids):
            draw = Draw.of(self._section.seed, f"{body.document.path}\0{index}".encode())
            mode = self._mode(body, draw)
            stop = _stop(body, start, self._room(body, mode), spare=int(mode is Mode.PLAIN))
            text = body.raw[body.starts[start] : body.starts[stop]].decode("utf-8", "ignore")
            cut = draw.cut(text) if mode is not Mode.PLAIN and text else None
            yield _Piece(start, stop, stop == len(body.ids), mode, cut)
            start, index = stop, index + 1

    def _room(self, body: _Body, mode: Mode) -> int:
        """Tokens of the file that a piece may hold, so that the document fits a row."""
        if mode is Mode.PLAIN:
            return self._length - len(body.head) - 1
        return self._length - len(body.short_head) - _FILL_TOKENS - _CUT_SLACK

    def _mode(self, body: _Body, draw: Draw) -> Mode:
        if body.document.held_out or self._length < 2 * (len(body.short_head) + _FILL_TOKENS + _CUT_SLACK):
            return Mode.PLAIN
        return draw.mode(self._layout, self._section.fim_rate, self._section.fim_spm_rate)

    def _plain(self, body: _Body, piece: _Piece) -> Ids:
        end = [self._vocabulary.end] if piece.last else []
        head = body.head if piece.mode is Mode.PLAIN else body.short_head
        return np.concatenate([head, body.ids[piece.start : piece.stop], np.array(end, np.int64)])

    def _filled(self, pieces: Sequence[tuple[_Body, _Piece]]) -> list[Ids]:
        end = self._vocabulary.end
        parts = [
            [*self._layout.filled(piece.mode, body.path_text, piece.cut), end] for body, piece in pieces if piece.cut
        ]
        return self._joined(parts)

    def _joined(self, documents: Sequence[list[Part]]) -> list[Ids]:
        """The ids of documents given in parts, all their text tokenised at once."""
        texts = [part for parts in documents for part in parts if isinstance(part, str)]
        encoded = iter(self._vocabulary.encode(texts))
        empty = np.zeros(0, np.int64)
        return [
            np.concatenate(
                [empty, *(next(encoded) if isinstance(part, str) else np.array([part], np.int64) for part in parts)]
            )
            for parts in documents
        ]


def _stop(body: _Body, start: int, room: int, spare: int) -> int:
    """The token before which a piece from `start` ends: at most `room` on, after a line if one ends near.

    A piece that does not end the file has `spare` more tokens of room: it has no end-of-text token.
    """
    if start + room >= len(body.ids):
        return len(body.ids)
    stop = min(start + room + spare, len(body.ids) - 1)
    for place in range(stop, max(start, stop - _LINE_SEARCH), -1):
        if body.raw[body.starts[place] - 1] == _NEWLINE:
            return place
    while stop > start + 1 and _is_inside_character(body.raw, int(body.starts[stop])):
        stop -= 1
    return stop


def _is_inside_character(raw: bytes, place: int) -> bool:
    return place < len(raw) and raw[place] & 0xC0 == 0x80  # noqa: PLR2004 - a UTF-8 continuation byte
