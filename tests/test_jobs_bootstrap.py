import numpy as np
import pytest

from jobs.bootstrap import Interval, interval


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


def test_one_document_has_no_interval():
    assert interval(mean_of([4.0]), 1, 1000) == Interval(4.0, None, None)


def test_equal_documents_have_an_interval_without_width():
    assert interval(mean_of([4.0] * 9), 9, 1000) == Interval(4.0, 4.0, 4.0)
