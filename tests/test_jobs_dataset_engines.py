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
