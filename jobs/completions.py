"""Completed lines, compared with what stands there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.dataset.fim import Layout
from jobs.dataset.tokens import Vocabulary
from jobs.prompts import Prompt

#: Tokens of the prompt that stand before a completion while it is decoded: some tokenizers drop a text's first blank.
_CONTEXT = 8


@dataclass(frozen=True)
class Completion:
    """A prompt, and the line that each side gave for it."""

    prompt: Prompt
    said: Mapping[str, str]


def ends_of_line(vocabulary: Vocabulary, layout: Layout) -> frozenset[int]:
    """Tokens after which nothing more of a line can come."""
    special = (layout.file, layout.repository, layout.fill_end, *(layout.fill or ()))
    return vocabulary.line_ends | {identifier for identifier in special if identifier is not None}


def exact(said: str, truth: str) -> bool:
    """Whether both are the same line; blanks at its ends do not count."""
    return said.strip() == truth.strip()


def similarity(said: str, truth: str) -> float:
    """1 less the edit distance (Levenshtein 1966) over the length of the longer line: 1 where both are the same."""
    one, other = said.strip(), truth.strip()
    longer = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longer if longer else 1.0


def edit_distance(one: str, other: str) -> int:
    """The fewest letters to put in, take out or change that make one text the other."""
    before = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        now = [place]
        for at, wanted in enumerate(other, 1):
            now.append(min(now[-1] + 1, before[at] + 1, before[at - 1] + (letter != wanted)))
        before = now
    return before[-1]


def completed_line(vocabulary: Vocabulary, prompt: Sequence[int], new: Sequence[int]) -> str:
    """What new tokens add to the line on which a prompt ends."""
    context = vocabulary.text_of(prompt[-_CONTEXT:])
    whole = vocabulary.text_of([*prompt[-_CONTEXT:], *new])
    text = whole[len(context) :] if whole.startswith(context) else vocabulary.text_of(new)
    return text.split("\n", 1)[0].strip()
