"""A vocabulary that tokenises no text twice: the ids of earlier builds come from the cache."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.dataset.cache import Cache, Entry, key
from jobs.dataset.identity import versions
from jobs.dataset.tokens import Ids, Vocabulary

_STAGE = "ids"
#: Shorter texts are tokenised sooner than they are found.
_FEWEST_CHARACTERS = 256


class RememberedVocabulary(Vocabulary):
    """As the vocabulary that it is made of."""

    def __init__(self, vocabulary: Vocabulary, cache: Cache) -> None:
        self.__dict__.update(vocabulary.__dict__)
        self._cache = cache
        #: What ids hang on beside the tokenizer's files.
        self.libraries = json.dumps(versions(), sort_keys=True)

    def expect(self, characters: int) -> None:
        """As the vocabulary; nothing where the cache knew most so far, and so will know most ids."""
        if self._cache.hits < self._cache.misses:
            super().expect(characters)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of every text; only those that no build has seen are tokenised."""
        keys = [
            key(_STAGE, self.sha256, self.libraries, text) if len(text) >= _FEWEST_CHARACTERS else None
            for text in texts
        ]
        entries = [self._cache.get(one) if one else None for one in keys]
        missing = [text for text, entry in zip(texts, entries, strict=True) if entry is None]
        fresh = iter(super().encode(missing))
        found: list[Ids] = []
        for one, entry in zip(keys, entries, strict=True):
            if entry is not None:
                found.append(entry.arrays["ids"].astype(np.int64))
                continue
            found.append(next(fresh))
            # Once the fast engine was found to be wrong, what it gave before is not worth keeping.
            if one is not None and self.note is None:
                self._cache.put(one, Entry({}, {"ids": found[-1].astype(np.uint32)}))
        return found

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of ids, special tokens spelled out."""
        text: str = self._backend.decode(ids.tolist(), skip_special_tokens=False)
        return text

    def is_special(self, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of the ids are tokens that no text can be."""
        return self._reserved[ids]
