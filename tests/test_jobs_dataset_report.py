"""The page beside a dataset tells what is in it, whatever the dataset lacks and whatever its repository holds."""

import copy
import re
from html.parser import HTMLParser

import pytest

from jobs.dataset.cache import Cache
from jobs.dataset.report import write_report

MANIFEST = {
    "source": {"repository": "https://example.org/psf/requests.git", "shallow": False},
    "commit": "1f6589ec0c3bd4fdb6e1c5a9e1bb3c4d5e6f7a8b",
    "config": {"sequence_length": 2048, "include": [], "held_out": 0.05, "scanner": "auto"},
    "sequence_length": 2048,
    "versions": {"repotune": "0.1.0", "tokenizers": "0.23.3"},
    "tokenizer": {"sha256": "ab" * 32, "vocabulary_size": 49_152},
    "files": {"train/00000.ids": {"sha256": "cd" * 32, "bytes": 99}},
}


def split(tokens, share):
    return {
        "files": round(95 * share),
        "bytes": round(3_900_000 * share),
        "samples": round(9_100 * share),
        "tokens": tokens,
        "labels": round(tokens * 0.81),
        "rows": tokens // 2040,
        "packing": 0.99731,
        "kinds": {
            "context": {"samples": 900, "tokens": round(tokens * 0.31)},
            "fill": {"samples": 1_000, "tokens": round(tokens * 0.34)},
            "edit": {"samples": 3_000, "tokens": round(tokens * 0.13)},
            "message": {"samples": 3_100, "tokens": round(tokens * 0.12)},
            "docs": {"samples": 300, "tokens": round(tokens * 0.10)},
        },
        "modes": {"plain": 7_900, "prefix-suffix-middle": 640, "suffix-prefix-middle": 560},
        "lengths": {"128": 410, "256": 1_520, "512": 3_210, "1024": 2_400, "2048": 1_560},
    }


STATS = {
    "in": {"files": 130, "bytes": 4_450_000, "commits": 6_489},
    "kept": {"files": 104, "bytes": 3_950_000},
    "dropped": {"files": 26, "bytes": 500_000, "reasons": {"binary": 12, "lock file": 1, "data": 9, "vendored": 4}},
    "commits": {
        "total": 6_489,
        "merges": 1_612,
        "used": 3_104,
        "future": 325,
        "reasons": {"one word": 201, "trivial subject": 977, "bot": 270},
    },
    "languages": {
        "Python": {"files": 61, "bytes": 1_600_000, "tokens": 2_900_000},
        "Markdown": {"files": 20, "bytes": 600_000, "tokens": 210_000},
        "reStructuredText": {"files": 23, "bytes": 400_000, "tokens": 190_000},
    },
    "splits": {"train": split(3_300_000, 0.9), "held_out": split(170_000, 0.06), "future": split(90_000, 0.04)},
    "fill_in_the_middle": {"layout": "StarCoder2", "supported": True, "syntax": "tree-sitter 0.26.1"},
    "duplicates": {"exact": 3, "near": 5, "clusters": 2},
    "overlap": {
        "held_out": {
            "share": 0.0213,
            "worst": [{"held_out": "src/requests/api.py", "train": "src/requests/sessions.py", "share": 0.184}],
        }
    },
    "redactions": {
        "total": 41,
        "rules": {"email": 37, "aws-access-key": 1, "password": 3},
        "paths": {"HISTORY.md": {"email": 30}, "tests/test_requests.py": {"email": 7, "password": 3}},
    },
    "licences": {"files": [{"path": "LICENSE", "spdx": "Apache-2.0"}], "headers": {"MIT": 4, "Apache-2.0": 9}},
}

EXAMPLES = [
    {
        "split": "train",
        "kind": "fill",
        "mode": "prefix-suffix-middle",
        "path": "src/requests/api.py",
        "commit": "",
        "tokens": 812,
        "pieces": [
            {"text": "<repo_name>", "special": True, "label": True},
            {"text": "requests", "special": False, "label": True},
            {"text": "<file_sep>", "special": True, "label": False},
            {"text": "\n\n  def get(url):\n\treturn <b>&amp;\n", "special": False, "label": False},
            {"text": "<fim_middle>", "special": True, "label": True},
        ],
    },
    {
        "split": "held_out",
        "kind": "edit",
        "mode": "plain",
        "path": "",
        "commit": "0123456789abcdef0123",
        "tokens": 20,
        "pieces": [{"text": "fix it\n" * 900, "special": False, "label": True}],
    },
]

TIMING = {
    "stages": [
        {"stage": "history", "seconds": 0.61, "cpu_seconds": 0.6, "bytes": 111_000_000},
        {"stage": "tokenise", "seconds": 2.4, "cpu_seconds": 2.3, "bytes": 17_000_000},
    ],
    "peak_bytes": 212_000_000,
    "cached": {"hits": 3_120, "misses": 80},
}


def documents():
    return copy.deepcopy({"manifest": MANIFEST, "stats": STATS, "examples": EXAMPLES, "timing": TIMING})


@pytest.fixture
def write(tmp_path):
    def page(**changes):
        return write_report(tmp_path, cache=Cache(None), **(documents() | changes)).read_text(encoding="utf-8")

    return page


class Page(HTMLParser):
    """The tags, attributes and words of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.codes = [], set(), set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "code":
            self.codes.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "code" in self.open:
            self.codes[-1] += data


def places(tree):
    """The keys that lead to every part of a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (key,)
        yield from ((key, *rest) for rest in places(value))


def test_the_page_tells_what_training_knew_of_the_newest_commits(write):
    pair = {"held_out": "src/new.py", "train": "src/old.py", "share": 0.41}
    future = {"share": 0.036, "worst": [pair], "lines": 1554, "known_lines": 151, "known_files": 5}
    page = write(stats={"overlap": {"future": future}})
    assert "151 of 1,554 added lines stood there before and are not measured." in page
    assert re.search(r"src/new\.py.*src/old\.py.*41\.0 %", page, re.DOTALL)


def test_the_page_tells_what_went_in_what_was_left_out_and_what_the_model_sees(write):
    page = write()
    for text in (
        "requests", "1f6589ec0c3bd4fdb6e1c5a9e1bb3c4d5e6f7a8b", "3,300,000", "104", "of 130", "3,104", "of 6,489",
        "lock file", "trivial subject", "99.73 %", "reStructuredText", "filled in the middle", "StarCoder2",
        "2.1 %", "18.4 %", "src/requests/sessions.py", "aws-access-key", "email\u00a07, password\u00a03", "Apache-2.0",
        "3.0 s", "182 MB/s", "212 MB", "3,120 of 3,200 parts", "49152", "tree-sitter 0.26.1",
    ):  # fmt: skip
        assert text in page, text


def test_the_page_fetches_nothing_and_runs_nothing(write):
    page = write()
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|<script""", page)


def test_the_same_dataset_has_the_same_page(write):
    assert write() == write()


def test_the_tags_of_the_page_match(write):
    Page(write())


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='x", "{{ 7 * 7 }}", "</code></pre>"],
)
def test_nothing_in_a_dataset_becomes_markup(write, hostile):
    plain_page = write()
    page = write(**{name: spoilt(tree, hostile) for name, tree in documents().items()})
    if hostile == "{{ 7 * 7 }}":
        assert page.count(hostile) > 20
    else:
        assert page.count(hostile) == plain_page.count(hostile)
    plain, parsed = Page(plain_page), Page(page)
    assert parsed.tags <= plain.tags
    assert parsed.attributes <= plain.attributes


def spoilt(tree, hostile):
    """`tree` with `hostile` after every text, and as one more name wherever names are."""
    if isinstance(tree, dict):
        named = {key: spoilt(value, hostile) for key, value in tree.items()}
        return named | {f"name{hostile}": next(iter(named.values()))} if named else named
    if isinstance(tree, list):
        return [spoilt(value, hostile) for value in tree]
    return tree + hostile if isinstance(tree, str) else tree


@pytest.mark.parametrize("name", ["manifest", "stats", "examples", "timing"])
def test_a_page_is_made_whatever_is_missing_or_of_another_type(write, name):
    def small():
        facts = documents()
        facts["stats"]["splits"] = {"held_out": facts["stats"]["splits"]["held_out"]}
        return facts[name]

    nothing = {"manifest": {}, "stats": {}, "examples": [], "timing": {}}
    for place in places(small()):
        for wrong in (None, "text", [{}], {"a": -1}):
            tree = small()
            part = tree
            for key in place[:-1]:
                part = part[key]
            part[place[-1]] = wrong
            write(**nothing | {name: tree})


def test_a_dataset_that_tells_nothing_has_a_page(write):
    page = write(manifest={}, stats={}, examples=[], timing={})
    assert "repotune dataset report" in page
    assert page.count("<section") == 0


def test_a_page_of_the_first_version_of_datasets_shows_what_they_tell(write):
    old = {name: STATS[name] for name in ("in", "kept", "dropped", "languages")}
    old["splits"] = {"train": {"files": 90, "samples": 200, "tokens": 70_000, "rows": 40, "packing": 0.98}}
    page = write(stats=old, timing={})
    assert "70,000" in page
    assert "Redactions" not in page


def test_control_characters_and_lone_surrogates_are_written_out(write):
    examples = [{"path": "a\udcff\x1b[2J", "pieces": [{"text": "x\u202e\x00\r\n", "special": False, "label": True}]}]
    stats = documents()["stats"]
    stats["dropped"]["reasons"]["why\x1b\udc80"] = 3
    stats["splits"]["train"]["kinds"] = {"kind\u202e": {"tokens": 3}}
    page = write(examples=examples, stats=stats, manifest={"source": "/a/b\udc81\x00"})
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    for text in (r"a\udcff\x1b[2J", r"x\u202e\x00\r", r"why\x1b\udc80", r"kind\u202e", r"b\udc81\x00"):
        assert text in page


def test_a_sample_is_shown_as_it_is_with_its_blanks_and_line_ends(write):
    shown = Page(write()).codes[0]
    assert shown == "".join(piece["text"] for piece in EXAMPLES[0]["pieces"])


def test_samples_and_splits_come_in_the_order_training_held_out_future(write):
    stats = documents()["stats"]
    stats["splits"] = dict.fromkeys(("other", "future", "held_out", "train"), stats["splits"]["train"])
    page = write(examples=list(reversed(EXAMPLES)), stats=stats)
    assert page.index("src/requests/api.py\n") < page.index("commit 0123456789ab")
    assert re.findall(r'<th scope="row">(\w+)', page)[:4] == ["Training", "Held", "Future", "Other"]


def test_special_tokens_are_chips_and_what_is_not_learned_is_told_apart(write):
    page = write()
    assert '<b class="chip">&lt;repo_name&gt;</b>requests<b class="chip unlearned">&lt;file_sep&gt;</b>' in page
    assert '<span class="unlearned">\n\n  def get' in page


def test_a_long_sample_is_cut_and_the_page_says_so(write):
    page = write()
    assert "500 more lines not shown" in page
    assert page.count("fix it") == 400


def test_long_lists_are_cut_and_the_page_says_so(write):
    stats = documents()["stats"]
    stats["redactions"]["paths"] = {f"file{number:03}.py": {"email": 1 + number} for number in range(100)}
    page = write(stats=stats)
    assert "80 more paths" in page
    assert "file099.py" in page
    assert "file079.py" not in page


def test_a_shallow_clone_and_a_model_without_fill_in_tokens_are_told(write):
    manifest, stats = documents()["manifest"], documents()["stats"]
    manifest["source"]["shallow"] = True
    stats["fill_in_the_middle"]["supported"] = False
    page = write(manifest=manifest, stats=stats)
    assert "The clone is shallow" in page
    assert "no fill-in-the-middle tokens" in page


def test_several_repositories_are_all_named(write):
    manifest = documents()["manifest"] | {"sources": [{"repository": "/a/one"}, {"repository": "git@h:b/two.git"}]}
    page = write(manifest=manifest)
    assert "<h1>one, two</h1>" in page
    assert "git@h:b/two.git" in page
