"""The page that a training leaves behind, however it ends: one HTML file, nothing fetched, for light and dark."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from backends.kinds import installed
from jobs import chart, comparison, metrics
from jobs.checkpoint import replace_file
from jobs.evaluation import HeldOut
from jobs.happenings import MARKED, Happening, happenings, skipped_steps
from jobs.reproduction import commands
from jobs.spec import Config

FILE = "report.html"

_LIBRARIES = ("repotune", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the page tells beside `metrics.jsonl`."""

    config: Config
    #: `steps`, `tokens`, `seconds`; of a finished run also the losses before and after, and the adapter's folder.
    result: Mapping[str, Any]
    measurements: Sequence[HeldOut]
    #: The dataset's manifest.
    manifest: Mapping[str, Any]
    #: The device's name, e.g. `mps`.
    device: str
    #: What the backend said when it loaded the model.
    notes: Sequence[str]
    #: How the run computed (`Execution.to_json`).
    execution: Mapping[str, Any] = field(default_factory=dict)
    #: What happened on the way (`Incident.to_json`).
    incidents: Sequence[Mapping[str, Any]] = ()
    #: What `evaluation.json` holds.
    evaluation: Mapping[str, Any] | None = None
    #: Why the run ended before its last step, one sentence; "" where it did not.
    ending: str = ""


def write_report(output: Path, facts: Facts) -> Path:
    """Write `output/report.html` from `output/metrics.jsonl` and `facts`."""
    steps = metrics.read_metrics(output / metrics.FILE)
    happened = happenings(facts.incidents, steps)
    page = (
        _templates()
        .get_template(FILE)
        .render(
            facts=facts,
            headline=_headline(facts, steps),
            happened=happened,
            skipped=len(skipped_steps(steps)),
            tables=comparison.tables(facts.evaluation),
            languages=comparison.language_tables(facts.evaluation),
            samples=comparison.samples(facts.evaluation),
            dataset=_dataset_facts(facts.manifest),
            settings=_settings(facts.config),
            machine=_machine(facts),
            commands=commands(facts.config, facts.manifest, facts.device),
            base_argument=_base_argument(facts.config),
            title=title(facts.config.model.name),
            **_charts(steps, facts, happened),
        )
    )
    file = output / FILE
    replace_file(file, page.encode())
    return file


def title(model: str) -> str:
    """A hub id as it is, the last part of a path."""
    return Path(model).name if Path(model).is_absolute() or Path(model).suffix == ".gguf" else model


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = chart.number
    return environment


@dataclass(frozen=True, kw_only=True)
class _Headline:
    """The numbers at the top."""

    before: HeldOut | None
    #: Of the published adapter, or the newest measurement.
    after: HeldOut | None
    steps: int
    tokens: int
    duration: str
    tokens_per_second: float
    peak_memory_gb: float

    @property
    def is_better(self) -> bool:
        """Whether the adapter is the better one on held-out code."""
        return self.before is not None and self.after is not None and self.after.loss < self.before.loss


def _headline(facts: Facts, steps: Sequence[Mapping[str, Any]]) -> _Headline:
    seconds, tokens = float(facts.result["seconds"]), int(facts.result["tokens"])
    measured = sorted(facts.measurements, key=lambda one: one.step)
    published = facts.result.get("published_step")
    return _Headline(
        before=next((one for one in measured if one.step == 0), None),
        after=next((one for one in reversed(measured) if one.step and published in {None, one.step}), None),
        steps=int(facts.result["steps"]),
        tokens=tokens,
        duration=_duration(seconds),
        tokens_per_second=round(tokens / seconds) if seconds else 0,
        peak_memory_gb=max((step["memory_bytes"] for step in steps), default=0) / 1e9,
    )


def _charts(steps: Sequence[Mapping[str, Any]], facts: Facts, happened: Sequence[Happening]) -> dict[str, chart.Chart]:
    marks = [(one.step, f"step {one.step}: {one.message}") for one in happened if one.kind in MARKED]
    # Two of one step are those before and after a seam, in that order.
    measured = sorted(facts.measurements, key=lambda one: one.step)
    markers = [(one.step, one.loss, f"step {one.step}: held-out loss {one.loss:.4f}") for one in measured]

    def course(key: str, scale: float = 1.0) -> list[tuple[float, float | None]]:
        return [(step["step"], None if step[key] is None else step[key] * scale) for step in steps]

    return {
        "loss": chart.line_chart(course("loss"), markers=markers, marks=marks, smooth=True),
        "rate": chart.line_chart(course("lr"), from_zero=True),
        "norm": chart.line_chart(course("grad_norm"), marks=marks, from_zero=True),
        "speed": chart.line_chart(course("tokens_per_second"), marks=marks, from_zero=True),
        "memory": chart.line_chart(course("memory_bytes", 1e-9), marks=marks, from_zero=True),
    }


def _dataset_facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    source = manifest.get("source")
    repository = source.get("repository") if isinstance(source, Mapping) else source
    facts = [("Repository", repository), ("Commit", manifest.get("commit"))]
    facts += [
        ("Also", f"{one.get('repository')} at {str(one.get('commit'))[:12]}")
        for one in list(manifest.get("sources") or ())[1:]
    ]
    facts.append(("Row length", f"{manifest['sequence_length']:,} tokens"))
    for split, name in (("train", "Training"), ("held_out", "Held out"), ("future", "Newer commits")):
        counts = manifest["splits"].get(split, {})
        parts = [f"{counts[unit]:,} {unit}" for unit in ("files", "rows", "tokens") if unit in counts]
        facts.append((name, ", ".join(parts)))
    return [(name, str(value)) for name, value in facts if value]


def _settings(config: Config) -> list[tuple[str, list[tuple[str, str]]]]:
    sections = config.model_dump(mode="json", exclude={"mps", "cuda", "cpu"})
    return [(name, [(key, _shown(value)) for key, value in keys.items()]) for name, keys in sections.items()]


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _base_argument(config: Config) -> str:
    """What `from_pretrained` takes to find the base again."""
    name = Path(config.model.name)
    if name.suffix == ".gguf":
        return f"{str(name.parent)!r}, gguf_file={name.name!r}"
    revision = f", revision={config.model.revision!r}" if config.model.revision else ""
    return f"{config.model.name!r}{revision}"


#: What `Execution` says, in the words of people.
_COMPUTING = {
    "dtype": "Computes in",
    "micro_batch": "Micro-batch",
    "checkpointing": "Gradient checkpointing",
    "attention": "Attention",
    "compile": "Compiled",
    "threads": "Threads",
}


def _machine(facts: Facts) -> list[tuple[str, str]]:
    rows = [("Device", facts.device), ("Processor", f"{platform.processor() or platform.machine()}, {_cores()} cores")]
    rows += [("System", platform.platform()), ("Python", platform.python_version())]
    rows += installed(_LIBRARIES).items()
    return rows + [
        (name, _on_or_off(facts.execution[key])) for key, name in _COMPUTING.items() if key in facts.execution
    ]


def _cores() -> int:
    return os.cpu_count() or 1


def _on_or_off(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
