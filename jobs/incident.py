"""What happened to a run that its curve does not tell: part of every checkpoint, told in the report. No torch."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One of: resumed, seam, healed, skipped, disk_full, stopped_early, diverged, best."""

    kind: str
    #: Optimizer steps done when it happened.
    step: int
    #: One sentence for people.
    message: str
    #: Seconds since the epoch.
    time: float = field(default_factory=time.time)
    numbers: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Incident":
        """Read what `to_json` gave; what a newer program added is dropped."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in known})
