"""Renders commits until there are tokens enough, each through the cache."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.ahead import ahead
from jobs.dataset.cache import Cache, Entry, key
from jobs.dataset.candidates import Learned
from jobs.dataset.commits import CommitRenderer, CommitText, FileEdit
from jobs.dataset.files import Reason
from jobs.dataset.fim import Mode
from jobs.dataset.history import Change, Commit
from jobs.dataset.hunks import ChangedPart, changed_part
from jobs.dataset.reading import LEAK_WORDS, Reader, summed
from jobs.dataset.redaction import Known, Redactor
from jobs.dataset.samples import Sample, SampleKind
from jobs.dataset.shingles import distinct, shingles
from jobs.dataset.values import holds_random
from jobs.stages import Stages

_STAGE = "commit"
#: Commits that are read and rendered together, and batches that are read ahead: their texts are in memory at once.
_BATCH, _BATCHES = 8, 3
#: Larger files are not shown in commits: CommitPack's limit.
MOST_BYTES = 100_000
#: Lines beyond those that a sample may show that are looked through for what tells of a secret.
_AROUND = 16
#: Private keys of any armour, PuTTY's, and Kubernetes' lists of secrets.
_BLOCKS = ("private key", "private-lines", "kind: secret", "kind: 'secret", 'kind: "secret')


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
    redactions: Mapping[str, int]
    leak: NDArray[np.uint64]
    #: No object of it was missing.
    whole: bool
    #: A file was left out for its length alone.
    too_long: bool


class _Case(NamedTuple):
    """A commit, and what is known of it: an entry of the cache, or a draft once it was looked at."""

    commit: Commit
    key: bytes
    entry: Entry | None
    draft: _Draft | None = None


class _Edited(NamedTuple):
    """A change as it is shown, or why it is not."""

    edit: FileEdit | None
    redactions: Mapping[str, int]
    leak: NDArray[np.uint64]
    known: frozenset[Known] = frozenset()
    reason: Reason | None = None
    too_long: bool = False


_NOTHING = np.zeros(0, np.uint64)


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

    def tell(
        self, commits: Iterable[Commit], stages: Stages, came: Callable[[], float] = lambda: 0.0
    ) -> Iterator[Told]:
        """The commits that give samples, in their order; no more than a few batches are read ahead.

        Args:
            commits: in the order in which they are tried.
            stages: of the build.
            came: what share of all that is wanted has come: what lies beyond is not looked at in vain.
        """
        rest = iter(commits)
        batches = iter(lambda: list(islice(rest, _BATCH)), [])
        told = 0

        def worth_beginning() -> int:
            share = came()
            return min(_BATCHES, math.ceil(told * (1 - share) / share)) if share else _BATCHES

        for batch in ahead(self._looked_at, map(self._known, batches), worth_beginning):
            stages.check()
            yield from self._rendered(batch)
            told += 1

    def _known(self, commits: list[Commit]) -> list[_Case]:
        keys = [key(_STAGE, *self.identity, commit.id) for commit in commits]
        return [_Case(commit, one, self.cache.get(one)) for commit, one in zip(commits, keys, strict=True)]

    def _looked_at(self, cases: list[_Case]) -> list[_Case]:
        """With the drafts of those that are not known."""
        changes = [self.learned.changes(case.commit) if case.entry is None else [] for case in cases]
        edited = map(self._edited, self._sources([change for chosen in changes for change in chosen]))
        return [
            case if case.entry else case._replace(draft=self._draft(case.commit, list(islice(edited, len(chosen)))))
            for case, chosen in zip(cases, changes, strict=True)
        ]

    def _rendered(self, cases: list[_Case]) -> Iterator[Told]:
        samples: dict[int, list[Sample]] = {}
        drafts = [case.draft for case in cases if case.draft]
        for sample in self.renderer.render([draft.text for draft in drafts]):
            samples.setdefault(sample.document, []).append(sample)
        fresh = iter([_kept(draft, samples.get(place, [])) for place, draft in enumerate(drafts)])
        for case in cases:
            entry = case.entry or next(fresh)
            if case.draft and case.draft.whole:
                self.cache.put(case.key, entry)
            if "reason" in entry.facts:
                self.reasons[entry.facts["reason"]] += 1
            else:
                yield _told(case.commit, entry)

    def _sources(self, changes: Sequence[Change]) -> Iterator[tuple[Change, list[bytes | Reason]]]:
        """Changes and what git stores of both sides; a side that is not there is an empty file."""
        contents = self.reader.contents([blob for change in changes for blob in (change.before, change.after) if blob])
        for change in changes:
            yield change, [next(contents) if blob else b"" for blob in (change.before, change.after)]

    def _edited(self, source: tuple[Change, list[bytes | Reason]]) -> _Edited:
        """What a change did, its secrets hidden, in the part that a sample can show."""
        change, contents = source
        paths = self.reader.path(change.path), self.reader.path(change.before_path)
        sides = [self.reader.decoded(path, content) for path, content in zip(reversed(paths), contents, strict=True)]
        for side in sides:
            # A side that is not learned (binary, generated, too large) takes its file out; an empty one is a text.
            if isinstance(side, Reason) and side is not Reason.EMPTY:
                return _Edited(None, {}, _NOTHING, reason=side)
        before, after = ("" if isinstance(side, Reason) else side for side in sides)
        part = shown_part(before, after)
        # What was only removed teaches nothing.
        if part is None or not after:
            return _Edited(None, {}, _NOTHING)
        if self.renderer.is_too_long(part):
            return _Edited(None, {}, _NOTHING, too_long=True)
        elsewhere = self._told_elsewhere(before, part)
        old, new = (self.redactor.redact(text, elsewhere) for text in (part.before, part.after))
        if old.text == new.text:
            return _Edited(None, {}, _NOTHING)
        leak = np.concatenate([shingles(side.text, LEAK_WORDS) for side in (old, new)])
        # What both sides hide was hidden once.
        counts = Counter(old.counts) | Counter(new.counts)
        known = elsewhere | old.known | new.known
        return _Edited(FileEdit(*paths, old.text, new.text, part.offset), counts, leak, known)

    def _told_elsewhere(self, before: str, part: ChangedPart) -> frozenset[Known]:
        """Secrets that the rest of a file tells of: that may stand far from where they are used.

        The scanner takes longer than all the rest. What it knows and our own rules do not are keys that programs made;
        it is asked only where the part that is shown holds anything like one.
        """
        if len(part.before) == len(before):
            return frozenset()
        is_plain = not any(map(holds_random, (part.before, part.after)))
        return (self.reader.own_rules if is_plain else self.redactor).redact(before).known

    def _draft(self, commit: Commit, edited: Sequence[_Edited]) -> _Draft:
        known = frozenset[Known]().union(*(one.known for one in edited))
        message = self.redactor.redact(commit.message, known)
        counts = summed([message.counts, *(one.redactions for one in edited)])
        edits = tuple(one.edit for one in edited if one.edit)
        leak = distinct(np.concatenate([shingles(message.text, LEAK_WORDS), *(one.leak for one in edited)]))
        # A missing object may be fetched tomorrow, or lie in another clone.
        whole = all(one.reason is not Reason.MISSING for one in edited)
        too_long = any(one.too_long for one in edited)
        return _Draft(CommitText(commit.id, message.text, edits), counts, leak, whole, too_long)


def shown_part(before: str, after: str) -> ChangedPart | None:
    """The part of a change that its samples may show, with lines around it by which a rule may know a secret.

    All of both texts where one of them may hold a block whose lines are told by its first alone.
    """
    if before != after and any(map(_may_hold_block, (before, after))):
        return ChangedPart(0, before, after)
    return changed_part(before, after, _AROUND)


def _may_hold_block(text: str) -> bool:
    small = text.lower()
    return any(sign in small for sign in _BLOCKS)


def _kept(draft: _Draft, samples: list[Sample]) -> Entry:
    if not samples:
        is_long = draft.too_long or draft.text.files
        return Entry({"reason": "no room in a row" if is_long else "no text to learn"})
    facts: dict[str, Any] = {
        "path": draft.text.files[0].path,
        "redactions": draft.redactions,
        "samples": [[str(sample.mode), str(sample.kind), len(sample.ids)] for sample in samples],
    }
    ids = np.concatenate([sample.ids for sample in samples])
    labels = np.concatenate([sample.learned for sample in samples]).astype(np.uint8)
    return Entry(facts, {"ids": ids, "labels": labels, "leak": draft.leak})


def _told(commit: Commit, entry: Entry) -> Told:
    samples, place = [], 0
    for mode, kind, length in entry.facts["samples"]:
        ids = entry.arrays["ids"][place : place + length]
        labels = entry.arrays["labels"][place : place + length].astype(np.bool_)
        samples.append(Sample(ids, Mode(mode), SampleKind(kind), 0, labels, 0, 0))
        place += length
    return Told(commit, entry.facts["path"], samples, entry.facts["redactions"], entry.arrays["leak"])
