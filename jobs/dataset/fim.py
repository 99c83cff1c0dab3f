"""Fill-in-the-middle: how a model writes a document, whole or with its middle moved to the end.

The text is cut between characters, before it is tokenised, as an editor's cursor cuts it. Each family of models has its
own tokens and its own place for the path; a model without such tokens gets whole documents only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from jobs.dataset.lots import drawn

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


class PullRequestTokens(NamedTuple):
    """StarCoder2's tokens of a pull request (arXiv 2402.19173, section 5.2), by id."""

    start: int
    status: int
    base: int
    file: int
    base_code: int
    diff: int
    hunk: int


class CommitTokens(NamedTuple):
    """StarCoder's tokens of a commit (arXiv 2305.06161; CommitPack, arXiv 2308.07124), by id."""

    before: int
    message: int
    after: int


@dataclass(frozen=True)
class Layout:
    """The special tokens of a model, by id, and where the path stands among them."""

    #: Family whose conventions hold, for people.
    name: str
    #: Prefix, suffix and middle token; None where the model does not fill in.
    fill: tuple[int, int, int] | None = None
    #: Ends a filled-in document; None where the end-of-text token does.
    fill_end: int | None = None
    #: The order that the model was trained on has suffix first, too.
    suffix_first: bool = False
    #: The path stands inside the prefix.
    path_inside: bool = False
    #: The file token does, too.
    file_inside: bool = False
    #: Whole files may stand before the one that is filled in.
    fills_after_files: bool = False
    repository: int | None = None
    file: int | None = None
    #: Text between the repository's name and the file token.
    after_repository: str = ""
    #: The path's line, where no token announces it.
    path_line: str = "{}\n"
    pull_request: PullRequestTokens | None = None
    commit: CommitTokens | None = None

    def path_text(self, path: str) -> str:
        """The line that names the file; empty for a model that was never told paths."""
        return self.path_line.format(path)

    def head(self, repository: str = "") -> list[Part]:
        """What stands before the path of a whole document; the repository only if it is named."""
        head: list[Part] = []
        if self.repository is not None and repository:
            head += [self.repository, repository + self.after_repository]
        return head + self._file()

    def filled(self, mode: Mode, path_text: str, cut: Cut) -> list[Part]:
        """A document with its middle last, in the order of `mode`."""
        assert self.fill is not None  # noqa: S101 - asked only of models that fill in
        prefix, suffix, middle = self.fill
        file_outside, file_inside = ([], self._file()) if self.file_inside else (self._file(), [])
        inside, outside = (path_text, "") if self.path_inside else ("", path_text)
        before: list[Part] = [*file_outside, *([outside] if outside else []), prefix]
        opening: list[Part] = [*file_inside, inside + cut.prefix]
        if mode is Mode.SPM:
            return [*before, suffix, cut.suffix, middle, *opening, cut.middle]
        return [*before, *opening, suffix, cut.suffix, middle, cut.middle]

    def _file(self) -> list[Part]:
        return [self.file] if self.file is not None else []


@dataclass(frozen=True)
class _Family:
    """What a family of models was trained on. It is recognised by its fill tokens, and its file token where `named`."""

    name: str
    #: Prefix, suffix, middle, and the token that ends a filled-in document where that has one of its own.
    fill: tuple[str, ...]
    file: str = ""
    repository: str = ""
    named: bool = False
    suffix_first: bool = True
    path_inside: bool = False
    file_inside: bool = False
    fills_after_files: bool = False
    after_repository: str = ""
    path_line: str | None = None


# DeepSeek's tokens are written with a full-width bar and a low block, Code Llama's with the latter.
_BAR, _GAP = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
_STARCODER_FILL = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
_FAMILIES = (
    _Family(
        "StarCoder2",
        _STARCODER_FILL,
        file="<file_sep>",
        repository="<repo_name>",
        named=True,
        path_inside=True,
        fills_after_files=True,
    ),
    # StarCoder's documents were permuted together with their heads, so that the file token is part of the prefix.
    _Family(
        "StarCoder", _STARCODER_FILL, file="<filename>", repository="<reponame>", path_inside=True, file_inside=True
    ),
    _Family(
        "Qwen",
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        file="<|file_sep|>",
        repository="<|repo_name|>",
        fills_after_files=True,
        after_repository="\n",
    ),
    _Family(
        "DeepSeek",
        tuple(f"<{_BAR}fim{_GAP}{place}{_BAR}>" for place in ("begin", "hole", "end")),
        suffix_first=False,
        path_inside=True,
        path_line="# {}\n",
    ),
    _Family("Code Llama", tuple(f"{_GAP}<{place}>" for place in ("PRE", "SUF", "MID", "EOT"))),
)
_PULL_REQUEST = ("<pr>", "<pr_status>", "<pr_base>", "<pr_file>", "<pr_base_code>", "<pr_diff>", "<pr_diff_hunk>")
_COMMIT = ("<commit_before>", "<commit_msg>", "<commit_after>")

#: How a token's id is found; None where the vocabulary lacks the token.
_Special = Callable[[str], int | None]


def layout_of(special: _Special) -> Layout:
    """The layout for a tokenizer, told by which special tokens it holds."""
    return next((layout for family in _FAMILIES if (layout := _layout(family, special))), None) or _plain(special)


def _layout(family: _Family, special: _Special) -> Layout | None:
    fill = _all(special, family.fill)
    file = special(family.file) if family.file else None
    if fill is None or (family.named and file is None):
        return None
    return Layout(
        name=family.name,
        fill=(fill[0], fill[1], fill[2]),
        fill_end=fill[3] if fill[3:] else None,
        suffix_first=family.suffix_first,
        path_inside=family.path_inside,
        file_inside=family.file_inside,
        fills_after_files=family.fills_after_files and file is not None,
        repository=special(family.repository) if family.repository else None,
        file=file,
        after_repository=family.after_repository,
        path_line=family.path_line or _path_line(file),
        pull_request=_pull_request(special),
        commit=_commit(special),
    )


def _plain(special: _Special) -> Layout:
    file = _first(special, "<file_sep>", "<|file_sep|>", "<filename>")
    return Layout(
        name="plain",
        repository=_first(special, "<repo_name>", "<|repo_name|>", "<reponame>"),
        file=file,
        path_line=_path_line(file),
        pull_request=_pull_request(special),
        commit=_commit(special),
    )


def _path_line(file: int | None) -> str:
    return "{}\n" if file is not None else ""


def _pull_request(special: _Special) -> PullRequestTokens | None:
    found = _all(special, _PULL_REQUEST)
    return PullRequestTokens(*found) if found else None


def _commit(special: _Special) -> CommitTokens | None:
    found = _all(special, _COMMIT)
    return CommitTokens(*found) if found else None


def _all(special: _Special, tokens: tuple[str, ...]) -> list[int] | None:
    found = [identifier for token in tokens if (identifier := special(token)) is not None]
    return found if len(found) == len(tokens) else None


def _first(special: _Special, *tokens: str) -> int | None:
    return next((found for token in tokens if (found := special(token)) is not None), None)


@dataclass(frozen=True)
class Draw:
    """The chances of one sample, each between 0 and 1. They hang on the seed and the sample alone."""

    fill: float
    suffix_first: float
    first_cut: float
    second_cut: float
    #: Decides whether the middle is a piece of syntax.
    syntax: float = 0.0

    @classmethod
    def of(cls, seed: int, key: bytes) -> "Draw":
        """The chances of the sample that `key` names."""
        return cls(*chances(seed, key, b"fim", 5))

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


def chances(seed: int, key: bytes, purpose: bytes, count: int) -> list[float]:
    """`count` numbers in [0, 1), at most 8, as good as chance and always the same for the same arguments."""
    digest = drawn(seed, key, purpose, 8 * count)
    return [int.from_bytes(digest[at : at + 8], "little") / 2**64 for at in range(0, 8 * count, 8)]
