"""Cuts a text around a whole piece of syntax: a statement, a block, an expression, an argument list, a function body.

Middles that are whole subtrees teach filling in better than middles cut anywhere (AST-FIM, arXiv 2506.00204). The trees
are tree-sitter's, from the wheels of each language where they are installed; every other text is cut at whole lines or
at an indented block. Nothing here hangs on a clock: what bounds the time is the size of the text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module, metadata
from itertools import accumulate
from typing import Any

from jobs.dataset.fim import Cut, Draw
from jobs.dataset.languages import language_of

#: Bytes of a middle. Completions of 50 to 1,000 bytes are what people ask for (arXiv 2602.05780).
_SHORTEST, _LONGEST = 8, 1000
#: UTF-8 bytes of a text that is parsed: with broken code a parser may try many repairs.
_MOST_PARSED = 1 << 19
#: Places that are looked at before a text is given up.
_TRIES = 8
#: Lines of a middle that is no block.
_MOST_LINES = 8
#: The fractional part of the golden ratio: its multiples fall evenly on the unit interval.
_STEP = 0.6180339887498949
#: The rules of this module: another number for other cuts.
_RULES = 1

_Span = tuple[int, int]


@dataclass(frozen=True)
class _Grammar:
    """Where the parser of a language lies."""

    module: str
    function: str = "language"


_GRAMMARS = {
    "C": _Grammar("tree_sitter_c"),
    "C++": _Grammar("tree_sitter_cpp"),
    "Go": _Grammar("tree_sitter_go"),
    "Java": _Grammar("tree_sitter_java"),
    "JavaScript": _Grammar("tree_sitter_javascript"),
    "Python": _Grammar("tree_sitter_python"),
    "Rust": _Grammar("tree_sitter_rust"),
    "TSX": _Grammar("tree_sitter_typescript", "language_tsx"),
    "TypeScript": _Grammar("tree_sitter_typescript", "language_typescript"),
}
#: Kinds of node that are words rather than structure.
_WORDS = re.compile(r"comment|string|char_literal|regex|identifier|ERROR")
_INDENT = re.compile(r"[ \t]*")


class SyntaxCutter:
    """Cuts texts around pieces of syntax. Parsers are made when the first text of their language comes."""

    def __init__(self) -> None:
        self._parsers: dict[str, Any] = {}

    @cached_property
    def version(self) -> str:
        """What the cuts hang on: the rules here and every grammar that is installed."""
        found = {grammar.module for name, grammar in _GRAMMARS.items() if self._parser(name) is not None}
        wheels = sorted({"tree_sitter", *found}) if found else []
        names = [wheel.replace("_", "-") for wheel in wheels]
        return ", ".join([f"rules {_RULES}", *(f"{name} {metadata.version(name)}" for name in names)])

    def cut(self, path: str, text: str, draw: Draw) -> Cut | None:
        """The text in three, or None where no piece of 8 to 1,000 bytes was found.

        Args:
            path: tells the language.
            text: code, whole or in part, broken or not.
            draw: `first_cut` says about where in the text, `second_cut` how large a piece.
        """
        span = self._node_span(path, text, draw) or _line_span(text, draw)
        return Cut(text[: span[0]], text[span[0] : span[1]], text[span[1] :]) if span else None

    def _node_span(self, path: str, text: str, draw: Draw) -> _Span | None:
        """The characters of a syntax node; None without a grammar, or without such a node."""
        parser = self._parser(_grammar_of(path))
        raw = text.encode() if parser is not None else b""
        if not 0 < len(raw) <= _MOST_PARSED:
            return None
        tree = parser.parse(raw)
        chosen = (_drawn(_spans(tree, int(place * len(raw))), draw) for place in _places(draw.first_cut))
        span = next((span for span in chosen if span), None)
        return _characters(raw, span) if span else None

    def _parser(self, language: str) -> Any:
        """The parser of a language, or None where its wheel is not installed or does not fit tree-sitter's."""
        if language not in self._parsers:
            grammar = _GRAMMARS.get(language)
            self._parsers[language] = _load(grammar) if grammar else None
        return self._parsers[language]


def _grammar_of(path: str) -> str:
    return "TSX" if path.lower().endswith(".tsx") else language_of(path)


def _load(grammar: _Grammar) -> Any:
    try:
        tree_sitter = import_module("tree_sitter")
        language = getattr(import_module(grammar.module), grammar.function)()
        return tree_sitter.Parser(tree_sitter.Language(language))
    except (ImportError, AttributeError, ValueError, TypeError):
        return None


def _places(first: float) -> Iterator[float]:
    """Shares of the text to look at, one after the other, all over it."""
    return ((first + number * _STEP) % 1.0 for number in range(_TRIES))


def _spans(tree: Any, place: int) -> list[_Span]:
    """The bytes of the nodes around a place that have structure, the largest first, none twice, but not the root.

    Walking down to one place costs the depth of the tree; looking at every node would cost more than the parsing.
    """
    spans: list[_Span] = []
    cursor = tree.walk()
    while cursor.goto_first_child_for_byte(place) is not None:
        node = cursor.node
        if node.start_byte > place:
            break
        if node.is_named and node.child_count and not _WORDS.search(node.type):
            spans.append((node.start_byte, node.end_byte))
    return list(dict.fromkeys(spans))


def _drawn(spans: list[_Span], draw: Draw) -> _Span | None:
    """One of the spans that are neither too short nor too long."""
    fit = [span for span in spans if _fits(span)]
    return fit[int(draw.second_cut * len(fit))] if fit else None


def _fits(span: _Span) -> bool:
    return _SHORTEST <= span[1] - span[0] <= _LONGEST


def _characters(raw: bytes, span: _Span) -> _Span:
    """A span of bytes, whose ends lie between characters as tree-sitter reads those, as a span of characters."""
    start = len(raw[: span[0]].decode())
    return start, start + len(raw[span[0] : span[1]].decode())


# ---- Texts without a tree --------------------------------------------------------------------------------------------


def _line_span(text: str, draw: Draw) -> _Span | None:
    """The characters of some whole lines, or of a block, from the first line's text to the last line's end."""
    lines = text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    for place in _places(draw.first_cut):
        first = bisect_right(starts, int(place * len(text))) - 1
        last = _last_line(lines, first, draw)
        span = starts[first] + _indent(lines[first]), starts[last] + len(lines[last].rstrip())
        if lines[first].strip() and _fits(span):
            return span
    return None


def _last_line(lines: list[str], first: int, draw: Draw) -> int:
    """The end of the block that begins at `first`, or of as many lines as drawn; not a blank one."""
    if draw.second_cut < 0.5:  # noqa: PLR2004 - half and half
        last = _block_end(lines, first)
    else:
        last = min(first + int((2 * draw.second_cut - 1) * _MOST_LINES), len(lines) - 1)
    while last > first and not lines[last].strip():
        last -= 1
    return last


def _block_end(lines: list[str], first: int) -> int:
    """The last line that is indented as far as the first, or is blank; a middle's longest length bounds the search."""
    indent, size, last = _indent(lines[first]), 0, first
    for number in range(first + 1, len(lines)):
        size += len(lines[number]) + 1
        if size > _LONGEST or (lines[number].strip() and _indent(lines[number]) < indent):
            break
        last = number
    return last


def _indent(line: str) -> int:
    match = _INDENT.match(line)
    return match.end() if match else 0
