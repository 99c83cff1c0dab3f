"""Keys that tell themselves: their issuers give them a prefix and a length.

A search for the prefix comes first, and a pattern looks only where it stands.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from jobs.dataset.finds import Find, Kind
from jobs.dataset.literals import FEW, QUOTES, join_literals
from jobs.dataset.needles import Places
from jobs.dataset.values import (
    has_letter_and_digit,
    is_no_sample,
    is_password,
    is_random,
    is_typed,
    is_user_and_password,
)


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


def _is_credentials(value: str) -> bool:
    return is_user_and_password(value) or is_random(value)


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
    _shape("llm-api-key", "sk-", r"(?<!-)sk-[\w-]{20,300}", holds=is_random),
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
    _shape("bearer", "Bearer bearer", r"[Bb]earer\s{1,4}([\w+/=.~-]{16,4000})", holds=is_random),
    _shape(
        "basic-auth",
        "Basic basic",
        r"[Bb]asic\s{1,4}([A-Za-z0-9+/]{12,500}={0,2})(?![\w+/])",
        holds=is_user_and_password,
    ),
    _shape(
        "docker-auth",
        '"auth"',
        r'"auth"\s{0,4}:\s{0,4}"([A-Za-z0-9+/]{12,500}={0,2})"',
        holds=is_user_and_password,
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
        is_no_sample,
        inside_words=True,
    ),
    _shape(
        "authorization",
        "uthorization UTHORIZATION",
        r"(?i:uthorization)[\"']?\s{0,4}[:=,]\s{0,4}f?[\"']?(?i:token|basic|apikey)\s{1,4}([\w+/=.~-]{16,4000})",
        holds=is_random,
        inside_words=True,
    ),
    _shape(
        "netrc",
        "login",
        r"login\s{1,40}\S{1,100}\s{1,40}password\s{1,40}([^\s\"'`]{6,200})(?!\S)",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "mysql mariadb",
        r"(?:mysql|mariadb)(?:-?[a-z]{1,12})?[\"',]{0,2}[ \t][^\n|;]{0,200}?[\s\"']-p[\"']?([^\s\"'`,;&|()]{6,100})",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "sshpass",
        r"sshpass[\s\"',]{1,8}-p[\s\"',]{0,8}([^\s\"'`,;]{6,200})",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "curl",
        r"curl[\"',]{0,2}(?=[ \t])(?:[^\n|;\\]|\\[\s\S]){0,400}?[\s\"'](?:-[uU]|--(?:proxy-)?user(?![\w-]))"
        r"[ \t\"',=]{0,8}[^\s:\"'$]{1,100}:([^\s\"'`,;&|()]{6,200})",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "login",  # docker login, oc login, az login
        r"login[\"',]{0,2}(?=[ \t])(?:[^\n|;\\]|\\[\s\S]){0,200}?[\s\"']-p[ \t\"',=]{1,8}([^\s\"'`,;&|()]{6,200})",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "echo",
        r"echo[ \t]{1,9}(?:-n[ \t]{1,9})?[\"']?([^\s\"'`|]{6,200})[\"']?[ \t]{0,9}\|[^\n|;]{1,200}--password-stdin",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "echo",
        r"echo[ \t]{1,9}(?:-e[ \t]{1,9})?[\"']?[\w.-]{1,64}:([^\s\"'`|]{6,200})[\"']?[ \t]{0,9}\|[ \t]{0,9}"
        r"(?:sudo[ \t]{1,9})?chpasswd",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "command-line-password",
        "-pass",  # openssl's -passin, -passout, -pass
        r"-pass(?:in|out)?[ \t\"',]{1,8}pass:([^\s\"'`,;]{6,200})",
        Kind.PASSWORD,
        is_typed,
    ),
    _shape(
        "sql-password",
        "IDENTIFIED identified",
        r"(?i:identified[ \t]{1,9}(?:with[ \t]{1,9}\S{1,40}[ \t]{1,9})?by)[ \t]{1,9}[\"']([^\s\"']{6,200})[\"']",
        Kind.PASSWORD,
        is_password,
    ),
    _shape(
        "redis-password",
        "requirepass masterauth",
        r"(?:requirepass|masterauth)[ \t]{1,9}[\"']?([^\s\"']{6,200})[\"']?[ \t]*(?:\r?\n|\Z)",
        Kind.PASSWORD,
        is_password,
    ),
    _shape(
        "oracle-password",
        "jdbc:oracle:",
        r"jdbc:oracle:\w{1,10}:[^\s/:@\"']{1,64}/([^\s@\"'<>]{6,200})@",
        Kind.PASSWORD,
        is_no_sample,
    ),
    _shape(
        "http-auth",
        "auth=( BasicAuth(",
        r"(?:auth=|BasicAuth)\(\s{0,40}[bru]?([\"'])[^\s\"']{1,100}\1,\s{0,40}[bru]?[\"']([^\s\"']{6,200})[\"']",
        Kind.PASSWORD,
        is_typed,
        inside_words=True,
    ),
    _shape(
        "npm-auth",
        "_auth",
        r"(?<![^\s:])_auth[ \t]{0,9}[=:][ \t]{0,9}[\"']?([A-Za-z0-9+/]{12,500}={0,2})(?![\w+/.(])",
        holds=_is_credentials,
        inside_words=True,
    ),
    _shape(
        "azure-signature",
        "sig=",
        r"(?<=[?&;])sig=((?:[\w+/-]|%2[bBfF]){43}(?:=|%3[dD])?)(?![\w+/%=-])",
        holds=is_random,
        inside_words=True,
    ),
    _shape(
        "wordpress-key",
        "define(",
        r"define\(\s{0,9}[\"'](?:AUTH|SECURE_AUTH|LOGGED_IN|NONCE)_(?:KEY|SALT)[\"']\s{0,9},\s{0,9}'([^'\n]{40,100})'",
        holds=has_letter_and_digit,
    ),
    _shape(
        "pgpass",
        ":5432: :*:",
        r":(?:\d{2,5}|\*):[^\s:\"']{1,64}:[^\s:\"']{1,64}:([^\s:\"']{6,200})[ \t]*(?:\r?\n|\Z)",
        Kind.PASSWORD,
        is_typed,
        inside_words=True,
    ),
    _shape("url-token", "://", r"://([^\s/?#\"'<>@:`]{16,300})@(?=[\w\[])", holds=is_random, inside_words=True),
)


def find(text: str, places: Places) -> Iterator[Find]:
    """Every key that tells itself."""
    for start, here in places.items():
        for shape in _BY_START.get(start, ()):
            for at in here:
                found = shape.pattern.match(text, at)
                if found and shape.holds(found[found.re.groups]):
                    yield Find(*found.span(found.re.groups), shape.rule, shape.kind)
    yield from _split_urls(text, places.get("://", ()))


def _split_urls(text: str, places: Iterable[int]) -> Iterator[Find]:
    """URLs put together of literals."""
    for at in places:
        end = _URL.match(text, at)
        if end and text[end.end() : end.end() + 1] in QUOTES and (joined := join_literals(text, at, 0, FEW)):
            for shape in _URL_SHAPES:
                found = shape.pattern.match(joined.text)
                if found and shape.holds(found[1]) and joined.crosses(0, found.end() + 1):
                    yield Find(*joined.source(*found.span(1)), shape.rule, shape.kind)


_URL = re.compile(r"://[^\s\"'<>]{0,400}+")
_URL_SHAPES = tuple(shape for shape in _SHAPES if shape.rule in {"url-password", "url-token"})
_BY_START = {start: [each for each in _SHAPES if start in each.starts] for shape in _SHAPES for start in shape.starts}
NEEDLES = tuple(_BY_START)
PATTERNS = [shape.pattern.pattern + "|".join(shape.starts) for shape in _SHAPES]
