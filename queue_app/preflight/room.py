"""Is there room on the disk: for checkpoints, the dataset, and a model that must be fetched."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from jobs.spec import OutputSection
from queue_app.plan import Plan
from queue_app.preflight.line import CheckLine, Grade, passed
from queue_app.settings import Settings
from queue_app.tables import size_text

#: Bytes of a dataset for one byte of code: rows, flags and the samples beside them, with the history's share.
DATASET_PER_BYTE = 4
#: A disk that would be fuller than this afterwards is worth a word.
_SPARE = 1.25


def disk_need(plan: Plan, output: OutputSection, download_bytes: int) -> dict[str, int]:
    """Bytes by part that a training takes on the disk of the machine that runs it.

    A checkpoint holds the adapter and the state of its optimizer. As many as are kept lie in the work folder with the
    one that is being written, and once more in the artifact store.
    """
    snapshot = max((need.parts["adapters"] // 2 + need.parts["optimizer"] for need in plan.needs), default=0)
    kept = output.keep_checkpoints + int(output.keep_best)
    parts = {
        "checkpoints": snapshot * (2 * kept + 1),
        "dataset": (plan.size_bytes or 0) * DATASET_PER_BYTE,
        "model": download_bytes,
    }
    return {name: size for name, size in parts.items() if size}


def disk_line(need: Mapping[str, int], settings: Settings, lacking: Grade) -> CheckLine:
    """Whether the disk of REPOTUNE_HOME has room for what is needed."""
    folder = existing(settings.home)
    free, total = shutil.disk_usage(folder).free, sum(need.values())
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in need.items()) or "nothing known"
    text = f"{size_text(free)} free at {folder}; the training takes about {size_text(total)} ({parts})"
    remedy = "make room, set REPOTUNE_HOME to another disk, or lower output.keep_checkpoints"
    if free < total:
        return CheckLine(name="disk", grade=lacking, text=text, remedy=remedy)
    if free < total * _SPARE:
        return CheckLine(name="disk", grade=Grade.WARN, text=f"{text}, which leaves little", remedy=remedy)
    return passed("disk", text)


def existing(folder: Path) -> Path:
    """The nearest folder above that exists: what will be made below lies on its disk."""
    return next(place for place in (folder, *folder.parents) if place.is_dir())
