"""A fast engine is believed only as long as it says what the reference says."""

import re
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset import engines
from jobs.dataset.engines import PROBES, Checked, Encoded, Reference, open_engine


class Panic(BaseException):
    """What a panic in Rust becomes in Python: no Exception."""


class Lookalike(Reference):
    """The reference under another name, which errs as told."""

    def __init__(self, backend):
        super().__init__(backend)
        self.name = "lookalike 1.0"
        self.asked = 0

    def encode(self, texts):
        self.asked += 1
        for text in texts:
            if "panic" in text:
                raise Panic(text)
            if "interrupt" in text:
                raise KeyboardInterrupt
            if "refused" in text:
                raise ValueError(text)
        encoded = super().encode(texts)
        wrong = [place for place, text in enumerate(texts) if "wrong" in text]
        for place in wrong:
            encoded.ids[encoded.starts[place]] += 1
        return encoded


@pytest.fixture(autouse=True)
def opened_at_once(monkeypatch):
    monkeypatch.setattr(engines, "FIRST_CHARACTERS", 5)
    monkeypatch.setattr(engines, "UNEXPECTED_CHARACTERS", 5)


@pytest.fixture
def backend(tiny_tokenizer):
    return tiny_tokenizer.backend_tokenizer


def ids_of(engine, texts):
    encoded = engine.encode(texts)
    return [encoded.of(place).tolist() for place in range(len(texts))]


def test_the_reference_says_what_the_library_says(backend):
    texts = ["def f():\n    return 1\n", "", "x" * 9]
    assert ids_of(Reference(backend), texts) == [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert ids_of(Reference(backend), []) == []


def test_an_engine_that_agrees_is_used_and_named(backend):
    engine = open_engine(backend, Lookalike)
    assert ids_of(engine, ["a = 1\n"] * 3) == ids_of(Reference(backend), ["a = 1\n"] * 3)
    assert engine.name == "lookalike 1.0"
    assert engine.note is None


def test_little_text_is_left_to_the_reference_and_opens_nothing(backend, monkeypatch):
    monkeypatch.setattr(engines, "FIRST_CHARACTERS", 30)
    monkeypatch.setattr(engines, "UNEXPECTED_CHARACTERS", 30)
    opened = []
    engine = open_engine(backend, lambda backend: opened.append(1) or Lookalike(backend))
    for _ in range(2):
        assert ids_of(engine, ["ten letter"]) == ids_of(Reference(backend), ["ten letter"])
    assert not opened
    assert engine.name.startswith("tokenizers ")
    engine.encode(["ten letter"])
    assert opened
    assert engine.name == "lookalike 1.0"


def test_the_first_texts_are_compared_when_the_fast_engine_is_opened(backend, monkeypatch):
    monkeypatch.setattr(engines, "FIRST_CHARACTERS", 30)
    monkeypatch.setattr(engines, "UNEXPECTED_CHARACTERS", 30)
    engine = open_engine(backend, Lookalike)
    engine.encode(["a wrong text\n"])
    assert engine.note is None
    engine.encode(["a good text, of which there is more"])
    assert "gave other ids" in engine.note


@pytest.mark.parametrize(("word", "why"), [("wrong", "gave other ids"), ("panic", r"broke \(Panic\)")])
def test_an_engine_that_errs_is_replaced_for_good_and_the_ids_are_right(backend, monkeypatch, word, why):
    fast = Lookalike(backend)
    engine = Checked(Reference(backend), lambda: fast)
    texts = ["good", f"a {word} text\n"]
    monkeypatch.setattr(engines, "ONE_IN", 1)
    assert ids_of(engine, texts) == ids_of(Reference(backend), texts)
    assert engine.name.startswith("tokenizers ")
    assert re.search(f"lookalike 1.0 {why}", engine.note)
    asked = fast.asked
    engine.encode(["more\n"])
    assert fast.asked == asked


def test_an_engine_that_errs_on_the_probes_is_never_used(backend):
    class Digits(Lookalike):
        def encode(self, texts):
            return super().encode([text.replace("1", "2") for text in texts])

    engine = open_engine(backend, Digits)
    engine.encode(["a long text"])
    assert engine.name.startswith("tokenizers ")
    assert "gave other ids" in engine.note


def test_an_engine_that_loses_a_text_is_replaced(backend, monkeypatch):
    class Short(Lookalike):
        def encode(self, texts):
            whole = super().encode(texts)
            return whole if list(texts[: len(PROBES)]) == list(PROBES) else Encoded(whole.ids, whole.starts[:-1])

    engine = open_engine(backend, Short)
    engine._open()
    assert engine.name == "lookalike 1.0"
    monkeypatch.setattr(engines, "ONE_IN", 1)
    assert ids_of(engine, ["a\n", "b\n"]) == ids_of(Reference(backend), ["a\n", "b\n"])
    assert engine.name.startswith("tokenizers ")


def test_one_text_in_a_few_is_still_compared_when_the_first_agreed(backend):
    engine = open_engine(backend, Lookalike)
    engine.encode(["good " * 20])
    texts = [f"wrong {number}" for number in range(10 * engines.ONE_IN)]
    for text in texts:
        engine.encode([text])
    assert engine.name.startswith("tokenizers ")
    compared = [text for text in texts if engines._is_compared(text)]
    assert 0 < len(compared) < len(texts) / 20
    assert compared == [text for text in reversed(texts) if engines._is_compared(text)][::-1]


def test_a_text_that_the_fast_engine_refuses_goes_to_the_reference_alone(backend):
    engine = open_engine(backend, Lookalike)
    texts = ["a = 1\n", "refused = 2\n", "b = 3\n", "", "c = 4\n", "refused = 5\n"]
    ids_of(engine, ["some text to begin with"])
    assert ids_of(engine, texts) == ids_of(Reference(backend), texts)
    assert engine.name == "lookalike 1.0"
    assert engine.note is None


def test_ctrl_c_is_no_reason_to_change_the_engine(backend):
    engine = open_engine(backend, Lookalike)
    with pytest.raises(KeyboardInterrupt):
        engine.encode(["interrupt"])
    assert engine.name == "lookalike 1.0"


def test_without_fastokens_the_reference_works_and_says_what_is_missing(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    engine = open_engine(backend)
    assert ids_of(engine, ["a = 1\n"]) == [backend.encode("a = 1\n").ids]
    assert engine.name.startswith("tokenizers ")
    assert "fastokens is not installed" in engine.note


def test_a_tokenizer_that_the_fast_engine_refuses_goes_to_the_reference(backend):
    def refuses(_backend):
        raise ValueError

    engine = open_engine(backend, refuses)
    engine.encode(["a long text"])
    assert "does not read this tokenizer (ValueError)" in engine.note


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(max_size=60), max_size=6))
def test_fastokens_itself_gives_the_references_ids(tiny_tokenizer, fastokens_engine, texts):
    texts = [text for text in texts if not any("\ud800" <= letter <= "\udfff" for letter in text)]
    assert ids_of(fastokens_engine, texts) == ids_of(Reference(tiny_tokenizer.backend_tokenizer), texts)


@pytest.fixture(scope="module")
def fastokens_engine(tiny_tokenizer):
    pytest.importorskip("fastokens")
    return engines.Fastokens(tiny_tokenizer.backend_tokenizer)


def test_the_engine_that_is_installed_passes_its_own_check(backend):
    pytest.importorskip("fastokens")
    engine = open_engine(backend)
    assert np.array_equal(engine.encode(list(PROBES)).ids, Reference(backend).encode(list(PROBES)).ids)
    assert engine.name.startswith("fastokens ")


def test_what_is_expected_is_opened_once_beside_other_work_and_does_not_change_the_ids(backend):
    threads = []
    engine = open_engine(backend, lambda backend: threads.append(threading.current_thread()) or Lookalike(backend))
    engine.expect(3)
    assert not threads
    engine.expect(10**6)
    engine.expect(10**6)
    assert ids_of(engine, ["a = 1\n"] * 3) == ids_of(Reference(backend), ["a = 1\n"] * 3)
    assert engine.name == "lookalike 1.0"
    engine.expect(10**6)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_an_engine_that_breaks_while_it_is_opened_beside_other_work_is_told_of(backend):
    def broken(backend):
        raise Panic("no such tokenizer")

    engine = open_engine(backend, broken)
    engine.expect(10**6)
    assert ids_of(engine, ["a = 1\n"]) == ids_of(Reference(backend), ["a = 1\n"])
    assert "does not read this tokenizer (Panic)" in engine.note


# ---- Tokenizers that part digits from the rest: fastokens is told of tokens for them instead -------------------------

NUMBERS = "x1y22 = 333  # it's 4'll\n\t5 \r\n  67 <v8> [9] \u00b2\u00bd\u0663 caf\u00e9 \u65e5\u672c\u8a9e\n"


def digits_parted(individual=True, prefix=False, normalizer=None, alphabet=None, added=()):
    """A small tokenizer that cuts texts as StarCoder2's does, or nearly so; it has tokens across where it cuts, too."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = normalizer
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.pre_tokenizer = last
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<file_sep>"],
        initial_alphabet=last.alphabet() if alphabet is None else alphabet,
        show_progress=False,
    )
    text = NUMBERS if alphabet is None else alphabet
    backend.train_from_iterator([text, *PROBES] * 3 if alphabet is None else [text], trainer)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=individual), last])
    backend.add_tokens(list(added))
    return backend


@pytest.fixture(scope="module")
def parted_backend():
    pytest.importorskip("fastokens")
    return digits_parted()


@pytest.fixture(scope="module")
def parted_engine(parted_backend):
    return engines.Fastokens(parted_backend)


def adds_digits(engine):
    return bool(engine._numerals)


#: Pieces of text that are cut in different ways, depending on what stands beside them.
PIECES = [
    *"0123456789 \t\n'_.-=(abdestx\u00b2\u0663\u2460\u00e9\u65e5\u3000",
    "  ",
    "   ",
    "\r\n",
    "'s",
    " '",
    "<file_sep>",
]
number_texts = st.lists(st.sampled_from(PIECES), min_size=20, max_size=60).map("".join)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(number_texts | st.text(max_size=20), min_size=1, max_size=4))
def test_digits_and_what_stands_beside_them_become_the_references_ids(parted_backend, parted_engine, texts):
    assert adds_digits(parted_engine)
    assert ids_of(parted_engine, texts) == ids_of(Reference(parted_backend), texts)


def test_every_numeral_is_told_from_letters_by_the_reference_itself(parted_engine):
    numerals = parted_engine._numerals
    assert numerals.of("a1\u00e9\u65e5\u4e00\u00b2\u0663\u216b\U0001d7d8") == set("\u00b2\u0663\u216b\U0001d7d8")
    assert numerals.cut("a1 \u00b2\u00b2b\u00e9\u216b") == ["a1 ", "\u00b2", "\u00b2", "b\u00e9", "\u216b"]
    assert numerals.cut("\u00e9 12") == ["\u00e9 12"]
    assert numerals.cut("") == [""]


OTHER_TOKENIZERS = {
    "runs of digits": lambda library: {"individual": False},
    "a blank before every piece": lambda library: {"prefix": True},
    "a normalizer": lambda library: {"normalizer": library.normalizers.NFC()},
    "a token with a digit": lambda library: {"added": [library.AddedToken("<v8>", normalized=False)]},
    "a token with a numeral": lambda library: {"added": [library.AddedToken("v\u00b2", normalized=False)]},
    "a token that is a word": lambda library: {"added": [library.AddedToken("y", single_word=True, normalized=False)]},
    "a token that takes blanks before": lambda library: {"added": [library.AddedToken("x", lstrip=True)]},
    "a token that takes blanks behind": lambda library: {"added": [library.AddedToken("x", rstrip=True)]},
    "no token for a digit": lambda library: {"alphabet": [*"012345689 =x"]},
}


@pytest.mark.parametrize("kind", OTHER_TOKENIZERS.values(), ids=OTHER_TOKENIZERS)
def test_a_tokenizer_for_which_added_digits_could_differ_is_read_as_it_is(kind):
    pytest.importorskip("fastokens")
    backend = digits_parted(**kind(pytest.importorskip("tokenizers")))
    assert not adds_digits(engines.Fastokens(backend))
    texts = [NUMBERS, "x1 2  x 3y y 7v\u00b2", *PROBES]
    assert ids_of(open_engine(backend), texts) == ids_of(Reference(backend), texts)


@pytest.mark.parametrize("digit", "0123456789")
def test_a_digit_that_becomes_another_token_is_noticed(parted_backend, digit):
    class Mistaken(engines.Fastokens):
        def encode(self, texts):
            encoded = super().encode(texts)
            wrong, right = (parted_backend.token_to_id(token) for token in ("x", digit))
            return Encoded(np.where(encoded.ids == right, wrong, encoded.ids), encoded.starts)

    engine = open_engine(parted_backend, Mistaken)
    assert ids_of(engine, [NUMBERS]) == ids_of(Reference(parted_backend), [NUMBERS])
    assert "gave other ids" in engine.note


@pytest.mark.parametrize(
    ("place", "name", "broken"),
    [(engines, "_digit_tokens", list), (engines.Numerals, "cut", lambda self, text: [text])],
)
def test_digits_that_are_not_parted_are_noticed(parted_backend, monkeypatch, place, name, broken):
    monkeypatch.setattr(place, name, broken)
    engine = open_engine(parted_backend)
    assert ids_of(engine, [NUMBERS]) == ids_of(Reference(parted_backend), [NUMBERS])
    assert "gave other ids" in engine.note


def test_a_refused_text_among_cut_ones_goes_to_the_reference_alone():
    pytest.importorskip("fastokens")
    backend = digits_parted(alphabet=[*"0123456789 =x", *"\u00c2\u00b2"])
    texts = ["1\u00b22", "\u65e5 3\u00b2", "4 5", "", "\u00b2", "x = 6"]
    fast = engines.Fastokens(backend)
    assert adds_digits(fast)
    with pytest.raises(ValueError, match="no token"):
        fast.encode(texts)
    engine = Checked(Reference(backend), lambda: fast)
    assert ids_of(engine, texts) == ids_of(Reference(backend), texts)
    assert engine.note is None
    assert engine.name.startswith("fastokens ")
