"""Files become documents that fit a row, say all of the file, and end where the file ends."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset.fim import Mode, layout_of
from jobs.dataset.samples import Document, Renderer
from jobs.spec import DatasetSection
from jobs.dataset.tokens import Vocabulary

LINES = "".join(f"def area_{number}(width):\n    return width * {number}\n" for number in range(60))


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer):
    return Vocabulary(tiny_tokenizer)


def render(vocabulary, document, **section):
    section = DatasetSection(**{"sequence_length": 64, **section})
    return Renderer(vocabulary, layout_of(vocabulary.special), "repo", section).render([document])


def spelled(tokenizer, sample):
    return tokenizer.backend_tokenizer.decode(sample.ids.tolist(), skip_special_tokens=False)


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=400), rate=st.sampled_from([0.0, 0.5, 1.0]), length=st.integers(16, 80))
def test_every_document_fits_a_row(vocabulary, text, rate, length):
    for sample in render(vocabulary, Document("a.py", text, held_out=False), fim_rate=rate, sequence_length=length):
        assert 0 < len(sample.ids) <= length


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=400))
def test_the_pieces_of_a_plain_file_are_the_file(tiny_tokenizer, vocabulary, text):
    samples = render(vocabulary, Document("a.py", text, held_out=True))
    head = "<repo_name>repo<file_sep>a.py\n"
    head_ids = len(vocabulary.encode(["repo"])[0]) + len(vocabulary.encode(["a.py\n"])[0]) + 2
    assert all(spelled(tiny_tokenizer, sample).startswith(head) for sample in samples)
    ids = [identifier for sample in samples for identifier in sample.ids[head_ids:].tolist()]
    assert tiny_tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text + "<|endoftext|>"


def test_only_the_end_of_the_file_is_marked_and_pieces_end_with_lines_where_they_can(tiny_tokenizer, vocabulary):
    samples = [spelled(tiny_tokenizer, sample) for sample in render(vocabulary, Document("a", LINES, held_out=True))]
    assert [sample.count("<|endoftext|>") for sample in samples] == [0] * (len(samples) - 1) + [1]
    assert sum(sample.endswith("\n") for sample in samples) > len(samples) / 4


def test_a_filled_in_document_holds_the_whole_piece_and_ends_with_its_middle(tiny_tokenizer, vocabulary):
    whole = ""
    for sample in render(vocabulary, Document("a.py", LINES, held_out=False), fim_rate=1.0, fim_spm_rate=0.0):
        text = spelled(tiny_tokenizer, sample)
        if sample.mode is Mode.PLAIN:
            whole += text.removeprefix("<repo_name>repo").removeprefix("<file_sep>a.py\n").removesuffix("<|endoftext|>")
            continue
        assert text.startswith("<file_sep><fim_prefix>a.py\n")
        assert text.endswith("<|endoftext|>")
        prefix, rest = text.removeprefix("<file_sep><fim_prefix>a.py\n").split("<fim_suffix>")
        suffix, middle = rest.removesuffix("<|endoftext|>").split("<fim_middle>")
        whole += prefix + middle + suffix
    assert whole == LINES


def test_about_as_many_are_filled_in_as_asked(vocabulary):
    section = DatasetSection(sequence_length=64, fim_rate=0.5)
    renderer = Renderer(vocabulary, layout_of(vocabulary.special), "repo", section)
    samples = renderer.render([Document(f"{number}.py", LINES[:300], held_out=False) for number in range(200)])
    filled = sum(sample.mode is not Mode.PLAIN for sample in samples)
    assert filled / len(samples) == pytest.approx(0.5, abs=0.1)


def test_held_out_files_are_never_filled_in(vocabulary):
    samples = render(vocabulary, Document("a.py", LINES, held_out=True), fim_rate=1.0)
    assert {sample.mode for sample in samples} == {Mode.PLAIN}


def test_a_sample_is_the_same_in_any_company(vocabulary):
    section = DatasetSection(sequence_length=64)
    renderer = Renderer(vocabulary, layout_of(vocabulary.special), "repo", section)
    documents = [Document(f"{number}.py", LINES[number:], held_out=False) for number in range(4)]
    together = [sample.ids.tolist() for sample in renderer.render(documents)]
    alone = [sample.ids.tolist() for document in documents for sample in renderer.render([document])]
    assert together == alone


def test_a_path_longer_than_a_row_is_left_out(tiny_tokenizer, vocabulary):
    samples = render(vocabulary, Document("x/" * 200, "short\n", held_out=True))
    assert spelled(tiny_tokenizer, samples[0]) == "short\n<|endoftext|>"


def test_a_path_cannot_forge_a_document(vocabulary):
    samples = render(vocabulary, Document("<file_sep><|endoftext|>.py", "x\n", held_out=True), sequence_length=256)
    ids = samples[0].ids.tolist()
    assert ids.count(vocabulary.special("<file_sep>")) == 1
    assert ids.count(vocabulary.end) == 1
