"""Samples of a dataset in the terminal: `repotune dataset --sample 5`.

Special tokens are coloured, text that is not learned is dim. Where the output is no terminal it is plain text.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from jobs.dataset.amounts import several
from jobs.dataset.excerpts import Excerpt, Piece, excerpt
from jobs.dataset.facts import Facts
from jobs.dataset.headlines import split_place

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Lines and characters of a sample that are printed.
LINES = 40
CHARACTERS = 6_000

_SPECIAL = "bold cyan"
_QUIET = "dim"


def print_examples(examples: Sequence[Mapping[str, Any]], count: int, console: "Console") -> None:
    """Print `count` samples, of as many splits and kinds as there are.

    Args:
        examples: What `examples.json` holds.
        count: Samples to print; where there are fewer, all of them.
        console: Where to.
    """
    chosen = _varied(examples, count)
    for place, example in enumerate(chosen, 1):
        _print(excerpt(example, lines=LINES, characters=CHARACTERS), f"sample {place} of {len(chosen)}", console)
    if len(chosen) < count:
        _line(f"The dataset keeps {several(len(examples), 'rendered sample')}.", _QUIET, console)
    elif chosen and console.is_terminal:
        _line("Special tokens are coloured; dim text is context that is not learned.", _QUIET, console)


def _varied(examples: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The first sample of every split and kind, training first, then the second of each, and so on."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for example in examples:
        facts = Facts(example)
        groups.setdefault((facts.text("split"), facts.text("kind")), []).append(example)
    turns = zip_longest(*(groups[group] for group in sorted(groups, key=lambda group: split_place(group[0]))))
    return [example for turn in turns for example in turn if example is not None][: max(0, count)]


def _print(sample: Excerpt, title: str, console: "Console") -> None:
    commit = f"commit {sample.commit[:12]}" if sample.commit else ""
    facts = (title, sample.split.replace("_", " "), sample.kind, sample.mode, sample.path, commit)
    _line(", ".join(fact for fact in (*facts, several(sample.tokens, "token")) if fact), "bold", console)
    console.print(_body(sample.pieces), soft_wrap=True, highlight=False)
    if sample.left_out:
        _line(f"({sample.left_out} not shown)", _QUIET, console)
    console.print()


def _body(pieces: Sequence[Piece]) -> "Text":
    from rich.text import Text

    body = Text()
    for piece in pieces:
        styles = (_SPECIAL * piece.special, _QUIET * (not piece.label))
        body.append(piece.shown, " ".join(style for style in styles if style))
    return body


def _line(text: str, style: str, console: "Console") -> None:
    from rich.text import Text

    console.print(Text(text, style), soft_wrap=True, highlight=False)
