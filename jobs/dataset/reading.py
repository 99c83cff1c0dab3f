"""The texts of a repository's blobs as training may see them: decoded, judged, and without what must stay secret."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import repository
from jobs.dataset.cache import Cache, Entry, key
from jobs.dataset.files import Reason, decode, shown_path, text_reason
from jobs.dataset.licences import spdx_of
from jobs.dataset.redaction import SPELLED, Redactor
from jobs.dataset.shingles import shingles
from jobs.spec import DatasetSection

_STAGE = "text"
#: Words of a run by which near copies are found, and of one by which leaks are measured.
NEAR_WORDS, LEAK_WORDS = 5, 13


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

    @cached_property
    def near(self) -> NDArray[np.uint64]:
        """Hashes of its runs of `NEAR_WORDS` words."""
        return shingles(self.text, NEAR_WORDS)

    @cached_property
    def leak(self) -> NDArray[np.uint64]:
        """Hashes of its runs of `LEAK_WORDS` words."""
        return shingles(self.text, LEAK_WORDS)


class Reader:
    """Reads blobs of one repository, each through the cache if it is to be `kept` there."""

    def __init__(self, git_dir: Path, section: DatasetSection, redactor: Redactor, cache: Cache) -> None:
        self._git_dir = git_dir
        self._section = section
        self._redactor = redactor
        self._cache = cache
        self._rules = (redactor.version, section.encoding, section.max_file_bytes)
        #: Paths are many and short: our own rules suffice, and tell the same on every machine.
        self._path_redactor = Redactor("built-in")
        #: Bytes that git handed over.
        self.bytes = 0

    def path(self, raw: bytes) -> str:
        """A path as text of one line, without what must stay secret: it is learned, and shown to people."""
        text = self._path_redactor.redact(shown_path(raw)).text
        return "".join(SPELLED.get(letter, letter) for letter in text)

    def read(self, wanted: Sequence[tuple[str, str]], *, kept: bool = True) -> Iterator[Text | Reason]:
        """The text of every (path, blob) in the order asked for, or why it is not learned."""
        keys = [key(_STAGE, *self._rules, path, blob) for path, blob in wanted]
        # Entries hold whole texts: only whether they are there is asked of all of them at once.
        known = [kept and self._cache.has(one) for one in keys]
        fresh = self._fresh([blob for (_, blob), there in zip(wanted, known, strict=True) if not there])
        for (path, blob), one, there in zip(wanted, keys, known, strict=True):
            entry = self._cache.get(one) if kept else None
            if entry is not None and there:
                yield _unpacked(entry)
                continue
            content = next(self._fresh([blob])) if there else next(fresh)
            verdict = self._judge(path, content)
            # An object that is missing today may be fetched tomorrow.
            if kept and verdict is not Reason.MISSING:
                self._cache.put(one, _packed(verdict))
            yield verdict

    def _fresh(self, blobs: Sequence[str]) -> Iterator[bytes | None]:
        if blobs:
            for _, content in repository.read_blobs(self._git_dir, blobs, self._section.max_file_bytes):
                self.bytes += len(content or b"")
                yield content

    def _judge(self, path: str, content: bytes | None) -> Text | Reason:
        if content is None:
            return Reason.MISSING
        decoded = decode(content, self._section.encoding)
        if isinstance(decoded, Reason):
            return decoded
        reason = text_reason(path, decoded)
        if reason is not None:
            return reason
        redacted = self._redactor.redact(decoded)
        bare = "\n".join(line.rstrip() for line in redacted.text.splitlines()).strip()
        digest = hashlib.blake2b(bare.encode(), digest_size=16).hexdigest()
        return Text(redacted.text, digest, dict(sorted(redacted.counts.items())), spdx_of(decoded))


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
    text.__dict__.update(near=entry.arrays["near"], leak=entry.arrays["leak"])  # what was worked out already
    return text


def summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up, by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))
