"""What a secret looks like, told from words, names of code, paths, templates and samples."""

import base64
import binascii
import math
import re
from collections import Counter


def entropy(value: str) -> float:
    """Shannon's entropy of a text's own characters, in bits a character; 0 for an empty text."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


_TEMPLATE = re.compile(r"\$\{|\$\(|\{\{|%\(|%[sd]|<[^>]*>|\{[\w.]*\}|^\$\w+$|^%\w+%$|\*{3}|\.{3}|x{4}|X{4}")
_PLACE = re.compile(r"://|^~/|^[A-Za-z]:\\|^arn:")
_WORD = re.compile(
    r"(?:[a-z]{1,19}|[A-Z]{1,19}|[A-Z][a-z]{1,18}(?:[A-Z][a-z]{1,18}){0,3}|[a-z]{1,12}(?:[A-Z][a-z]{1,12}){1,4})?\d{0,3}"
    r"|v?\d+|\d{1,2}[a-z]{1,2}|(?:[A-Z][a-z]{2,18}\d{0,2}|[A-Z]{1,4}\d{1,2}){2,8}"
)
_BETWEEN_WORDS = re.compile(r"[-_.:/]+")
_LISTED_SAMPLES = (
    "pass passwd password pwd pw secret token key user username foo bar baz test x xx xxx changeme redacted hidden"
)
_SAMPLES = frozenset(_LISTED_SAMPLES.split())
_MIN_RANDOM = 16
#: Bits a character. Hexadecimal digits have 4 at most, base64 has 6, English words about 3 over their own letters.
_MIN_ENTROPY = 3.0
_MIN_PASSWORD = 6
_MIN_PASSWORD_ENTROPY = 2.5


def has_letter_and_digit(value: str) -> bool:
    """True where a text has both."""
    return any(map(str.isalpha, value)) and any(map(str.isdigit, value))


def is_words(value: str) -> bool:
    """True for names of code and configuration: `oauth2-client`, `app.auth.Token`, `v1.2.3`."""
    return all(map(_WORD.fullmatch, _BETWEEN_WORDS.split(value)))


def is_random(value: str) -> bool:
    """True for what a program made up: long, letters and digits, no words with numbers to them."""
    return (
        len(value) >= _MIN_RANDOM
        and has_letter_and_digit(value)
        and entropy(value) >= _MIN_ENTROPY
        and not _TEMPLATE.search(value)
        and not _PLACE.search(value)
        and not is_words(value)
    )


_RUN_OF_LETTERS = re.compile(rf"[\w+/~-]{{{_MIN_RANDOM},}}")


def holds_random(text: str) -> bool:
    """True where something stands in the text that a program made up, whether or not it is a secret."""
    return any(is_random(run) for run in _RUN_OF_LETTERS.findall(text))


def is_password(value: str) -> bool:
    """True for what a person may have made up: a letter, and a digit or sign that names do not have."""
    mixed = any(map(str.isalpha, value)) and any(letter.isdigit() or letter in "!@#$%^&*+?~|" for letter in value)
    several_words = any(letter in "-_.:/" for letter in value) and is_words(value)
    return (
        len(value) >= _MIN_PASSWORD
        and mixed
        and entropy(value) >= _MIN_PASSWORD_ENTROPY
        and not _TEMPLATE.search(value)
        and not _PLACE.search(value)
        and not several_words
    )


_SIGNS = frozenset("!@#$%^&*+?~|-_.:/=")
#: What patterns, paths and calls have and few passwords do.
_OF_CODE = frozenset("()[]{}<>\\\"'`,")
_MIN_STRONG = 12
_ALL_CLASSES = 4


def _classes(value: str) -> int:
    """How many there are of: small letters, capitals, digits, signs."""
    kinds = (str.islower, str.isupper, str.isdigit)
    return sum(any(map(kind, value)) for kind in kinds) + (not _SIGNS.isdisjoint(value))


def is_typed(value: str) -> bool:
    """True for a password that is no word with a number to it, nor code: `s3cr3tpw`, not `sha256` or `f(x1)`."""
    has_digit = any(map(str.isdigit, value))
    return has_digit and is_password(value) and not is_words(value) and _OF_CODE.isdisjoint(value)


def is_mixed(value: str) -> bool:
    """The same, and of three kinds of character: what is neither quoted nor ends a line may be code or prose."""
    return is_typed(value) and _classes(value) >= _ALL_CLASSES - 1


def is_strong(value: str) -> bool:
    """True for a password with everything that strict sites ask for."""
    return len(value) >= _MIN_STRONG and is_typed(value) and _classes(value) == _ALL_CLASSES


def is_no_sample(value: str) -> bool:
    """False for what stands in place of a password: `changeme`, `$PASSWORD`, `{password}`, `<password>`."""
    return value.lower() not in _SAMPLES and not _TEMPLATE.search(value) and not _FIELD.fullmatch(value)


_FIELD = re.compile(r"\{[^}]*\}|<[^>]*>|\[[^\]]*\]+|%\([^)]*\)s|%\w|[$:]\w+|\*+|\.+")


def is_user_and_password(value: str) -> bool:
    """True where base64 holds `user:password` in readable characters."""
    try:
        plain = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in plain and plain.isprintable()
