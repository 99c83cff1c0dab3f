"""What a repository says of its own files in `.gitattributes`: generated, vendored, documentation.

The files are read as data, never by git, which could be told there to start a filter. Patterns mean what they mean to
git (gitattributes(5)): as in .gitignore, but one that names a folder says nothing of what is in it; the last line that
matches counts, and a deeper folder's file before a higher one's. Names are GitHub Linguist's.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from jobs.dataset.files import Reason

_GENERATED = b"linguist-generated"
_VENDORED = b"linguist-vendored"
_DOCUMENTATION = b"linguist-documentation"
_KNOWN = frozenset({_GENERATED, _VENDORED, _DOCUMENTATION})
_REASONS = ((_VENDORED, Reason.VENDORED), (_GENERATED, Reason.GENERATED))
#: git itself leaves out longer lines (attr.h, ATTR_MAX_LINE_LENGTH).
_MAX_LINE = 2048
#: What is heeded of one commit: every path of a history is held against every rule.
MOST_RULES, MOST_BYTES = 1000, 8 << 20
_MAX_PATTERN = 256
_TRUE, _FALSE = frozenset({b"true", b"1", b"yes"}), frozenset({b"false", b"0", b"no"})

#: What a line says of an attribute: holds, does not hold, or not said after all (`!name`).
_Says = dict[bytes, bool | None]


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[bytes]
    #: The pattern is of the last part of a path alone.
    name_only: bool
    says: _Says


class Attributes:
    """The rules of every `.gitattributes` of a commit."""

    def __init__(self, rules: dict[bytes, tuple[_Rule, ...]], key: str = "", note: str = "") -> None:
        #: Folder -> its rules, the strongest first.
        self._rules = rules
        #: The same for the same files.
        self.key = key
        #: A sentence, where there is more than is heeded.
        self.note = note

    @classmethod
    def parse(cls, files: Iterable[tuple[bytes, bytes]]) -> Self:
        """Read the files of a commit.

        Args:
            files: the folder that holds each, `b""` for the top, and its content. A line that is none is left out.
        """
        by_folder, unread = _bounded(files)
        macros = _macros(by_folder.get(b"", b""))
        reading = _Reading(macros)
        # The highest folders first: their rules say something of most files.
        rules = {folder: reading.rules(by_folder[folder]) for folder in sorted(by_folder, key=_depth)}
        digest = hashlib.sha256(repr(sorted(by_folder.items())).encode())
        return cls(
            {folder: found for folder, found in rules.items() if found}, digest.hexdigest(), reading.note(unread)
        )

    def flag(self, path: bytes) -> Reason | None:
        """Why a file is not learned, by what the repository says of it."""
        return next((reason for reason, holds in self.says(path).items() if holds), None)

    def says(self, path: bytes) -> dict[Reason, bool]:
        """For each reason of which the repository says something: True if it holds of the file, False if not."""
        said = self._said(path)
        return {reason: bool(said[name]) for name, reason in _REASONS if said.get(name) is not None}

    def is_documentation(self, path: bytes) -> bool | None:
        """True for what the repository calls documentation, False for what it says is none; None: not said."""
        return self._said(path).get(_DOCUMENTATION)

    def _said(self, path: bytes) -> _Says:
        if not self._rules:
            return {}
        said: _Says = {}
        name = path.rpartition(b"/")[2]
        for folder in _folders(path):
            below = path[len(folder) + 1 :] if folder else path
            for rule in self._rules.get(folder, ()):
                if rule.pattern.fullmatch(name if rule.name_only else below):
                    said = {**rule.says, **said}
        return said


def _bounded(files: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], int]:
    """Folders and contents as far as they fit, and how many files do not."""
    taken: dict[bytes, bytes] = {}
    left, unread = MOST_BYTES, 0
    for folder, content in files:
        left -= len(content)
        if left >= 0:
            taken[folder.strip(b"/")] = content
        else:
            unread += 1
    return taken, unread


def _depth(folder: bytes) -> tuple[int, bytes]:
    return folder.count(b"/") + bool(folder), folder


def _folders(path: bytes) -> Iterator[bytes]:
    """The folders that a path lies in, the deepest first, the top as `b""`."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


# Lines


def _lines(content: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """The pattern and the attributes of each line."""
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        bare = line.strip(b" \t\r")
        if bare and not bare.startswith(b"#") and len(line) <= _MAX_LINE:
            pattern, *attributes = _unquoted(bare) if bare.startswith(b'"') else _BLANKS.split(bare)
            if pattern:
                yield pattern, attributes


_BLANKS = re.compile(rb"[ \t\r]+")
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"(?:[ \t]+|\Z)')
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_ESCAPES = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def _unquoted(line: bytes) -> list[bytes]:
    """The words of a line whose pattern stands in quotes, as C writes a string."""
    found = _QUOTED.match(line)
    if found is None:
        return [b""]
    return [_ESCAPE.sub(_meant, found[1]), *_BLANKS.split(line[found.end() :])]


def _meant(escape: re.Match[bytes]) -> bytes:
    letter = escape[1]
    return bytes([int(letter, 8) & 0xFF]) if len(letter) > 1 else _ESCAPES.get(letter, letter)


_MACRO = b"[attr]"


def _macros(content: bytes) -> dict[bytes, _Says]:
    """Names that stand for several attributes; git reads them in the top folder alone."""
    macros: dict[bytes, _Says] = {}
    for pattern, attributes in _lines(content):
        if pattern.startswith(_MACRO):
            macros[pattern.removeprefix(_MACRO)] = _meaning(attributes, macros)
    return macros


class _Reading:
    """Reads rules until there are enough of them, and counts the others."""

    def __init__(self, macros: dict[bytes, _Says]) -> None:
        self._macros = macros
        self._taken = self._left_out = 0

    def rules(self, content: bytes) -> tuple[_Rule, ...]:
        """The rules of one file, the strongest first."""
        found = []
        for pattern, attributes in _lines(content):
            # One that ends in a slash names a folder, one that starts with ! is forbidden: neither matches a file.
            if pattern.startswith((_MACRO, b"!")) or pattern.endswith(b"/"):
                continue
            if says := _meaning(attributes, self._macros):
                if self._taken == MOST_RULES or len(pattern) > _MAX_PATTERN:
                    self._left_out += 1
                    continue
                self._taken += 1
                found.append(_Rule(_compiled(pattern), b"/" not in pattern, says))
        return tuple(reversed(found))

    def note(self, unread: int) -> str:
        """What of the repository's files is not heeded; empty where all is."""
        if not (self._left_out or unread):
            return ""
        files = f", nor {unread} more files of them" if unread else ""
        return (
            f"Of .gitattributes {self._taken} rules are heeded; {self._left_out} more are not{files} "
            f"(at most {MOST_RULES} rules of {_MAX_PATTERN} bytes, and {MOST_BYTES >> 20} MiB)."
        )


def _meaning(attributes: list[bytes], macros: dict[bytes, _Says]) -> _Says:
    says: _Says = {}
    for attribute in attributes:
        name, given, value = attribute.lstrip(b"-!").partition(b"=")
        if not given and attribute == name and name in macros:
            says.update(macros[name])
        elif name in _KNOWN:
            says[name] = _value(attribute[:1], value if given else None)
    return says


def _value(sign: bytes, value: bytes | None) -> bool | None:
    """Set, unset or not said; a value that is neither true nor false counts as not said."""
    if sign == b"!":
        return None
    if sign == b"-" or value in _FALSE:
        return False
    return True if value is None or value.lower() in _TRUE else None


# Patterns

_TOKEN = re.compile(rb"\*+|\?|\\.|\[[!^]?\]?(?:\[:[a-z]+:\]|\\.|[^\]\\])*\]|.", re.DOTALL)
_INSIDE = re.compile(rb"\[:([a-z]+):\]|(\\?.)-(\\?[^\]])|(\\?.)", re.DOTALL)
_CLASSES = {
    b"alpha": rb"a-zA-Z",
    b"digit": rb"0-9",
    b"alnum": rb"a-zA-Z0-9",
    b"lower": rb"a-z",
    b"upper": rb"A-Z",
    b"space": rb"\s",
    b"blank": rb" \t",
    b"xdigit": rb"0-9a-fA-F",
    b"punct": rb"!-/:-@\[-`{-~",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"graph": rb"!-~",
    b"print": rb" -~",
}
_NEVER = rb"(?!)"


def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    """A pattern as an expression that takes no more than steady time: what lies between two stars is looked for once.

    The first place at which the text between two stars matches is as good as any later one, since the second star takes
    up the difference; an atomic group says so. That holds for `*` in a name and for `**` among folders.
    """
    parts = pattern.removeprefix(b"/").split(b"/")
    groups: list[list[bytes]] = [[]]
    for part in parts:
        if len(part) > 1 and not part.strip(b"*"):  # git takes `***` for `**`
            groups.append([])
        else:
            groups[-1].append(_segment(part))
    return re.compile(b"".join(_chained(groups)), re.DOTALL)


def _chained(groups: list[list[bytes]]) -> Iterator[bytes]:
    """Runs of folders with `**` between them."""
    last = len(groups) - 1
    for place, group in enumerate(groups):
        inner = b"/".join(group)
        if place == 0:
            yield inner + (b"/" if group and last else b"")
        elif place < last:
            yield b"(?>(?:[^/]+/)*?" + inner + b"/)" if inner else b""
        else:
            # `a/**` is all below a, but not a itself.
            yield b"(?:[^/]+/)*" + (inner or rb"[^/]+")


def _segment(glob: bytes) -> bytes:
    """One part of a path: stars do not cross a slash."""
    pieces: list[bytes] = [b""]
    for token in _TOKEN.findall(glob):
        if token.startswith(b"*"):
            pieces.append(b"")
        else:
            pieces[-1] += _single(token)
    if len(pieces) == 1:
        return pieces[0]
    middle = b"".join(b"(?>[^/]*?" + piece + b")" for piece in pieces[1:-1] if piece)
    return pieces[0] + middle + rb"[^/]*" + pieces[-1]


def _single(token: bytes) -> bytes:
    if token == b"?":
        return b"[^/]"
    if token.startswith(b"["):
        return _set(token) if len(token) > 1 else _NEVER
    return re.escape(token[-1:])


def _set(token: bytes) -> bytes:
    """A set such as `[!a-c]`, built of the bytes it holds, so that nothing in it can mean anything else."""
    negated = token[1:2] in (b"!", b"^")
    held = _members(token[1 + negated : -1])
    members = frozenset(range(256)) - held if negated else held
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(members - {ord("/")})) + b"]" if members else _NEVER


def _members(inside: bytes) -> frozenset[int]:
    held: set[int] = set()
    for found in _INSIDE.finditer(inside):
        name, first, last, single = found.groups()
        if name is not None:
            expression = re.compile(b"[" + _CLASSES[name] + b"]") if name in _CLASSES else re.compile(_NEVER)
            held.update(byte for byte in range(256) if expression.match(bytes([byte])))
        elif first is not None:
            held.update(range(first[-1], last[-1] + 1))
        else:
            held.add(single[-1])
    return frozenset(held)
