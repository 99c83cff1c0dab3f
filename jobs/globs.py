"""Globs of repository paths, read as in .gitignore.

`*.md` is any Markdown file, `src/**` all below src, `docs` a file or folder of that name and all in it.
"""

import re
from collections.abc import Callable, Iterable


def matcher(globs: Iterable[str]) -> Callable[[str], bool]:
    """A function that tells whether a path, or a folder it lies in, matches one of the globs.

    Raises:
        ValueError: one of them is no glob.
    """
    patterns = [_checked(glob) for glob in globs]
    if not patterns:
        return lambda _path: False
    whole = re.compile("|".join(patterns), re.DOTALL)
    return lambda path: whole.fullmatch(path) is not None


def _checked(glob: str) -> str:
    pattern = _pattern(glob)
    try:
        re.compile(pattern)
    except re.error:
        raise ValueError(f"{glob!r} is no glob: its set in [ ] is empty or runs backwards") from None
    return pattern


def _pattern(glob: str) -> str:
    inner = glob.rstrip("/")
    anywhere = "" if "/" in inner else "(?:.*/)?"
    # A match of a folder takes all that is below it.
    return f"{anywhere}{''.join(_pieces(inner.lstrip('/')))}(?:/.*)?"


_TOKEN = re.compile(r"\*\*/|/\*\*$|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_MEANINGS = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _pieces(glob: str) -> Iterable[str]:
    for token in _TOKEN.findall(glob):
        if token in _MEANINGS:
            yield _MEANINGS[token]
        elif token.startswith("[") and len(token) > 1:
            yield _set(token)
        else:
            yield re.escape(token)


def _set(token: str) -> str:
    """A set such as `[!a-c]` as a regular expression."""
    inside = token[1:-1]
    negated = inside.startswith("!")
    escaped = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[1:] if negated else inside)
    return f"[{'^/' if negated else ''}{escaped}]"
