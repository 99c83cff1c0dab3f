"""The page that a finished training leaves behind: one HTML file, nothing fetched, readable in light and dark."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from jobs import chart, metrics
from jobs.checkpoint import replace_file
from jobs.evaluation import HeldOut
from jobs.spec import Config

FILE = "report.html"

_LIBRARIES = ("repotune", "torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the page tells beside `metrics.jsonl`."""

    config: Config
    result: Mapping[str, Any]
    measurements: Sequence[HeldOut]
    #: The dataset's manifest.
    manifest: Mapping[str, Any]
    #: The device's name, e.g. `mps`.
    device: str
    #: What the backend said when it loaded the model.
    notes: Sequence[str]


def write_report(output: Path, facts: Facts) -> Path:
    """Write `output/report.html` from `output/metrics.jsonl` and `facts`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = chart.number
    steps = metrics.read_metrics(output / metrics.FILE)
    page = environment.get_template(FILE).render(
        facts=facts,
        steps=steps,
        duration=_duration(float(facts.result["seconds"])),
        loss=_loss_chart(steps, facts.measurements),
        rate=chart.line_chart([(step["step"], step["lr"]) for step in steps], from_zero=True),
        speed=chart.line_chart([(step["step"], step["tokens_per_second"]) for step in steps], from_zero=True),
        peak_memory=max((step["memory_bytes"] for step in steps), default=0) / 1e9,
        dataset=_dataset_facts(facts.manifest),
        settings=_settings(facts.config),
        machine=_machine(facts.device),
        base_argument=_base_argument(facts.config),
        title=_title(facts.config.model.name),
    )
    file = output / FILE
    replace_file(file, page.encode())
    return file


def _loss_chart(steps: Sequence[Mapping[str, Any]], measurements: Sequence[HeldOut]) -> chart.Chart:
    markers = [(one.step, one.loss, f"step {one.step}: held-out loss {one.loss:.4f}") for one in measurements]
    return chart.line_chart([(step["step"], step["loss"]) for step in steps], markers=markers, smooth=True)


def _dataset_facts(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    source = manifest.get("source")
    repository = source.get("repository") if isinstance(source, Mapping) else source
    facts = [("Repository", repository), ("Commit", manifest.get("commit"))]
    facts.append(("Row length", f"{manifest['sequence_length']:,} tokens"))
    for split, title in (("train", "Training"), ("held_out", "Held out"), ("future", "Newer commits")):
        counts = manifest["splits"].get(split, {})
        parts = [f"{counts[unit]:,} {unit}" for unit in ("files", "rows", "tokens") if unit in counts]
        facts.append((title, ", ".join(parts)))
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


def _title(model: str) -> str:
    """A hub id as it is, the last part of a path."""
    return Path(model).name if Path(model).is_absolute() or Path(model).suffix == ".gguf" else model


def _base_argument(config: Config) -> str:
    """What `from_pretrained` takes to find the base again."""
    name = Path(config.model.name)
    if name.suffix == ".gguf":
        return f"{str(name.parent)!r}, gguf_file={name.name!r}"
    revision = f", revision={config.model.revision!r}" if config.model.revision else ""
    return f"{config.model.name!r}{revision}"


def _machine(device: str) -> list[tuple[str, str]]:
    facts = [("Device", device), ("System", platform.platform()), ("Python", platform.python_version())]
    for library in _LIBRARIES:
        try:
            facts.append((library, metadata.version(library)))
        except metadata.PackageNotFoundError:
            continue
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
