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
    "privatekey", "private_key", "private-key", "encryptionkey", "encryption_key", "encryption-key",
    "signingkey", "signing_key", "signing-key", "masterkey", "master_key", "accountkey", "account_key",
    "api.key", "auth_key", "authkey", "credential", "pass",
)  # fmt: skip
_PASSWORD_NAMES = frozenset({"password", "passwd", "passphrase", "passwort", "pwd", "pass"})
#: A name that is a word of its own, or the end of another: `pass` is in too many others.
_WORD = "pass"
_BEFORE_WORD = re.compile(r"(?:user|root|admin|smtp|mail|ftp|sql|db|my)\Z", re.IGNORECASE)
#: A value in quotes.
_QUOTED = (
    r"""[bBrRuUfF@$L]{0,2} (?P<quote>[\"]{3}|[']{3}|\\?[\"'`])"""
    r""" (?P<quoted>(?:(?!(?P=quote))(?:[^\s\\]|\\.)){1,300}+) (?P=quote)"""
)
#: A value without; what it may be is judged by what comes after.
_BARE = r"""(?P<bare>[^\s\"'`,;&(){}\[\]<>|]{8,300}+) (?=[\s;&\"'<,}] | \]\]> | \Z)"""
#: What a literal is wrapped in: a type's constructor, a decoder.
_WRAPPER = (
    r"""(?:(?:\w{1,30}+(?:\.|::)){0,3}+(?:from|Secret(?:Str|String)?|bytes|str|b64decode|fromhex)"""
    r"""|(?:new[ ])?String|\[\]byte)\( [ \t]{0,9} (?=[bru]?[\"'`])"""
)
_LITERAL = re.compile(
    rf"""
    (?P<tail>[\w-]{{0,40}}+) (?P<close>(?:\\?[\"'`\]*]|&quot;){{0,3}}+) # the rest of the name
    (?:\[\d{{0,4}}\])?                                                   # an array's size
    (?:[ \t]?:[ \t]?[A-Za-z_&][\w.\[\]|?&<>' ]{{0,40}}?[ \t]?(?==))?     # a type
    (?: [ \t]{{0,40}} (?P<sign>=>|:=|:-|\?=|\+=|!==?|={{1,3}}|:|\(|>|<-) \*{{0,2}} [ \t]{{0,40}}
        (?: (?:\\|[|>][-+\d]{{0,2}}|<<[-~]?[\"']?\w{{1,40}}[\"']?)[ \t]*\r?\n\s{{0,200}}+
          | \(?[ \t]*\r?\n\s{{0,200}}+(?=[bBrRuUfF]?[\"'`])
          | !!?\w{{1,20}}[ \t]{{1,9}} | <!\[CDATA\[ | &quot; | {_WRAPPER} )?
      # What is taken where there is no other: `getenv("DB_PASSWORD") or "…"`.
      | (?P<else>\)? [ \t]{{0,9}} (?:\|\|=?|\?\?=?|or(?=[ \t])) [ \t]{{0,9}} (?=[bru]?[\"'`]))
      # A pair such as `name: …`, `value: …`, perhaps with a remark between.
      | ,?\s{{0,200}}+ (?:\#.{{0,200}}\n[ \t]{{0,200}}+)?
        (?:-[ ])? [\"']? [A-Za-z]{{0,20}}? [Vv]alue [\"']? [ \t]?[:=][ \t]{{0,40}}
      # A variable of Terraform's.
      | [ \t]? \{{ (?:[^{{}}]|\{{[^{{}}]{{0,400}}\}}){{0,400}}? \bdefault[ \t]*=[ \t]*
        (?:<<-?\w{{1,40}}\r?\n\s{{0,200}}+)?
      | (?P<comma>[ \t]{{0,40}},\s{{0,200}}+(?=[bru]?[\"'`]))
      | (?P<cell>[ \t]{{0,40}}\|[ \t]{{0,40}}) )
    (?: {_QUOTED} | {_BARE} | (?P<list>[\[({{]\s{{0,200}}+(?=[bru]?[\"'`])) )
    """,
    re.VERBOSE,
)
#: `--password …`, `ENV DB_PASSWORD …`, after the name.
_FLAGGED = re.compile(rf"""(?P<tail>\w{{0,40}}+) [ \t]{{1,40}} (?: {_QUOTED} | {_BARE} )""", re.VERBOSE)
_FLAG = re.compile(r"(?<![\w-])--?(?:[A-Za-z0-9]{1,20}-){0,3}\Z")
#: What sets a name to what comes after it and a blank: Docker's files, shells, C.
_SETTING = re.compile(r"^[ \t]*(?:ENV|setenv|setx|\#[ \t]*define)[ \t]{1,9}\w{0,40}\Z", re.IGNORECASE | re.MULTILINE)
#: The same in SQL, where the value is quoted.
_SQL_SETTING = re.compile(
    r"\b(?:with|(?:user|role)[ \t]{1,9}\S{1,40})(?:[ \t]{1,9}encrypted)?[ \t]{1,9}\Z", re.IGNORECASE
)
_SETTER = re.compile(
    r"(?:define|(?:[gs]et|put)?env|fetch|setproperty|setdefault|environ\.get)\(\s{0,40}[bru]?[\"'`][\w.]{0,40}\Z",
    re.IGNORECASE,
)
#: A pair whose value comes first: `value: …`, `name: DB_PASSWORD`.
_VALUE_BEFORE = re.compile(
    rf"""value[\"']?[ \t]?:[ \t]{{0,9}} (?: {_QUOTED} | {_BARE} ) [ \t]*,?\s{{0,40}}+
         [\"']?(?:name|key)[\"']?[ \t]?:[ \t]{{0,9}}[\"']?[\w.-]{{0,60}}\Z""",
    re.VERBOSE | re.IGNORECASE,
)
_NAME_ENDS = re.compile(r"\d{0,3}[\"']?[ \t]*(?:[,}\r\n]|\Z)")
_MAX_PAIR = 400
_FIRST_ARGUMENT = re.compile(r"(?:\w\(\s{0,40}[bru]?[\"'`][\w.]{0,40}|[\"']--?[\w-]{0,40})\Z")
#: What a value without quotes may be judged as mildly for: nothing comes after it that prose or code may go on with.
_ENDS = re.compile(r"[ \t]*(?:\#.*)?(?:\r?\n|\Z)|[;&\"'<]|\]\]>|[ \t]--?\w")
#: One of several values.
_ITEM = re.compile(
    r"""(?:[bru]?(?P<quote>["'`])(?P<value>(?:(?!(?P=quote))[^\\\n]|\\.){0,300}+)(?P=quote)\s{0,9}+(?P<key>[:=]>?)?,?)"""
    r"""(?:\s|\#.*\n){0,200}+"""
)
_MAX_ITEMS = 100
#: Characters of a line looked at before a name.
_MAX_BEFORE = 60


_ALL = (_LITERAL, _FLAGGED, _FLAG, _SETTING, _SQL_SETTING, _SETTER, _VALUE_BEFORE, _ITEM)
PATTERNS = ("|".join(NAMES), *(each.pattern for each in _ALL))


def find(text: str, places: Places) -> Iterator[Find]:
    """Literals given to a name that tells of a secret: `password = "…"`, `"api_key": "…"`, `DB_PASSWORD=…`."""
    for name in NAMES:
        for at in places.get(name, ()):
            end = at + len(name)
            if name is _WORD and not _is_whole(text, at, end):
                continue
            if found := _LITERAL.match(text, end):
                yield from _judged(text, name, at, found)
            elif _NAME_ENDS.match(text, end):
                yield from _paired(text, name, at)
            yield from _flagged(text, name, at)


def _is_whole(text: str, at: int, end: int) -> bool:
    """True for `pass`, `DB_PASS`, `dbPass` and `dbpass`; not for `passed`, `bypass`."""
    before = text[at - 1 : at]
    if text[end : end + 1].isalnum():
        return False
    is_part = before.isalpha() and not (before.islower() and text[at].isupper())
    return not is_part or bool(_BEFORE_WORD.search(text, max(0, at - _MAX_BEFORE), at))


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
    if name is _WORD:
        secret = named_for_it and found["sign"] != "(" and _password_test(text, name, at, found)(value)
    elif not named_for_it:
        secret = is_random(value)
    else:
        test = is_strong if kind is Kind.KEY else _password_test(text, name, at, found)
        secret = is_random(value) or test(value)
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


def _password_test(text: str, name: str, at: int, found: re.Match[str]) -> Callable[[str], bool]:
    """How strictly a password is judged: by what stands around it, and the name at `at`."""
    if found["comma"] is not None and _SETTER.search(text, max(0, at - _MAX_BEFORE), at):
        return is_typed
    if found["comma"] is not None or found["cell"] is not None:
        return is_mixed
    if found["else"] is not None or found["sign"] == ":-":
        return is_typed
    if name is _WORD:
        return is_typed if found["quoted"] or _ENDS.match(text, found.end("bare")) else is_mixed
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
    """The value of `--password …` or `ENV DB_PASSWORD …`, whose name starts at `at`."""
    found = _FLAGGED.match(text, at + len(name))
    if found and _is_set(text, at, found):
        yield from _alone(found, name, is_named_for_it=not found["tail"])


def _is_set(text: str, at: int, found: re.Match[str]) -> bool:
    """True where what stands before the name at `at` gives it what stands after."""
    start, before = max(0, at - _MAX_BEFORE), text[at - 1 : at]
    if before == "-":
        return not found["tail"] and bool(_FLAG.search(text, start, at))
    if found["quoted"] and before.isspace() and _SQL_SETTING.search(text, start, at):
        return True
    return bool(_SETTING.match(text, _line_start(text, at), at))


def _paired(text: str, name: str, at: int) -> Iterator[Find]:
    """The value of a pair that ends with its name, at `at`."""
    start = text.rfind("alue", max(0, at - _MAX_PAIR), at)
    if start > 0 and (found := _VALUE_BEFORE.match(text, start - 1, at)):
        yield from _alone(found, name, is_named_for_it=True)


def _alone(found: re.Match[str], name: str, *, is_named_for_it: bool) -> Iterator[Find]:
    """What is given, where nothing but the name tells of it."""
    kind = Kind.PASSWORD if name in _PASSWORD_NAMES else Kind.KEY
    group = "quoted" if found["quoted"] else "bare"
    test = is_typed if kind is Kind.PASSWORD else is_strong
    if is_random(found[group]) or (is_named_for_it and test(found[group])):
        yield Find(*found.span(group), f"{kind}-literal", kind)


#: What stands bare after `password =` in code is another name.
_VARIABLE = re.compile(r"[a-z_]+\d{0,2}|[A-Z_]+\d{0,2}|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[-+]?\d[\d_.]*")
