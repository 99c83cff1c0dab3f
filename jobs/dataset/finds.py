"""What a rule finds: a place in a text, and what it is hidden as."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a find is hidden as."""

    EMAIL = "email"
    KEY = "key"
    PASSWORD = "password"  # noqa: S105 - the name of a kind


@dataclass(frozen=True, slots=True, order=True)
class Find:
    """A place in a text that must not be learned: characters `start` to `stop`."""

    start: int
    stop: int
    rule: str
    kind: Kind
