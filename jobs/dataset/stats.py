"""Counts what went into a dataset and what was left out, as `stats.json` tells it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.dataset.candidates import History
from jobs.dataset.files import Drop, Reason
from jobs.dataset.fim import Layout, Mode
from jobs.dataset.future import Future
from jobs.dataset.languages import language_of
from jobs.dataset.overlap import OverlapReport
from jobs.dataset.reading import summed
from jobs.dataset.sides import Sides
from jobs.dataset.survey import File, Survey, reasons
from jobs.dataset.writing import Split, label_count

#: Paths whose redactions are named one by one, those with the most first.
_PATHS = 100


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the stages of a build found."""

    survey: Survey
    history: History
    sides: Sides
    splits: Sequence[Split]
    overlap: OverlapReport
    layout: Layout
    #: Version of what cuts by syntax.
    syntax: str
    commits_used: int
    #: Commits after the cut.
    future_commits: int
    #: Why commits that could have been learned were not.
    commit_reasons: Mapping[str, int]
    #: Redactions in the commits that are learned, and in future files: (path or commit, counts).
    other_redactions: Sequence[tuple[str, Mapping[str, int]]]
    future: Future
    future_overlap: OverlapReport
    #: What each of several repositories gave; empty for one.
    repositories: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def used(self) -> list[File]:
        """The files that are learned or held out."""
        inside = {(part.path, part.blob) for split in self.splits for item in split.items for part in item.parts}
        return [file for file in self.survey.files if (file.path, file.blob) in inside]

    @cached_property
    def drops(self) -> list[Drop]:
        """The files that are not, by path: those that nobody may learn, and those for which there is no room."""
        used = {file.name for file in self.used}
        docs = {self.survey.files[index].name for index in self.sides.docs}
        beyond = [
            Drop(
                path=file.path,
                blob=file.blob,
                bytes=file.size,
                reason=Reason.DOCS_SHARE if file.name in docs else Reason.TOKENS,
            )
            for file in self.survey.files
            if file.name not in used
        ]
        return sorted([*self.survey.drops, *beyond], key=lambda drop: (drop.path, drop.blob))


def stats(found: Findings, sequence_length: int) -> dict[str, Any]:
    """The content of `stats.json`."""
    return {
        **_files(found),
        **({"repositories": list(found.repositories)} if found.repositories else {}),
        "commits": _commits(found),
        "languages": _languages(found),
        "splits": {split.name: _split(split, sequence_length) for split in found.splits},
        "fill_in_the_middle": {
            "layout": found.layout.name,
            "supported": found.layout.fill is not None,
            "syntax": found.syntax,
            "held_out": "never: held-out files are written from left to right, so that losses can be compared",
        },
        "duplicates": {
            "exact": reasons(found.survey.drops).get("duplicate", 0),
            "near": found.sides.near_copies,
            "clusters": found.sides.groups,
        },
        "overlap": {
            "held_out": _overlap(found.overlap),
            "future": {
                **_overlap(found.future_overlap),
                "lines": found.future.lines,
                "known_lines": found.future.known_lines,
                "known_files": found.future.known_files,
            },
        },
        "redactions": _redactions(found),
        "licences": _licences(found),
    }


def _overlap(report: OverlapReport) -> dict[str, Any]:
    return {
        "share": round(report.share, 6),
        "boilerplate": round(report.boilerplate, 6),
        "sampling": report.sampling,
        "worst": [
            {"held_out": pair.held_out, "train": pair.train, "share": round(pair.share, 6)} for pair in report.worst
        ],
    }


def _files(found: Findings) -> dict[str, Any]:
    """Files and bytes in, kept, and left out by reason."""
    kept = {"files": len(found.used), "bytes": sum(file.size for file in found.used)}
    dropped = {"files": len(found.drops), "bytes": sum(max(0, drop.bytes) for drop in found.drops)}
    everything = {name: kept[name] + dropped[name] for name in kept}
    return {
        "in": {**everything, "commits": found.history.total + found.future_commits},
        "kept": kept,
        "dropped": {**dropped, "reasons": reasons(found.drops)},
    }


def _commits(found: Findings) -> dict[str, Any]:
    return {
        "total": found.history.total + found.future_commits,
        "merges": found.history.merges,
        "used": found.commits_used,
        "future": found.future_commits,
        "reasons": summed([found.history.reasons, found.commit_reasons]),
    }


def _languages(found: Findings) -> dict[str, dict[str, int]]:
    """Files and bytes of every language as it is kept, and tokens of all that is made of it, the most first."""
    counts: dict[str, Counter[str]] = {}
    for file in found.used:
        counts.setdefault(language_of(file.path), Counter()).update(files=1, bytes=file.size)
    for item in (item for split in found.splits for item in split.items):
        for part, size in zip(item.parts, item.sample.sizes, strict=True):
            counts.setdefault(language_of(part.path), Counter()).update(tokens=size)
    order = sorted(counts, key=lambda language: (-counts[language]["tokens"], language))
    return {language: {unit: counts[language][unit] for unit in ("files", "bytes", "tokens")} for language in order}


def _split(split: Split, sequence_length: int) -> dict[str, Any]:
    modes = Counter(item.sample.mode for item in split.items)
    kinds: dict[str, Counter[str]] = {}
    for item in split.items:
        kinds.setdefault(str(item.sample.kind), Counter()).update(
            samples=1, tokens=len(item.sample.ids), labels=label_count(item)
        )
    return {
        "files": split.files,
        "bytes": split.bytes,
        "samples": len(split.items),
        "tokens": split.tokens,
        "labels": split.labels,
        "rows": len(split.rows),
        "shown_again": sum(item.sample.shown for item in split.items),
        "packing": round(split.tokens / max(1, len(split.rows) * sequence_length), 6),
        "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "modes": {str(mode): modes[mode] for mode in Mode},
        "lengths": _histogram(split),
    }


def _histogram(split: Split) -> dict[str, int]:
    """Samples by length; a key is the largest length that it counts, a power of two."""
    counts = Counter(max(0, len(item.sample.ids) - 1).bit_length() for item in split.items)
    return {str(1 << power): counts[power] for power in sorted(counts)}


def _redactions(found: Findings) -> dict[str, Any]:
    """Counts by rule and by path; never what was found."""
    places = [(file.path, file.redactions) for file in found.survey.files if file.redactions]
    places += [(name, dict(counts)) for name, counts in found.other_redactions if counts]
    rules = summed([counts for _, counts in places])
    paths: dict[str, dict[str, int]] = {}
    for path, counts in places:
        paths[path] = summed([paths.get(path, {}), counts])
    most = sorted(paths, key=lambda path: (-sum(paths[path].values()), path))[:_PATHS]
    return {"total": sum(rules.values()), "rules": rules, "paths": {path: paths[path] for path in most}}


def _licences(found: Findings) -> dict[str, Any]:
    headers = Counter(file.licence for file in found.survey.files if file.licence)
    return {
        "files": [{"path": path, "spdx": spdx} for path, spdx in found.survey.licences],
        "headers": dict(sorted(headers.items())),
    }
