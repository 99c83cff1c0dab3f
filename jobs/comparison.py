"""Base and adapter beside each other, as the report shows them: scores with their intervals, by language, completions.

Reads what `evaluation.json` holds, and leaves out what it does not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Name -> what people call it, its format, whether less is better. In the order of the table.
_SCORES = {
    "loss": ("Loss, nats per token", "{:.3f}", True),
    "perplexity": ("Perplexity", "{:.4g}", True),
    "bits_per_byte": ("Bits per byte", "{:.3f}", True),
    "fim_exact": ("Gap filled exactly", "{:.1%}", False),
    "fim_similarity": ("Gap, edit similarity", "{:.1%}", False),
    "next_line_exact": ("Next line exactly", "{:.1%}", False),
}
_SPLITS = {"future": "Newer commits", "held_out": "Held-out files"}
#: Completions on the page, and characters of each part of one.
_SAMPLES, _SAMPLE_CHARACTERS = 12, 1200
#: Languages on the page: those of the most tokens.
_LANGUAGES = 12


@dataclass(frozen=True, kw_only=True)
class Score:
    """A line of the table, written for people."""

    name: str
    base: str
    adapter: str
    #: Adapter less base; "" where it was not measured.
    difference: str
    #: Its interval; "" where it has none.
    interval: str
    #: "better" or "worse" where the interval leaves out zero, else "".
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """One split, or one language of it."""

    title: str
    #: How much was measured.
    subtitle: str
    scores: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion."""

    path: str
    prompt: str
    truth: str
    base: str
    adapter: str


def tables(evaluation: Mapping[str, Any] | None) -> list[Table]:
    """A table for each split that was measured, the newer commits first."""
    splits = (evaluation or {}).get("splits") or {}
    return [_table(title, splits[name]) for name, title in _SPLITS.items() if splits.get(name)]


def language_tables(evaluation: Mapping[str, Any] | None) -> list[Table]:
    """A table for each language of a split that has several."""
    splits = (evaluation or {}).get("splits") or {}
    found = []
    for name, title in _SPLITS.items():
        languages = (splits.get(name) or {}).get("languages") or {}
        most = sorted(languages, key=lambda language: -languages[language].get("tokens", 0))[:_LANGUAGES]
        if len(languages) > 1:
            found += [_table(f"{title}: {language}", languages[language]) for language in most]
    return found


def samples(evaluation: Mapping[str, Any] | None) -> list[Sample]:
    """The first completions."""
    return [
        Sample(
            path=_short(one.get("path")),
            prompt=_short(one.get("prompt_tail"), from_end=True),
            truth=_short(one.get("truth")),
            base=_short(one.get("base")),
            adapter=_short(one.get("adapter")),
        )
        for one in ((evaluation or {}).get("samples") or ())[:_SAMPLES]
    ]


def _table(title: str, split: Mapping[str, Any]) -> Table:
    parts = [f"{split[unit]:,} {unit}" for unit in ("documents", "tokens", "bytes") if split.get(unit)]
    return Table(title=title, subtitle=", ".join(parts), scores=tuple(_scores(split)))


def _scores(split: Mapping[str, Any]) -> Iterator[Score]:
    base, adapter, differences = (split.get(part) or {} for part in ("base", "adapter", "difference"))
    for key, (name, form, less_is_better) in _SCORES.items():
        values = base.get(key), adapter.get(key)
        if values == (None, None):
            continue
        difference = differences.get(key) or {}
        yield Score(
            name=name,
            base=_text(values[0], form),
            adapter=_text(values[1], form),
            difference=_difference(difference.get("mean"), form),
            interval=_interval(difference, form),
            verdict=_verdict(difference, less_is_better=less_is_better),
        )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _difference(mean: float | None, form: str) -> str:
    return "" if mean is None else _signed(form).format(mean)


def _interval(difference: Mapping[str, float | None], form: str) -> str:
    low, high = difference.get("low"), difference.get("high")
    return "" if low is None or high is None else f"{_signed(form).format(low)} to {_signed(form).format(high)}"


def _signed(form: str) -> str:
    return form.replace("{:", "{:+")


def _verdict(difference: Mapping[str, float | None], *, less_is_better: bool) -> str:
    """Told only where chance is no likely reason: where the interval leaves out zero."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "better" if (high < 0) == less_is_better else "worse"


def _short(text: Any, *, from_end: bool = False) -> str:
    known = str(text or "")
    if len(known) <= _SAMPLE_CHARACTERS:
        return known
    return f"…{known[-_SAMPLE_CHARACTERS:]}" if from_end else f"{known[:_SAMPLE_CHARACTERS]}…"
