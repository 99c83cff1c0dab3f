"""Samples in the terminal: coloured there, plain in a pipe, and nothing in them drives the terminal."""

import io
import re

import pytest
from rich.console import Console

from jobs.dataset.viewer import print_examples


def piece(text, *, special=False, label=True):
    return {"text": text, "special": special, "label": label}


def sample(*pieces, kind="fill", path="a.py", split="train", commit=""):
    head = {"split": split, "kind": kind, "mode": "prefix-suffix-middle", "path": path, "commit": commit}
    return {**head, "tokens": 12, "pieces": list(pieces)}


def printed(examples, count=5, *, terminal=False):
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=terminal, width=80, color_system="standard" if terminal else None, _environ={}
    )
    print_examples(examples, count, console)
    return stream.getvalue()


def test_a_sample_is_printed_as_plain_text_where_there_is_no_terminal():
    text = printed([sample(piece("<file_sep>", special=True), piece("a.py\nx = [1]\n", label=False))], count=1)
    assert "sample 1 of 1, train, fill, prefix-suffix-middle, a.py, 12 tokens" in text
    assert "<file_sep>a.py\nx = [1]\n" in text
    assert "\x1b" not in text


def test_special_tokens_are_coloured_and_what_is_not_learned_is_dim():
    text = printed([sample(piece("<s>", special=True), piece("quiet", label=False), piece("loud"))], 1, terminal=True)
    assert re.search(r"\x1b\[1;36m<s>\x1b\[0m\x1b\[2mquiet\x1b\[0mloud", text)
    assert "dim text is context" in text


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x9b2J", "\x07", "\x1b]0;title\x07", "\r", "\x08", "\u202e", "\udc80"])
def test_nothing_in_a_sample_drives_the_terminal(hostile):
    texts = {"kind": f"k{hostile}", "path": f"p{hostile}", "split": f"s{hostile}", "commit": f"c{hostile}"}
    text = printed([sample(piece(f"a{hostile}b"), piece(f"<s{hostile}>", special=True), **texts)], terminal=True)
    left = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\udc80]", left)


def test_markup_and_emoji_codes_of_the_console_are_text():
    assert "[bold]x[/bold] :smile: [/nothing]" in printed([sample(piece("[bold]x[/bold] :smile: [/nothing]"))])


def test_a_long_sample_is_cut_and_says_so():
    text = printed([sample(piece("line\n" * 100))])
    assert text.count("line\n") == 40
    assert "(60 more lines not shown)" in text


def test_long_lines_are_not_folded_in_a_pipe():
    assert "x" * 500 in printed([sample(piece("x" * 500))])


def test_every_kind_and_split_has_its_turn_before_a_second_of_one():
    many = [sample(kind="context", path=f"{place}.py") for place in range(5)]
    text = printed([sample(path="h.py", split="held_out"), *many, sample(kind="edit", path="e.py")], 3)
    assert re.findall(r"\w\.py", text) == ["0.py", "e.py", "h.py"]


def test_a_dataset_with_fewer_samples_than_asked_for_says_how_many_it_keeps():
    assert "keeps 2 rendered samples." in printed([sample(), sample()], count=9)
    assert "keeps 0 rendered samples." in printed([], count=1)


def test_none_are_printed_where_none_are_asked_for():
    assert printed([sample()], count=0) == ""
