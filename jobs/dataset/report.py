"""The page beside a dataset: one HTML file, no script, nothing fetched, readable in light and dark and on a telephone.

It tells what went in, what was left out and why, and what the model will see. Whatever a key of the statistics lacks is
left out of the page: datasets of older versions have pages, too. No value that was redacted is known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.chart import number
from jobs.checkpoint import replace_file
from jobs.dataset.amounts import duration, percent, several, size
from jobs.dataset.bars import Bar, Column, Slice, bars, classes, columns, slices
from jobs.dataset.cache import Cache
from jobs.dataset.excerpts import Excerpt, excerpt, visible
from jobs.dataset.facts import Facts
from jobs.dataset.headlines import SPLITS, headlines, split_place

if TYPE_CHECKING:
    import jinja2

FILE = "report.html"

_TEMPLATE = "dataset_report.html"

#: Kinds of samples in the order of their colours, with the words for them.
_KINDS = {
    "context": "whole files",
    "fill": "filled in the middle",
    "edit": "message to change",
    "message": "change to message",
    "docs": "documentation",
}
_INTAKE = ("learned", "future", "merges", "left out")

#: Lines and characters of a rendered sample on the page.
_SAMPLE_LINES = 400
_SAMPLE_CHARACTERS = 24_000
#: Rows of a table that may be as long as the repository.
_MOST_ROWS = 20


@dataclass(frozen=True)
class Whole:
    """A bar of parts."""

    name: str
    parts: list[Slice]
    text: str


@dataclass(frozen=True)
class Split:
    """A row of the table of splits; texts."""

    title: str
    files: str
    samples: str
    tokens: str
    labels: str
    rows: str
    packing: str
    #: Per cent of the rows' positions that hold a token.
    packing_width: float


@dataclass(frozen=True)
class Overlap:
    """What training holds of a split; texts."""

    title: str
    share: str
    #: What is not measured for that.
    left_out: str
    #: Measured file, training source, share.
    pairs: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Stage:
    """What a stage took."""

    bar: Bar
    cpu: str
    speed: str


def write_report(
    folder: Path,
    *,
    manifest: Mapping[str, Any],
    stats: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    timing: Mapping[str, Any],
    cache: Cache,
) -> Path:
    """Write `folder/report.html`.

    Args:
        folder: The dataset's folder.
        manifest: What `manifest.json` holds: source, commit, config, versions.
        stats: What `stats.json` holds.
        examples: What `examples.json` holds: rendered samples.
        timing: Stages with their seconds and bytes, peak memory, hits of the cache.
        cache: Keeps the compiled template: compiling it takes longer than filling it in.

    Returns:
        The page.
    """
    page = (
        _environment(cache)
        .get_template(_TEMPLATE)
        .render(
            **_about(Facts(manifest), Facts(stats)),
            **_intake(Facts(stats)),
            **_mix(Facts(stats)),
            **_safety(Facts(stats)),
            **_time(Facts(timing)),
            headlines=headlines(Facts(manifest), Facts(stats), Facts(timing)),
            samples=_samples(examples),
            titles=SPLITS,
            kind_names=_KINDS,
        )
    )
    file = folder / FILE
    replace_file(file, page.encode())
    return file


def _environment(cache: Cache) -> "jinja2.Environment":
    # Loaded here: a dataset that is there already needs no page, and answers sooner.
    import jinja2

    from jobs.dataset.compiled import CompiledTemplates

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_without_surprises,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=CompiledTemplates(cache),
    )
    environment.filters["number"] = number
    environment.filters["several"] = several
    environment.globals["sample_title"] = _sample_title
    return environment


def _without_surprises(value: Any) -> Any:
    """Text of whatever origin without control characters; markup is the template's own."""
    return visible(value) if type(value) is str else value


def _about(manifest: Facts, stats: Facts) -> dict[str, Any]:
    repositories = [_repository(source) for source in _sources(manifest)]
    return {
        "title": ", ".join(_last_part(repository) for repository in repositories) or "dataset",
        "repositories": repositories,
        "commit": manifest.text("commit"),
        "notices": _notices(manifest, stats),
        "provenance": manifest.flat(without=frozenset(("files", "splits", "config"))),
        "settings": manifest.at("config").flat(),
    }


def _sources(manifest: Facts) -> list[Facts]:
    """What the dataset was made of: one repository, or several."""
    for key in ("sources", "source"):
        if rows := manifest.rows(key):
            return rows
    return [manifest.at("source")] if manifest.at("source") else []


def _repository(source: Facts) -> str:
    return source.text("repository") or source.text() or "repository"


def _last_part(repository: str) -> str:
    name = repository.rstrip("/").removesuffix("/.git").removesuffix(".git")
    return name.rpartition("/")[2].rpartition(":")[2] or repository


def _notices(manifest: Facts, stats: Facts) -> list[str]:
    """What whoever uses the dataset must know."""
    notices = []
    if any(source.at("shallow").value is True for source in _sources(manifest)):
        notices.append("The clone is shallow: nothing is known of the commits before its boundary.")
    if stats.at("fill_in_the_middle", "supported").value is False:
        notices.append(
            "The model's tokenizer has no fill-in-the-middle tokens: every sample is written from left to right."
        )
    return notices


def _intake(stats: Facts) -> dict[str, Any]:
    """What went in, and what was left out."""
    duplicates = {"exact": "Exact copies", "near": "Near copies", "clusters": "Groups of near copies"}
    wholes = [_files_whole(stats, "Files", "files"), _files_whole(stats, "Bytes", "bytes"), _commits_whole(stats)]
    return {
        "intake": [whole for whole in wholes if whole.parts],
        "dropped_files": bars(stats.numbers("dropped", "reasons")),
        "dropped_commits": bars(stats.numbers("commits", "reasons")),
        "duplicates": [
            (title, number(stats.number("duplicates", key)))
            for key, title in duplicates.items()
            if stats.at("duplicates", key)
        ],
    }


def _files_whole(stats: Facts, name: str, unit: str) -> Whole:
    kept, dropped = stats.number("kept", unit), stats.number("dropped", unit)
    written = size if unit == "bytes" else number
    return Whole(
        name, slices({"learned": kept, "left out": dropped}, _INTAKE), f"{written(kept)} of {written(kept + dropped)}"
    )


def _commits_whole(stats: Facts) -> Whole:
    total, used, future, merges = (stats.number("commits", key) for key in ("total", "used", "future", "merges"))
    parts = {"learned": used, "future": future, "merges": merges}
    parts["left out"] = max(0.0, total - sum(parts.values()))
    return Whole("Commits", slices(parts, _INTAKE), f"{number(used)} of {number(total)}")


def _mix(stats: Facts) -> dict[str, Any]:
    """What the model sees."""
    splits = {name: stats.at("splits", name) for name in _split_names(stats)}
    histograms = {name: split.numbers("lengths") for name, split in splits.items()}
    limits = classes(histograms.values())
    return {
        "kinds": _kinds(splits),
        "splits": [_split(name, split) for name, split in splits.items()],
        "shown_again": sum(split.number("shown_again") for split in splits.values()),
        "languages": _languages(stats),
        "repository_tokens": _repositories(stats),
        "lengths": [
            (_title(name), _labelled(columns(histogram, limits))) for name, histogram in histograms.items() if histogram
        ],
        "modes": bars(stats.numbers("splits", "train", "modes")),
        "fill": [(name.replace("_", " "), text) for name, text in stats.at("fill_in_the_middle").flat()],
    }


def _split_names(stats: Facts) -> list[str]:
    return sorted(stats.at("splits").names, key=split_place)


def _title(split: str) -> str:
    return SPLITS.get(split, split.replace("_", " ").capitalize())


def _kinds(splits: Mapping[str, Facts]) -> list[Whole]:
    """The tokens of every split by kind of sample."""
    wholes = []
    for name, split in splits.items():
        kinds = {kind: split.number("kinds", kind, "tokens") for kind in split.at("kinds").names}
        wholes.append(Whole(_title(name), slices(kinds, tuple(_KINDS)), several(sum(kinds.values()), "token")))
    return [whole for whole in wholes if whole.parts]


def _split(name: str, split: Facts) -> Split:
    tokens, labels, packing = (split.number(key) for key in ("tokens", "labels", "packing"))
    files, samples, rows = (_count(split, key) for key in ("files", "samples", "rows"))
    return Split(
        title=_title(name),
        files=files,
        samples=samples,
        tokens=_count(split, "tokens"),
        labels=f"{number(labels)} ({percent(labels / tokens)})" if labels and tokens else "-",
        rows=rows,
        packing=percent(packing) if packing else "-",
        packing_width=round(100 * min(packing, 1.0), 3),
    )


def _count(facts: Facts, key: str) -> str:
    return number(facts.number(key)) if facts.at(key) else "-"


def _languages(stats: Facts) -> list[Bar]:
    languages = stats.at("languages")
    tokens = {name: languages.number(name, "tokens") for name in languages.names}
    notes = {name: _files_note(languages.at(name)) for name in tokens}
    return bars(tokens, notes=notes)


def _repositories(stats: Facts) -> list[Bar]:
    """Training tokens of each of several repositories."""
    rows = stats.rows("repositories")
    tokens = {row.text("name"): row.number("train_tokens") for row in rows}
    weights = {row.text("name"): row.number("weight") for row in rows}
    return bars(
        tokens, notes={name: f"weight {weight:g}" if weight else "all of it" for name, weight in weights.items()}
    )


def _files_note(language: Facts) -> str:
    files, held = several(language.number("files"), "file"), language.number("bytes")
    return f"{files}, {size(held)}" if held else files


def _labelled(histogram: Sequence[Column]) -> list[Column]:
    """A histogram with at most eight named columns, the last one among them: narrow screens have no room for more."""
    step = -(-len(histogram) // 8)
    last = len(histogram) - 1
    return [
        column if (last - place) % step == 0 else Column("", column.height, column.text)
        for place, column in enumerate(histogram)
    ]


def _safety(stats: Facts) -> dict[str, Any]:
    """Leaks, secrets and licences."""
    paths = stats.at("redactions", "paths")
    places = {path: paths.numbers(path) for path in paths.names}
    licences = [(file.text("path"), file.text("spdx") or "not recognised") for file in stats.rows("licences", "files")]
    return {
        "overlaps": [
            _overlap(name, stats.at("overlap", name)) for name in SPLITS if stats.at("overlap", name, "share")
        ],
        "redactions": bool(stats.at("redactions")),
        "redaction_rules": bars(stats.numbers("redactions", "rules")),
        "redaction_paths": _redaction_paths(places)[:_MOST_ROWS],
        "more_redaction_paths": max(0, len(places) - _MOST_ROWS),
        "licences": bool(stats.at("licences")),
        "licence_files": licences[:_MOST_ROWS],
        "more_licence_files": max(0, len(licences) - _MOST_ROWS),
        "licence_headers": bars(stats.numbers("licences", "headers")),
    }


def _overlap(split: str, overlap: Facts) -> Overlap:
    pairs = [
        (pair.text("held_out"), pair.text("train"), percent(pair.number("share"))) for pair in overlap.rows("worst")
    ]
    known, lines = overlap.number("known_lines"), overlap.number("lines")
    left_out = f"{number(known)} of {several(lines, 'added line')} stood there before and are not measured."
    return Overlap(_title(split), percent(overlap.number("share")), left_out if known else "", pairs[:_MOST_ROWS])


def _redaction_paths(places: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """Paths with their rules, those with the most redactions first."""
    order = sorted(places, key=lambda path: (-sum(places[path].values()), path))
    return [
        (path, ", ".join(f"{rule}\u00a0{number(count)}" for rule, count in sorted(places[path].items())))
        for path in order
    ]


def _time(timing: Facts) -> dict[str, Any]:
    """Where the time went."""
    stages = timing.rows("stages")
    longest = max((stage.number("seconds") for stage in stages), default=0.0)
    hits, misses = timing.number("cached", "hits"), timing.number("cached", "misses")
    return {
        "stages": [_stage(stage, longest) for stage in stages],
        "total": duration(sum(stage.number("seconds") for stage in stages)),
        "total_cpu": duration(sum(stage.number("cpu_seconds") for stage in stages)),
        "cached": f"{number(hits)} of {several(hits + misses, 'part')} came from the cache." if hits + misses else "",
    }


def _stage(stage: Facts, longest: float) -> Stage:
    seconds, processed = stage.number("seconds"), stage.number("bytes")
    width = round(100 * seconds / longest, 3) if longest else 0.0
    return Stage(
        bar=Bar(stage.text("stage"), width, duration(seconds)),
        cpu=duration(stage.number("cpu_seconds")) if stage.at("cpu_seconds") else "-",
        speed=f"{processed / 1e6 / seconds:,.3g} MB/s" if processed and seconds else "-",
    )


def _samples(examples: Sequence[Mapping[str, Any]]) -> list[Excerpt]:
    ordered = sorted(examples, key=lambda example: split_place(Facts(example).text("split")))
    return [excerpt(example, lines=_SAMPLE_LINES, characters=_SAMPLE_CHARACTERS) for example in ordered]


def _sample_title(sample: Excerpt) -> str:
    """What a rendered sample is of."""
    commit = sample.commit[:12]
    return sample.path if not commit else f"{sample.path} at {commit}" if sample.path else f"commit {commit}"
