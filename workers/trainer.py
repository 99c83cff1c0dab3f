"""The trainer process: runs one assignment, tells about it in files. `python -P -m workers.trainer WORKDIR`.

It talks to nobody: it reads `assignment.json`, appends events to `events.jsonl` (the last one says how it ended), and
prints to `trainer.log`. SIGTERM asks it to save and leave, a second one means now. When the process that started it is
gone, it leaves at once: its lease is no longer renewed, and macOS kills no orphans by itself.
"""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from jobs.context import JobContext, StopRequested
from jobs.events import Finished, Stopped
from workers.assignment import EVENTS, OUTPUT, Assignment
from workers.event_file import EventFile
from workers.failure import failure_of

_PARENT_POLL_SECONDS = 1.0


def main() -> None:
    """Run the assignment in the folder named on the command line."""
    workdir = Path(sys.argv[1])
    assignment = Assignment.read(workdir)
    stop = threading.Event()
    _listen(stop)
    threading.Thread(target=_watch_parent, args=(assignment.parent_pid,), daemon=True).start()
    run(assignment, workdir, stop)


def run(assignment: Assignment, workdir: Path, stop: threading.Event) -> None:
    """Run the job; whatever happens, the last event says how it ended."""
    events = EventFile(workdir / EVENTS)
    output = workdir / OUTPUT
    output.mkdir(exist_ok=True)
    context = JobContext(
        output=output,
        emit=events.write,
        should_stop=stop.is_set,
        calibration=Path(assignment.calibration) if assignment.calibration else None,
    )
    try:
        # Imported here: the signal handlers and the parent watch stand before torch loads.
        from workers.run import run_assignment

        events.write(Finished(result=run_assignment(assignment, context)))
    except StopRequested:
        events.write(Stopped(step=events.last_step))
    except Exception as error:  # noqa: BLE001 - every end must be told
        traceback.print_exc()
        events.write(failure_of(error))


def _listen(stop: threading.Event) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            _leave_now()
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL_SECONDS)
    _leave_now()


def _leave_now() -> None:
    """End this process and its children (git, tokenizer helpers) without another word."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(137)


if __name__ == "__main__":
    main()
