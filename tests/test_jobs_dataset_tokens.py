"""Content stays content: no letters of a repository become a special token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.shards import DatasetError
from jobs.dataset.tokens import Vocabulary

SPECIALS = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>"]


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer):
    return Vocabulary(tiny_tokenizer)


def test_the_tokenizer_itself_would_be_fooled(tiny_tokenizer):
    assert tiny_tokenizer.encode("a<file_sep>b")[1] == tiny_tokenizer.convert_tokens_to_ids("<file_sep>")


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(SPECIALS), st.text(max_size=5)), max_size=8))
def test_no_content_becomes_a_special_token_and_none_of_it_is_lost(tiny_tokenizer, vocabulary, parts):
    text = "".join(parts)
    ids = vocabulary.encode([text])[0]
    assert not set(ids.tolist()) & {vocabulary.special(token) for token in SPECIALS}
    assert tiny_tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


def test_overlapping_letters_of_special_tokens_forge_nothing():
    transformers = pytest.importorskip("transformers")
    tokenizer = small_tokenizer(transformers, specials=["<|endoftext|>", "<a<", "<b>", "a<b>", "  "])
    vocabulary = Vocabulary(tokenizer)
    for text in ("<a<b>", "<a<a<b><b>", "<|endoftext|><a<"):
        ids = vocabulary.encode([text])[0]
        assert not {vocabulary.special(token) for token in ("<|endoftext|>", "<a<", "<b>", "a<b>")} & set(ids.tolist())
    # Runs of blanks that a tokenizer added are text.
    assert vocabulary.special("  ") in vocabulary.encode(["x  y"])[0]


def test_a_letter_that_the_tokenizer_does_not_know_ends_no_document():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1}, [], unk_token="<|endoftext|>"))
    assert 0 in backend.encode("a?a").ids
    vocabulary = Vocabulary(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>"))
    assert vocabulary.encode(["a?a"])[0].tolist() == [1, 1]


def small_tokenizer(transformers, specials):
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Not marked special, as Qwen's fill-in-the-middle tokens are not.
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in specials])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def test_many_texts_come_back_in_order_whatever_the_batches(vocabulary, monkeypatch):
    texts = [f"text {number} <file_sep> " * (number % 5) for number in range(50)]
    whole = vocabulary.encode(texts)
    monkeypatch.setattr("jobs.dataset.tokens._BATCH_CHARACTERS", 30)
    for one, other in zip(whole, vocabulary.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert vocabulary.encode([]) == []


@settings(max_examples=100, deadline=None)
@given(text=st.text(min_size=1, max_size=40))
def test_tokens_begin_where_their_bytes_do(tiny_tokenizer, vocabulary, text):
    raw = text.encode()
    ids = vocabulary.encode([text])[0]
    starts = vocabulary.byte_starts(ids, len(raw))
    assert starts[0] == 0
    assert starts[-1] == len(raw)
    for index in range(len(ids)):
        decoded = tiny_tokenizer.backend_tokenizer.decode(ids[:index].tolist())
        if "\ufffd" not in decoded + text:
            assert decoded.encode() == raw[: starts[index]]


def test_a_tokenizer_whose_letters_are_not_bytes_gets_an_even_spread(vocabulary):
    assert vocabulary.byte_starts(np.array([7, 8]), 100).tolist() == [0, 50, 100]


def test_padding_is_the_models_own_and_never_its_end_where_there_is_another(vocabulary):
    assert vocabulary.padding == vocabulary.special("<fim_pad>") != vocabulary.end


def test_the_persons_tokenizer_is_left_as_it_is(tiny_tokenizer):
    tiny_tokenizer.backend_tokenizer.enable_truncation(3)
    try:
        assert len(Vocabulary(tiny_tokenizer).encode(["a b c d e f g"])[0]) > 3
        assert tiny_tokenizer.backend_tokenizer.truncation is not None
    finally:
        tiny_tokenizer.backend_tokenizer.no_truncation()


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(DatasetError, match="fast"):
        Vocabulary(object())
