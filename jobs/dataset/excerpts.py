r"""Samples as people read them: text and special tokens, bounded, with nothing in it that could drive a screen.

A sample comes as in `examples.json`: a mapping with `pieces`, each text that is a special token or not, learned or not.
What a repository holds is hostile until shown otherwise: `visible` writes escape sequences, characters that turn the
direction of writing (CVE-2021-42574), and everything else without a shape of its own as `\x1b`, `\u202e` and so on.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.dataset.amounts import several
from jobs.dataset.facts import Facts


@dataclass(frozen=True)
class Piece:
    """Text of one sort."""

    text: str
    #: A special token.
    special: bool
    #: It is predicted, that is: learned or measured.
    label: bool
    #: How often the special token stands here in a row.
    times: int = 1

    @property
    def shown(self) -> str:
        """The text, a special token with its number."""
        return self.text if self.times == 1 else f"{self.text} x {self.times}"


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The beginning of a sample, or all of it."""

    split: str
    kind: str
    mode: str
    path: str
    commit: str
    tokens: int
    pieces: tuple[Piece, ...]
    #: What is missing at the end, in words; empty where nothing is.
    left_out: str


def excerpt(example: Mapping[str, Any], *, lines: int, characters: int) -> Excerpt:
    """At most so many lines and characters of a sample; what it lacks is empty."""
    facts = Facts(example)
    pieces, left_out = _cut(list(_merged(facts.rows("pieces"))), lines, characters)
    return Excerpt(
        split=visible(facts.text("split")),
        kind=visible(facts.text("kind")),
        mode=visible(facts.text("mode")),
        path=visible(facts.text("path"), keep=""),
        commit=visible(facts.text("commit")),
        tokens=int(facts.number("tokens")),
        pieces=tuple(pieces),
        left_out=left_out,
    )


def visible(text: str, keep: str = "\n\t") -> str:
    r"""`text` with every character that has no shape written as an escape, those in `keep` and blanks left alone."""
    if text.isprintable():
        return text
    # A text has few different letters: each is judged once.
    shapeless = {letter for letter in set(text) if letter not in keep and not _has_shape(letter)}
    return text.translate({ord(letter): _escaped(letter) for letter in shapeless}) if shapeless else text


def _has_shape(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    # A lone surrogate has no UTF-8; a carriage return is worth seeing, and would go back over the line.
    return letter.encode("unicode_escape").decode("ascii")


def _merged(rows: list[Facts]) -> Iterator[Piece]:
    """The pieces with neighbours of one sort put together."""
    last: Piece | None = None
    for row in rows:
        # Older files may not say: then all is learned.
        piece = Piece(visible(row.text("text")), row.at("special").value is True, row.at("label").value is not False)
        joined = _joined(last, piece) if last else None
        if last and not joined:
            yield last
        last = joined or piece
    if last:
        yield last


def _joined(one: Piece, other: Piece) -> Piece | None:
    """Two neighbours as one; None where they differ in kind."""
    if (one.special, one.label) != (other.special, other.label):
        return None
    if not one.special:
        return Piece(one.text + other.text, special=False, label=one.label)
    return Piece(one.text, special=True, label=one.label, times=one.times + 1) if one.text == other.text else None


def _cut(pieces: list[Piece], lines: int, characters: int) -> tuple[list[Piece], str]:
    """The pieces up to the limits, and what is missing in words."""
    kept: list[Piece] = []
    for place, piece in enumerate(pieces):
        text = _start(piece.text, lines, characters)
        if len(text) == len(piece.text):
            kept.append(piece)
        elif text and not piece.special:
            kept.append(Piece(text, special=False, label=piece.label))
        if len(text) < len(piece.text):
            rest = piece.text[len(text) :] + "".join(later.text for later in pieces[place + 1 :])
            return kept, _missing(rest)
        lines -= text.count("\n")
        characters -= len(text)
    return kept, ""


def _start(text: str, lines: int, characters: int) -> str:
    """The first `lines` line ends of `text` at most, and the first `characters` characters."""
    stop = 0
    for _ in range(lines):
        stop = text.find("\n", stop) + 1
        if not stop:
            stop = len(text)
            break
    return text[: max(0, min(stop, characters))]


def _missing(rest: str) -> str:
    count = len(rest.splitlines())
    return f"{several(count, 'more line')}" if count > 1 else f"{several(len(rest), 'more character')}"
