"""Fill-in-the-middle: how a model writes a document, whole or with its middle moved to the end.

The text is cut between characters, before it is tokenised, as an editor's cursor cuts it. Each family of models has its
own tokens and its own place for the path; a model without such tokens gets whole documents only.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

#: A part of a document: a special token's id, or text that is tokenised by itself.
Part = int | str


class Mode(StrEnum):
    """The order in which a document is written."""

    PLAIN = "plain"
    PSM = "prefix-suffix-middle"
    SPM = "suffix-prefix-middle"


@dataclass(frozen=True)
class Cut:
    """A text in three."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Layout:
    """The special tokens of a model, by id, and where the path stands among them."""

    #: Family whose conventions hold, for people.
    name: str
    #: Prefix, suffix and middle token; None where the model does not fill in.
    fill: tuple[int, int, int] | None = None
    #: The order that the model was trained on has suffix first, too.
    suffix_first: bool = False
    #: The path stands inside the prefix.
    path_inside: bool = False
    repository: int | None = None
    file: int | None = None
    #: Text between the repository's name and the file token.
    after_repository: str = ""
    #: The path's line, where no token announces it.
    path_line: str = "{}\n"

    def path_text(self, path: str) -> str:
        """The line that names the file; empty for a model that was never told paths."""
        return self.path_line.format(path)

    def head(self, repository: str = "") -> list[Part]:
        """What stands before the path of a whole document; the repository only if it is named."""
        head: list[Part] = []
        if self.repository is not None and repository:
            head += [self.repository, repository + self.after_repository]
        return head + ([self.file] if self.file is not None else [])

    def filled(self, mode: Mode, path_text: str, cut: Cut) -> list[Part]:
        """A document with its middle last, in the order of `mode`."""
        assert self.fill is not None  # noqa: S101 - asked only of models that fill in
        prefix, suffix, middle = self.fill
        before: list[Part] = [self.file] if self.file is not None else []
        inside, outside = (path_text, "") if self.path_inside else ("", path_text)
        before += [outside, prefix]
        if mode is Mode.SPM:
            return [*before, suffix, cut.suffix, middle, inside + cut.prefix, cut.middle]
        return [*before, inside + cut.prefix, suffix, cut.suffix, middle, cut.middle]


@dataclass(frozen=True)
class _Family:
    name: str
    fill: tuple[str, str, str]
    suffix_first: bool
    path_inside: bool
    after_repository: str = ""
    path_line: str | None = None


# DeepSeek's tokens are written with a full-width bar and a low block.
_BAR, _GAP = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
_FAMILIES = (
    _Family("StarCoder", ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), suffix_first=True, path_inside=True),
    _Family(
        "Qwen",
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        suffix_first=True,
        path_inside=False,
        after_repository="\n",
    ),
    _Family(
        "DeepSeek",
        tuple(f"<{_BAR}fim{_GAP}{place}{_BAR}>" for place in ("begin", "hole", "end")),  # type: ignore[arg-type]
        suffix_first=False,
        path_inside=True,
        path_line="# {}\n",
    ),
)


def layout_of(special: Callable[[str], int | None]) -> Layout:
    """The layout for a tokenizer, told by which special tokens it holds."""
    repository = _first(special, "<repo_name>", "<|repo_name|>", "<reponame>")
    file = _first(special, "<file_sep>", "<|file_sep|>", "<filename>")
    line = "{}\n" if file is not None else ""
    for family in _FAMILIES:
        fill = [identifier for identifier in map(special, family.fill) if identifier is not None]
        if len(fill) == len(family.fill):
            return Layout(
                name=family.name,
                fill=(fill[0], fill[1], fill[2]),
                suffix_first=family.suffix_first,
                path_inside=family.path_inside,
                repository=repository,
                file=file,
                after_repository=family.after_repository,
                path_line=family.path_line or line,
            )
    return Layout(name="plain", repository=repository, file=file, path_line=line)


def _first(special: Callable[[str], int | None], *tokens: str) -> int | None:
    return next((found for token in tokens if (found := special(token)) is not None), None)


@dataclass(frozen=True)
class Draw:
    """The chances of one sample, each between 0 and 1. They hang on the seed and the sample alone."""

    fill: float
    suffix_first: float
    first_cut: float
    second_cut: float

    @classmethod
    def of(cls, seed: int, key: bytes) -> "Draw":
        """The chances of the sample that `key` names."""
        digest = hashlib.blake2b(key, digest_size=32, key=seed.to_bytes(16, "little"), person=b"fim").digest()
        return cls(*(int.from_bytes(digest[at : at + 8], "little") / 2**64 for at in range(0, 32, 8)))

    def mode(self, layout: Layout, rate: float, suffix_first_rate: float) -> Mode:
        """How the sample is written when a share `rate` of all is filled in."""
        if layout.fill is None or self.fill >= rate:
            return Mode.PLAIN
        return Mode.SPM if layout.suffix_first and self.suffix_first < suffix_first_rate else Mode.PSM

    def cut(self, text: str) -> Cut:
        """Three parts of `text`, which has at least one character; the middle is not empty."""
        one = min(int(self.first_cut * (len(text) + 1)), len(text))
        two = min(int(self.second_cut * len(text)), len(text) - 1)
        start, stop = sorted((one, two + (two >= one)))
        return Cut(text[:start], text[start:stop], text[stop:])
