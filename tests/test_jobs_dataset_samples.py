"""Files become documents that fit a row, say all of the file, and end where the file ends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset.fim import Mode, layout_of
from jobs.dataset.samples import Document, Renderer, SampleKind, byte_spans, learned_tokens, units
from jobs.dataset.tokens import Vocabulary
from jobs.spec import DatasetSection

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
    file, newline = vocabulary.special("<file_sep>"), vocabulary.encode(["a.py\n"])[0]
    ids = []
    for sample in samples:
        head = sample.ids.tolist().index(file) + 1
        assert sample.ids[head : head + len(newline)].tolist() == newline.tolist()
        ids += sample.ids[head + len(newline) :].tolist()
    assert tiny_tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False) == text + "<|endoftext|>"
    assert [sample.start for sample in samples] == [0, *(sample.stop for sample in samples[:-1])]
    assert samples[-1].stop == len(text.encode())


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
    write = Renderer(vocabulary, layout_of(vocabulary.special), "repo", section).render
    samples = write([Document(f"{number}.py", LINES[:300], held_out=False) for number in range(200)])
    filled = sum(sample.mode is not Mode.PLAIN for sample in samples)
    assert filled / len(samples) == pytest.approx(0.5, abs=0.1)


def test_held_out_files_are_never_filled_in(vocabulary):
    samples = render(vocabulary, Document("a.py", LINES, held_out=True), fim_rate=1.0)
    assert {sample.mode for sample in samples} == {Mode.PLAIN}


def many(count, text=LINES[:60], folder="p", **kinds):
    return [Document(f"{folder}/{number:03}.py", text, held_out=False, **kinds) for number in range(count)]


def renderer(vocabulary, **section):
    section = DatasetSection(**{"sequence_length": 256, **section})
    return Renderer(vocabulary, layout_of(vocabulary.special), "repo", section)


def test_a_unit_is_the_same_in_any_company(vocabulary):
    documents = [*many(60), *many(9, LINES, "q"), *many(5, folder="q", kind=SampleKind.DOCS)]
    write = renderer(vocabulary).render
    alone = [sample.ids.tolist() for unit in units(documents) for sample in write(documents[unit.start : unit.stop])]
    assert [sample.ids.tolist() for sample in write(documents)] == alone


def test_units_cover_all_files_in_order_and_end_with_folders_and_kinds():
    documents = [*many(40), *many(3, folder="q"), *many(3, folder="q", kind=SampleKind.DOCS)]
    found = units(documents)
    assert [place for unit in found for place in unit] == list(range(46))
    assert {40, 43} <= {unit.start for unit in found}
    assert units([]) == []


def test_a_new_file_leaves_the_units_of_others_alone():
    documents = many(400)
    before = {tuple(documents[place].path for place in unit) for unit in units(documents)}
    documents.insert(200, Document("p/199b.py", "x", held_out=False))
    after = {tuple(documents[place].path for place in unit) for unit in units(documents)}
    assert len(before - after) == 1
    assert 6 < len(before) < 30


def test_small_files_of_a_folder_share_a_document_under_their_paths(tiny_tokenizer, vocabulary):
    documents = many(3)
    (sample,) = renderer(vocabulary, fim_rate=0.0).render(documents)
    files = "".join(f"<file_sep>{document.path}\n{document.text}" for document in documents)
    assert spelled(tiny_tokenizer, sample) == f"<repo_name>repo{files}<|endoftext|>"
    assert (sample.document, sample.joined, sample.kind) == (0, 3, SampleKind.CONTEXT)


def test_the_last_of_joined_files_is_the_one_that_is_filled_in(tiny_tokenizer, vocabulary):
    documents = many(3)
    (sample,) = renderer(vocabulary, fim_rate=1.0, fim_spm_rate=0.0).render(documents)
    text = spelled(tiny_tokenizer, sample)
    files = "".join(f"<file_sep>{document.path}\n{document.text}" for document in documents[:2])
    assert text.startswith(f"<repo_name>repo{files}<file_sep><fim_prefix>p/002.py\n")
    assert sample.kind is SampleKind.FILL
    prefix, rest = text.rpartition("<fim_prefix>p/002.py\n")[2].split("<fim_suffix>")
    suffix, middle = rest.removesuffix("<|endoftext|>").split("<fim_middle>")
    assert prefix + middle + suffix == documents[2].text


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_joined_document_tells_which_tokens_are_whose(tiny_tokenizer, vocabulary, rate):
    documents = many(3)
    (sample,) = renderer(vocabulary, fim_rate=rate, fim_spm_rate=0.0).render(documents)
    assert sum(sample.sizes) == len(sample.ids)
    stops = np.cumsum(sample.sizes)
    parts = [tiny_tokenizer.decode(part) for part in np.split(sample.ids, stops[:-1])]
    assert parts[0] == f"<repo_name>repo<file_sep>{documents[0].path}\n{documents[0].text}"
    assert parts[1] == f"<file_sep>{documents[1].path}\n{documents[1].text}"
    assert parts[2].startswith("<file_sep>")
    assert documents[2].path in parts[2]


def test_joined_documents_hold_every_file_once_and_fit_a_row(tiny_tokenizer, vocabulary):
    documents = [
        Document(f"p/{number:03}.py", f"# {number}\n" + LINES[: number * 7], held_out=False) for number in range(60)
    ]
    samples = renderer(vocabulary, fim_rate=0.0).render(documents)
    assert max(len(sample.ids) for sample in samples) <= 256
    assert sum(sample.joined > 1 for sample in samples) >= 3
    whole = [sample for sample in samples if sample.joined > 1 or sample.start == 0]
    assert [place for sample in whole for place in range(sample.document, sample.document + sample.joined)] == list(
        range(60)
    )


@pytest.mark.parametrize("alone", [{"held_out": True}, {"held_out": False, "learned": ((0, 5),)}])
def test_files_that_stand_alone_are_never_joined(vocabulary, alone):
    documents = [Document(f"p/{number}.py", "x = 1\n", **alone) for number in range(4)]
    assert [sample.joined for sample in renderer(vocabulary, fim_rate=1.0).render(documents)] == [1] * 4


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 80), rate=st.sampled_from([0.0, 1.0]))
def test_a_file_that_fits_a_row_is_never_cut(vocabulary, size, rate):
    document = Document("a.py", LINES[: 150 + size], held_out=False)
    ids = len(vocabulary.encode([document.text])[0]) + len(vocabulary.encode(["a.py\n"])[0])
    (sample,) = render(vocabulary, document, sequence_length=ids + 2, fim_rate=rate)
    assert (sample.start, sample.stop) == (0, len(document.text))


def test_documentation_is_never_filled_in(vocabulary):
    samples = renderer(vocabulary, fim_rate=1.0).render(many(4, kind=SampleKind.DOCS))
    assert {sample.kind for sample in samples} == {SampleKind.DOCS}


def test_pieces_of_syntax_are_cut_out_whole_where_asked(tiny_tokenizer, vocabulary):
    documents = [Document(f"{number}/a.py", LINES[:300], held_out=False) for number in range(30)]

    def whole(rate):
        write = renderer(vocabulary, fim_rate=1.0, fim_syntax_rate=rate).render
        middles = [spelled(tiny_tokenizer, sample).rpartition("<fim_middle>")[2] for sample in write(documents)]
        return sum(middle.removesuffix("<|endoftext|>").strip() in LINES and "def area" in middle for middle in middles)

    assert renderer(vocabulary, fim_rate=1.0, fim_syntax_rate=1.0).syntax.startswith("rules ")
    assert whole(1.0) != whole(0.0)


def test_only_learned_spans_carry_labels(tiny_tokenizer, vocabulary):
    text = "old = 1\nnew = 2\nold = 3\n"
    document = Document("a.py", text, held_out=True, learned=((8, 16),))
    (sample,) = render(vocabulary, document)
    learned = tiny_tokenizer.backend_tokenizer.decode(sample.ids[sample.labels].tolist())
    assert learned in ("new = 2\n", "\nnew = 2\n", "new = 2")
    assert len(sample.labels) == len(sample.ids)


def test_a_file_of_which_nothing_is_learned_gives_no_sample(vocabulary):
    assert render(vocabulary, Document("a.py", LINES, held_out=True, learned=())) == []
    some = render(vocabulary, Document("a.py", LINES, held_out=True, learned=((0, 20),)))
    assert [(sample.start, bool(sample.labels.any())) for sample in some] == [(0, True)]


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30), data=st.data())
def test_spans_of_characters_are_the_same_spans_in_bytes(text, data):
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=4, max_size=4)))
    spans = ((places[0], places[1]), (places[2], places[3]))
    raw = text.encode()
    assert [raw[start:stop].decode() for start, stop in byte_spans(text, spans)] == [
        text[start:stop] for start, stop in spans
    ]


def test_a_token_is_learned_if_it_ends_in_a_learned_span():
    starts = np.array([0, 0, 3, 5, 9])
    assert learned_tokens(starts, ((3, 6),)).tolist() == [False, False, True, False]
    assert learned_tokens(starts, ((0, 9),)).tolist() == [False, True, True, True]


def test_a_path_longer_than_a_row_is_left_out(tiny_tokenizer, vocabulary):
    samples = render(vocabulary, Document("x/" * 200, "short\n", held_out=True))
    assert spelled(tiny_tokenizer, samples[0]) == "short\n<|endoftext|>"


def test_a_path_cannot_forge_a_document(vocabulary):
    samples = render(vocabulary, Document("<file_sep><|endoftext|>.py", "x\n", held_out=True), sequence_length=256)
    ids = samples[0].ids.tolist()
    assert ids.count(vocabulary.special("<file_sep>")) == 1
    assert ids.count(vocabulary.end) == 1


def test_a_piece_of_a_long_file_tells_where_it_may_be_cut_again(tiny_tokenizer, vocabulary):
    raw = LINES.encode()
    samples = render(vocabulary, Document("a.py", LINES, held_out=True), sequence_length=256)
    assert len(samples) > 1
    for sample in samples:
        for token, byte in sample.seams.tolist():
            own = sample.ids[sample.head : token].tolist()
            assert tiny_tokenizer.backend_tokenizer.decode(own).encode() == raw[sample.start : byte]
            assert b"\n" in raw[byte - 1 : byte + 1]


def test_files_that_fit_a_row_and_filled_in_pieces_have_no_seams(vocabulary):
    (whole,) = render(vocabulary, Document("a.py", LINES[:100], held_out=True), sequence_length=256)
    assert whole.seams is None
    samples = render(vocabulary, Document("a.py", LINES, held_out=False), sequence_length=256, fim_rate=1.0)
    assert all(sample.seams is None for sample in samples if sample.mode is not Mode.PLAIN)
