"""An evaluation as people read it on a terminal: a table for each split, and completions beside the truth."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_TITLES = {"future": "Newer commits", "held_out": "Held-out files"}
#: Metric -> what people call it.
_NAMES = {
    "loss": "loss, nats a token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "next_line_exact": "next line exact",
    "fim_exact": "middle exact",
    "fim_similarity": "middle similarity",
}
_KINDS = {"next_line": "the rest of a line", "fill": "a middle"}
#: Languages of a split that have a line of their own.
_LANGUAGES = 8


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """One for each split that was measured."""
    for split, title in _TITLES.items():
        found = result["splits"].get(split)
        if found is not None:
            yield _table(f"{title}: {found['documents']} documents, {found['tokens']} tokens", found)


def _table(title: str, found: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    sides = [side for side in ("base", "adapter") if side in found]
    for heading in ("", *sides, *(["difference, 95 % interval"] if "difference" in found else [])):
        table.add_column(heading, justify="right" if heading in sides else "left", no_wrap=True)
    for metric, name in _NAMES.items():
        if found[sides[0]][metric] is not None:
            table.add_row(name, *_cells(found, metric, sides))
    by_size = sorted(found["languages"].items(), key=lambda item: (-item[1]["tokens"], item[0]))
    for language, part in by_size[:_LANGUAGES]:
        if part[sides[0]]["loss"] is not None and len(by_size) > 1:
            table.add_row(f"loss, {language}", *_cells(part, "loss", sides))
    return table


def _cells(found: Mapping[str, Any], metric: str, sides: list[str]) -> Iterator[str]:
    yield from (_number(found[side][metric]) for side in sides)
    difference = found.get("difference", {}).get(metric)
    if difference is not None:
        yield f"{_number(difference['mean'])}{_bounds(difference)}"


def _bounds(difference: Mapping[str, float | None]) -> str:
    if difference["low"] is None or difference["high"] is None:
        return ""
    return f"  [{_number(difference['low'])}, {_number(difference['high'])}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"  # noqa: PLR2004


def samples(result: Mapping[str, Any]) -> Iterator[Text]:
    """Completions with what stands before them and what really comes."""
    for sample in result["samples"]:
        text = Text(f"\n{sample['path']}, {_KINDS[sample['kind']]}\n", style="bold")
        text.append(f"{sample['prompt_tail']}\n", style="dim not bold")
        for name in ("truth", "base", "adapter"):
            if name in sample:
                text.append(f"{name:>8}  {sample[name]}\n", style="not bold")
        yield text
