"""Working ahead changes the time that work takes, and nothing else."""

import threading

import pytest

from jobs.dataset.ahead import ahead


def test_results_come_in_the_order_of_the_items():
    gate = threading.Event()

    def work(number):
        if number:
            gate.set()
        else:
            gate.wait(10)  # the first ends after the second has begun
        return number * number

    assert list(ahead(work, range(20))) == [number * number for number in range(20)]


def test_no_more_is_begun_than_was_asked_for_and_the_next_few():
    read = []
    results = ahead(str, (read.append(number) or number for number in range(100)), 3)
    assert [next(results), next(results)] == ["0", "1"]
    assert len(read) <= 2 + 3
    results.close()
    assert len(read) <= 2 + 3


def test_what_need_not_be_ahead_is_not_begun_before_it_is_asked_for():
    read, most = [], 3
    results = ahead(str, (read.append(number) or number for number in range(100)), lambda: most)
    assert next(results) == "0"
    assert len(read) == 4
    most = 0
    assert [next(results) for _ in range(5)] == ["1", "2", "3", "4", "5"]
    assert len(read) == 6


def test_what_fails_fails_where_its_result_is_asked_for():
    results = ahead(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
