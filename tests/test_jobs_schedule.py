"""The shapes of the learning rate."""

from itertools import pairwise

import pytest

from jobs.schedule import LearningRate, make_rate
from jobs.spec import OptimizationSection


def rates(total=100, **changes):
    section = OptimizationSection(**{"learning_rate": 0.5, "warmup_ratio": 0.1, **changes})
    rate = make_rate(section, total)
    return [rate.at(step) for step in range(1, total + 1)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_every_shape_climbs_to_the_peak_and_never_below_its_floor_again(schedule, floor):
    found = rates(schedule=schedule, min_ratio=floor)
    assert found[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert found[9] == found[10] == 0.5
    assert all(before >= after for before, after in pairwise(found[9:]))
    assert min(found[9:]) >= 0.5 * floor
    if schedule != "constant":
        assert found[-1] == pytest.approx(0.5 * floor, abs=0.5 * 0.06)


def test_linear_is_a_straight_line_and_constant_stays():
    linear = rates(schedule="linear")
    steps = {round(before - after, 12) for before, after in pairwise(linear[10:])}
    assert steps == {round(0.5 / 90, 12)}
    assert set(rates(schedule="constant")[9:]) == {0.5}


def test_wsd_stays_at_the_peak_until_its_last_share():
    found = rates(schedule="wsd", decay_ratio=0.3)
    assert set(found[9:71]) == {0.5}
    assert found[71] == pytest.approx(0.5 * 29 / 30)
    assert found[-1] == pytest.approx(0.5 / 30)


def test_a_fall_that_is_longer_than_the_run_begins_after_warm_up():
    assert rates(schedule="wsd", decay_ratio=1.0) == rates(schedule="linear")


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_short_runs_have_a_rate_at_every_step(schedule, total):
    found = rates(total, schedule=schedule)
    assert len(found) == total
    assert all(0 < rate <= 0.5 for rate in found)


def test_what_nobody_chose_is_the_cosine_of_before():
    assert rates() == rates(schedule="cosine", min_ratio=0.0)
    assert LearningRate(peak=1.0, total_steps=104, warmup_ratio=0.04).at(104) < 1e-3
