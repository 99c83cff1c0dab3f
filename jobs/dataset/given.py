"""Literals given to a name that tells of a secret."""

import re
from collections.abc import Callable, Iterator

from jobs.dataset.finds import Find, Kind
from jobs.dataset.literals import join_literals
from jobs.dataset.needles import Places
from jobs.dataset.values import is_mixed, is_password, is_random, is_strong, is_typed

#: What a literal is given to where it is a secret, in small letters.
NAMES = (
    "password", "passwd", "passphrase", "passwort", "pwd",
    "secret", "token", "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key",
    "privatekey", "private_key", "private-key", "encryption_key", "signing_key", "auth_key", "authkey", "credential",
)  # fmt: skip
_PASSWORD_NAMES = frozenset({"password", "passwd", "passphrase", "passwort", "pwd"})
#: A value in quotes.
_QUOTED = (
    r"""[bBrRuUfF@$L]{0,2} (?P<quote>[\"]{3}|[']{3}|[\"'`])"""
    r""" (?P<quoted>(?:(?!(?P=quote))[^\s\\]|\\.){1,300}+) (?P=quote)"""
)
#: A value without; what it may be is judged by what comes after.
_BARE = r"""(?P<bare>[^\s\"'`,;&(){}\[\]<>|]{8,300}+) (?=[\s;&\"'<,}] | \Z)"""
_LITERAL = re.compile(
    rf"""
    (?P<tail>[\w-]{{0,40}}+) (?P<close>[\"'`\]*]{{0,3}}+)               # the rest of the name
    (?:[ \t]?:[ \t]?[A-Za-z_][\w.\[\]|? ]{{0,40}}?[ \t]?(?==))?         # a type
    (?: [ \t]{{0,40}} (?P<sign>=>|:=|\?=|\+=|!==?|={{1,3}}|:|\(|>) \*{{0,2}} [ \t]{{0,40}}
        (?: (?:\\|[|>][-+\d]{{0,2}}|<<[-~]?[\"']?\w{{1,40}}[\"']?)[ \t]*\r?\n\s{{0,200}}+
          | \(?[ \t]*\r?\n\s{{0,200}}+(?=[bBrRuUfF]?[\"'`]) )?
      # A pair such as `name: …`, `value: …`, perhaps with a remark between.
      | ,?\s{{0,200}}+ (?:\#.{{0,200}}\n[ \t]{{0,200}}+)?
        (?:-[ ])? [\"']? [A-Za-z]{{0,20}}? [Vv]alue [\"']? [ \t]?[:=][ \t]{{0,40}}
      | [ \t]? \{{ [^{{}}]{{0,400}}? \bdefault[ \t]*=[ \t]* (?:<<-?\w{{1,40}}\r?\n\s{{0,200}}+)?  # Terraform
      | (?P<comma>[ \t]{{0,40}},\s{{0,200}}+(?=[bru]?[\"'`]))
      | (?P<cell>[ \t]{{0,40}}\|[ \t]{{0,40}}) )
    (?: {_QUOTED} | {_BARE} | (?P<list>[\[({{]\s{{0,200}}+(?=[bru]?[\"'`])) )
    """,
    re.VERBOSE,
)
#: `--password …`, after the name.
_FLAGGED = re.compile(rf"""[ \t]{{1,4}} (?: {_QUOTED} | {_BARE} )""", re.VERBOSE)
_FLAG = re.compile(r"(?<![\w-])--?(?:[A-Za-z0-9]{1,20}-){0,3}\Z")
_FIRST_ARGUMENT = re.compile(r"(?:\w\(\s{0,40}[bru]?[\"'`][\w.]{0,40}|[\"']--?[\w-]{0,40})\Z")
#: What a value without quotes may be judged as mildly for: nothing comes after it that prose or code may go on with.
_ENDS = re.compile(r"[ \t]*(?:\#.*)?(?:\r?\n|\Z)|[;&\"'<]|[ \t]--?\w")
#: One of several values.
_ITEM = re.compile(
    r"""(?:[bru]?(?P<quote>["'`])(?P<value>(?:(?!(?P=quote))[^\\\n]|\\.){0,300}+)(?P=quote)\s{0,9}+(?P<key>[:=]>?)?,?)"""
    r"""(?:\s|\#.*\n){0,200}+"""
)
_MAX_ITEMS = 100
#: Characters of a line looked at before a name.
_MAX_BEFORE = 60


PATTERNS = ("|".join(NAMES), _LITERAL.pattern, _FLAGGED.pattern, _ITEM.pattern)


def find(text: str, places: Places) -> Iterator[Find]:
    """Literals given to a name that tells of a secret: `password = "…"`, `"api_key": "…"`, `DB_PASSWORD=…`."""
    for name in NAMES:
        for at in places.get(name, ()):
            if found := _LITERAL.match(text, at + len(name)):
                yield from _judged(text, name, at, found)
            if text[at - 1 : at] == "-":
                yield from _flagged(text, name, at)


def _judged(text: str, name: str, at: int, found: re.Match[str]) -> Iterator[Find]:
    """The finds, where what is given looks like a secret."""
    kind = Kind.PASSWORD if name in _PASSWORD_NAMES else Kind.KEY
    tail = found["tail"].strip("_-").lower()
    # A name that goes on, as in password_field, is given words more often than passwords.
    named_for_it = not tail or tail.isdigit() or (tail == "s" and found["list"] is not None)
    if found["list"]:
        if named_for_it:
            yield from _listed(text, found.end(), kind)
        return
    value, span = _value(text, found)
    if not named_for_it:
        secret = is_random(value)
    elif kind is Kind.KEY:
        secret = is_random(value) or is_strong(value)
    else:
        secret = is_random(value) or _password_test(text, found)(value)
    if secret and _may_be_meant(text, at, found):
        yield Find(*span, f"{kind}-literal", kind)


def _value(text: str, found: re.Match[str]) -> tuple[str, tuple[int, int]]:
    """What is given, and where it stands: all literals where several are joined."""
    if found["quoted"] is None:
        return found["bare"], found.span("bare")
    return _joined_value(text, found, "quoted")


def _joined_value(text: str, found: re.Match[str], group: str) -> tuple[str, tuple[int, int]]:
    joined = join_literals(text, found.end(group))
    if joined is None:
        return found[group], found.span(group)
    value = found[group] + joined.text
    stop = joined.source(0, len(joined.text))[1] if joined.text else found.end(group)
    return value, (found.start(group), stop)


def _password_test(text: str, found: re.Match[str]) -> Callable[[str], bool]:
    """How strictly a password is judged: by what stands around it."""
    if found["comma"] is not None or found["cell"] is not None:
        return is_mixed
    if found["quoted"] or _ENDS.match(text, found.end("bare")):
        return is_password
    # A shell's `NAME=value command` has no blank where code does.
    return is_typed if text[found.start("bare") - 1] == "=" else is_mixed


def _may_be_meant(text: str, name_at: int, found: re.Match[str]) -> bool:
    """False for other names in code, and for what a comma or a bar parts from the name but in calls and tables."""
    if found["cell"] is not None and not text.startswith("|", _line_start(text, found.start())):
        return False
    if found["quoted"]:
        return found["comma"] is None or _is_argument(text, name_at)
    return not _VARIABLE.fullmatch(found["bare"])


def _line_start(text: str, at: int) -> int:
    start = text.rfind("\n", max(0, at - _MAX_BEFORE), at) + 1
    return start or max(0, at - _MAX_BEFORE)


def _is_argument(text: str, at: int) -> bool:
    """True where the name at `at` stands in a call's first argument or is an option of a command."""
    return bool(_FIRST_ARGUMENT.search(text, max(0, at - _MAX_BEFORE), at))


def _listed(text: str, at: int, kind: Kind) -> Iterator[Find]:
    """Those of several values that look like secrets."""
    is_value = False
    for _ in range(_MAX_ITEMS):
        item = _ITEM.match(text, at)
        if item is None:
            return
        value, span = _joined_value(text, item, "value")
        at = item.end() if span == item.span("value") else span[1] + 1
        # A mapping is no list of secrets: its keys are judged for themselves.
        is_plain = not is_value and not item["key"] and not any(map(str.isspace, value))
        is_value = bool(item["key"])
        if is_plain and (is_random(value) or (is_mixed if kind is Kind.PASSWORD else is_strong)(value)):
            yield Find(*span, f"{kind}-literal", kind)


def _flagged(text: str, name: str, at: int) -> Iterator[Find]:
    """The value of `--password …`, whose name starts at `at`."""
    found = _FLAGGED.match(text, at + len(name))
    if found is None or not _FLAG.search(text, max(0, at - _MAX_BEFORE), at):
        return
    kind = Kind.PASSWORD if name in _PASSWORD_NAMES else Kind.KEY
    group = "quoted" if found["quoted"] else "bare"
    if is_random(found[group]) or (is_typed if kind is Kind.PASSWORD else is_strong)(found[group]):
        yield Find(*found.span(group), f"{kind}-literal", kind)


#: What stands bare after `password =` in code is another name.
_VARIABLE = re.compile(r"[a-z_]+\d{0,2}|[A-Z_]+\d{0,2}|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[-+]?\d[\d_.]*")
