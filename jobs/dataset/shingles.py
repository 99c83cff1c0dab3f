"""Texts as sets of numbers, one for every run of a few words: what near copies and overlap are measured with.

A word is a run of letters, digits, underscores and non-ASCII bytes, or one other character. Blanks and control
characters only part words, so that indentation and line ends change nothing; case counts. The numbers hang on the bytes
of the words alone: the same on every machine and in every process.

How: the bytes of a word are the coefficients of a polynomial modulo 2^64 (a rolling hash in the manner of Karp and
Rabin, 1987), so that all words of a text are summed in a few passes of numpy instead of a loop over words.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: Hashes, sorted, each once.
Shingles = NDArray[np.uint64]

_BLANK, _OTHER, _WORD = range(3)
_BLANKS = bytes([*range(0x21), 0x7F])
_WORDS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz" + bytes(range(0x80, 0x100))
_KINDS = bytes(_BLANK if byte in _BLANKS else _WORD if byte in _WORDS else _OTHER for byte in range(0x100))

#: A longer word (encoded data) is several, so that a block has a greatest size.
_LONGEST_WORD = 256
#: Bytes that are summed at once: their 64-bit terms stay in a processor's cache.
_BLOCK_BYTES = 1 << 15

#: Odd, so that they have inverses modulo 2^64; otherwise any numbers.
_BYTE_STEP = 0x9E3779B97F4A7C15
_WORD_STEP = np.uint64(0xD6E8FEB86659FD93)


def shingles(text: str, words: int) -> Shingles:
    """The hashes of every run of `words` words: uint64 [at most words of the text], sorted, each once.

    Two different runs share a hash with a chance of about 2^-64. Empty where the text has fewer words.

    Raises:
        ValueError: `words` is less than one.
    """
    return shingles_of_several(text, [words])[0]


def shingles_of_several(text: str, lengths: Sequence[int]) -> list[Shingles]:
    """The `shingles` of a text for several lengths of runs, its words looked at once.

    Raises:
        ValueError: a length is less than one.
    """
    if min(lengths) < 1:
        raise ValueError(f"A run has at least one word, not {min(lengths)}.")
    hashes = _word_hashes(text.encode("utf-8", "surrogatepass"))
    return [distinct(_runs(hashes, words)) for words in lengths]


def runs_in_order(text: str, words: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes that `shingles` gives, in the order of the text, and where its words begin.

    Returns:
        uint64 [runs], the first of which begins with the first word; int64 [words of the text], bytes of its UTF-8.
    """
    content = text.encode("utf-8", "surrogatepass")
    solid = np.flatnonzero(np.frombuffer(content.translate(_KINDS), np.uint8) != _BLANK)
    return _runs(_word_hashes(content), words), solid[_word_starts(content, len(solid))]


def _runs(hashes: NDArray[np.uint64], words: int) -> NDArray[np.uint64]:
    """A hash for every run of `words` words, given those of the words."""
    count = len(hashes) - words + 1
    if count < 1:
        return np.empty(0, np.uint64)
    runs = hashes[:count].copy()
    for place in range(1, words):
        runs *= _WORD_STEP
        runs += hashes[place : place + count]
    return _mixed(runs)


def distinct(values: NDArray[np.uint64]) -> Shingles:
    """The values sorted, each once. `values` is sorted in place."""
    values.sort()
    new = np.empty(len(values), np.bool_)
    new[:1] = True
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return values[new]


def _word_hashes(content: bytes) -> NDArray[np.uint64]:
    """A hash for every word of a text, in the order of the text."""
    solid = content.translate(None, _BLANKS)
    starts = _word_starts(content, len(solid))
    data = np.frombuffer(solid, np.uint8)
    values, powers, inverses = _tables()
    hashes = np.empty(len(starts), np.uint64)
    edges = np.append(np.searchsorted(starts, np.arange(0, len(data), _BLOCK_BYTES)), len(starts))
    for first, last in pairwise(np.unique(edges).tolist()):
        begin = starts[first]
        end = starts[last] if last < len(starts) else len(data)
        places = starts[first:last] - begin
        terms = values.take(data[begin:end])
        terms *= powers[: end - begin]
        # The inverse power makes the sum the same wherever the word stands.
        hashes[first:last] = np.add.reduceat(terms, places) * inverses[places]
    return _mixed(hashes)


def _word_starts(content: bytes, solid_bytes: int) -> NDArray[np.int64]:
    """Where words begin, as offsets into the text without its blanks."""
    kinds = np.frombuffer(content.translate(_KINDS), np.uint8)
    inside = kinds == _WORD
    first = np.ones(len(kinds), np.bool_)
    first[1:] = ~(inside[1:] & inside[:-1])
    starts = np.flatnonzero(first[kinds != _BLANK])
    lengths = np.diff(starts, append=solid_bytes)
    long = np.flatnonzero(lengths > _LONGEST_WORD).tolist()
    if not long:
        return starts
    cuts = [np.arange(starts[word] + _LONGEST_WORD, starts[word] + lengths[word], _LONGEST_WORD) for word in long]
    return np.sort(np.concatenate([starts, *cuts]))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit spread over all 64, in place and reversibly (the finaliser of SplitMix64: Steele and others, 2014)."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


@cache
def _tables() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """A number for every byte [256], and the powers of the step and of its inverse for every place of a block."""
    digests = [hashlib.blake2b(bytes([byte]), digest_size=8, person=b"shingles").digest() for byte in range(0x100)]
    values = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    inverse = pow(_BYTE_STEP, -1, 1 << 64)
    return values, _powers(_BYTE_STEP), _powers(inverse)


def _powers(step: int) -> NDArray[np.uint64]:
    factors = np.full(_BLOCK_BYTES + _LONGEST_WORD, step, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
