"""Documents fill rows: none is lost, none is cut, little room is."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.packing import pack


@given(lengths=st.lists(st.integers(1, 64), max_size=80))
def test_every_document_lies_in_one_row_and_no_row_overflows(lengths):
    rows = pack(lengths, 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 64 for row in rows)


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=80))
def test_no_two_rows_could_be_one(lengths):
    fills = sorted(sum(lengths[index] for index in row) for row in pack(lengths, 64))
    assert len(fills) == 1 or fills[0] + fills[1] > 64


def test_realistic_lengths_use_99_percent():
    rng = random.Random(17)
    lengths = [min(1024, max(20, int(rng.lognormvariate(5.5, 1.0)))) for _ in range(5000)]
    assert sum(lengths) / (1024 * len(pack(lengths, 1024))) > 0.99


def test_a_document_that_does_not_fit_is_a_mistake():
    for length in (0, 65):
        with pytest.raises(ValueError, match="empty or longer"):
            pack([1, length], 64)
