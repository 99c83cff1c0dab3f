"""The texts of a repository's blobs as training may see them: decoded, judged, and without what must stay secret."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs import repository
from jobs.dataset.ahead import ahead
from jobs.dataset.cache import Cache, Entry, key
from jobs.dataset.files import Reason, decode, shown_path, text_reason
from jobs.dataset.licences import spdx_of
from jobs.dataset.redaction import SPELLED, Redactor
from jobs.dataset.shingles import shingles_of_several
from jobs.spec import DatasetSection

_STAGE = "text"
#: Words of a run by which near copies are found, and of one by which leaks are measured.
NEAR_WORDS, LEAK_WORDS = 5, 13
#: Paths whose shown form is remembered.
_MOST_PATHS = 100_000


@dataclass(frozen=True)
class Text:
    """A blob's text, redacted."""

    text: str
    #: Of the text without line ends and trailing blanks: the same for the same text, however it is stored.
    digest: str
    #: Rule -> how many places were redacted.
    redactions: Mapping[str, int]
    #: SPDX identifier that the text states; None without one.
    licence: str | None

    @property
    def near(self) -> NDArray[np.uint64]:
        """Hashes of its runs of `NEAR_WORDS` words."""
        return self.runs[0]

    @property
    def leak(self) -> NDArray[np.uint64]:
        """Hashes of its runs of `LEAK_WORDS` words."""
        return self.runs[1]

    @cached_property
    def runs(self) -> list[NDArray[np.uint64]]:
        """Both of them."""
        return shingles_of_several(self.text, (NEAR_WORDS, LEAK_WORDS))


class Reader:
    """Reads blobs of one repository."""

    def __init__(self, git_dir: Path, section: DatasetSection, redactor: Redactor, cache: Cache) -> None:
        self._git_dir = git_dir
        self._section = section
        self._redactor = redactor
        self._cache = cache
        self._rules = (redactor.version, section.encoding, section.max_file_bytes)
        #: Paths are many and short: our own rules suffice, and tell the same on every machine.
        self.own_rules = Redactor("built-in")
        self._paths: dict[bytes, str] = {}

    def path(self, raw: bytes) -> str:
        """A path as text of one line, without what must stay secret: it is learned, and shown to people."""
        path = self._paths.get(raw)
        if path is None:
            text = self.own_rules.redact(shown_path(raw)).text
            path = "".join(SPELLED.get(letter, letter) for letter in text)
            # Several threads ask: more than a few too many there are not.
            if len(self._paths) >= _MOST_PATHS:
                self._paths.clear()
            self._paths[raw] = path
        return path

    def read(self, wanted: Sequence[tuple[str, str]]) -> Iterator[Text | Reason]:
        """The text of every (path, blob) in the order asked for, or why it is not learned."""
        keys = [key(_STAGE, *self._rules, path, blob) for path, blob in wanted]
        for one, (verdict, entry) in zip(keys, ahead(self._worked_out, self._sources(wanted, keys)), strict=True):
            if entry is not None:
                self._cache.put(one, entry)
            yield verdict

    def _sources(self, wanted: Sequence[tuple[str, str]], keys: Sequence[bytes]) -> Iterator["_Source"]:
        """What each text is made of, read one after the other."""
        # Entries hold whole texts: only whether they are there is asked of all of them at once.
        known = [self._cache.has(one) for one in keys]
        fresh = self.contents([blob for (_, blob), there in zip(wanted, known, strict=True) if not there])
        for (path, blob), one, there in zip(wanted, keys, known, strict=True):
            entry = self._cache.get(one) if there else None
            if entry is not None:
                yield _Source(path, b"", entry)
            else:
                yield _Source(path, next(self.contents([blob])) if there else next(fresh), None)

    def _worked_out(self, source: "_Source") -> tuple[Text | Reason, Entry | None]:
        """The text, and what is to be kept of it."""
        if source.entry is not None:
            return _unpacked(source.entry), None
        verdict = self._judge(source.path, source.content)
        # An object that is missing today may be fetched tomorrow.
        return verdict, None if verdict is Reason.MISSING else _packed(verdict)

    def contents(self, blobs: Sequence[str]) -> Iterator[bytes | Reason]:
        """The blobs as git stores them, or that one is missing or too large."""
        if not blobs:
            return
        large: set[str] = set()
        for blob, content in repository.read_blobs(self._git_dir, blobs, self._section.max_file_bytes, large=large):
            if content is None:
                yield Reason.TOO_LARGE if blob in large else Reason.MISSING
            else:
                yield content

    def decoded(self, path: str, content: bytes | Reason) -> str | Reason:
        """A blob's text with its secrets still in it, or why it is not learned."""
        if isinstance(content, Reason):
            return content
        decoded = decode(content, self._section.encoding)
        return decoded if isinstance(decoded, Reason) else text_reason(path, decoded) or decoded

    def _judge(self, path: str, content: bytes | Reason) -> Text | Reason:
        decoded = self.decoded(path, content)
        if isinstance(decoded, Reason):
            return decoded
        redacted = self._redactor.redact(decoded)
        bare = "\n".join([line.rstrip() for line in redacted.text.splitlines()]).strip()
        digest = hashlib.blake2b(bare.encode(), digest_size=16).hexdigest()
        return Text(redacted.text, digest, dict(sorted(redacted.counts.items())), spdx_of(decoded))


class _Source(NamedTuple):
    """A blob, or what the cache has of its text."""

    path: str
    content: bytes | Reason
    entry: Entry | None


def _packed(verdict: Text | Reason) -> Entry:
    if isinstance(verdict, Reason):
        return Entry({"reason": str(verdict)})
    facts = {"digest": verdict.digest, "redactions": dict(verdict.redactions), "licence": verdict.licence}
    text = np.frombuffer(zlib.compress(verdict.text.encode(), 1), np.uint8)
    return Entry(facts, {"text": text, "near": verdict.near, "leak": verdict.leak})


def _unpacked(entry: Entry) -> Text | Reason:
    facts: Mapping[str, Any] = entry.facts
    if "reason" in facts:
        return Reason(facts["reason"])
    text = Text(
        zlib.decompress(entry.arrays["text"].tobytes()).decode(),
        facts["digest"],
        facts["redactions"],
        facts["licence"],
    )
    text.__dict__["runs"] = [entry.arrays["near"], entry.arrays["leak"]]  # what was worked out already
    return text


def summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up, by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))
