"""Gaps are filled with parts of long files; every token stays, what fits a row is not cut, and what is shown once more
is not learned."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset.fim import Mode
from jobs.dataset.gaps import extended, fill_gaps, split
from jobs.dataset.packing import pack
from jobs.dataset.samples import Sample, SampleKind

HEAD = 5


def sample(document, size, seams=None, line=3):
    """A document of `size` tokens, each with a number of its own, its lines of `line` tokens, three bytes each."""
    ids = np.arange(size, dtype=np.uint32) + 10_000 * document
    ids[:HEAD] = np.arange(HEAD)
    places = None
    if seams:
        tokens = np.arange(HEAD + line, size, line, dtype=np.int32)
        places = np.stack([tokens, (tokens - HEAD) * 3], axis=1)
    return Sample(ids, Mode.PLAIN, SampleKind.CONTEXT, document, None, 0, (size - HEAD) * 3, seams=places, head=HEAD)


def own(found):
    return found.ids[HEAD + found.shown :].tolist()


def test_a_piece_is_cut_after_a_line_and_both_parts_have_the_head():
    piece = sample(1, 200, seams=True)
    first, rest = split(piece, 100)
    assert 98 <= len(first.ids) <= 100
    assert first.ids[:HEAD].tolist() == rest.ids[:HEAD].tolist() == list(range(HEAD))
    assert own(first) + own(rest) == own(piece)
    assert (first.start, rest.stop) == (0, piece.stop)
    assert first.stop == rest.start == (len(first.ids) - HEAD) * 3


def test_a_part_can_be_cut_again():
    _, rest = split(sample(1, 200, seams=True), 100)
    first, last = split(rest, 60)
    assert first.start == rest.start
    assert own(first) + own(last) == own(rest)
    assert first.stop - first.start == (len(first.ids) - HEAD) * 3


@pytest.mark.parametrize("room", [0, HEAD, HEAD + 15])
def test_no_part_is_hardly_more_than_its_head(room):
    assert split(sample(1, 200, seams=True), room) is None


def test_what_has_no_seams_stays_whole():
    assert split(sample(1, 200), 100) is None


def test_of_a_piece_that_is_learned_in_part_each_part_teaches():
    piece = sample(1, 200, seams=True)
    labels = np.arange(200) >= 90
    first, rest = split(replace(piece, labels=labels), 100)
    assert first.labels.tolist() == labels[: len(first.ids)].tolist()
    assert rest.labels.sum() == labels.sum() - first.labels.sum()
    assert split(replace(piece, labels=np.arange(200) >= 150), 100) is None
    assert split(replace(piece, labels=(np.arange(200) >= HEAD) & (np.arange(200) < 50)), 100) is None


def test_the_rest_of_a_piece_is_shown_what_was_cut_off_and_does_not_learn_it_again():
    piece = sample(1, 200, seams=True)
    first, rest = split(piece, 100)
    found = extended(rest, 31)
    assert 28 <= found.shown <= 31
    assert found.ids.tolist() == [*range(HEAD), *own(first)[-found.shown :], *own(rest)]
    assert found.learned.tolist() == [True] * HEAD + [False] * found.shown + [True] * len(own(rest))
    assert extended(rest, 2).ids.tolist() == rest.ids.tolist()
    assert extended(split(rest, 60)[1], 500).shown == len(own(first)) + len(own(split(rest, 60)[0]))


@settings(max_examples=300, deadline=None)
@given(
    small=st.lists(st.integers(HEAD + 1, 250), max_size=30),
    long=st.lists(st.tuples(st.integers(230, 256), st.sampled_from([3, 20, 60, 110])), max_size=30),
)
def test_every_token_stays_in_a_row_that_holds_it(small, long):
    samples = [sample(number, size) for number, size in enumerate(small)]
    samples += [sample(number, size, seams=True, line=line) for number, (size, line) in enumerate(long, len(small))]
    rows = pack([len(one.ids) for one in samples], 256)
    filled = fill_gaps(samples, rows, 256)
    assert len(filled.rows) <= len(rows)
    assert all(sum(len(filled.samples[index].ids) for index in row) <= 256 for row in filled.rows)
    assert sorted(index for row in filled.rows for index in row) == list(range(len(filled.samples)))
    for number, whole in enumerate(samples):
        parts = [one for one, origin in zip(filled.samples, filled.origins, strict=True) if origin == number]
        parts.sort(key=lambda one: one.start)
        assert [token for part in parts for token in own(part)] == own(whole)
        assert whole.seams is not None or len(parts) == 1


def test_rows_that_best_fit_leaves_a_third_empty_are_filled():
    samples = [*(sample(number, 170) for number in range(60)), *(sample(60 + n, 254, seams=True) for n in range(60))]
    rows = pack([len(one.ids) for one in samples], 256)
    filled = fill_gaps(samples, rows, 256)
    assert len(filled.rows) < len(rows) - 15
    used = sum(len(one.ids) for one in filled.samples) / (len(filled.rows) * 256)
    assert used > 0.98
