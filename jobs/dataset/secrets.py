"""Secrets in a text, found by our own rules, by place and rule: a value is never kept.

Two kinds of rule. Keys that tell themselves: their issuers give them a prefix and a length, so a plain search for the
prefix comes first and a pattern looks only where it stands. Literals given to a name such as `password` or `api_token`:
they must look like a secret, too (letters and digits, entropy), since most such literals are words. Literals that code
puts together are judged as the text they make.

What an optional scanner finds beyond these is in `scanner`, e-mail addresses are in `emails`.
"""

import base64
import binascii
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from jobs.dataset.literals import join_literals


class Kind(StrEnum):
    """What a find is hidden as."""

    EMAIL = "email"
    KEY = "key"
    PASSWORD = "password"  # noqa: S105 - the name of a kind


@dataclass(frozen=True, slots=True, order=True)
class Find:
    """A place in a text that must not be learned: characters `start` to `stop`."""

    start: int
    stop: int
    rule: str
    kind: Kind


@dataclass(frozen=True)
class _Shape:
    """A key that tells itself."""

    rule: str
    #: The pattern is tried only where one of these stands; each is the start of what it matches.
    starts: tuple[str, ...]
    #: Its first group is what is hidden; all of it where it has none.
    pattern: re.Pattern[str]
    kind: Kind = Kind.KEY
    #: What was matched is a secret only if this holds.
    holds: Callable[[str], bool] = bool


def find_secrets(text: str) -> list[Find]:
    """Every place that a rule takes for a secret; places may overlap."""
    # U+0130 is the one character whose small form is longer: places must stay what they are.
    small = text.replace("\u0130", "I").lower()
    finds = [find for shape in _SHAPES for find in _shaped(text, shape)]
    finds += [*_split_urls(text), *_private_keys(text, small), *_manifests(text), *_web_keys(text)]
    return [*finds, *_given(text, small)]


def rules_version() -> str:
    """Changes with every rule, so that nothing cached under older ones is taken for good."""
    patterns = [shape.pattern.pattern + "|".join(shape.starts) for shape in _SHAPES]
    patterns += [each.pattern for each in (_HEADER, _CUT_BODY, _DATA, _ENTRY, _WEB_KEY, _LITERAL, _FLAGGED, _ITEM)]
    patterns += ["|".join(_NAMES), _CODE]
    return hashlib.blake2b("\n".join(patterns).encode(), digest_size=6).hexdigest()


#: Raised by hand when the code of a rule changes rather than its pattern.
_CODE = "2"


# Values


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


def _has_letter_and_digit(value: str) -> bool:
    return any(map(str.isalpha, value)) and any(map(str.isdigit, value))


def _is_words(value: str) -> bool:
    """True for names of code and configuration: `oauth2-client`, `app.auth.Token`, `v1.2.3`."""
    return all(map(_WORD.fullmatch, _BETWEEN_WORDS.split(value)))


def _is_random(value: str) -> bool:
    """True for what a program made up: long, letters and digits, no words with numbers to them."""
    return (
        len(value) >= _MIN_RANDOM
        and _has_letter_and_digit(value)
        and entropy(value) >= _MIN_ENTROPY
        and not _TEMPLATE.search(value)
        and not _PLACE.search(value)
        and not _is_words(value)
    )


_RUN_OF_LETTERS = re.compile(rf"[\w+/~-]{{{_MIN_RANDOM},}}")


def holds_random(text: str) -> bool:
    """True where something stands in the text that a program made up, whether or not it is a secret."""
    return any(_is_random(run) for run in _RUN_OF_LETTERS.findall(text))


def is_password(value: str) -> bool:
    """True for what a person may have made up: a letter, and a digit or sign that names do not have."""
    mixed = any(map(str.isalpha, value)) and any(letter.isdigit() or letter in "!@#$%^&*+?~|" for letter in value)
    several_words = any(letter in "-_.:/" for letter in value) and _is_words(value)
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
    tests: tuple[Callable[[str], bool], ...] = (str.islower, str.isupper, str.isdigit, _SIGNS.__contains__)
    return sum(any(map(test, value)) for test in tests)


def _is_typed(value: str) -> bool:
    """True for a password that is no word with a number to it, nor code: `s3cr3tpw`, not `sha256` or `f(x1)`."""
    has_digit = any(map(str.isdigit, value))
    return has_digit and is_password(value) and not _is_words(value) and _OF_CODE.isdisjoint(value)


def _is_mixed(value: str) -> bool:
    """The same, and of three kinds of character: what is neither quoted nor ends a line may be code or prose."""
    return _is_typed(value) and _classes(value) >= _ALL_CLASSES - 1


def _is_strong(value: str) -> bool:
    """True for a password with everything that strict sites ask for."""
    return len(value) >= _MIN_STRONG and _is_typed(value) and _classes(value) == _ALL_CLASSES


def _is_no_sample(value: str) -> bool:
    return value.lower() not in _SAMPLES and not _TEMPLATE.search(value) and not _FIELD.fullmatch(value)


_FIELD = re.compile(r"\{[^}]*\}|<[^>]*>|\[[^\]]*\]+|%\([^)]*\)s|%\w|[$:]\w+|\*+|\.+")


def _is_user_and_password(value: str) -> bool:
    """True where base64 holds `user:password` in readable characters."""
    try:
        plain = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return ":" in plain and plain.isprintable()


# Keys that tell themselves

#: Not within a word; the letter of an escape, as in "\\nAKIA…", is none.
_BEFORE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"


def _shape(
    rule: str,
    starts: str,
    pattern: str,
    kind: Kind = Kind.KEY,
    holds: Callable[[str], bool] = bool,
    *,
    inside_words: bool = False,
) -> _Shape:
    """A shape whose prefixes are given as words; no letter or digit stands before it, unless `inside_words`."""
    before = "" if inside_words else _BEFORE
    return _Shape(rule, tuple(starts.split()), re.compile(before + pattern), kind, holds)


_END = r"(?![A-Za-z0-9])"
_SHAPES = (
    _shape("aws-access-key", "AKIA ASIA ABIA ACCA", rf"A[KSBC][IC]A[A-Z0-9]{{16}}{_END}"),
    _shape("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", rf"gh[pousr]_[A-Za-z0-9]{{30,255}}{_END}", inside_words=True),
    _shape("github-token", "github_pat_", r"github_pat_\w{22,255}", inside_words=True),
    _shape(
        "gitlab-token",
        "glpat- gldt- glrt- glcbt- glptt- glsoat-",
        r"gl(?:pat|dt|rt|cbt|ptt|soat)-[\w.-]{20,300}",
        inside_words=True,
    ),
    _shape(
        "slack-token",
        "xox xapp-",
        r"x(?:ox[abeoprs]|app)[-.][\w.-]{10,300}",
        inside_words=True,
    ),
    _shape("slack-webhook", "hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows|triggers)/([\w/+-]{20,200})"),
    _shape("discord-webhook", "/api/webhooks/", r"/api/webhooks/(\d{10,30}/[\w-]{40,120})", inside_words=True),
    _shape("llm-api-key", "sk-", r"(?<!-)sk-[\w-]{20,300}", holds=_is_random),
    _shape(
        "stripe-key",
        "sk_live_ sk_test_ rk_live_ rk_test_ whsec_",
        r"(?:[sr]k_(?:live|test)|whsec)_[A-Za-z0-9+/=]{10,300}",
        inside_words=True,
    ),
    _shape("google-api-key", "AIza", r"AIza[\w-]{35}(?![\w-])"),
    _shape("google-oauth", "ya29. GOCSPX-", r"(?:ya29\.|GOCSPX-)[\w.-]{20,500}"),
    _shape("npm-token", "npm_", rf"npm_[A-Za-z0-9]{{36}}{_END}"),
    _shape("pypi-token", "pypi-AgE", r"pypi-AgE[\w-]{50,1000}", inside_words=True),
    _shape("hugging-face-token", "hf_ api_org_", rf"(?:hf|api_org)_[A-Za-z0-9]{{34}}{_END}"),
    _shape("rubygems-token", "rubygems_", rf"rubygems_[0-9a-f]{{48}}{_END}", inside_words=True),
    _shape("docker-token", "dckr_", r"dckr_[po]at_[\w-]{27,}", inside_words=True),
    _shape("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", r"do[por]_v1_[0-9a-f]{64}", inside_words=True),
    _shape("sendgrid-key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _shape("shopify-token", "shp", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}", inside_words=True),
    _shape("databricks-token", "dapi", rf"dapi[0-9a-f]{{32}}(?:-\d)?{_END}"),
    _shape("vault-token", "hvs. hvb.", r"hv[sb]\.[\w-]{24,300}"),
    _shape("atlassian-token", "ATATT3", r"ATATT3[\w=+/-]{50,300}"),
    _shape("square-token", "sq0", r"sq0(?:atp|csp)-[\w-]{22,60}", inside_words=True),
    _shape("mailgun-key", "key-", rf"key-[0-9a-f]{{32}}{_END}"),
    _shape("age-key", "AGE-SECRET-KEY-", r"AGE-SECRET-KEY-1[A-Z0-9]{50,70}", inside_words=True),
    _shape(
        "azure-key",
        "AccountKey= SharedAccessKey=",
        r"(?:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{40,100}={0,2})",
        inside_words=True,
    ),
    _shape("jwt", "eyJ", r"eyJ[\w-]{8,4000}+\.[\w-]{8,8000}+\.[\w-]{0,2000}"),
    _shape("bearer", "Bearer bearer", r"[Bb]earer\s{1,4}([\w+/=.~-]{16,4000})", holds=_is_random),
    _shape(
        "basic-auth",
        "Basic basic",
        r"[Bb]asic\s{1,4}([A-Za-z0-9+/]{12,500}={0,2})(?![\w+/])",
        holds=_is_user_and_password,
    ),
    _shape(
        "docker-auth",
        '"auth"',
        r'"auth"\s{0,4}:\s{0,4}"([A-Za-z0-9+/]{12,500}={0,2})"',
        holds=_is_user_and_password,
    ),
    _shape("password-hash", "$2", r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}", Kind.PASSWORD, inside_words=True),
    _shape(
        "password-hash",
        "$1$ $5$ $6$ $y$ $apr1$",
        r"\$(?:[156y]|apr1)\$(?:rounds=\d+\$)?[./A-Za-z0-9]{1,32}\$[./A-Za-z0-9]{22,100}",
        Kind.PASSWORD,
        inside_words=True,
    ),
    _shape(
        "url-password",
        "://",
        r"://[^\s/?#\"'<>@:`]{0,200}:([^\s/?#\"'<>`]{1,200})@(?=[\w\[{$%<])",
        Kind.PASSWORD,
        _is_no_sample,
        inside_words=True,
    ),
    _shape(
        "authorization",
        "uthorization UTHORIZATION",
        r"(?i:uthorization)[\"']?\s{0,4}[:=,]\s{0,4}f?[\"']?(?i:token|basic|apikey)\s{1,4}([\w+/=.~-]{16,4000})",
        holds=_is_random,
        inside_words=True,
    ),
    _shape(
        "netrc",
        "login",
        r"login\s{1,40}\S{1,100}\s{1,40}password\s{1,40}([^\s\"'`]{6,200})(?!\S)",
        Kind.PASSWORD,
        _is_typed,
    ),
    _shape(
        "command-line-password",
        "mysql mariadb",
        r"(?:mysql|mariadb)(?:-?[a-z]{1,12})?[\"',]{0,2}[ \t][^\n|;]{0,200}?[\s\"']-p[\"']?([^\s\"'`,;&|()]{6,100})",
        Kind.PASSWORD,
        _is_typed,
    ),
    _shape(
        "command-line-password",
        "sshpass",
        r"sshpass[\s\"',]{1,8}-p[\s\"',]{0,8}([^\s\"'`,;]{6,200})",
        Kind.PASSWORD,
        _is_typed,
    ),
    _shape(
        "pgpass",
        ":5432: :*:",
        r":(?:\d{2,5}|\*):[^\s:\"']{1,64}:[^\s:\"']{1,64}:([^\s:\"']{6,200})[ \t]*(?:\r?\n|\Z)",
        Kind.PASSWORD,
        _is_typed,
        inside_words=True,
    ),
    _shape("url-token", "://", r"://([^\s/?#\"'<>@:`]{16,300})@(?=[\w\[])", holds=_is_random, inside_words=True),
)


def _shaped(text: str, shape: _Shape) -> Iterator[Find]:
    for start in shape.starts:
        at = text.find(start)
        while at >= 0:
            found = shape.pattern.match(text, at)
            if found and shape.holds(found[found.re.groups]):
                yield Find(*found.span(found.re.groups), shape.rule, shape.kind)
            at = text.find(start, at + len(start))


def _split_urls(text: str) -> Iterator[Find]:
    """URLs put together of literals."""
    at = text.find("://")
    while at >= 0:
        end = _URL.match(text, at)
        if end and text[end.end() : end.end() + 1] in _QUOTES and (joined := join_literals(text, at, 0, _FEW)):
            for shape in _URL_SHAPES:
                found = shape.pattern.match(joined.text)
                if found and shape.holds(found[1]) and joined.crosses(0, found.end() + 1):
                    yield Find(*joined.source(*found.span(1)), shape.rule, shape.kind)
        at = text.find("://", at + 3)


_QUOTES = frozenset("\"'")
_URL = re.compile(r"://[^\s\"'<>]{0,400}+")
_URL_SHAPES = tuple(shape for shape in _SHAPES if shape.rule in {"url-password", "url-token"})
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
#: Literals that the parts of a URL or a header stand in.
_FEW = 6
#: Characters behind joined literals that may go on with their key.
_AFTER = 1 << 14
_MAX_PRIVATE_KEY = 1 << 16
_MIN_PRIVATE_KEY = 40
_MIN_RUN_SHARE = 0.5


def _private_keys(text: str, small: str) -> Iterator[Find]:
    """Private keys in armour (PEM, PGP, SSH2) or in PuTTY's files, also inside strings and comments.

    Code that only mentions the header, and the footer further down, is no key: between them half must be long runs.
    """
    headers = list(_headers(text, small))
    for place, header in enumerate(headers, 1):
        following = headers[place].start() if place < len(headers) else len(text)
        if stop := _key_end(text, header.end(), min(following, header.end() + _MAX_PRIVATE_KEY)):
            yield Find(header.start(), stop, "private-key", Kind.KEY)
    yield from _split_keys(text, small)
    at = text.find("Private-Lines:")
    while at >= 0:
        lines = _PRIVATE_LINES.match(text, at)
        if lines and (stop := _cut_end(text, lines.end(), lines.end() + _MAX_PRIVATE_KEY)):
            yield Find(lines.end(), stop, "private-key", Kind.KEY)
        at = text.find("Private-Lines:", at + 1)


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


def _headers(text: str, small: str) -> Iterator[re.Match[str]]:
    at = small.find("begin ")
    while at >= 0:
        # Before it stand five dashes, or four and a blank.
        if text[at - 1 : at] in ("-", " ") and (found := _HEADER.match(text, max(0, at - _DASHES))):
            yield found
        at = small.find("begin ", at + 1)


def _split_keys(text: str, small: str) -> Iterator[Find]:
    """Private keys whose header is put together of literals: `"-----BEGIN EC " + "PRIVATE KEY-----…"`."""
    at = small.find("begin ")
    while at >= 0:
        start = _dashes(text, at)
        if start >= 0 and not _HEADER.match(text, start) and (span := _split_key(text, start)):
            yield Find(*span, "private-key", Kind.KEY)
        at = small.find("begin ", at + 1)


def _split_key(text: str, start: int) -> tuple[int, int] | None:
    """Where the key stands whose header, in several literals, starts at `start`."""
    few = join_literals(text, start, 0, _FEW)
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


# Documents that hold keys

#: The entries of `data:` or `stringData:`, by their indent.
_DATA = re.compile(
    r"^(?P<indent>[ \t]*+)(?:data|stringData):[ \t]*\r?\n"
    r"(?P<entries>(?:(?P=indent)[ \t].*(?:\n|\Z)|[ \t]*\r?\n)+)",
    re.MULTILINE,
)
_ENTRY = re.compile(
    r"""
    ^(?P<indent>[ \t]++)[\"']?[\w./-]+[\"']?:[ \t]+
    (?: [|>][-+\d]{0,2}[ \t]*\r?\n[ \t]*(?P<block>\S.*(?:\n(?P=indent)[ \t]+\S.*|\n[ \t]*(?=\n))*)
      | (?:!!\w+[ \t]+)?(?P<quote>[\"']?)(?P<value>[^\s\"'\#|>{][^\n\"']{3,4000}?)(?P=quote)[ \t]*(?:\#.*)?\r?$ )
    """,
    re.VERBOSE | re.MULTILINE,
)
#: What parts documents: YAML's line, the ends of code in Markdown.
_FENCES = ("\n---", "\n```")
_MANIFEST = re.compile(r"kind: Secret[ \t]*(?:#.*)?\r?(?:\n|\Z)")


def _manifests(text: str) -> Iterator[Find]:
    """Every value that a Kubernetes manifest of the kind Secret holds, whatever its name is."""
    at = text.find("kind: Secret")
    while at >= 0:
        stop = at + 1
        if _MANIFEST.match(text, at):
            stop = min((place for fence in _FENCES if (place := text.find(fence, at)) >= 0), default=len(text))
            start = max(text.rfind(fence, 0, at) for fence in _FENCES) + 1
            for data in _DATA.finditer(text, start, stop):
                yield from _entries(text, *data.span("entries"))
        at = text.find("kind: Secret", stop)


def _entries(text: str, start: int, stop: int) -> Iterator[Find]:
    for entry in _ENTRY.finditer(text, start, stop):
        group = "block" if entry["block"] else "value"
        if not _TEMPLATE.search(entry[group]) and _is_no_sample(entry[group].strip()):
            yield Find(*entry.span(group), "kubernetes-secret", Kind.KEY)


#: The members of a JSON web key that are private (RFC 7518, sections 6.2.2, 6.3.2 and 6.4).
_WEB_KEY = re.compile(r"[\"'](?:d|p|q|dp|dq|qi|k)[\"']\s{0,9}:\s{0,9}[\"']([\w-]{20,2000})[\"']")
_MAX_WEB_KEY = 8000


def _web_keys(text: str) -> Iterator[Find]:
    """The private members of JSON web keys."""
    at = text.find("kty")
    while at >= 0:
        stop = at + 1
        if text[at - 1 : at] in _QUOTES and text[at + 3 : at + 4] in _QUOTES:
            start = max(text.rfind("{", max(0, at - _MAX_WEB_KEY), at), 0)
            stop = min(
                (place for end in "{}" if (place := text.find(end, at, at + _MAX_WEB_KEY)) >= 0), default=at + 400
            )
            for member in _WEB_KEY.finditer(text, start, stop):
                if _is_random(member[1]):
                    yield Find(*member.span(1), "json-web-key", Kind.KEY)
        at = text.find("kty", stop)


# Literals given to a name

#: What a literal is given to where it is a secret, in small letters.
_NAMES = (
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


def _given(text: str, small: str) -> Iterator[Find]:
    """Literals given to a name that tells of a secret: `password = "…"`, `"api_key": "…"`, `DB_PASSWORD=…`."""
    for name in _NAMES:
        at = small.find(name)
        while at >= 0:
            end = at + len(name)
            if found := _LITERAL.match(text, end):
                yield from _judged(text, name, at, found)
            if text[at - 1 : at] == "-":
                yield from _flagged(text, name, at)
            at = small.find(name, end)


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
        secret = _is_random(value)
    elif kind is Kind.KEY:
        secret = _is_random(value) or _is_strong(value)
    else:
        secret = _is_random(value) or _password_test(text, found)(value)
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
        return _is_mixed
    if found["quoted"] or _ENDS.match(text, found.end("bare")):
        return is_password
    # A shell's `NAME=value command` has no blank where code does.
    return _is_typed if text[found.start("bare") - 1] == "=" else _is_mixed


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
        if is_plain and (_is_random(value) or (_is_mixed if kind is Kind.PASSWORD else _is_strong)(value)):
            yield Find(*span, f"{kind}-literal", kind)


def _flagged(text: str, name: str, at: int) -> Iterator[Find]:
    """The value of `--password …`, whose name starts at `at`."""
    found = _FLAGGED.match(text, at + len(name))
    if found is None or not _FLAG.search(text, max(0, at - _MAX_BEFORE), at):
        return
    kind = Kind.PASSWORD if name in _PASSWORD_NAMES else Kind.KEY
    group = "quoted" if found["quoted"] else "bare"
    if _is_random(found[group]) or (_is_typed if kind is Kind.PASSWORD else _is_strong)(found[group]):
        yield Find(*found.span(group), f"{kind}-literal", kind)


#: What stands bare after `password =` in code is another name.
_VARIABLE = re.compile(r"[a-z_]+\d{0,2}|[A-Z_]+\d{0,2}|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[-+]?\d[\d_.]*")
