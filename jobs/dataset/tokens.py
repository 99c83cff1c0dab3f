"""The vocabulary of a model: text to ids such that content never forges a special token, and the ids of the specials.

A repository may hold the very letters of `<file_sep>` or `<|endoftext|>`. A tokenizer would make of them the token that
separates documents; here they stay letters, and special tokens are put in by id alone.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.models import document_end_id, tokenizer_file_sha256
from jobs.shards import DatasetError

#: Characters tokenised at once: larger batches are no faster and cost memory.
_BATCH_CHARACTERS = 2_000_000

Ids = NDArray[np.int64]


class Vocabulary:
    """Encodes plain text with a transformers fast tokenizer, which itself is left as it is."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DatasetError("The model's tokenizer is not a fast one (no tokenizer.json): choose another model.")
        self._backend = backend
        if backend.padding is not None or backend.truncation is not None:
            self._backend = type(backend).from_str(backend.to_str())
            self._backend.no_padding()
            self._backend.no_truncation()
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self._ids = vocabulary
        #: Ids run from 0 to size - 1.
        self.size = max(vocabulary.values()) + 1
        #: Ends every document.
        self.end = document_end_id(tokenizer)
        self.sha256 = tokenizer_file_sha256(tokenizer)
        #: Fills rows; never learned.
        self.padding = self._padding(tokenizer.pad_token_id)
        self._reserve({added.content: identifier for identifier, added in self._added().items()})
        self._bytes = np.zeros(self.size, np.int64)
        self._bytes[list(vocabulary.values())] = [len(token) for token in vocabulary]

    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self._backend.get_added_tokens_decoder()
        return added

    def _padding(self, pad: int | None) -> int:
        candidates = (self.special("<fim_pad>"), self.special("<|fim_pad|>"), pad)
        return next((identifier for identifier in candidates if identifier is not None), self.end)

    def _reserve(self, added: dict[str, int]) -> None:
        """Note the tokens that no content may become. Runs of blanks are text, though some tokenizers add them too."""
        reserved = {content: identifier for content, identifier in added.items() if content.strip()}
        self._reserved = np.zeros(self.size, np.bool_)
        self._reserved[[*reserved.values(), self.end]] = True
        literals = sorted((content for content in reserved if len(content) > 1), key=len, reverse=True)
        self._literal = re.compile("|".join(map(re.escape, literals)) or r"(?!)")

    def special(self, token: str) -> int | None:
        """The id of a special token, or None where the model has no such token."""
        return self._ids.get(token)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of every text, none of them special."""
        pieces = [(place, piece) for place, text in enumerate(texts) for piece in self._split(text)]
        found: list[Ids] = [np.zeros(0, np.int64)] * len(texts)
        encoded = zip((place for place, _ in pieces), self._encode(piece for _, piece in pieces), strict=True)
        for place, group in groupby(encoded, key=lambda pair: pair[0]):
            ids = np.concatenate([ids for _, ids in group])
            found[place] = ids[~self._reserved[ids]]
        return found

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
            for encoding in self._backend.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array(encoding.ids, np.int64)

    def byte_starts(self, ids: Ids, size: int) -> NDArray[np.int64]:
        """Where each token begins in a UTF-8 text of `size` bytes, and its end: [len(ids) + 1].

        Exact for byte-level tokenizers, whose tokens spell one letter for every byte; spread evenly for others.
        """
        starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self._bytes[ids])])
        if starts[-1] == size:
            return starts
        return np.linspace(0, size, len(ids) + 1).astype(np.int64)


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
