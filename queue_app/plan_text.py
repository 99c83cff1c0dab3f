"""A plan for people, line by line, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from backends.devices import TIERS_GIB
from jobs.repository import shown
from queue_app.plan import Code, Need, Plan, dataset_queue, takers, why_nobody
from queue_app.records import WorkerRecord
from queue_app.tables import size_text

WORKERS_UNKNOWN = "not known: the broker does not answer"


def plan_lines(plan: Plan, workers: Sequence[WorkerRecord] | None) -> list[tuple[str, str]]:
    """Labels and texts; `workers` is None when the broker does not answer."""
    lines = [("repository", source_line(plan)), ("commit", plan.source.commit)]
    lines += [("also", line) for line in also_lines(plan)]
    lines.append(("model", model_line(plan)))
    lines += [("memory", line) for line in needs_lines(plan)]
    lines += [("time", time.text) for time in plan.times]
    lines.append(("queues", f"{dataset_queue()} (dataset), {plan.queue} (training)"))
    if workers is None:
        return [*lines, ("workers", WORKERS_UNKNOWN)]
    able = takers(plan.queue, workers)
    names = ", ".join(f"{worker.name} ({worker.device_name}, {worker.state})" for worker in able)
    return [*lines, ("workers", names or why_nobody(plan.queue, workers))]


def source_line(plan: Plan | Code) -> str:
    """Where the code comes from and how much there is of it."""
    name = shown(plan.source.repository)
    if plan.files is None or plan.size_bytes is None:
        return f"{name} (fetched by the worker; its size is not known here)"
    shallow = ", a shallow clone" if plan.source.shallow else ""
    return f"{name} ({plan.files:,} files, {size_text(plan.size_bytes)}{shallow})"


def also_lines(plan: Plan) -> list[str]:
    """The further repositories."""
    return [
        f"{shown(one.repository)} at {one.commit[:12]}, {'all of it' if weight is None else f'weight {weight:g}'}"
        for one, weight in zip(plan.sources.also, plan.sources.weights, strict=True)
    ]


def model_line(plan: Plan) -> str:
    """What is known of the model."""
    if plan.model.config is None:
        return f"{plan.model.name} ({plan.model.problem})"
    here = "; only workers that have this path can load it" if plan.model.is_path else ""
    return f"{plan.model.name} ({plan.model.origin}{here})"


def needs_lines(plan: Plan) -> list[str]:
    """The memory that the training needs on each device, by part."""
    if not plan.needs:
        return [f"not known, so the smallest tier ({TIERS_GIB[0]} GB) is asked for"]
    return [_need_line(need) for need in plan.needs]


def plan_as_json(plan: Plan, workers: Sequence[WorkerRecord] | None) -> dict[str, Any]:
    """The plan as one JSON object; `workers` is null where they are not known."""
    return {
        "name": plan.name,
        "repository": shown(plan.source.repository),
        "commit": plan.source.commit,
        "also": [
            {"repository": shown(one.repository), "commit": one.commit, "weight": weight}
            for one, weight in zip(plan.sources.also, plan.sources.weights, strict=True)
        ],
        "files": plan.files,
        "bytes": plan.size_bytes,
        "model": {"name": plan.model.name, "origin": plan.model.origin, "problem": plan.model.problem},
        "needs": [asdict(need) for need in plan.needs],
        "need_bytes": plan.need_bytes,
        "seconds": {time.device: [round(time.range.low), round(time.range.high)] for time in plan.times},
        "queue": plan.queue,
        "dataset_queue": dataset_queue(),
        "workers": None if workers is None else [worker.name for worker in takers(plan.queue, workers)],
        "why_none": None if workers is None else why_nobody(plan.queue, workers),
    }


def _need_line(need: Need) -> str:
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in need.parts.items())
    return f"{size_text(need.total_bytes)} ({need.total_bytes:,} bytes) on {need.device}, tier {need.tier} GB: {parts}"
