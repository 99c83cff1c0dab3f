"""Takes secrets and e-mail addresses out of a text before anything is made of it.

A hidden place is one noncharacter, so that no later cut can split it and no content can forge it: those that a text
brings along become U+FFFD first. Tokenising makes the model's own token of it where there is one. Only the rule and
the number of its finds are kept, never a value.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.dataset.emails import find_emails
from jobs.dataset.finds import Find, Kind
from jobs.dataset.scanner import TELLING, Betterleaks
from jobs.dataset.secrets import find_secrets, rules_version

EMAIL = "\ufdd0"
KEY = "\ufdd1"
PASSWORD = "\ufdd2"  # noqa: S105 - a placeholder
#: How a placeholder is written where the vocabulary has no token for it: as The Stack v2 does (arXiv 2402.19173).
SPELLED = {EMAIL: "<EMAIL>", KEY: "<KEY>", PASSWORD: "<PASSWORD>"}

_PLACEHOLDERS = {Kind.EMAIL: EMAIL, Kind.KEY: KEY, Kind.PASSWORD: PASSWORD}
_PLACEHOLDER = re.compile(f"[{EMAIL}{KEY}{PASSWORD}]")
#: Unicode keeps these for a program's inside (section 23.7); half a surrogate pair cannot be written as UTF-8.
_LAST_OF_PLANES = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_UNWRITABLE = re.compile(f"[\ufdd0-\ufdef\ud800-\udfff{_LAST_OF_PLANES}]")
_REPLACEMENT = "\ufffd"
#: What stands in the UTF-8 of any of them, and seldom elsewhere: looking for it is much faster than the pattern.
_UNWRITABLE_BYTES = (b"\xef\xb7", b"\xbf\xbe", b"\xbf\xbf", b"\xed")
#: Hiding one place can bring two others together; texts made to do so again and again are not followed for ever.
_MAX_ROUNDS = 8


class Known(NamedTuple):
    """A secret that was found: for memory alone, never for a file or a log."""

    value: str
    rule: str
    kind: Kind


@dataclass(frozen=True)
class Redacted:
    """A text without its secrets."""

    text: str
    #: Rule -> places hidden.
    counts: dict[str, int] = field(default_factory=dict)
    #: What was hidden, to hide it elsewhere too.
    known: frozenset[Known] = field(default=frozenset(), repr=False, compare=False)


class Redactor:
    """Finds and hides.

    Args:
        scanner: `auto`: betterleaks where it is installed, and our own rules; `built-in`: ours alone.
    """

    def __init__(self, scanner: str = "auto") -> None:
        self._scanner = Betterleaks.installed() if scanner == "auto" else None
        #: Changes whenever the same text may be redacted otherwise.
        self.version = f"rules {rules_version()}" + (f", {self._scanner.version}" if self._scanner else "")

    def redact(self, text: str, known: Collection[Known] = ()) -> Redacted:
        """The text with every secret and e-mail address hidden.

        Redacting what comes out finds nothing more.

        Args:
            text: what is looked through.
            known: found elsewhere, and hidden here wherever it stands.

        Raises:
            DatasetError: the optional scanner failed.
        """
        if _may_be_unwritable(text):
            text = _UNWRITABLE.sub(_REPLACEMENT, text)
        counts: Counter[str] = Counter()
        values: set[Known] = set()
        for _ in range(_MAX_ROUNDS):
            # What one line tells of is hidden on every other, too.
            finds = self._finds(text, [*known, *sorted(values)])
            if not finds:
                break
            counts.update(find.rule for find in finds)
            values.update(filter(_is_telling, (Known(text[one.start : one.stop], one.rule, one.kind) for one in finds)))
            text = _hidden(text, finds)
        return Redacted(text, dict(sorted(counts.items())), frozenset(values))

    def _finds(self, text: str, known: Collection[Known]) -> list[Find]:
        """Places without overlap, in order, none of which is hidden already."""
        finds = [*find_secrets(text), *find_emails(text), *_found_again(text, known)]
        if self._scanner:
            finds += self._scanner.find(text)
        return list(_joined(find for find in finds if not _PLACEHOLDER.search(text, find.start, find.stop)))


def _may_be_unwritable(text: str) -> bool:
    if text.isascii():
        return False
    raw = text.encode("utf-8", "surrogatepass")
    return any(part in raw for part in _UNWRITABLE_BYTES)


def _is_telling(known: Known) -> bool:
    return len(known.value) >= TELLING and "\n" not in known.value


def _found_again(text: str, known: Collection[Known]) -> Iterator[Find]:
    for value, rule, kind in known:
        at = text.find(value)
        while at >= 0:
            yield Find(at, at + len(value), rule, kind)
            at = text.find(value, at + len(value))


def _joined(finds: Iterator[Find]) -> Iterator[Find]:
    """Finds that overlap become one, under the rule that began first and reached furthest."""
    current: Find | None = None
    for find in sorted(finds, key=_precedence):
        if current is None or find.start >= current.stop:
            if current is not None:
                yield current
            current = find
        elif find.stop > current.stop:
            current = Find(current.start, find.stop, current.rule, current.kind)
    if current is not None:
        yield current


def _precedence(find: Find) -> tuple[int, int, bool, str]:
    """The earlier, then the longer, then ours, which say more of what was found."""
    return find.start, -find.stop, find.rule.startswith("betterleaks"), find.rule


def _hidden(text: str, finds: list[Find]) -> str:
    parts, end = [], 0
    for find in finds:
        parts += [text[end : find.start], _PLACEHOLDERS[find.kind]]
        end = find.stop
    return "".join([*parts, text[end:]])
