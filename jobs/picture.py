"""The loss curve as a picture, for where a page cannot go. Needs matplotlib, and does without where there is none."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jobs.chart import smoothed, thinned
from jobs.checkpoint import replace_file
from jobs.evaluation import HeldOut

FILE = "curve.png"

_INCHES, _DPI = (8.0, 4.5), 160
_TRAINING, _HELD_OUT = "#2f6fdb", "#d9580d"


def write_picture(
    output: Path, title: str, steps: Sequence[Mapping[str, Any]], measurements: Sequence[HeldOut]
) -> Path | None:
    """Write `output/curve.png`; None where matplotlib is not installed.

    Args:
        output: Folder.
        title: Of the picture.
        steps: Lines of `metrics.jsonl`.
        measurements: Of the held-out loss.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own old parts, which nobody here can do anything about
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return None
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        _draw(figure.subplots(), title, steps, measurements)
        picture = BytesIO()
        figure.savefig(picture, format="png")
    replace_file(output / FILE, picture.getvalue())
    return output / FILE


def _draw(axes: Any, title: str, steps: Sequence[Mapping[str, Any]], measurements: Sequence[HeldOut]) -> None:
    points = [(step["step"], step["loss"]) for step in steps if step["loss"] is not None]
    if points:
        axes.plot(*zip(*thinned(points), strict=True), color=_TRAINING, alpha=0.3, linewidth=1)
        smooth = thinned(smoothed(points))
        axes.plot(*zip(*smooth, strict=True), color=_TRAINING, linewidth=1.8, label="training, smoothed")
    if measurements:
        measured = [(one.step, one.loss) for one in measurements]
        axes.plot(*zip(*measured, strict=True), color=_HELD_OUT, marker="o", linewidth=1, label="held out")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("nats per token")
    axes.grid(visible=True, color="#e4e2dd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if points or measurements:
        axes.legend(frameon=False)
