"""Counts the operators that Metal lacks and torch runs on the CPU instead, by name.

torch tells of them in a warning, by default of the first one only: it is asked to warn always, and the warnings are
counted instead of shown. A run that hands a small tensor back and forth thousands of times looks healthy otherwise, and
is several times slower.
"""

import re
import warnings
from collections import Counter
from typing import Any

#: How torch words it, up to the operator's name and after it.
_WARNING = r"The operator '([^']+)' is not currently supported on the MPS backend"


class Fallbacks:
    """Listens to this process's warnings; one for its whole life."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._told: set[str] = set()
        self._show: Any = None

    def listen(self) -> None:
        """Count from now on."""
        import torch

        torch.set_warn_always(True)
        # Python too would let each text through only once.
        warnings.filterwarnings("always", message=_WARNING)
        if warnings.showwarning != self._count:
            self._show = warnings.showwarning
            warnings.showwarning = self._count

    @property
    def counts(self) -> dict[str, int]:
        """Calls so far, by operator."""
        return dict(self._counts)

    def news(self) -> tuple[str, ...]:
        """One line for each operator that no call before this one named."""
        fresh = [name for name in self._counts if name not in self._told]
        self._told.update(fresh)
        return tuple(
            f"Metal has no {name}: torch ran it on the CPU, so far {_times(self._counts[name])}, which is slow"
            for name in fresh
        )

    def _count(self, message: Warning | str, *arguments: Any, **named: Any) -> None:
        """In place of `warnings.showwarning`."""
        found = re.match(_WARNING, str(message))
        if found:
            self._counts[found[1]] += 1
        else:
            self._show(message, *arguments, **named)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
