"""Keys that the schema knows and nothing honours yet: another value than the default is refused, never ignored.

Whoever makes one work takes its line out. Standard library only.
"""

import json
from typing import Any

#: section.key, or the name of an environment variable; one a line, sorted.
NOT_YET = frozenset(
    {
        "training.compile",
    }
)


def refuse_not_yet(key: str, value: Any, default: Any) -> None:
    """Refuse a value that would be ignored.

    Raises:
        ValueError: a clause that says so; whoever reads the value names the key.
    """
    if key in NOT_YET and value != default:
        raise ValueError(f"this version cannot do anything but {json.dumps(default)} yet: leave it out")
