"""What a machine has measured of its own trainings: one small JSON file, read by the planner of the next.

Three numbers for each kind of training (device, versions of the libraries, architecture, quantization): the factor by
which the modelled parts of the memory estimate were off, the share of the measured product rate that was reached, and
the operations a second that this came to, which the submitting side can read that measures nothing itself.
The last few of each are kept and their median counts: one odd run must not spoil the next ones. The file may be deleted
any time, and rubbish in it counts as nothing measured.
"""

import contextlib
import json
import math
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "calibration.json"

#: A correction beyond these says more about a broken measurement than about the model.
FACTOR_BOUNDS = (0.5, 2.0)
_SHARE_BOUNDS = (0.01, 1.5)

_KEPT = 5
_KINDS_KEPT = 100
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What earlier trainings of one kind came to; None: none is known."""

    #: By which the modelled parts of the memory estimate are multiplied.
    memory_factor: float | None = None
    #: Part of the product rate that a training reaches.
    rate_share: float | None = None


def kind_of(device: str, device_name: str, family: str, quantization: str, versions: dict[str, str]) -> str:
    """The key of a kind of training: what changes when any of it does."""
    libraries = ",".join(f"{name}-{version}" for name, version in sorted(versions.items()))
    return f"{device}|{device_name}|{libraries}|{family}|{quantization}"


def read(file: Path | None, kind: str) -> Measured:
    """What `file` knows of a kind; nothing where there is no file, or none that can be understood."""
    entry = _entries(file).get(kind) if file else None
    if not isinstance(entry, dict):
        return Measured()
    return Measured(
        memory_factor=_median(entry.get("memory_factor"), FACTOR_BOUNDS),
        rate_share=_median(entry.get("rate_share"), _SHARE_BOUNDS),
    )


def work_rate(file: Path, device: str, family: str, quantization: str) -> float | None:
    """Operations a second of the latest trainings with these parts of a kind, whatever the libraries' versions were."""
    for kind, entry in reversed(list(_entries(file).items())):
        parts = kind.split("|")
        if (parts[0], *parts[-2:]) == (device, family, quantization) and isinstance(entry, dict):
            rates = [rate for rate in _numbers(entry.get("work_rate"))[-_KEPT:] if rate > 0]
            if rates:
                return statistics.median(rates)
    return None


def add(
    file: Path,
    kind: str,
    *,
    memory_factor: float | None = None,
    rate_share: float | None = None,
    work_rate: float | None = None,
) -> None:
    """Note a measurement. A disk that cannot be written loses it: no training may fail of this.

    Two trainers that write at once may lose one of the measurements, never the file.
    """
    entries = _entries(file)
    entry = entries.pop(kind, {})
    entry = entry if isinstance(entry, dict) else {}
    measured = {"memory_factor": memory_factor, "rate_share": rate_share, "work_rate": work_rate}
    for name, value in measured.items():
        if value is not None and math.isfinite(value):
            entry[name] = [*_numbers(entry.get(name)), round(value, 4)][-_KEPT:]
    entries[kind] = entry
    latest = dict(list(entries.items())[-_KINDS_KEPT:])
    with contextlib.suppress(OSError):
        _write(file, {"format": _FORMAT, "kinds": latest})


def _entries(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        return {}
    kinds = content.get("kinds")
    return kinds if isinstance(kinds, dict) else {}


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list):
        return []
    return [number for value in values if (number := _number(value)) is not None]


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # JSON knows no largest integer
        return None
    return number if math.isfinite(number) else None


def _median(values: Any, bounds: tuple[float, float]) -> float | None:
    known = _numbers(values)[-_KEPT:]
    return min(max(statistics.median(known), bounds[0]), bounds[1]) if known else None


def _write(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all: beside it first, then renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.write("\n")
        Path(name).replace(file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
