"""Prompts at a cursor: a file up to it and, for a model that fills in, what stands behind.

A tokenizer joins letters across any place where a person would cut, e.g. the indentation of a line with the line feed
before it. A prompt for the next line is therefore cut between the document's own tokens, and hands over the
indentation; a prompt for a middle is cut anywhere, as in training, where each part is tokenised by itself.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.fim import Cut, Layout, Mode
from jobs.dataset.languages import OTHER, PROSE, language_of
from jobs.dataset.samples import joined_ids
from jobs.dataset.tokens import Ids, Vocabulary
from jobs.documents import Piece
from jobs.shards import LABEL, Rows

NEXT_LINE: Literal["next_line"] = "next_line"
FILL: Literal["fill"] = "fill"

#: Characters of a line that is worth completing.
_SHORTEST, _LONGEST = 4, 200
#: Share of a prompt that the text behind the cursor may take before what stands before it is cut.
_SUFFIX_SHARE = 3
#: Tokens by which a prompt may grow because its text was cut.
_SLACK = 4
#: Lines of the prompt that people are shown.
_TAIL = 6
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Source:
    """A split, and how its model reads and writes."""

    rows: Rows
    vocabulary: Vocabulary
    layout: Layout
    #: Tokens that a prompt may have together with its completion.
    length: int
    #: Tokens of a completion at most.
    new_tokens: int


@dataclass(frozen=True)
class Prompt:
    """What a model is to complete, and what stands there."""

    path: str
    kind: Literal["next_line", "fill"]
    #: Tokens.
    ids: tuple[int, ...]
    #: One line, blanks at its ends left out.
    truth: str
    #: The last lines before the cursor.
    tail: str
    #: Tokens that a completion may have.
    room: int


def lot(name: str) -> int:
    """A number as good as chance that hangs on a name alone: the same dataset gives the same places."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=b"evaluation").digest(), "little")


def cursor_prompt(  # noqa: PLR0917 - callers name them
    layout: Layout, vocabulary: Vocabulary, path: str, prefix: str, suffix: str, room: int
) -> list[int]:
    """Ask a model for the text at a cursor: with what stands behind it, where the model fills in and there is some.

    Args:
        layout: Of the model.
        vocabulary: Of the model.
        path: Of the file.
        prefix: Text before the cursor; its end is kept where all of it is too long.
        suffix: Text behind the cursor; its beginning is kept.
        room: Tokens that the prompt may have.
    """
    named = layout.path_text(path)
    if layout.fill is None or not suffix.strip():
        head = joined_ids(vocabulary, [[*layout.head(), named]])[0]
        kept = _ending(vocabulary, prefix, room - len(head) - _SLACK)
        return [*head.tolist(), *vocabulary.encode([kept])[0].tolist()]
    frame = len(joined_ids(vocabulary, [layout.filled(Mode.PSM, named, Cut("", "", ""))])[0])
    before, behind = (len(ids) for ids in vocabulary.encode([prefix, suffix]))
    left = max(0, room - frame - _SLACK)
    share = min(behind, max(left // _SUFFIX_SHARE, left - before))
    cut = Cut(_ending(vocabulary, prefix, left - share), "", _beginning(vocabulary, suffix, share))
    found: list[int] = joined_ids(vocabulary, [layout.filled(Mode.PSM, named, cut)])[0].tolist()
    return found


def prompts(pieces: Sequence[Piece], source: Source) -> Iterator[list[Prompt]]:
    """Places in the measured lines of code, in an order as good as chance: one of each file, then a second of each.

    Each has a prompt for the rest of its line and, for a model that fills in, one for a middle where something follows.
    """
    for line in _in_turn(_of_files(pieces), source):
        both = [_next_line(line, source)]
        if source.layout.fill is not None and line.text[line.stop :].strip():
            both.append(_fill(line, source))
        yield both


# ---- Places ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A line of a piece."""

    path: str
    #: Of the piece up to the line's first letter.
    ids: Ids
    text: str
    #: Characters of the text before the line's first letter, and before its end.
    start: int
    stop: int
    #: What its lot is drawn by.
    name: str

    @property
    def content(self) -> str:
        return self.text[self.start : self.stop]


def _of_files(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each file of code, the files drawn by lot; of any file where none is code."""
    files: dict[str, list[Piece]] = {}
    for piece in pieces:
        if piece.labels:
            files.setdefault(piece.path, []).append(piece)
    names = sorted(files, key=lambda path: (lot(path), path))
    code = [path for path in names if language_of(path) not in {*PROSE, OTHER}]
    return [files[path] for path in code or names]


def _in_turn(files: Sequence[list[Piece]], source: Source) -> Iterator[_Line]:
    waiting = deque(_lines_of_file(pieces, source) for pieces in files)
    while waiting:
        lines = waiting.popleft()
        line = next(lines, None)
        if line is not None:
            waiting.append(lines)
            yield line


def _lines_of_file(pieces: Sequence[Piece], source: Source) -> Iterator[_Line]:
    found = [line for piece in pieces for line in _lines(piece, source)]
    yield from sorted(found, key=lambda line: (lot(line.name), line.name))


def _lines(piece: Piece, source: Source) -> Iterator[_Line]:
    """The lines of a piece that can be asked for: measured as a whole, neither trivial nor its first."""
    row = source.rows[piece.row]
    ids, measured = row.ids[piece.span], (row.flags[piece.span] & LABEL) > 0
    head = _head_size(piece.path, ids, source.vocabulary, source.layout)
    text = source.vocabulary.text_of(ids[head:])
    raw = text.encode()
    starts = np.concatenate([[0], np.cumsum(source.vocabulary.bytes_of(ids[head:]))])
    if starts[-1] != len(raw):
        return  # a tokenizer whose tokens' bytes are only estimated, or a character that was cut
    place, letters = 0, 0
    for number, line in enumerate(text.split("\n")):
        blank, content = len(line) - len(line.lstrip()), line.strip()
        begin = place + len(line[:blank].encode())
        first, last = _tokens(starts, begin, begin + len(content.encode()))
        # A token that holds letters, too, of what stands before the line would tell some of it.
        apart = number > 0 and not raw[starts[first] : begin].strip(b" \t")
        short = _SHORTEST <= len(content) <= _LONGEST and last - first <= source.new_tokens
        if apart and short and measured[head + first : head + last].all():
            start = letters + blank
            name = f"{piece.path} {piece.row} {piece.place} {number}"
            yield _Line(piece.path, ids[: head + first], text, start, start + len(content), name)
        place, letters = place + len(line.encode()) + 1, letters + len(line) + 1


def _tokens(starts: NDArray[np.int64], first: int, stop: int) -> tuple[int, int]:
    """The tokens that hold the bytes from `first` to `stop`: the first, and the one after the last."""
    before = int(np.searchsorted(starts[:-1], first, side="right")) - 1
    return max(0, before), int(np.searchsorted(starts, stop, side="left"))


def _head_size(path: str, ids: Ids, vocabulary: Vocabulary, layout: Layout) -> int:
    """Tokens of a piece that name its repository and file."""
    names = vocabulary.encode([layout.path_text(path)])[0]
    files = ids == layout.file if layout.file is not None else np.zeros(1, np.bool_)
    start = int(files.argmax()) + 1 if files.any() else 0
    named = np.array_equal(ids[start : start + len(names)], names)
    return start + len(names) if named else start


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def _next_line(line: _Line, source: Source) -> Prompt:
    # The document fits a row, so its own line always fits behind the prompt.
    room = min(source.new_tokens, source.length - len(line.ids))
    return Prompt(line.path, NEXT_LINE, tuple(line.ids.tolist()), line.content, _tail(line.text[: line.start]), room)


def _fill(line: _Line, source: Source) -> Prompt:
    """A cursor before one of the line's words; what is asked for is the rest of the line."""
    words = [match.start() for match in _WORD.finditer(line.content)]
    cursor = line.start + (words[lot(f"cursor {line.name}") % len(words)] if words else 0)
    prefix, truth, suffix = line.text[:cursor], line.text[cursor : line.stop], line.text[line.stop :]
    room = min(source.new_tokens, source.length // 2)
    ids = cursor_prompt(source.layout, source.vocabulary, line.path, prefix, suffix, source.length - room)
    return Prompt(line.path, FILL, tuple(ids), truth, _tail(prefix), room)


def _tail(text: str) -> str:
    return "\n".join(text.split("\n")[-_TAIL:])


def _ending(vocabulary: Vocabulary, text: str, room: int) -> str:
    """The end of a text that `room` tokens hold, from the beginning of a line where one is near."""
    ids = vocabulary.encode([text])[0]
    if len(ids) <= room:
        return text
    raw = text.encode()
    start = int(vocabulary.byte_starts(ids, len(raw))[len(ids) - max(0, room)])
    kept = raw[start:].decode("utf-8", "ignore")
    _, line, rest = kept.partition("\n")
    return rest if line and rest else kept


def _beginning(vocabulary: Vocabulary, text: str, room: int) -> str:
    """The beginning of a text that `room` tokens hold."""
    ids = vocabulary.encode([text])[0]
    if len(ids) <= room:
        return text
    raw = text.encode()
    stop = int(vocabulary.byte_starts(ids, len(raw))[max(0, room)])
    return raw[:stop].decode("utf-8", "ignore")
