import numpy as np
import pytest

from jobs.bootstrap import FEWEST, Interval, interval, percentiles


def mean_of(values):
    values = np.array(values, np.float64)
    return lambda chosen: values[chosen].mean(axis=1)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(3).normal(10, 2, 400)
    found = interval(mean_of(values), 400, 4000)
    error = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.03)
    assert found.high == pytest.approx(values.mean() + error, abs=0.03)


def test_the_interval_holds_the_truth_in_95_of_100_experiments():
    random = np.random.default_rng(5)
    held = 0
    for _ in range(300):
        found = interval(mean_of(random.normal(0, 1, 60)), 60, 400)
        held += found.low <= 0 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_the_same_documents_give_the_same_interval_however_many_are_drawn_at_a_time(monkeypatch):
    one = interval(mean_of(range(50)), 50, 1000)
    assert interval(mean_of(range(50)), 50, 1000) == one
    monkeypatch.setattr("jobs.bootstrap._CHUNK", 50 * 7)
    assert interval(mean_of(range(50)), 50, 1000) == one


@pytest.mark.parametrize("documents", [FEWEST, 8])
def test_the_interval_of_few_documents_is_as_wide_as_it_must_be(documents):
    random = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        found = interval(mean_of(random.normal(0, 1, documents)), documents, 400)
        held += found.low <= 0 <= found.high
    assert held / 400 >= 0.88


def test_percentiles_are_students_for_few_and_the_plain_ones_for_many():
    # By a table of Student's t: 2.776 for 4 degrees of freedom, 2.093 for 19.
    assert percentiles(5)[0] == pytest.approx(0.0956, abs=0.005)
    assert percentiles(20)[0] == pytest.approx(1.588, abs=0.005)
    assert percentiles(100_000) == pytest.approx((2.5, 97.5), abs=0.001)


def test_too_few_documents_have_no_interval():
    assert interval(mean_of([4.0]), 1, 1000) == Interval(4.0, None, None)
    few = list(range(FEWEST - 1))
    assert interval(mean_of(few), len(few), 1000) == Interval(1.5, None, None)


def test_equal_documents_have_an_interval_without_width():
    assert interval(mean_of([4.0] * 9), 9, 1000) == Interval(4.0, 4.0, 4.0)
