"""Documents that hold keys under any name: manifests of Kubernetes, JSON web keys."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jobs.dataset.finds import Find, Kind
from jobs.dataset.literals import QUOTES
from jobs.dataset.needles import Places
from jobs.dataset.values import is_no_sample, is_random

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
_MANIFEST = re.compile(r"kind: ([\"']?)Secret\1[ \t]*(?:#.*)?\r?(?:\n|\Z)")


def _manifests(text: str, places: Iterable[int]) -> Iterator[Find]:
    """Every value that a Kubernetes manifest of the kind Secret holds, whatever its name is."""
    stop = 0
    for at in places:
        if at >= stop and _MANIFEST.match(text, at):
            stop = min((place for fence in _FENCES if (place := text.find(fence, at)) >= 0), default=len(text))
            start = max(text.rfind(fence, 0, at) for fence in _FENCES) + 1
            for data in _DATA.finditer(text, start, stop):
                yield from _entries(text, *data.span("entries"))


def _entries(text: str, start: int, stop: int) -> Iterator[Find]:
    for entry in _ENTRY.finditer(text, start, stop):
        group = "block" if entry["block"] else "value"
        if is_no_sample(entry[group].strip()):
            yield Find(*entry.span(group), "kubernetes-secret", Kind.KEY)


_JSON_KIND = re.compile(r'"kind"\s{0,40}:\s{0,40}"Secret"')
#: What a manifest in JSON is read as; other characters are of no interest.
_TOKEN = re.compile(
    r"""
      (?P<kind> "kind"\s{0,40}:\s{0,40}"Secret" )
    | "(?:data|stringData)"\s{0,40}:\s{0,40} \{ (?P<entries>(?:[^{}"]|"(?:[^"\\\n]|\\.){0,65536}+")*+) \}
    | "(?:[^"\\\n]|\\.){0,65536}+"? | (?P<opens>\{) | (?P<closes>\})
    """,
    re.VERBOSE,
)
_MEMBER = re.compile(r'"\s{0,40}:\s{0,40}"(?P<value>(?:[^"\\\n]|\\.){3,65536}+)"')


@dataclass
class _Object:
    """An object of JSON, as far as it was read."""

    is_secret: bool = False
    #: Where the members of its `data` and `stringData` stand.
    entries: list[tuple[int, int]] = field(default_factory=list)


def _json_manifests(text: str) -> Iterator[Find]:
    """The same of manifests in JSON, also in lists, and where one is cut off."""
    done, nested = [], [_Object()]
    for token in _TOKEN.finditer(text):
        if token["opens"]:
            nested.append(_Object())
        elif token["closes"] and len(nested) > 1:
            done.append(nested.pop())
        elif token["kind"]:
            nested[-1].is_secret = True
        elif token["entries"]:
            nested[-1].entries.append(token.span("entries"))
    for span in (span for each in [*done, *nested] if each.is_secret for span in each.entries):
        yield from _members(text, *span)


def _members(text: str, start: int, stop: int) -> Iterator[Find]:
    for member in _MEMBER.finditer(text, start, stop):
        if is_no_sample(member["value"]):
            yield Find(*member.span("value"), "kubernetes-secret", Kind.KEY)


#: The members of a JSON web key that are private (RFC 7518, sections 6.2.2, 6.3.2 and 6.4).
_WEB_KEY = re.compile(r"[\"'](?:d|p|q|dp|dq|qi|k)[\"']\s{0,9}:\s{0,9}[\"']([\w-]{20,2000})[\"']")
_MAX_WEB_KEY = 8000


def _web_keys(text: str, places: Iterable[int]) -> Iterator[Find]:
    """The private members of JSON web keys."""
    stop = 0
    for at in places:
        if at >= stop and text[at - 1 : at] in QUOTES and text[at + 3 : at + 4] in QUOTES:
            start = max(text.rfind("{", max(0, at - _MAX_WEB_KEY), at), 0)
            stop = min(
                (place for end in "{}" if (place := text.find(end, at, at + _MAX_WEB_KEY)) >= 0), default=at + 400
            )
            for member in _WEB_KEY.finditer(text, start, stop):
                if is_random(member[1]):
                    yield Find(*member.span(1), "json-web-key", Kind.KEY)


_KINDS = ("kind: Secret", 'kind: "Secret"', "kind: 'Secret'")
NEEDLES = (*_KINDS, '"Secret"', "kty")
PATTERNS = (_DATA.pattern, _ENTRY.pattern, _TOKEN.pattern, _MEMBER.pattern, _WEB_KEY.pattern)


def find(text: str, places: Places) -> Iterator[Find]:
    """Every value that a document keeps secret."""
    yield from _manifests(text, sorted(place for kind in _KINDS for place in places.get(kind, ())))
    if '"Secret"' in places and _JSON_KIND.search(text):
        yield from _json_manifests(text)
    yield from _web_keys(text, places.get("kty", ()))
