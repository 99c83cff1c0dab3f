"""Content stays content: no letters of a repository become a special token."""

import importlib.util

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.dataset.engines import Reference
from jobs.dataset.redaction import EMAIL, KEY, PASSWORD, SPELLED
from jobs.dataset.tokens import Vocabulary, tokenizer_key
from jobs.shards import DatasetError

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
    assume(not set(text) & set(SPELLED))  # a placeholder is spelled otherwise than it stands in the text
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


# ---- Placeholders that redaction leaves ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_redactions():
    """A vocabulary that has tokens of its own for what was redacted, as StarCoder2's has."""
    transformers = pytest.importorskip("transformers")
    return Vocabulary(small_tokenizer(transformers, specials=["<|endoftext|>", "<EMAIL>", "<KEY>", "<PASSWORD>"]))


def test_redactions_are_counted_in_the_ids(with_redactions, vocabulary):
    text = f"a{EMAIL}b{KEY}{PASSWORD} and {EMAIL}"
    assert with_redactions.count_redactions(with_redactions.encode([text + " <EMAIL>"])[0]) == 4
    assert vocabulary.count_redactions(vocabulary.encode([text])[0]) == 4
    assert vocabulary.count_redactions(vocabulary.encode(["a", ""])[1]) == 0


def test_a_placeholder_becomes_the_models_own_token(with_redactions):
    ids = with_redactions.encode([f"a{EMAIL}b{KEY}{PASSWORD}"])[0]
    wanted = ["a", "<EMAIL>", "b", "<KEY>", "<PASSWORD>"]
    assert ids.tolist() == [with_redactions.special(token) for token in wanted]


def test_letters_in_the_content_never_become_a_redaction(with_redactions):
    ids = with_redactions.encode(["<EMAIL><KEY>"])[0]
    assert ids.tolist() == [with_redactions.special(letter) for letter in "<EMAIL><KEY>"]


def test_a_model_without_such_tokens_reads_the_letters(tiny_tokenizer, vocabulary):
    ids = vocabulary.encode([f"mail = {EMAIL}\nkey = {KEY}\n", PASSWORD])
    assert tiny_tokenizer.backend_tokenizer.decode(ids[0].tolist()) == "mail = <EMAIL>\nkey = <KEY>\n"
    assert tiny_tokenizer.backend_tokenizer.decode(ids[1].tolist()) == "<PASSWORD>"


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(list(SPELLED)), st.text("a<é \n", max_size=4)), max_size=8))
def test_tokens_begin_where_their_bytes_do_with_placeholders_too(vocabulary, with_redactions, parts):
    raw = "".join(parts).encode()
    for one in (vocabulary, with_redactions):
        ids = one.encode([raw.decode()])[0]
        starts = one.byte_starts(ids, len(raw))
        assert starts[-1] == len(raw)
        assert_starts_spell_the_text(one, ids, starts, raw)


def assert_starts_spell_the_text(vocabulary, ids, starts, raw):
    """The bytes from one start to the next spell the token, or are the placeholder that it stands for."""
    letters = {identifier: token for token, identifier in vocabulary._ids.items()}
    spelled = {bytes(mark, "utf-8"): word for mark, word in SPELLED.items()}
    place = 0
    while place < len(ids):
        piece = raw[starts[place] : starts[place + 1]]
        if piece in spelled:
            word = ""
            while len(word) < len(spelled[piece]):
                word += letters[ids[place]]
                place += 1
            assert word == spelled[piece]
        else:
            assert len(piece) == len(letters[ids[place]]) > 0
            place += 1


def test_where_letters_and_placeholder_cannot_be_told_apart_the_starts_still_span_the_text(vocabulary):
    raw = f"<EMAIL> and {EMAIL}".encode()
    starts = vocabulary.byte_starts(vocabulary.encode([raw.decode()])[0], len(raw))
    assert starts[0] == 0
    assert starts[-1] == len(raw)
    assert (np.diff(starts) >= 0).all()


# ---- Engines and files -----------------------------------------------------------------------------------------------


def test_the_engine_is_named_and_changes_no_id(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("jobs.dataset.engines.FIRST_CHARACTERS", 100)
    monkeypatch.setattr("jobs.dataset.engines.UNEXPECTED_CHARACTERS", 100)
    vocabulary, reference = Vocabulary(tiny_tokenizer), Vocabulary(tiny_tokenizer, engine=Reference)
    texts = [f"def f_{number}(x):\n    return x * {number}  # <file_sep> {EMAIL}\n" for number in range(200)]
    for one, other in zip(vocabulary.encode(texts), reference.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert reference.engine.startswith("tokenizers ")
    installed = importlib.util.find_spec("fastokens") is not None
    assert vocabulary.engine.partition(" ")[0] == ("fastokens" if installed else "tokenizers")


def test_a_folder_gives_the_same_vocabulary_as_its_tokenizer(tiny_model_folder, vocabulary):
    ours = Vocabulary.of_folder(tiny_model_folder)
    for name in ("size", "end", "padding", "sha256"):
        assert getattr(ours, name) == getattr(vocabulary, name)
    assert ours.encode(["x = 1\n"])[0].tolist() == vocabulary.encode(["x = 1\n"])[0].tolist()


def test_the_key_of_a_tokenizer_is_its_files_and_the_libraries(tiny_model_folder, monkeypatch):
    key = tokenizer_key(tiny_model_folder)
    assert key == tokenizer_key(tiny_model_folder)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    assert key != tokenizer_key(tiny_model_folder)


def test_tokens_that_spell_text_begin_where_their_bytes_do_too():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = [*(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u00e9", "\u2581a"]
    backend = Tokenizer(
        models.BPE({letter: index for index, letter in enumerate(letters)}, [("\u2581", "a")], byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.ByteFallback()
    backend.add_special_tokens(["<|endoftext|>"])
    one = Vocabulary(transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>"))
    text = "a b\u00e9\n\U0001f600 a"
    starts = one.byte_starts(one.encode([text])[0], len(text.encode()))
    # _a, _, b, é, newline, four bytes, _a
    assert starts.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 12]
