from collections import Counter

import numpy as np
import pytest

from jobs.dataset.fim import Layout, layout_of
from jobs.dataset.tokens import Vocabulary
from jobs.documents import Piece
from jobs.prompts import FILL, NEXT_LINE, Source, cursor_prompt, prompts
from jobs.shards import DOCUMENT_START, LABEL, Row

TEXT = '"""About shapes."""\n\n\ndef area(width: int) -> int:\n    half = width // 2\n    return half * width\n'


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer):
    return Vocabulary(tiny_tokenizer)


@pytest.fixture(scope="module")
def layout(vocabulary):
    return layout_of(vocabulary.special)


def source(vocabulary, layout, *texts, measured=lambda _line: True, length=512, new_tokens=48):
    """Files side by side in rows of their own, as the builder writes them; `measured` says which lines are."""
    rows, pieces = [], []
    for number, (path, text) in enumerate(texts):
        head = [layout.file, *vocabulary.encode([f"{path}\n"])[0]]
        lines = [(vocabulary.encode([line])[0], measured(line)) for line in text.splitlines(keepends=True)]
        ids = np.concatenate([head, *(own for own, _ in lines), [vocabulary.end]])
        flags = np.array([LABEL] * len(head) + [LABEL * told for own, told in lines for _ in own] + [LABEL], np.uint8)
        flags[0] = DOCUMENT_START
        padding = np.zeros(length - len(ids), np.int64)
        rows.append(Row(np.concatenate([ids, padding]), np.concatenate([flags, padding.astype(np.uint8)])))
        pieces.append(Piece(path, number, 0, len(ids), int((flags > 0).sum())))
    return pieces, Source(rows, vocabulary, layout, length, new_tokens)


def asked(pieces, source):
    return [prompt for place in prompts(pieces, source) for prompt in place]


def test_the_next_line_is_asked_for_behind_its_indentation(vocabulary, layout):
    found = asked(*source(vocabulary, layout, ("shape.py", TEXT)))
    lines = {prompt.truth: prompt for prompt in found if prompt.kind == NEXT_LINE}
    assert set(lines) == {"def area(width: int) -> int:", "half = width // 2", "return half * width"}
    prompt = lines["half = width // 2"]
    assert prompt.ids[0] == layout.file
    before = f"shape.py\n{TEXT.split('half', maxsplit=1)[0]}"
    assert before.rstrip(" ").endswith(vocabulary.text_of(prompt.ids).rstrip(" ")[-40:])
    assert before.startswith(vocabulary.text_of(prompt.ids))
    assert prompt.tail.splitlines()[-2:] == ["def area(width: int) -> int:", "    "]


def test_prompt_and_truth_are_the_documents_own_tokens(vocabulary, layout):
    pieces, where = source(vocabulary, layout, ("shape.py", TEXT))
    row = where.rows[0]
    for prompt in asked(pieces, where):
        if prompt.kind == NEXT_LINE:
            assert prompt.ids == tuple(row.ids[: len(prompt.ids)].tolist())
            rest = vocabulary.text_of(row.ids[len(prompt.ids) : pieces[0].tokens])
            assert rest.lstrip(" ").startswith(prompt.truth)


def test_a_middle_is_the_rest_of_a_line_from_one_of_its_words(vocabulary, layout):
    found = [prompt for prompt in asked(*source(vocabulary, layout, ("shape.py", TEXT))) if prompt.kind == FILL]
    assert len(found) == 2  # behind the last line nothing stands
    prefix, suffix, middle = layout.fill
    for prompt in found:
        ids = list(prompt.ids)
        assert ids[0] == layout.file
        assert ids[1] == prefix
        assert ids[-1] == middle
        before = vocabulary.text_of(ids[: ids.index(suffix)])
        behind = vocabulary.text_of(ids[ids.index(suffix) :])
        assert f"{before}{prompt.truth}{behind}" == f"shape.py\n{TEXT}"
        assert "\n" not in prompt.truth


def test_lines_that_are_not_measured_are_not_asked_for(vocabulary, layout):
    pieces, where = source(vocabulary, layout, ("shape.py", TEXT), measured=lambda line: "half =" in line)
    assert {prompt.truth for prompt in asked(pieces, where) if prompt.kind == NEXT_LINE} == {"half = width // 2"}


def test_every_file_is_asked_once_before_one_is_asked_twice(vocabulary, layout):
    files = [(f"shape_{number}.py", TEXT.replace("area", f"area_{number}")) for number in range(5)]
    pieces, where = source(vocabulary, layout, *files)
    paths = [place[0].path for place in prompts(pieces, where)]
    assert Counter(paths[:5]) == Counter(path for path, _ in files)
    assert Counter(paths) == {path: 3 for path, _ in files}
    assert [place[0] for place in prompts(pieces, where)] == [place[0] for place in prompts(pieces[::-1], where)]


def test_prose_is_asked_for_only_where_there_is_no_code(vocabulary, layout):
    prose = ("README.md", "# Shapes\n\nThey are round.\n")
    pieces, where = source(vocabulary, layout, prose, ("shape.py", TEXT))
    assert {prompt.path for prompt in asked(pieces, where)} == {"shape.py"}
    assert {prompt.path for prompt in asked(pieces[:1], where)} == {"README.md"}


def test_a_model_that_does_not_fill_in_is_asked_for_next_lines_only(vocabulary, layout):
    plain = Layout(name="plain", file=layout.file)
    assert {prompt.kind for prompt in asked(*source(vocabulary, plain, ("shape.py", TEXT)))} == {NEXT_LINE}


def test_lines_longer_than_a_completion_are_left_out(vocabulary, layout):
    found = asked(*source(vocabulary, layout, ("shape.py", TEXT), new_tokens=10))
    assert found
    assert all(len(vocabulary.encode([prompt.truth])[0]) <= 11 for prompt in found)


@pytest.mark.parametrize("room", [20, 40, 100, 400])
def test_a_prompt_never_takes_more_than_its_room(vocabulary, layout, room):
    text = TEXT * 20
    ids = cursor_prompt(layout, vocabulary, "a.py", text, text, room)
    assert len(ids) <= room
    prefix, suffix, middle = layout.fill
    before, behind = (vocabulary.text_of(part) for part in (ids[2 : ids.index(suffix)], ids[ids.index(suffix) :]))
    assert text.endswith(before.removeprefix("a.py\n"))
    assert text.startswith(behind)
    assert ids.count(prefix) == ids.count(suffix) == ids.count(middle) == 1
    if room > 40:
        assert behind


def test_what_fits_is_asked_whole(vocabulary, layout):
    prefix, suffix = TEXT.split("half *")
    ids = cursor_prompt(layout, vocabulary, "a.py", prefix, suffix, 500)
    assert vocabulary.text_of(ids) == f"a.py\n{prefix}{suffix}"


def test_at_the_end_of_a_file_nothing_is_filled_in(vocabulary, layout):
    ids = cursor_prompt(layout, vocabulary, "a.py", TEXT, "\n", 500)
    assert not set(ids) & set(layout.fill)
    assert vocabulary.text_of(ids) == f"a.py\n{TEXT}"
    short = cursor_prompt(layout, vocabulary, "a.py", TEXT, "", 30)
    assert len(short) <= 30
    assert TEXT.endswith(vocabulary.text_of(short).removeprefix("a.py\n"))
