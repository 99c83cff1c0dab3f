"""What turns text into ids: a fast engine as long as its ids are those of the reference, the reference otherwise.

The reference is `tokenizers`, the library that transformers itself asks. `fastokens` reads the same description of a
tokenizer and is several times as fast (benchmarks/tokenising.py), but it takes half a second to open, and it is young.
So the reference does the first texts alone; where more come, the fast engine is compared with it on them, on texts
that are hard to cut, and on one in 64 of the rest. At the first difference, error or panic the reference takes over for
good, and a note says so.

Many tokenizers of code (StarCoder2's among them) part digits from the rest before they cut it into words, for which
`fastokens` leaves its fast way: it is then a tenth as fast. So it is not told of that step. Digits become tokens that
it looks for before anything else, as it does for special ones; what stands between them is cut as if they were parted.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import metadata
from string import digits
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

#: Characters of real text that the reference does before the fast engine is opened, and that are compared then: a
#: fifth of a second of the reference's time.
FIRST_CHARACTERS = 300_000
#: As many where nobody told that more are to come: what the reference takes as long for as the fast engine to open.
UNEXPECTED_CHARACTERS = 900_000
#: Of the rest, one text in this many is compared: the reference then costs about a quarter of the whole.
ONE_IN = 64
#: A text of n times as many characters is compared n times as rarely: a few giants would take most of the time.
LONG_CHARACTERS = 16_384

#: Where engines that cut text by rules of their own part ways: blanks of every kind, digits, letters with marks, signs
#: beyond the first plane, what is no character at all, long runs, line ends, contractions.
PROBES = (
    "def area(width: int) -> int:\n\treturn width  *  2 ** 10\r\n\r\n    # it's, we'll, I'D\n",
    "a  b\u00a0c\u2003d\u3000e\u200bf\ufeffg\x85h\u2028i\x0bj\x0ck\x1cl \n \n\n  \t\t x   ",
    "1234567890 3.14e-10 0xFF \u0663\u0664\u0665 \u00b2\u00bd \u216b \U0001d7d8 12a34",
    "  5\n\n6   \t7\t 8\r\n 9  \n  0'1's2 'll3'd 's5't x1y22 333 a 1\n 2 =4; -5.6e+7 (8)",
    "\u00e99\u00b2 \u00b20\u3000\u0661 1\u00a0 2  \u00b3\u00e9  \u2460\n\n\u096a 5",
    "na\u00efve cafe\u0301 stra\u00dfe \u01c5 \u0130 \u1e9b\u0323 A\u030a \ufb01 \u212b \u0915\u094d\u0937",
    "\u65e5\u672c\u8a9e \ud55c\uad6d \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\U0001f469\u200d\U0001f4bb\U0001f1e9\U0001f1ea",
    "\x00\x01\x7f\u0080\ufffd\ufdd3\uffff\U0001fffe\U00040000\U0007ffff\U0010ffff\ue000",
    "<<<<<<< HEAD\n=======\n>>>>>>> |||| ---- ++++ ____ //// \\\\\\\\ ...... !?!?",
    "x" * 300 + " " * 300 + "\n" * 50 + "=" * 200 + "\u00e9" * 100 + "ab" * 200,
    "",
    " ",
)

#: How tokenizers describes one that parts every digit from the rest and changes nothing before; group 1: what follows.
_DIGITS_PARTED = re.compile(
    r'(?<="normalizer":null,"pre_tokenizer":)\{"type":"Sequence","pretokenizers":\['
    r'\{"type":"Digits","individual_digits":true\},'
    r'(\{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":(?:true|false),"use_regex":true\})\]\}'
)

Uint32 = NDArray[np.uint32]


class Encoded(NamedTuple):
    """The ids of several texts, one after the other."""

    #: uint32 [tokens]
    ids: Uint32
    #: Where each text begins, and the end: int64 [texts + 1]
    starts: NDArray[np.int64]

    def of(self, place: int) -> Uint32:
        """The ids of one text."""
        return self.ids[self.starts[place] : self.starts[place + 1]]


class Engine(Protocol):
    """Turns texts into ids, adding none of its own."""

    @property
    def name(self) -> str:
        """Library and version."""

    @property
    def note(self) -> str | None:
        """What people should know of it, in a sentence."""

    def expect(self, characters: int) -> None:
        """Be told that so many characters are to come: time for what is worth it for many only."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of every text."""


class Reference:
    """The `tokenizers` library itself."""

    note: str | None = None

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.name = f"tokenizers {metadata.version('tokenizers')}"

    def expect(self, characters: int) -> None:
        """It is open."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of every text."""
        found = [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        starts = np.zeros(len(found) + 1, np.int64)
        np.cumsum([len(ids) for ids in found], out=starts[1:])
        ids = np.empty(starts[-1], np.uint32)
        for place, one in enumerate(found):
            ids[starts[place] : starts[place + 1]] = one
        return Encoded(ids, starts)


class Fastokens:
    """The `fastokens` library (Apache-2.0, by Crusoe), made of the reference's own description."""

    note: str | None = None

    def __init__(self, backend: Any) -> None:
        from fastokens import Tokenizer

        description, numerals = backend.to_str(), Numerals()
        alone, parted = _DIGITS_PARTED.subn(r"\1", description, count=1)
        #: Cuts texts where the tokens for digits do not, if they take the place of a step of the tokenizer.
        self._numerals = numerals if parted and _digits_can_be_added(backend, numerals) else None
        self._tokenizer = Tokenizer.from_json_str(alone if self._numerals else description)
        if self._numerals:
            self._tokenizer.add_tokens(_digit_tokens())
        self.name = f"fastokens {metadata.version('fastokens')}"

    def expect(self, characters: int) -> None:
        """It is open."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of every text."""
        if self._numerals is None:
            return self._flat(list(texts))
        pieces = [self._numerals.cut(text) for text in texts]
        ids, starts = self._flat([piece for one in pieces for piece in one])
        return Encoded(ids, starts[np.cumsum([0, *map(len, pieces)])])

    def _flat(self, texts: list[str]) -> Encoded:
        ids, starts = self._tokenizer.encode_batch_flat(texts, add_special_tokens=False)
        return Encoded(np.frombuffer(ids, "<u4"), np.frombuffer(starts, "<u8").astype(np.int64))


class Numerals:
    """The characters beyond ASCII that the reference's `Digits` parts from the rest: asked of it, not of Python.

    Which characters are numerals hangs on the version of Unicode, which need not be the same in both.
    """

    def __init__(self) -> None:
        from tokenizers.pre_tokenizers import Digits

        self._digits = Digits(individual_digits=True)
        self._asked: set[str] = set()
        self._numerals: set[str] = set()

    def of(self, text: str) -> set[str]:
        """Those that are in a text."""
        letters = {letter for letter in set(text) if not letter.isascii()}
        if unknown := letters - self._asked:
            # An "a" before each: what is parted is a numeral, and every other piece begins with that letter.
            parted = self._digits.pre_tokenize_str("".join(f"a{letter}" for letter in unknown))
            self._numerals.update(piece for piece, _ in parted if not piece.startswith("a"))
            self._asked |= unknown
        return letters & self._numerals

    def cut(self, text: str) -> list[str]:
        """The text in pieces, each such numeral one of its own; none of them empty but an empty text."""
        found = () if text.isascii() else self.of(text)
        if not found:
            return [text]
        return [piece for piece in re.split(f"([{''.join(sorted(found))}])", text) if piece]


def _digits_can_be_added(backend: Any, numerals: Numerals) -> bool:
    """Whether tokens for the digits give the ids that parting them gives.

    They do where each is a token already, and no added token holds a digit or looks at what stands beside it.
    """
    added = backend.get_added_tokens_decoder().values()
    beside = any(token.lstrip or token.rstrip or token.single_word for token in added)
    within = any(numerals.of(token.content) or set(token.content) & set(digits) for token in added)
    return (
        not beside
        and not within
        and all(backend.encode(digit, add_special_tokens=False).ids == [backend.token_to_id(digit)] for digit in digits)
    )


def _digit_tokens() -> list[Any]:
    from tokenizers import AddedToken

    return [AddedToken(digit, normalized=False) for digit in digits]


class Checked:
    """A fast engine, believed as long as it agrees with the reference wherever the two are compared."""

    def __init__(self, reference: Engine, open_fast: Callable[[], Engine]) -> None:
        self._reference = reference
        self._open_fast: Callable[[], Engine] | None = open_fast
        self._fast: Engine | None = None
        self._opening: Future[Engine] | None = None
        self._first: list[str] = []
        self._left = UNEXPECTED_CHARACTERS
        #: Characters of `_first`.
        self._compared = 0
        self.note: str | None = None

    @property
    def name(self) -> str:
        """Of the engine that is at work now."""
        return (self._fast or self._reference).name

    def expect(self, characters: int) -> None:
        """Open the fast engine beside what the caller does next, if so many characters need it.

        It takes half a second of one processor, and Python is not held up meanwhile.
        """
        if self._open_fast is None or self._opening is not None or characters <= FIRST_CHARACTERS:
            return
        self._left = min(self._left, FIRST_CHARACTERS)
        opener = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._opening = opener.submit(self._open_fast)
        opener.shutdown(wait=False)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids of every text."""
        if self._open_fast is not None:
            self._first += [text for text in texts if self._is_first(text)]
            if self._left > 0:
                return self._reference.encode(texts)
            self._open()
        encoded = self._attempt(texts)
        places = [place for place, text in enumerate(texts) if _is_compared(text)]
        if encoded is not None and self._agrees(texts, encoded, places):
            return encoded
        return self._reference.encode(texts)

    def _is_first(self, text: str) -> bool:
        """Whether the text is one of those that are compared before the fast engine is believed."""
        first = self._left > 0 and len(text) <= FIRST_CHARACTERS and self._compared < FIRST_CHARACTERS
        self._left -= len(text)
        self._compared += len(text) * first
        return first

    def _open(self) -> None:
        """Open the fast engine, and keep it if it agrees on what is hard to cut and on the first texts."""
        open_fast, self._open_fast = self._open_fast, None
        assert open_fast is not None  # noqa: S101 - asked once
        try:
            self._fast = self._opening.result() if self._opening else open_fast()
        except ImportError:
            self.note = f"fastokens is not installed, so {self._reference.name} does its work: several times as slow."
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust reaches Python as no Exception
            # Kinds of tokenizers that it does not know are refused with a ValueError.
            self.note = f"fastokens does not read this tokenizer ({type(error).__name__}); {self._reference.name} does."
        texts = [*PROBES, *self._first]
        encoded = self._attempt(texts)
        if encoded is not None:
            self._agrees(texts, encoded, range(len(texts)))
        self._first, self._opening = [], None

    def _attempt(self, texts: Sequence[str]) -> Encoded | None:
        """What the fast engine says; nothing where it is no longer asked or breaks."""
        if self._fast is None:
            return None
        try:
            return _joined(self._halves(self._fast, texts))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a panic in Rust reaches Python as no Exception
            self._give_up(self._fast, f"broke ({type(error).__name__})")
            return None

    def _halves(self, fast: Engine, texts: Sequence[str]) -> list[Encoded]:
        """The ids of the texts in parts: a text that the fast engine refuses is left to the reference.

        It refuses what holds a byte that the vocabulary has no token for, which the reference leaves out.
        """
        try:
            return [fast.encode(texts)]
        except ValueError:
            if len(texts) <= 1:
                return [self._reference.encode(texts)]
            middle = len(texts) // 2
            return self._halves(fast, texts[:middle]) + self._halves(fast, texts[middle:])

    def _agrees(self, texts: Sequence[str], encoded: Encoded, places: Sequence[int]) -> bool:
        """Whether both engines say the same of the texts at `places`; if not, the fast one is given up."""
        if not places:
            return True
        wanted = self._reference.encode([texts[place] for place in places])
        agree = len(encoded.starts) == len(texts) + 1 and all(
            np.array_equal(encoded.of(place), wanted.of(index)) for index, place in enumerate(places)
        )
        if not agree and self._fast is not None:
            self._give_up(self._fast, "gave other ids")
        return agree

    def _give_up(self, fast: Engine, why: str) -> None:
        self.note = f"{fast.name} {why}, so {self._reference.name} does its work: several times as slow."
        self._fast = None


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Parts one after another."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(int(part.starts[-1]) for part in parts)])
    starts = [part.starts[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return Encoded(np.concatenate([part.ids for part in parts]), np.concatenate([*starts, ends[-1:]]))


def _is_compared(text: str) -> bool:
    """One text in 64, long ones more rarely. By what is in it: which ones are compared does not hang on their order."""
    one_in = ONE_IN * max(1, len(text) // LONG_CHARACTERS)
    return zlib.crc32(text[-4096:].encode("utf-8", "surrogatepass")) % one_in == 0


def open_engine(backend: Any, fast: Callable[[Any], Engine] = Fastokens) -> Engine:
    """The fastest engine that is installed, reads the tokenizer and gives the reference's ids.

    Args:
        backend: a `tokenizers.Tokenizer` without padding and truncation.
        fast: makes the engine that is tried.
    """
    return Checked(Reference(backend), partial(fast, backend))
