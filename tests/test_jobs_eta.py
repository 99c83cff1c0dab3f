"""The time that is left: of every part, from few steps, whatever interrupts them."""

import random

import pytest

from jobs.ahead import rows_before, total_rows
from jobs.eta import Ahead, Eta
from jobs.order import Order, Position


def make_ahead(**changes):
    values = {"steps": 100, "rows": 1600, "measured_rows": 0, "steps_between_saves": 1000, "seconds_between_saves": 1e9}
    return Ahead(**(values | changes))


def learned(seconds=(9.0, 8.0, 8.0, 8.0)):
    eta = Eta(kind="here")
    for one in seconds:
        eta.step(16, one)
    return eta


def left(eta, **changes):
    """Without what the end of every run takes."""
    return eta.left(make_ahead(**changes)) - eta.left(make_ahead(steps=0, rows=0))


def test_before_the_first_step_nothing_is_told():
    assert Eta(kind="here").left(make_ahead()) is None


def test_the_first_step_of_a_process_counts_only_as_long_as_there_is_no_other():
    eta = learned([40.0])
    assert left(eta) == pytest.approx(4000)
    eta.step(16, 8.0)
    assert left(eta) == pytest.approx(800)


def test_the_last_step_of_an_epoch_counts_by_its_rows():
    eta = learned()
    eta.step(4, 2.0)
    assert left(eta) == pytest.approx(800)
    assert left(eta, rows=1588) == pytest.approx(794)


def test_a_process_that_was_stopped_for_an_hour_is_not_a_slow_one():
    eta = learned([9.0, 8.0, 8.0, 3608.0, 8.0])
    assert left(eta) == pytest.approx(800)


def test_a_busy_machine_counts_as_it_is():
    """Now and then a step takes five times as long, because something else runs: that will go on."""
    eta = learned([2.0, *[2.0, 2.0, 2.0, 10.0] * 10])
    assert left(eta) == pytest.approx(400)


def test_what_passes_between_steps_counts_once():
    now = 0.0
    eta = Eta(kind="here", clock=lambda: now)
    for _ in range(5):
        now += 10.0  # the step took 8, telling of it 0.5, and the measurement 1.5
        eta.step(16, 8.0)
        eta.evaluated(16, 1.5)
    assert left(eta) == pytest.approx(850)


def test_a_machine_that_grows_slower_is_followed():
    eta = learned([8.0] * 30)
    for _ in range(64):
        eta.step(16, 12.0)
    assert left(eta) == pytest.approx(1200)


def test_measurements_are_told_from_the_steps_until_one_is_measured():
    eta = Eta(kind="here", forward_share=0.25)
    for _ in range(3):
        eta.step(16, 8.0)
    assert left(eta, measured_rows=64) == pytest.approx(800 + 64 * 0.125)
    eta.evaluated(64, 32.0)
    assert left(eta, measured_rows=64) == pytest.approx(832)


def test_checkpoints_are_counted_by_steps_and_by_minutes():
    eta = learned()
    eta.saved(2.0)
    assert left(eta, steps_between_saves=10) == pytest.approx(800 + 10 * 2)
    assert left(eta, seconds_between_saves=100.0) == pytest.approx(800 + 8 * 2)
    assert left(eta, seconds_between_saves=0.0) == pytest.approx(800 + 100 * 2)


def test_the_evaluation_at_the_end_counts_as_far_as_its_time_allows():
    eta = learned()  # half a second a row, of which a forward pass takes a third
    assert left(eta, compared_rows=60, evaluation_minutes=10) == pytest.approx(800 + 10)
    assert left(eta, compared_rows=6000, evaluation_minutes=10) == pytest.approx(800 + 80)
    assert left(eta, compared_rows=6000, evaluation_minutes=10, trained_seconds=200) == pytest.approx(800 + 100)
    assert left(eta, compared_rows=6000, evaluation_minutes=0.5) == pytest.approx(800 + 30)


def test_a_resumed_run_knows_before_its_first_step_and_another_machine_begins_anew():
    eta = learned()
    eta.evaluated(64, 32.0)
    eta.saved(2.0)
    again = Eta.of(eta.state(), "here")
    assert left(again, measured_rows=10) == left(eta, measured_rows=10)
    again.step(16, 99.0)  # the first of the new process
    assert left(again) == left(eta)
    assert Eta.of(eta.state(), "elsewhere").left(make_ahead()) is None
    assert Eta.of({}, "here").left(make_ahead()) is None


def test_after_two_in_a_hundred_steps_the_time_is_within_a_tenth():
    """Steps that scatter by a tenth, a slow first one, two measurements, a checkpoint every ten steps."""
    for seed in range(50):
        draw = random.Random(seed)
        steps = [20.0, *(max(1.0, draw.gauss(8.0, 0.8)) for _ in range(499))]
        eta = Eta(kind="here")
        for seconds in steps[:10]:
            eta.step(16, seconds)
        eta.saved(1.0)
        truth = sum(steps[10:]) + 2 * 64 * 8 / 16 / 3 + 49 + 1
        told = eta.left(make_ahead(steps=490, rows=490 * 16, measured_rows=128, steps_between_saves=10))
        assert abs(told / truth - 1) < 0.1


@pytest.mark.parametrize("max_steps", [None, 1, 4, 5, 7, 12])
def test_rows_are_counted_as_the_order_gives_them(max_steps):
    order = Order(rows=18, effective_batch=4, seed=1, epochs=2, max_steps=max_steps)
    steps = list(order.steps_from(Position()))
    assert total_rows(order) == sum(len(numbers) for numbers, _ in steps)
    assert rows_before(order, steps[-1][1]) == total_rows(order)


def test_an_empty_dataset_has_no_rows():
    assert total_rows(Order(rows=0, effective_batch=4, seed=1, epochs=2)) == 0
