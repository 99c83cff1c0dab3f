"""Renders commits until there are tokens enough, each through the cache."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.cache import Cache, Entry, key
from jobs.dataset.candidates import Learned
from jobs.dataset.commits import CommitRenderer, CommitText, FileEdit
from jobs.dataset.files import Reason
from jobs.dataset.fim import Mode
from jobs.dataset.history import Change, Commit
from jobs.dataset.reading import Reader, Text, summed
from jobs.dataset.redaction import Redactor
from jobs.dataset.samples import Sample, SampleKind
from jobs.stages import Stages

_STAGE = "commit"
#: Commits whose texts are in memory at once.
_BATCH = 16
#: Larger files are not shown in commits: CommitPack's limit.
MOST_BYTES = 100_000


@dataclass(frozen=True)
class Told:
    """A commit as it is learned."""

    commit: Commit
    #: Path of its first file, for people.
    path: str
    samples: list[Sample]
    redactions: dict[str, int]
    #: Hashes of the runs of words of all the text that it was made from.
    leak: NDArray[np.uint64]


class _Draft(NamedTuple):
    text: CommitText
    redactions: dict[str, int]
    leak: NDArray[np.uint64]
    #: No object of it was missing.
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Chronicler:
    """Makes samples of commits."""

    reader: Reader
    redactor: Redactor
    renderer: CommitRenderer
    learned: Learned
    cache: Cache
    #: Everything beside the commit that its samples hang on: tokenizer, layout, repository's name.
    identity: tuple[object, ...]
    #: Why commits that were tried gave nothing.
    reasons: Counter[str] = field(default_factory=Counter)

    def tell(self, commits: Iterable[Commit], stages: Stages) -> Iterator[Told]:
        """The commits that give samples, in their order; nothing is read before it is asked for."""
        rest = iter(commits)
        while batch := list(islice(rest, _BATCH)):
            stages.check()
            yield from self._batch(batch)

    def _batch(self, commits: list[Commit]) -> Iterator[Told]:
        keys = [key(_STAGE, *self.identity, commit.id) for commit in commits]
        entries = [self.cache.get(one) for one in keys]
        fresh = self._fresh([commit for commit, entry in zip(commits, entries, strict=True) if entry is None])
        for commit, one, known in zip(commits, keys, entries, strict=True):
            entry = known
            if entry is None:
                entry, whole = next(fresh)
                if whole:
                    self.cache.put(one, entry)
            if "reason" in entry.facts:
                self.reasons[entry.facts["reason"]] += 1
            else:
                yield _told(commit, entry)

    def _fresh(self, commits: list[Commit]) -> Iterator[tuple[Entry, bool]]:
        """What is to be kept of each commit, and whether all of it was there to be read."""
        changes = [self.learned.changes(commit) for commit in commits]
        texts = self.reader.read([side for commit in changes for side in self._sides(commit)], kept=False)
        told = [self._text(commit, chosen, texts) for commit, chosen in zip(commits, changes, strict=True)]
        samples: dict[int, list[Sample]] = {}
        for sample in self.renderer.render([draft.text for draft in told]):
            samples.setdefault(sample.document, []).append(sample)
        for place, draft in enumerate(told):
            yield _kept(draft, samples.get(place, [])), draft.whole

    def _sides(self, changes: list[Change]) -> Iterator[tuple[str, str]]:
        for change in changes:
            if change.before:
                yield self.reader.path(change.before_path), change.before
            if change.after:
                yield self.reader.path(change.path), change.after

    def _text(self, commit: Commit, changes: list[Change], texts: Iterator[Text | Reason]) -> _Draft:
        message = self.redactor.redact(commit.message)
        edits, counts = [], [dict(message.counts)]
        hashes = [np.zeros(0, np.uint64)]
        whole = True
        for change in changes:
            sides = [next(texts) if blob else None for blob in (change.before, change.after)]
            # A missing object may be fetched tomorrow, or lie in another clone.
            whole &= Reason.MISSING not in sides
            # A side that is not learned (binary, generated, too large) takes its file out; an empty one is a text.
            if any(isinstance(side, Reason) and side is not Reason.EMPTY for side in sides):
                continue
            before, after = (side.text if isinstance(side, Text) else "" for side in sides)
            if before != after:
                paths = self.reader.path(change.path), self.reader.path(change.before_path)
                edits.append(FileEdit(*paths, before, after))
                both = [side for side in sides if isinstance(side, Text)]
                counts.append(dict(both[-1].redactions))
                hashes += [side.leak for side in both]
        text = CommitText(commit.id, message.text, tuple(edits))
        return _Draft(text, summed(counts), np.unique(np.concatenate(hashes)), whole)


def _kept(draft: _Draft, samples: list[Sample]) -> Entry:
    if not samples:
        return Entry({"reason": "no room in a row" if draft.text.files else "no text to learn"})
    facts: dict[str, Any] = {
        "path": draft.text.files[0].path,
        "redactions": draft.redactions,
        "samples": [[str(sample.mode), str(sample.kind), len(sample.ids)] for sample in samples],
    }
    everything = [np.ones(len(sample.ids), np.bool_) if sample.labels is None else sample.labels for sample in samples]
    ids = np.concatenate([sample.ids for sample in samples])
    return Entry(facts, {"ids": ids, "labels": np.concatenate(everything).astype(np.uint8), "leak": draft.leak})


def _told(commit: Commit, entry: Entry) -> Told:
    samples, place = [], 0
    for mode, kind, length in entry.facts["samples"]:
        ids = entry.arrays["ids"][place : place + length]
        labels = entry.arrays["labels"][place : place + length].astype(np.bool_)
        samples.append(Sample(ids, Mode(mode), SampleKind(kind), 0, labels, 0, 0))
        place += length
    return Told(commit, entry.facts["path"], samples, entry.facts["redactions"], entry.arrays["leak"])
