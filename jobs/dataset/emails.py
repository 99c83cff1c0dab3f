"""E-mail addresses in a text: those of people, not the samples, remotes and operators that look like them."""

import re
from collections.abc import Iterator

from jobs.dataset.finds import Find, Kind

_RULE = "e-mail"
#: Signs of the part before the @ (RFC 5322 has more; code uses those as operators).
_LOCAL_SIGNS = frozenset("._%+-")
_MAX_LOCAL = 128
_DOMAIN = re.compile(r"(?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}(?P<top>[^\W\d_]{2,24}|xn--[a-z0-9-]{2,30})(?![\w(]|-\w)")
#: Domains that stand for any domain: RFC 2606 and RFC 6761.
_SAMPLE_DOMAIN = re.compile(r"(?:.*\.)?(?:example\.(?:com|net|org|edu)|example|test|invalid|localhost)", re.IGNORECASE)
#: Ends that are file names or units of systemd, as in `icon@2x.png` and `getty@tty1.service`.
_LISTED_NO_TOP = (
    "png jpg jpeg gif svg webp ico css js mjs json html htm txt yml yaml xml toml lock tgz gz whl jar exe dll "
    "service socket timer target mount slice scope path device"
)
_NO_TOP = frozenset(_LISTED_NO_TOP.split())
#: Longer ends that are domains for sure; any other is taken for an attribute (`weights@layer.bias`) unless marked.
_LISTED_TOPS = (
    "com org net edu gov mil int info biz name pro aero coop museum jobs mobi travel tel cat asia post app dev "
    "page blog cloud online site tech store shop xyz email live news space website world today company agency "
    "digital systems solutions software services network media group team work works zone tools codes "
    "engineering academy institute university foundation community social chat club design studio science "
    "health care bank finance law legal green energy earth google top wiki berlin hamburg koeln wien zuerich "
    "paris london nyc tokyo swiss global one games run computer technology consulting plus life art fun host "
    "press rocks ninja guru expert support center ventures capital house land money farm church school "
    "security management marketing"
)
_TOPS = frozenset(_LISTED_TOPS.split())
_REMOTE = re.compile(r":(?!//)[\w~.-]*/[\w./~-]|:[\w~.-]+\.git\b")
_COUNTRY = 2


def find_emails(text: str) -> Iterator[Find]:
    """Every e-mail address.

    None are: addresses in the domains kept for samples, `git@host:path`, the user of a URL, `name@1.2.3`,
    `icon@2x.png`, decorators, mentions, and the matrix product.
    """
    at = text.find("@")
    while at >= 0:
        start = _local_start(text, at)
        if start < at and (domain := _DOMAIN.match(text, at + 1)) and _is_address(text, start, at, domain):
            yield Find(start, domain.end(), _RULE, Kind.EMAIL)
        at = text.find("@", at + 1)


def _local_start(text: str, at: int) -> int:
    """Where the part before the @ starts; `at` where there is none."""
    start = at
    while start > 0 and at - start < _MAX_LOCAL and (text[start - 1].isalnum() or text[start - 1] in _LOCAL_SIGNS):
        start -= 1
    while start < at and text[start] in _LOCAL_SIGNS:
        start += 1
    return start


def _is_address(text: str, start: int, at: int, domain: re.Match[str]) -> bool:
    top, local = domain["top"], text[start:at]
    is_remote = _REMOTE.match(text, domain.end()) is not None or (
        local == "git" and text[domain.end() : domain.end() + 1] in (":", "/")
    )
    return not (
        is_remote
        or text.endswith("//", 0, start)
        or top.lower() in _NO_TOP
        or _SAMPLE_DOMAIN.fullmatch(domain[0])
        or not (_is_top(top) or _is_marked(text, start, domain.end()))
    )


def _is_top(top: str) -> bool:
    one_case = top.islower() or top.isupper() or not top.isascii()
    return one_case and (len(top) == _COUNTRY or top.lower() in _TOPS or top.startswith("xn--"))


def _is_marked(text: str, start: int, stop: int) -> bool:
    """True for `<name@host.anything>` and `mailto:`."""
    return text.endswith("mailto:", 0, start) or (text[start - 1 : start] == "<" and text[stop : stop + 1] == ">")
