"""A progress bar in the terminal for one job, and the curve of its loss under it."""

from collections.abc import Iterable
from typing import Any

from queue_app.curve import HEIGHT, Curve
from queue_app.lines import Event, describe, is_echo

#: Lines of a terminal that a curve leaves enough of.
_TALL = HEIGHT + 12


class StageBar:
    """A progress bar of the present stage, the curve of a training under it; all else as lines above."""

    def __init__(self, description: str, *, to_stderr: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        console, curve = Console(stderr=to_stderr, highlight=False), Curve()

        class WithCurve(Progress):
            """Draws the curve below the bar."""

            def get_renderables(self) -> Iterable[Any]:
                yield from super().get_renderables()
                yield "\n".join(curve.lines(console.width - 1)) if console.height >= _TALL else ""

        self._curve = curve
        self._bar = WithCurve(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(description, total=None, detail="")
        self._bar.start()

    def show(self, event: Event, prefix: str = "") -> None:
        """Move the bar, or print a line above it."""
        text = describe(event) or ""
        match event.get("event"):
            case "step":
                self._curve.hear(event)
                self.move("train", event.get("step"), event.get("total_steps"), text.partition("  ")[2])
            case "progress" if is_echo(event):
                self._bar.update(self._task, completed=float(event.get("done") or 0), total=event.get("total"))
            case "progress":
                self.move(str(event.get("stage")), event.get("done"), event.get("total"), text.partition("  ")[2])
            case "stage":
                self.move(str(event.get("stage")), 0, None, str(event.get("message", "")))
            case _ if text:
                self.say(f"{prefix}{text}")

    def move(self, stage: str, done: Any, total: Any, detail: str) -> None:
        """Say how far which stage is; a total of None is not known."""
        self._bar.update(self._task, description=stage, completed=float(done or 0), total=total, detail=detail)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, markup=False)

    def close(self) -> None:
        """Take the bar away; the curve stays, whole."""
        self._bar.stop()
        for line in self._curve.lines(self._bar.console.width - 1):
            self.say(line)
