"""Commit messages: what of one is learned, and which ones say too little.

The rules are CommitPack's (arXiv 2308.07124, appendix) and what a single repository adds: fix-ups, reverts, bots.
"""

import re
from collections.abc import Iterator

#: Characters of a message that are kept.
_LONGEST = 2000
#: More characters a word than this are identifiers or data, not language (CommitPack).
_LONGEST_WORDS = 20

_TRAILER = re.compile(
    r"(?:[A-Za-z]+(?:-[A-Za-z]+)+|cc|bug|differential revision|issue|test plan|fixes|closes|refs|see):\s*\S.*"
    r"|\(cherry picked from commit [0-9a-f]+.*\)|-{2,}",
    re.IGNORECASE,
)
_MERGE = re.compile(
    r"merged?:? (?:branch|pull request|remote-tracking|tag|commit|changes|from|in|with|upstream|origin|master|main|the"
    r"|pr\b|#|\S+ (?:into|to|with|from) )|auto-?merge|automatic merge",
    re.IGNORECASE,
)
_REVERT = re.compile(r"revert(?:ed|ing|s)?\b|back out\b", re.IGNORECASE)
_FIX_UP = re.compile(r"(?:fixup|squash|amend)!", re.IGNORECASE)
_BOT = re.compile(
    r"(?:build|chore|ci|fix|deps)\(deps[^)]*\)!?:|bump \S+ from \S+ to \S+|bump the \S+ group|\[pre-commit\.ci\]"
    r"|update dependency |update \S+ requirement from|pin dependencies|lock file maintenance"
    r"|\[?(?:bot|automated|dependabot|renovate|scheduled)\b|translated using weblate|updated? translations?\b"
    r"|(?:scheduled )?(?:weekly|monthly|daily) dependency update",
    re.IGNORECASE,
)
_ONE_FILE = re.compile(r"(?:update|create|delete|rename|add|edit|remove) `?[\w./-]+\.\w+`?\.?", re.IGNORECASE)
_VERSION = re.compile(r"v?\d+(?:\.\d+)*(?:[.-]?(?:a|b|c|rc|alpha|beta|dev|post|pre|final)[.-]?\d*)?\+?", re.IGNORECASE)
_VERSION_WORDS = frozenset(
    {
        "bump",
        "bumped",
        "bumps",
        "bumping",
        "changelog",
        "cut",
        "dev",
        "for",
        "from",
        "new",
        "next",
        "number",
        "prep",
        "prepare",
        "prepared",
        "preparing",
        "release",
        "released",
        "releasing",
        "set",
        "start",
        "tag",
        "tagged",
        "the",
        "to",
        "update",
        "updated",
        "ver",
        "version",
        "v",
    }
)
_TRIVIAL = frozenset(
    (
        "add files via upload",
        "bug fix",
        "bug fixes",
        "bugfix",
        "changes",
        "clean up",
        "cleanup",
        "commit",
        "debug",
        "dummy",
        "first commit",
        "fix",
        "fix bug",
        "fix bugs",
        "fix build",
        "fix it",
        "fix test",
        "fix tests",
        "fixed bug",
        "fixed bugs",
        "fixes",
        "init commit",
        "initial commit",
        "initial import",
        "minor",
        "minor change",
        "minor changes",
        "minor fix",
        "minor fixes",
        "minor update",
        "minor updates",
        "misc",
        "misc fixes",
        "more changes",
        "more fixes",
        "more work",
        "no message",
        "oops",
        "quick fix",
        "readme",
        "readme update",
        "save",
        "small change",
        "small changes",
        "small fix",
        "small fixes",
        "small update",
        "some changes",
        "some fixes",
        "sync",
        "test",
        "tests",
        "tweaks",
        "typo",
        "update",
        "update changelog",
        "update docs",
        "update gitignore",
        "update readme",
        "update readme md",
        "update tests",
        "update version",
        "updated",
        "updated readme",
        "updates",
        "various fixes",
        "wip",
        "work in progress",
    )
)


def clean_message(message: str) -> str:
    """A message without trailers, blank edges and what is past 2,000 characters; empty if it says nothing."""
    text = "\n".join(line.rstrip() for line in message.replace("\r\n", "\n").split("\n")).strip()
    if len(text) > _LONGEST:
        text = (text[:_LONGEST].rpartition("\n")[0] or text[:_LONGEST]).rstrip()
    lines = text.split("\n")
    while len(lines) > 1 and (not lines[-1].strip() or _TRAILER.fullmatch(lines[-1])):
        del lines[-1]
    return "\n".join(lines)


def subject_and_body(message: str) -> tuple[str, str]:
    """The first line of a clean message, and what follows."""
    subject, _, body = message.partition("\n")
    return subject.strip(), body.strip()


def message_reason(message: str) -> str | None:
    """Why a commit with that message is not learned; None if it is."""
    return next(_reasons(subject_and_body(clean_message(message))[0]), None)


def _reasons(subject: str) -> Iterator[str]:
    words = subject.split()
    if not words:
        yield "empty message"
    if _MERGE.match(subject):
        yield "merge"
    if _REVERT.match(subject):
        yield "revert"
    if _FIX_UP.match(subject):
        yield "fix-up of another commit"
    if _BOT.match(subject):
        yield "bot"
    if _is_version(subject):
        yield "version only"
    if len(words) == 1:
        yield "one word"
    if _ONE_FILE.fullmatch(subject) or " ".join(re.findall(r"\w+", subject.lower())) in _TRIVIAL:
        yield "trivial message"
    if len(subject) > _LONGEST_WORDS * len(words):
        yield "no language"


def _is_version(subject: str) -> bool:
    """True for `Bump version to 1.2.3` and the like."""
    words = [word.strip("()[]:,.'\"`!") for word in subject.lower().split()]
    rest = [word for word in words if word not in _VERSION_WORDS]
    return bool(rest) and all(_VERSION.fullmatch(word) for word in rest) and any(map(str.isdigit, subject))
