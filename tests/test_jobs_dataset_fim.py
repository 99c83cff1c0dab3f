"""Each family of models gets its documents as it was taught to read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.fim import Cut, Draw, Layout, Mode, layout_of

STARCODER2 = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"]
QWEN = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
DEEPSEEK = ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"]
SMOLLM2 = ["<repo_name>", "<reponame>", "<file_sep>", "<filename>"]

CUT = Cut("pre", "mid", "suf")


def written(tokens, mode, path="a/b.py"):
    """A document with the special tokens spelled out."""
    layout = layout_of({token: index for index, token in enumerate(tokens)}.get)
    line = layout.path_text(path)
    parts = [*layout.head("repo"), line, "code"] if mode is Mode.PLAIN else layout.filled(mode, line, CUT)
    return "".join(tokens[part] if isinstance(part, int) else part for part in parts)


@pytest.mark.parametrize(
    ("tokens", "mode", "expected"),
    [
        (STARCODER2, Mode.PLAIN, "<repo_name>repo<file_sep>a/b.py\ncode"),
        (STARCODER2, Mode.PSM, "<file_sep><fim_prefix>a/b.py\npre<fim_suffix>suf<fim_middle>mid"),
        (STARCODER2, Mode.SPM, "<file_sep><fim_prefix><fim_suffix>suf<fim_middle>a/b.py\npremid"),
        (QWEN, Mode.PLAIN, "<|repo_name|>repo\n<|file_sep|>a/b.py\ncode"),
        (QWEN, Mode.PSM, "<|file_sep|>a/b.py\n<|fim_prefix|>pre<|fim_suffix|>suf<|fim_middle|>mid"),
        (QWEN, Mode.SPM, "<|file_sep|>a/b.py\n<|fim_prefix|><|fim_suffix|>suf<|fim_middle|>premid"),
        (DEEPSEEK, Mode.PLAIN, "# a/b.py\ncode"),
        (DEEPSEEK, Mode.PSM, f"{DEEPSEEK[0]}# a/b.py\npre{DEEPSEEK[1]}suf{DEEPSEEK[2]}mid"),
        (SMOLLM2, Mode.PLAIN, "<repo_name>repo<file_sep>a/b.py\ncode"),
        (["<|endoftext|>"], Mode.PLAIN, "code"),
    ],
)
def test_documents_are_written_as_the_family_reads_them(tokens, mode, expected):
    assert written(tokens, mode) == expected


def test_prefix_and_middle_are_tokenised_apart_because_the_cursor_stood_between_them():
    layout = layout_of({token: index for index, token in enumerate(STARCODER2)}.get)
    assert layout.filled(Mode.SPM, "p\n", CUT)[-2:] == ["p\npre", "mid"]


def test_two_of_three_fill_tokens_are_none():
    assert layout_of({"<fim_prefix>": 1, "<fim_suffix>": 2}.get) == Layout(name="plain", path_line="")


@given(text=st.text(min_size=1), seed=st.integers(0, 2**70), key=st.binary(max_size=20))
def test_the_three_parts_are_the_text_and_the_middle_is_not_empty(text, seed, key):
    cut = Draw.of(seed, key).cut(text)
    assert cut.prefix + cut.middle + cut.suffix == text
    assert cut.middle


@given(one=st.floats(0, 1, exclude_max=True), two=st.floats(0, 1, exclude_max=True), text=st.text(min_size=1))
def test_no_chance_is_too_extreme_to_cut(one, two, text):
    cut = Draw(0.0, 0.0, one, two).cut(text)
    assert cut.prefix + cut.middle + cut.suffix == text
    assert cut.middle


def draws(count=2000):
    return [Draw.of(17, f"file {number}".encode()) for number in range(count)]


def test_the_rates_hold_over_many_samples():
    layout = Layout("x", fill=(1, 2, 3), suffix_first=True)
    modes = [draw.mode(layout, 0.5, 0.25) for draw in draws()]
    assert modes.count(Mode.PLAIN) == pytest.approx(1000, abs=100)
    assert modes.count(Mode.SPM) == pytest.approx(250, abs=60)


def test_rates_of_nothing_and_everything_are_exact():
    layout = Layout("x", fill=(1, 2, 3), suffix_first=True)
    assert {draw.mode(layout, 0.0, 0.5) for draw in draws()} == {Mode.PLAIN}
    assert {draw.mode(layout, 1.0, 1.0) for draw in draws()} == {Mode.SPM}
    assert {draw.mode(layout, 1.0, 0.0) for draw in draws()} == {Mode.PSM}


def test_a_model_without_the_tokens_or_taught_one_order_only_gets_what_it_knows():
    assert {draw.mode(Layout("x"), 1.0, 1.0) for draw in draws(50)} == {Mode.PLAIN}
    assert {draw.mode(Layout("x", fill=(1, 2, 3)), 1.0, 1.0) for draw in draws(50)} == {Mode.PSM}


def test_cuts_fall_all_over_the_text():
    text = "x" * 100
    starts = [len(draw.cut(text).prefix) for draw in draws()]
    assert min(starts) == 0
    assert max(starts) > 90


def test_chances_depend_on_seed_and_key_and_stay_what_they_are():
    assert Draw.of(17, b"a") == Draw.of(17, b"a") != Draw.of(18, b"a")
    assert Draw.of(17, b"a") != Draw.of(17, b"b")
    assert Draw.of(17, b"a").fill == PINNED


#: Another number here means that every dataset changes: raise `jobs.shards.FORMAT` then.
PINNED = 0.39799479804799603
