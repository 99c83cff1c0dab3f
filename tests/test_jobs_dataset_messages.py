"""Messages that say something are learned, without what machines and habits add to them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.messages import clean_message, message_reason, subject_and_body


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "empty message"),
        (" \n\n", "empty message"),
        ("Refactor", "one word"),
        ("wip", "one word"),
        ("Merge branch 'main' into topic", "merge"),
        ("Merge pull request #12 from a/b\n\nAdd colours", "merge"),
        ('Revert "Add colours"', "revert"),
        ("fixup! Add colours", "fix-up of another commit"),
        ("Bump requests from 2.31.0 to 2.32.0", "bot"),
        ("build(deps): bump actions/checkout", "bot"),
        ("Update dependency pytest to v8", "bot"),
        ("[pre-commit.ci] pre-commit autoupdate", "bot"),
        ("v2.31.0", "version only"),
        ("Bump version to 1.2.3rc1", "version only"),
        ("Release 4.0", "version only"),
        ("Prepare release v4.0.1.", "version only"),
        ("Update README.md", "trivial message"),
        ("minor fixes.", "trivial message"),
        ("Update src/a/b.py", "trivial message"),
        ("see https://example.org/a/very/long/address/without/words/in/it", "no language"),
    ],
)
def test_messages_that_teach_nothing_have_a_reason(message, reason):
    assert message_reason(message) == reason


@pytest.mark.parametrize(
    "message",
    [
        "Fix off-by-one in parser",
        "Merge-sort the rows before writing",
        "Update tests for Python 3.13 on macOS",
        "Support HTTP 2 in the client",
        "Release the lock before waiting",
        "Bump the timeout of slow tests",
        "Add 2 retries",
        "Revise the guide",
        "修正 解析器 的 错误",
    ],
)
def test_messages_of_people_are_learned(message):
    assert message_reason(message) is None


def test_trailers_and_blank_edges_are_cut_off_and_the_rest_is_kept():
    message = (
        "\n  \nFix the parser  \r\n\r\nIt read past the end: see below.\n\nReviewed-by: A\nSigned-off-by: B <b@c>\n"
        "Change-Id: I123\n(cherry picked from commit 0123abc)\n\ngit-svn-id: svn://x@1 y\n"
    )
    assert clean_message(message) == "Fix the parser\n\nIt read past the end: see below."


def test_a_subject_that_looks_like_a_trailer_stays():
    assert clean_message("re-add: the thing that was lost") == "re-add: the thing that was lost"


def test_a_long_message_ends_with_a_line():
    message = "Subject\n\n" + "a line of some words\n" * 500
    assert clean_message(message).endswith("\na line of some words")
    assert len(clean_message(message)) <= 2000


def test_subject_and_body_stand_apart():
    assert subject_and_body("Subject\n\nBody\n\nmore") == ("Subject", "Body\n\nmore")


@given(st.text())
def test_any_message_is_judged_and_cleaning_twice_is_cleaning_once(message):
    message_reason(message)
    assert clean_message(clean_message(message)) == clean_message(message)
