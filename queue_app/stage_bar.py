"""A progress bar in the terminal for one job."""

from typing import Any

from queue_app.lines import Event, describe


class StageBar:
    """A progress bar of the present stage; all else as lines above it."""

    def __init__(self, description: str, *, to_stderr: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=to_stderr, highlight=False),
            transient=True,
        )
        self._task = self._bar.add_task(description, total=None, detail="")
        self._bar.start()

    def show(self, event: Event, prefix: str = "") -> None:
        """Move the bar, or print a line above it."""
        text = describe(event) or ""
        match event.get("event"):
            case "step":
                self.move("train", event.get("step"), event.get("total_steps"), text.partition("  ")[2])
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
        """Take the bar away."""
        self._bar.stop()
