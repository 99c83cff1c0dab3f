"""How records look to people: tables and lines. The same records as JSON are in `as_json`."""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from backends.devices import GIB
from jobs.repository import shown
from jobs.states import TERMINAL, State
from queue_app.records import JobRecord, WorkerRecord

# Piped tables are never folded or cut: whoever reads them has no screen.
_PIPED_WIDTH = 10_000


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on standard output, cut to the terminal where there is one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    for column in table.columns:
        column.no_wrap = True
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False).print(table)


def print_jobs(jobs: Sequence[JobRecord]) -> None:
    """One line a job."""
    columns = ("JOB", "KIND", "NAME", "STATE", "PROGRESS", "LEFT", "QUEUE", "WORKER", "AGE")
    now = time.time()
    print_table(
        columns,
        [
            (
                *(job.id, job.kind, job.name, job.state),
                *(progress_text(job), time_left(job), job.queue, job.worker, ago(now, job.created_at)),
            )
            for job in jobs
        ],
    )


def print_workers(workers: Sequence[WorkerRecord]) -> None:
    """One line a worker."""
    columns = ("WORKER", "DEVICE", "NAME", "MEMORY", "SERVES", "STATE", "JOB")
    rows = [(w.name, w.device, w.device_name, size_text(w.memory_bytes), served(w), w.state, w.job_id) for w in workers]
    print_table(columns, rows)


def served(worker: WorkerRecord) -> str:
    """The queues of a worker in short: the largest tier of each device, e.g. `cuda.24g any.24g`."""
    largest: dict[str, str] = {}
    for queue in worker.queues:
        largest.setdefault(queue.partition(".")[0], queue)
    return " ".join(largest.values())


def job_lines(job: JobRecord, why: str) -> list[tuple[str, str]]:
    """What `show` says of a job: labels and texts, only those that have something to say."""
    spec = json.loads(job.spec)
    source = spec.get("source") or {}
    checkpoint = job.checkpoint or {}
    lines = [
        ("job", f"{job.id} ({job.kind}, {job.name})"),
        ("state", f"{job.state}{f' ({job.cause})' if job.cause else ''}"),
        ("why", why),
        ("repository", f"{shown(source['repository'])} at {source['commit'][:12]}" if source else ""),
        ("model", spec["config"]["model"]["name"]),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("need", size_text(job.need_bytes) if job.need_bytes else "not known"),
        ("worker", job.worker),
        ("attempt", str(job.attempt)),
        ("after", job.depends_on or ""),
        ("submitted", clock(job.created_at)),
        ("started", clock(job.started_at)),
        ("finished", clock(job.finished_at)),
        ("progress", progress_text(job)),
        ("time left", time_left(job)),
        ("checkpoint", f"step {checkpoint['step']}" if checkpoint else ""),
        *result_lines(job.result),
    ]
    return [(label, text) for label, text in lines if text]


def result_lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a result says to people."""
    lines = []
    if "loss_after" in result:
        lines += [
            ("held-out loss", f"{number(result.get('loss_before'))} -> {number(result['loss_after'])}"),
            (
                "perplexity",
                f"{number(result.get('perplexity_before'))} -> {number(result.get('perplexity_after'))}",
            ),
        ]
    if result.get("future_loss_after") is not None:
        lines.append(("newer commits", _future(result)))
    counts = [f"{result[key]:,} {text}" for key, text in _COUNTS.items() if isinstance(result.get(key), int)]
    if counts:
        lines.append(("result", ", ".join(counts)))
    return lines


def _future(result: Mapping[str, Any]) -> str:
    """The loss on code that nobody had written when training ended, and how sure the difference is."""
    low, high = result.get("future_interval") or (None, None)
    losses = f"loss {number(result.get('future_loss_before'))} -> {number(result['future_loss_after'])}"
    return losses if low is None or high is None else f"{losses} (difference {low:+.3f} to {high:+.3f}, 95 %)"


_COUNTS = {
    "files": "files",
    "samples": "samples",
    "train_tokens": "training tokens",
    "held_out_tokens": "held-out tokens",
    "steps": "steps",
    "tokens": "tokens",
}


def progress_text(job: JobRecord) -> str:
    """How far a job is, in a few words."""
    step, progress, stage = (job.progress.get(kind, {}) for kind in ("step", "progress", "stage"))
    if step and (job.state in TERMINAL or progress.get("unit") == "steps" or not progress):
        return f"step {step.get('step')}/{step.get('total_steps')}, loss {number(step.get('loss'))}"
    if job.state in TERMINAL:
        return ""
    if progress.get("total") and progress.get("stage") == stage.get("stage"):
        return f"{progress['stage']} {100 * progress['done'] / progress['total']:.0f} %"
    return str(stage.get("stage", ""))


def time_left(job: JobRecord) -> str:
    """How long a running job will still take; "" where it does not tell."""
    seconds = seconds_left(job)
    return "" if seconds is None else f"about {duration(seconds)}"


def seconds_left(job: JobRecord) -> float | None:
    """By the estimate of its newest step, less what has passed since by the job's own clock; None when over."""
    step, stage = job.progress.get("step", {}), job.progress.get("stage", {})
    seconds, moment = step.get("eta_seconds"), float(step.get("time") or 0)
    begins_anew = stage.get("stage") not in _AFTER_THE_FIRST_STEP and float(stage.get("time") or 0) > moment
    if job.state != State.RUNNING or begins_anew or not isinstance(seconds, int | float):
        return None
    latest = max(float(event.get("time") or 0) for event in job.progress.values())
    left = seconds - max(0.0, latest - moment)
    return round(left, 1) if left > 0 else None


#: Stages in which the newest step is one of this attempt.
_AFTER_THE_FIRST_STEP = frozenset({"train", "evaluate", "save"})


def as_json(record: JobRecord | WorkerRecord) -> dict[str, Any]:
    """A record as JSON shows it: `job` or `worker` names it, the spec is an object."""
    data = asdict(record)
    if isinstance(record, WorkerRecord):
        return {"worker": data.pop("name"), **data}
    del data["claim_id"]
    spec = json.loads(record.spec)
    if spec.get("source"):
        spec["source"]["repository"] = shown(spec["source"]["repository"])
    return {"job": data.pop("id"), **data, "spec": spec, "seconds_left": seconds_left(record)}


def number(value: Any) -> str:
    """A loss or a rate for people."""
    return f"{value:.4g}" if isinstance(value, int | float) else "?"


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", GIB), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """A duration for people."""
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 90:  # noqa: PLR2004 - from here on people count minutes
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"  # noqa: PLR2004


def ago(now: float, moment: float) -> str:
    """How long `moment` is past; "" where it never came."""
    return duration(max(now - moment, 0)) if moment else ""


def clock(moment: float) -> str:
    """A moment in local time; "" where it never came."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) if moment else ""
