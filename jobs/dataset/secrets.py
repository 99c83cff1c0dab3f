"""Secrets in a text, found by our own rules, by place and rule: a value is never kept.

Two kinds of rule. Keys that tell themselves: their issuers give them a prefix and a length, so a plain search for the
prefix comes first and a pattern looks only where it stands. Literals given to a name such as `password` or `api_token`:
they must look like a secret, too (letters and digits, entropy), since most such literals are words.

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
    finds = [find for shape in _SHAPES for find in _shaped(text, shape)]
    return [*finds, *_private_keys(text), *_given(text)]


def rules_version() -> str:
    """Changes with every rule, so that nothing cached under older ones is taken for good."""
    patterns = [shape.pattern.pattern + "|".join(shape.starts) for shape in _SHAPES]
    patterns += [_HEADER.pattern, _LITERAL.pattern, "|".join(_NAMES), _CODE]
    return hashlib.blake2b("\n".join(patterns).encode(), digest_size=6).hexdigest()


#: Raised by hand when the code of a rule changes rather than its pattern.
_CODE = "1"


# Values


def entropy(value: str) -> float:
    """Shannon's entropy of a text's own characters, in bits a character; 0 for an empty text."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


_TEMPLATE = re.compile(r"\$\{|\$\(|\{\{|%\(|%[sd]|<[^>]*>|\{[\w.]*\}|^\$\w+$|^%\w+%$|\*{3}|\.{3}|x{4}|X{4}")
_PLACE = re.compile(r"://|^~/|^[A-Za-z]:\\|^arn:")
_WORD = re.compile(
    r"(?:[a-z]{1,19}|[A-Z]{1,19}|[A-Z][a-z]{1,18}(?:[A-Z][a-z]{1,18}){0,3}|[a-z]{1,12}(?:[A-Z][a-z]{1,12}){1,4})?\d{0,3}"
    r"|v?\d+|\d{1,2}[a-z]{1,2}"
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
        "xoxa- xoxb- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs- xapp-",
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
    _shape("docker-token", "dckr_pat_ dckr_oat_", r"dckr_[po]at_[\w-]{27,}", inside_words=True),
    _shape("digitalocean-token", "dop_v1_ doo_v1_ dor_v1_", r"do[por]_v1_[0-9a-f]{64}", inside_words=True),
    _shape("sendgrid-key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _shape("shopify-token", "shpat_ shpca_ shppa_ shpss_", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}", inside_words=True),
    _shape("databricks-token", "dapi", rf"dapi[0-9a-f]{{32}}(?:-\d)?{_END}"),
    _shape("vault-token", "hvs. hvb.", r"hv[sb]\.[\w-]{24,300}"),
    _shape("atlassian-token", "ATATT3", r"ATATT3[\w=+/-]{50,300}"),
    _shape("square-token", "sq0atp- sq0csp-", r"sq0(?:atp|csp)-[\w-]{22,60}", inside_words=True),
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
    _shape("password-hash", "$2a$ $2b$ $2y$", r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}", Kind.PASSWORD, inside_words=True),
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


_HEADER = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_FOOTER = re.compile(r"-----END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_RUN = re.compile(r"[A-Za-z0-9+/=]{24,}")
#: A key whose end is cut off: lines of base64 with what a string or a comment puts between them.
_CUT_BODY = re.compile(r"(?:[^A-Za-z0-9+/=]{0,40}[A-Za-z0-9+/=]{24,})+")
_MAX_PRIVATE_KEY = 1 << 16
_MIN_PRIVATE_KEY = 40
_MIN_RUN_SHARE = 0.5


def _private_keys(text: str) -> Iterator[Find]:
    """Private keys in PEM or PGP armour, also inside strings and comments.

    Code that only mentions the header, and the footer further down, is no key: between them half must be long runs.
    """
    headers = list(_headers(text))
    for place, header in enumerate(headers, 1):
        following = headers[place].start() if place < len(headers) else len(text)
        end = min(following, header.end() + _MAX_PRIVATE_KEY)
        footer = _FOOTER.search(text, header.end(), end)
        body = footer or _CUT_BODY.match(text, header.end(), end)
        if body is None:
            continue
        inner = text[header.end() : footer.start() if footer else body.end()]
        runs = sum(len(run) for run in _RUN.findall(inner))
        if runs >= max(_MIN_PRIVATE_KEY, _MIN_RUN_SHARE * len(inner)):
            yield Find(header.start(), body.end(), "private-key", Kind.KEY)


def _headers(text: str) -> Iterator[re.Match[str]]:
    at = text.find("-----BEGIN ")
    while at >= 0:
        if found := _HEADER.match(text, at):
            yield found
        at = text.find("-----BEGIN ", at + 1)


# Literals given to a name

#: What a literal is given to where it is a secret, in small letters.
_NAMES = (
    "password", "passwd", "passphrase", "passwort", "pwd",
    "secret", "token", "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key",
    "privatekey", "private_key", "private-key", "encryption_key", "signing_key", "auth_key", "authkey", "credential",
)  # fmt: skip
_PASSWORD_NAMES = frozenset({"password", "passwd", "passphrase", "passwort", "pwd"})
_LITERAL = re.compile(
    r"""
    (?P<tail>[\w-]{0,40}) [\"'`\]]{0,3}                                 # the rest of the name
    (?:[ \t]?:[ \t]?[A-Za-z_][\w.\[\]|? ]{0,40}?[ \t]?(?==))?           # a type
    [ \t]{0,40} (?:=>|:=|\?=|\+=|!==?|={1,3}|:|\(|>) [ \t]{0,40}
    (?: [bBrRuUfF@$L]{0,2} (?P<quote>[\"'`]) (?P<quoted>(?:(?!(?P=quote))[^\s\\]|\\.){6,300}) (?P=quote)
      | (?P<bare>[^\s\"'`,;&(){}\[\]<>|]{8,300}) (?= [ \t]*(?:\#.*)?(?:\r?\n|\Z) | [;&\"'<] | [ \t]--?\w ) )
    """,
    re.VERBOSE,
)


def _given(text: str) -> Iterator[Find]:
    """Literals given to a name that tells of a secret: `password = "…"`, `"api_key": "…"`, `DB_PASSWORD=…`."""
    # U+0130 is the one character whose small form is longer: places must stay what they are.
    small = text.replace("\u0130", "I").lower()
    for name in _NAMES:
        at = small.find(name)
        while at >= 0:
            found = _LITERAL.match(text, at + len(name))
            if found and (find := _judged(name, found)):
                yield find
            at = small.find(name, at + len(name))


def _judged(name: str, found: re.Match[str]) -> Find | None:
    """The find, if the literal looks like a secret."""
    group = "quoted" if found["quoted"] else "bare"
    value, kind = found[group], Kind.PASSWORD if name in _PASSWORD_NAMES else Kind.KEY
    # A name that goes on, as in password_field, is given words more often than passwords.
    named_for_it = not found["tail"] or found["tail"].strip("_-").isdigit()
    is_secret = is_password if kind is Kind.PASSWORD and named_for_it else _is_random
    secret = is_secret(value) and (group == "quoted" or not _VARIABLE.fullmatch(value))
    return Find(*found.span(group), f"{kind}-literal", kind) if secret else None


#: What stands bare after `password =` in code is another name.
_VARIABLE = re.compile(r"[a-z_]+\d{0,2}|[A-Z_]+\d{0,2}|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|[-+]?\d[\d_.]*")
