"""The model card of an adapter: what it is of, what it was taught, what it gained, under which licence, and how again.

Same run, same bytes: nothing of the clock or of this machine's folders stands in it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from backends.kinds import installed
from jobs.base import is_local, public_name
from jobs.checkpoint import replace_file
from jobs.reproduction import commands, public_repository, published
from jobs.spec import Config

FILE = "README.md"
_TEMPLATE = "card.md"
_LIBRARIES = ("repotune", "torch", "transformers", "peft")
#: Licences of files that are named one by one.
_LICENCE_FILES = 12
_SPLITS = {"held_out": "held-out files", "future": "newer commits"}
#: What an evaluation measured: key -> (name, decimals).
_SCORES = {
    "loss": ("loss", 4),
    "perplexity": ("perplexity", 3),
    "bits_per_byte": ("bits per byte", 4),
    "fim_exact": ("fill-in exact", 3),
    "fim_similarity": ("fill-in similarity", 3),
    "next_line_exact": ("next line exact", 3),
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card tells."""

    #: As it held on `device`.
    config: Config
    #: What the training gave.
    result: Mapping[str, Any]
    #: The dataset's manifest.
    manifest: Mapping[str, Any]
    #: The device's name, e.g. `mps`.
    device: str
    #: Of the base; None where it is not known.
    licence: str | None = None
    #: The dataset's `stats.json`, as far as it is there.
    stats: Mapping[str, Any] = field(default_factory=dict)
    #: `evaluation.json`, where there is one.
    evaluation: Mapping[str, Any] = field(default_factory=dict)


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write `folder/README.md`; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"),
        autoescape=False,  # noqa: S701 - Markdown; `_cell` keeps values from breaking its tables
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(_TEMPLATE).render(**_values(facts))
    file = folder / FILE
    replace_file(file, text.encode())
    return file


def read_object(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _values(facts: CardFacts) -> dict[str, Any]:
    name, revision = facts.config.model.name, facts.config.model.revision
    repository = public_repository(facts.manifest)
    columns, rows = _results(facts)
    return {
        "base_id": None if is_local(name) else name,
        "base": f"`{public_name(name)}`",
        "base_argument": _base_argument(name, revision),
        "title": f"{_short(public_name(name))} for {_short(repository)}",
        "repository": f"`{repository}`",
        "licence": facts.licence,
        "summary": [(key, _cell(value)) for key, value in _summary(facts)],
        "data": [(key, _cell(value)) for key, value in _data(facts)],
        "redactions": _redactions(facts.stats),
        "results_text": _results_text(facts),
        "columns": columns,
        "rows": rows,
        "commands": commands(*published(facts.config, facts.manifest), facts.device),
        "versions": ", ".join(f"{name} {version}" for name, version in installed(_LIBRARIES).items()),
    }


def _base_argument(name: str, revision: str | None) -> str:
    """What `from_pretrained` takes to find the base again."""
    public = public_name(name)
    if public.endswith(".gguf"):
        return f'"path/to/its/folder", gguf_file="{public}"'
    return f'"{public}", revision="{revision}"' if revision else f'"{public}"'


def _short(name: str) -> str:
    """The last part of an id or URL, without its ending."""
    return name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git").removesuffix(".gguf")


def _summary(facts: CardFacts) -> Iterator[tuple[str, str]]:
    lora, quantization = facts.config.lora, facts.config.quantization
    kinds = [name for name, chosen in (("rsLoRA", lora.rslora), ("DoRA", lora.dora)) if chosen]
    targets = lora.target_modules
    yield "Base model", public_name(facts.config.model.name) + _at(facts.config.model.revision)
    yield "Adapter", f"{' and '.join(kinds) or 'LoRA'}, rank {lora.rank}, alpha {lora.alpha:g}"
    yield "Layers with an adapter", targets if isinstance(targets, str) else ", ".join(targets)
    yield "Base in training", {"none": "full precision"}.get(quantization.kind, quantization.kind)
    yield "Steps", f"{facts.result['steps']:,} with {facts.result['tokens']:,} predicted tokens"
    yield "Row length", f"{facts.manifest['sequence_length']:,} tokens"
    yield "Learning rate", f"{facts.config.optimization.learning_rate:g}, {facts.config.optimization.optimizer}"


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _data(facts: CardFacts) -> Iterator[tuple[str, str]]:
    manifest = facts.manifest
    yield "Repository", public_repository(manifest)
    yield "Commit", str(manifest.get("commit", "-"))
    if manifest.get("trained_until") not in (None, manifest.get("commit")):
        yield "Newest commit learned", str(manifest["trained_until"])
    for split, title in (("train", "Training"), ("held_out", "Held out"), ("future", "Newer commits")):
        counts = manifest["splits"].get(split, {})
        parts = [f"{counts[unit]:,} {unit}" for unit in ("rows", "tokens", "labels") if unit in counts]
        if parts:
            yield title, ", ".join(parts)
    yield "Dataset", f"sha256 {facts.result.get('dataset_sha256', '-')}"
    yield from _licences(facts.stats)


def _licences(stats: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Licence files and headers that the dataset's builder found in the repository."""
    found = stats.get("licences") or {}
    files = [f"{one.get('path')} ({one.get('spdx') or 'not recognised'})" for one in found.get("files") or []]
    more = f" and {len(files) - _LICENCE_FILES} more" if len(files) > _LICENCE_FILES else ""
    yield "Licence files", ", ".join(files[:_LICENCE_FILES]) + more if files else "none found"
    if headers := found.get("headers"):
        yield "Licences that files name", ", ".join(f"{name} ({count})" for name, count in headers.items())


def _redactions(stats: Mapping[str, Any]) -> str:
    total = (stats.get("redactions") or {}).get("total")
    return f" ({total:,} places)" if isinstance(total, int) else ""


def _results_text(facts: CardFacts) -> str:
    if facts.evaluation:
        return (
            "Base against adapter on what was never trained on; in brackets the 95 % interval of the difference, by "
            "bootstrap over files."
        )
    rows, tokens = facts.result.get("held_out_rows", 0), facts.result.get("held_out_tokens", 0)
    return f"On {tokens:,} tokens ({rows:,} rows) of files that were never trained on:"


def _results(facts: CardFacts) -> tuple[list[str], list[list[str]]]:
    if facts.evaluation:
        return _evaluated(facts.evaluation)
    result = facts.result
    names = [name for name in ("loss", "perplexity") if f"{name}_before" in result]
    rows = [[name, _number(result[f"{name}_before"], 4), _number(result[f"{name}_after"], 4)] for name in names]
    return ["", "base", "with the adapter"], rows


def _evaluated(evaluation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for split, title in _SPLITS.items():
        scores = (evaluation.get("splits") or {}).get(split) or {}
        base, adapter, difference = (scores.get(side) or {} for side in ("base", "adapter", "difference"))
        for key, (name, decimals) in _SCORES.items():
            if base.get(key) is not None and adapter.get(key) is not None:
                sides = [_number(side[key], decimals) for side in (base, adapter)]
                rows.append([title, name, *sides, _interval(difference.get(key), decimals)])
    return ["on", "measure", "base", "with the adapter", "difference"], rows


def _interval(difference: Any, decimals: int) -> str:
    if not isinstance(difference, Mapping):
        return "-"
    mean, low, high = (_number(difference.get(key), decimals) for key in ("mean", "low", "high"))
    return mean if "-" in {low, high} else f"{mean} [{low}, {high}]"


def _number(value: Any, decimals: int) -> str:
    return f"{value:.{decimals}f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _cell(value: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(value.split()).replace("|", "\\|")
