"""Private keys in armour (PEM, PGP, SSH2) or in PuTTY's files, also inside strings and comments."""

import re
from collections.abc import Iterable, Iterator

from jobs.dataset.finds import Find, Kind
from jobs.dataset.literals import FEW, join_literals
from jobs.dataset.needles import Places

_HEADER = re.compile(r"-{4,5} ?BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}", re.IGNORECASE)
_FOOTER = re.compile(r"-{4,5} ?END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)? ?-{4,5}", re.IGNORECASE)
_RUN = re.compile(r"[A-Za-z0-9+/=]{24,}")
#: Lines such as `Proc-Type: 4,ENCRYPTED` before the key itself, as they stand or in a string.
_FIELDS = re.compile(r"(?:(?:\\[nr]|[^A-Za-z0-9+/=]){0,40}+[A-Z][A-Za-z-]{1,30}: [^\n\\]{0,200}+){1,12}")
#: A key whose end is cut off: lines of base64 with what a string or a comment puts between them.
_CUT_BODY = re.compile(
    r"(?:(?:\\[nr]|[^A-Za-z0-9+/=]){0,40}+[A-Za-z0-9+/=]{24,}+)+(?:[^A-Za-z0-9+/=]{1,40}[A-Za-z0-9+/]{2,22}={1,2})?"
)
_PRIVATE_LINES = re.compile(r"Private-Lines:[ \t]*\d{1,4}")
_DASHES = 5
#: Characters before `BEGIN` that its dashes stand in, where they are a literal of their own.
_MAX_BEFORE = 60
#: Characters behind joined literals that may go on with their key.
_AFTER = 1 << 14
_MAX_PRIVATE_KEY = 1 << 16
_MIN_PRIVATE_KEY = 40
_MIN_RUN_SHARE = 0.5


NEEDLES = ("Private-Lines:",)
NEEDLES_IN_ANY_CASE = ("begin ",)
PATTERNS = (_HEADER.pattern, _CUT_BODY.pattern)


def find(text: str, places: Places) -> Iterator[Find]:
    """Every private key, from its header to its footer or to where it is cut off.

    Code that only mentions the header, and the footer further down, is no key: between them half must be long runs.
    """
    begins = places.get("begin ", ())
    headers = list(_headers(text, begins))
    for place, header in enumerate(headers, 1):
        following = headers[place].start() if place < len(headers) else len(text)
        if stop := _key_end(text, header.end(), min(following, header.end() + _MAX_PRIVATE_KEY)):
            yield Find(header.start(), stop, "private-key", Kind.KEY)
    yield from _split_keys(text, begins)
    for at in places.get("Private-Lines:", ()):
        lines = _PRIVATE_LINES.match(text, at)
        if lines and (stop := _cut_end(text, lines.end(), lines.end() + _MAX_PRIVATE_KEY)):
            yield Find(lines.end(), stop, "private-key", Kind.KEY)


def _key_end(text: str, start: int, limit: int) -> int:
    """Where the key ends whose header ends at `start`: with its footer, or where its lines do; 0 if there is none."""
    footer = _FOOTER.search(text, start, limit)
    if footer and _is_key(text, _body_start(text, start, footer.start()), footer.start()):
        return footer.end()
    return _cut_end(text, start, limit)


def _cut_end(text: str, start: int, limit: int) -> int:
    begin = _body_start(text, start, limit)
    body = _CUT_BODY.match(text, begin, limit)
    return body.end() if body and _is_key(text, begin, body.end()) else 0


def _body_start(text: str, start: int, limit: int) -> int:
    fields = _FIELDS.match(text, start, limit)
    return fields.end() if fields else start


def _is_key(text: str, start: int, stop: int) -> bool:
    runs = sum(len(run) for run in _RUN.findall(text, start, stop))
    return runs >= max(_MIN_PRIVATE_KEY, _MIN_RUN_SHARE * (stop - start))


def _headers(text: str, begins: Iterable[int]) -> Iterator[re.Match[str]]:
    for at in begins:
        # Before it stand five dashes, or four and a blank.
        if text[at - 1 : at] in ("-", " ") and (found := _HEADER.match(text, max(0, at - _DASHES))):
            yield found


def _split_keys(text: str, begins: Iterable[int]) -> Iterator[Find]:
    """Private keys whose header is put together of literals: `"-----BEGIN EC " + "PRIVATE KEY-----…"`."""
    for at in begins:
        start = _dashes(text, at)
        if start >= 0 and not _HEADER.match(text, start) and (span := _split_key(text, start)):
            yield Find(*span, "private-key", Kind.KEY)


def _split_key(text: str, start: int) -> tuple[int, int] | None:
    """Where the key stands whose header, in several literals, starts at `start`."""
    few = join_literals(text, start, 0, FEW)
    header = few and _HEADER.match(few.text)
    if not header or not (joined := join_literals(text, start, _AFTER)):
        return None
    following = joined.text.find("BEGIN ", header.end())
    stop = _key_end(joined.text, header.end(), following if following >= 0 else len(joined.text))
    return joined.source(0, stop) if stop else None


def _dashes(text: str, at: int) -> int:
    """Where the dashes before `BEGIN` at `at` start, also if a literal ends between; -1 if there are none."""
    if text[at - 1 : at] not in ("-", " ", '"', "'"):
        return -1
    dashes = text.rfind("----", max(0, at - _MAX_BEFORE), at)
    return dashes - text.startswith("-", dashes - 1) if dashes > 0 else dashes
