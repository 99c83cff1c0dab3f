"""A JSON document read as far as it goes: what is absent, or of another type, counts as nothing.

Pages are made of datasets that older versions wrote, too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """A document, or a part of one. `keys` lead from it to what is asked for."""

    value: Any

    def at(self, *keys: str) -> "Facts":
        """The part at `keys`; an empty one where there is none."""
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return Facts(value)

    def __bool__(self) -> bool:
        """Whether there is anything here."""
        return self.value is not None

    @property
    def names(self) -> list[str]:
        """The keys of this part, in their order."""
        return [str(key) for key in self.value] if isinstance(self.value, Mapping) else []

    def number(self, *keys: str) -> float:
        """A finite number; 0 where there is none."""
        value = self.at(*keys).value
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if known else 0.0

    def numbers(self, *keys: str) -> dict[str, float]:
        """The counts of a part by name; those that are no number above 0 are left out."""
        part = self.at(*keys)
        value = part.value if isinstance(part.value, Mapping) else {}
        counts = {str(name): Facts(count).number() for name, count in value.items()}
        return {name: count for name, count in counts.items() if count > 0}

    def text(self, *keys: str) -> str:
        """Text; empty where there is none."""
        value = self.at(*keys).value
        return value if isinstance(value, str) else ""

    def rows(self, *keys: str) -> list["Facts"]:
        """The parts of a list."""
        value = self.at(*keys).value
        return [Facts(row) for row in value] if isinstance(value, list | tuple) else []

    def flat(self, *, without: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
        """Every value under its dotted name, as text; parts named in `without` are left out."""
        if not isinstance(self.value, Mapping):
            return []
        lines: list[tuple[str, str]] = []
        for name, value in self.value.items():
            if name in without:
                continue
            inner = Facts(value).flat()
            lines += [(f"{name}.{key}", text) for key, text in inner] or [(str(name), _shown(value))]
        return lines


def _shown(value: Any) -> str:
    if value is None or value in ([], (), {}):
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
