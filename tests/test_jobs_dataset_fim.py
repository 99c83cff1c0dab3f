"""Each family of models gets its documents as it was taught to read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.fim import Cut, Draw, Layout, Mode, chances, layout_of

STARCODER2 = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"]
STARCODER = ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<reponame>", "<filename>", "<gh_stars>"]
QWEN = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
DEEPSEEK = ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"]
CODE_LLAMA = ["\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>", "\u2581<EOT>"]
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
        (STARCODER, Mode.PLAIN, "<reponame>repo<filename>a/b.py\ncode"),
        (STARCODER, Mode.PSM, "<fim_prefix><filename>a/b.py\npre<fim_suffix>suf<fim_middle>mid"),
        (STARCODER, Mode.SPM, "<fim_prefix><fim_suffix>suf<fim_middle><filename>a/b.py\npremid"),
        (STARCODER[:4], Mode.PSM, "<fim_prefix>pre<fim_suffix>suf<fim_middle>mid"),
        (QWEN, Mode.PLAIN, "<|repo_name|>repo\n<|file_sep|>a/b.py\ncode"),
        (QWEN, Mode.PSM, "<|file_sep|>a/b.py\n<|fim_prefix|>pre<|fim_suffix|>suf<|fim_middle|>mid"),
        (QWEN, Mode.SPM, "<|file_sep|>a/b.py\n<|fim_prefix|><|fim_suffix|>suf<|fim_middle|>premid"),
        (DEEPSEEK, Mode.PLAIN, "# a/b.py\ncode"),
        (DEEPSEEK, Mode.PSM, f"{DEEPSEEK[0]}# a/b.py\npre{DEEPSEEK[1]}suf{DEEPSEEK[2]}mid"),
        (CODE_LLAMA, Mode.PLAIN, "code"),
        (CODE_LLAMA, Mode.PSM, f"{CODE_LLAMA[0]}pre{CODE_LLAMA[2]}suf{CODE_LLAMA[1]}mid"),
        (CODE_LLAMA, Mode.SPM, f"{CODE_LLAMA[0]}{CODE_LLAMA[2]}suf{CODE_LLAMA[1]}premid"),
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


def layout(tokens):
    return layout_of({token: index for index, token in enumerate(tokens)}.get)


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (STARCODER2, "StarCoder2"),
        (STARCODER, "StarCoder"),
        (QWEN, "Qwen"),
        (DEEPSEEK, "DeepSeek"),
        (CODE_LLAMA, "Code Llama"),
        (SMOLLM2, "plain"),
        ([], "plain"),
    ],
)
def test_a_family_is_known_by_its_tokens(tokens, name):
    assert layout(tokens).name == name


def test_a_token_of_its_own_ends_what_code_llama_fills_in():
    assert layout(CODE_LLAMA).fill_end == CODE_LLAMA.index("\u2581<EOT>")
    assert layout(STARCODER2).fill_end is None


def test_a_vocabulary_with_the_tokens_of_both_generations_is_the_newer_one():
    assert layout([*STARCODER, "<file_sep>", "<repo_name>"]).name == "StarCoder2"


def test_tokens_of_commits_and_pull_requests_count_only_if_all_are_there():
    pull_request = ["<pr>", "<pr_status>", "<pr_base>", "<pr_file>", "<pr_base_code>", "<pr_diff>", "<pr_diff_hunk>"]
    assert layout([*STARCODER2, *pull_request]).pull_request == tuple(range(7, 14))
    assert layout([*STARCODER2, *pull_request[1:]]).pull_request is None
    assert layout(["<commit_before>", "<commit_msg>", "<commit_after>"]).commit == (0, 1, 2)
    assert layout(["<commit_before>", "<commit_msg>"]).commit is None


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


def test_chances_for_one_purpose_tell_nothing_of_another():
    assert chances(17, b"a", b"fim", 3) != chances(17, b"a", b"commit", 3)
    assert all(0 <= chance < 1 for chance in chances(17, b"a", b"fim", 8))


#: Another number here means that every dataset changes: raise `jobs.shards.FORMAT` then.
PINNED = 0.9332229424617636
