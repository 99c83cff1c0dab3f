"""The vocabulary of a model: text to ids such that content never forges a special token, and the ids of the specials.

A repository may hold the very letters of `<file_sep>` or `<|endoftext|>`. A tokenizer would make of them the token that
separates documents; here they stay letters, and special tokens are put in by id alone. The one thing in a text that
becomes a special token is what no repository can write: the noncharacters that redaction leaves behind.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from backends import tokenizer_files
from backends.kinds import installed
from backends.models import document_end_id, read_tokenizer, tokenizer_file_sha256
from jobs.dataset.engines import Engine, open_engine
from jobs.dataset.redaction import SPELLED
from jobs.shards import DatasetError

#: Characters tokenised at once: larger batches are no faster and cost memory.
_BATCH_CHARACTERS = 2_000_000
#: Bytes of a redaction's placeholder in UTF-8.
_PLACEHOLDER_BYTES = 3
_PLACEHOLDER = re.compile(f"([{''.join(SPELLED)}])")
#: A token that stands for one byte, and how a blank is written, where tokens spell text.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
#: A line feed as it is, as byte-level tokenizers spell it, and as a token for a byte.
_LINE_FEEDS = ("\n", "\N{LATIN CAPITAL LETTER C WITH DOT ABOVE}", "<0x0A>")

Ids = NDArray[np.int64]


def tokenizer_key(folder: Path) -> str:
    """Cheap identity of what makes ids of text: the tokenizer's files in `folder`, and the libraries that read them."""
    digest = hashlib.sha256(tokenizer_files.files_key(folder).encode())
    libraries = ("tokenizers", "transformers")
    versions = installed(libraries)
    for library in libraries:
        digest.update(f" {library} {versions.get(library, 'absent')}".encode())
    return digest.hexdigest()


class Vocabulary:
    """Encodes plain text with a fast tokenizer, which itself is left as it is."""

    def __init__(self, tokenizer: Any, engine: Callable[[Any], Engine] = open_engine) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DatasetError("The model's tokenizer is not a fast one (no tokenizer.json): choose another model.")
        if backend.padding is not None or backend.truncation is not None:
            backend = type(backend).from_str(backend.to_str())
            backend.no_padding()
            backend.no_truncation()
        self._tokenizer = tokenizer
        self._backend = backend
        self._engine = engine(backend)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._ids = vocabulary
        #: Ids run from 0 to size - 1.
        self.size = max(vocabulary.values()) + 1
        #: Ends every document.
        self.end = document_end_id(tokenizer)
        #: Fills rows; never learned.
        self.padding = self._padding(tokenizer.pad_token_id)
        self._reserve({added.content: identifier for identifier, added in self._added().items()})
        self._bytes = np.zeros(self.size, np.int64)
        self._bytes[list(vocabulary.values())] = _token_bytes(vocabulary)
        self._spelled: dict[str, Ids] = {}
        self._placeholders = self._redactions()

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """The vocabulary of the tokenizer that is saved in `folder`, without transformers where that can be.

        Raises:
            ModelNotLoadable: there is none, or it cannot be read.
            DatasetError: it is not a fast one.
        """
        return cls(read_tokenizer(folder))

    @cached_property
    def sha256(self) -> str:
        """Identity of the tokenizer."""
        return tokenizer_file_sha256(self._tokenizer)

    @property
    def engine(self) -> str:
        """The library that makes the ids, and its version."""
        return self._engine.name

    @property
    def note(self) -> str | None:
        """What people should know of the engine: why it is a slow one."""
        return self._engine.note

    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        return added

    def _padding(self, pad: int | None) -> int:
        candidates = (self.special("<fim_pad>"), self.special("<|fim_pad|>"), pad)
        return next((identifier for identifier in candidates if identifier is not None), self.end)

    def _reserve(self, added: dict[str, int]) -> None:
        """Note the tokens that no content may become. Runs of blanks are text, though some tokenizers add them too."""
        redactions = {letters: self._ids[letters] for letters in SPELLED.values() if letters in self._ids}
        reserved = {content: identifier for content, identifier in added.items() if content.strip()} | redactions
        self._reserved = np.zeros(self.size, np.bool_)
        self._reserved[[*reserved.values(), self.end]] = True
        literals = sorted((content for content in reserved if len(content) > 1), key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, literals)) or r"(?!)")

    def _redactions(self) -> dict[str, Ids]:
        """The ids that stand for each placeholder: the model's own token for it, else the letters that spell it."""
        known: dict[str, Ids] = {}
        for mark, letters in SPELLED.items():
            identifier = self.special(letters)
            if identifier is None:
                known[mark] = self._spelled[mark] = np.concatenate(list(self._encode(self._split(letters))))
            else:
                known[mark] = np.array([identifier], np.int64)
                self._bytes[identifier] = _PLACEHOLDER_BYTES
        return known

    def special(self, token: str) -> int | None:
        """The id of a special token, or None where the model has no such token."""
        return self._ids.get(token)

    def expect(self, characters: int) -> None:
        """Be told that about so many characters are to come, so that what it takes is opened beside other work."""
        self._engine.expect(characters)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of every text, none of them special but those that redaction left a placeholder for."""
        parts = [self._parts(text) for text in texts]
        encoded = self._encode(part for one in parts for part in one if part not in self._placeholders)
        found = []
        for one in parts:
            ids = [known if (known := self._placeholders.get(part)) is not None else next(encoded) for part in one]
            found.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
        return found

    def count_redactions(self, ids: NDArray[np.uint32]) -> int:
        """How many placeholders are among some ids.

        For a model that has no token for them, the same letters written out in a text count, too.
        """
        return sum(len(_places(ids, known)) for known in self._placeholders.values())

    def _parts(self, text: str) -> list[str]:
        """The text in pieces that are tokenised one by one; a placeholder is a piece of its own."""
        if text.isascii() or not any(mark in text for mark in self._placeholders):
            return list(self._split(text))
        parts: list[str] = []
        for run in filter(None, _PLACEHOLDER.split(text)):
            parts += [run] if run in self._placeholders else self._split(run)
        return parts

    def _split(self, text: str) -> Iterator[str]:
        """The text cut inside every occurrence of a special token's letters, so that none is left whole."""
        start = 0
        while match := self._literal.search(text, start):
            cut = match.start() + 1
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _encode(self, pieces: Iterable[str]) -> Iterator[Ids]:
        for batch in _batches(pieces):
            encoded = self._engine.encode(batch)
            forged = bool(self._reserved[encoded.ids].any())
            for place in range(len(batch)):
                # A copy: a view would keep the ids of the whole batch in memory.
                ids = encoded.of(place).astype(np.int64)
                yield ids[~self._reserved[ids]] if forged else ids

    def bytes_of(self, ids: Ids) -> NDArray[np.int64]:
        """Bytes of text that each token stands for, 0 for special ones; exact for the tokenizers of `byte_starts`."""
        return np.where(self._reserved[ids], 0, self._bytes[ids])

    def text_of(self, ids: Ids | Sequence[int]) -> str:
        """The text of some tokens, special ones left out; of a character that is not whole, U+FFFD."""
        text: str = self._backend.decode([int(identifier) for identifier in ids], skip_special_tokens=True)
        return text

    @cached_property
    def line_ends(self) -> frozenset[int]:
        """Tokens that hold a line feed, however the tokenizer spells it."""
        return frozenset(
            identifier for token, identifier in self._ids.items() if any(feed in token for feed in _LINE_FEEDS)
        )

    def byte_starts(self, ids: Ids, size: int) -> NDArray[np.int64]:
        """Where each token begins in a UTF-8 text of `size` bytes, and its end: [len(ids) + 1].

        Exact for byte-level tokenizers and those that fall back to bytes (Llama's); spread evenly for others, and where
        a text holds both a placeholder and the same letters written out, for a model that has no token for them.
        """
        lengths = self._bytes[ids]
        if self._spelled and lengths.sum() != size:
            self._shorten_placeholders(ids, lengths)
        if len(ids) and lengths.sum() == size + 1 and _is_byte_fallback(self._ids):
            lengths[0] -= 1  # the blank that such tokenizers put before every text
        starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(lengths)])
        if starts[-1] == size:
            return starts
        return np.linspace(0, size, len(ids) + 1).astype(np.int64)

    def _shorten_placeholders(self, ids: Ids, lengths: NDArray[np.int64]) -> None:
        """Give every spelled placeholder among `ids` the bytes that it has in the text, all on its first token."""
        for spelled in self._spelled.values():
            found = _places(ids, spelled)
            for place in range(len(spelled)):
                lengths[found + place] = 0 if place else _PLACEHOLDER_BYTES


def _places(ids: NDArray[Any], part: Ids) -> NDArray[np.int64]:
    """Where some ids stand one after the other among others."""
    found = np.flatnonzero(ids[: max(0, len(ids) - len(part) + 1)] == part[0])
    for place, identifier in enumerate(part[1:], 1):
        found = found[ids[found + place] == identifier]
    return found


def _is_byte_fallback(vocabulary: dict[str, int]) -> bool:
    """Whether tokens spell text, with a token for every byte, as sentencepiece makes them."""
    return "<0x0A>" in vocabulary


def _token_bytes(vocabulary: dict[str, int]) -> list[int]:
    """The bytes of text that each token stands for. Byte-level tokens spell one letter for every byte."""
    if not _is_byte_fallback(vocabulary):
        return [len(token) for token in vocabulary]
    return [1 if _BYTE.fullmatch(token) else len(token.replace(_BLANK, " ").encode()) for token in vocabulary]


def _batches(pieces: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for piece in pieces:
        batch.append(piece)
        characters += len(piece)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
