"""Curves as text: where the dots lie, what they cost, what is left out."""

import math
from itertools import pairwise

import pytest

from queue_app.curve import Curve
from queue_app.terminal_chart import chart_lines


def dots(line):
    """How many dots of a line of braille are set."""
    return sum((ord(sign) - 0x2800).bit_count() for sign in line if ord(sign) >= 0x2800)


def a_step(step, loss):
    return {"event": "step", "step": step, "loss": loss}


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right():
    *plot, axis = chart_lines([(step, 3.0 - step / 10) for step in range(1, 21)], width=30, height=4)
    assert [line.partition("▕")[0].strip() for line in plot] == ["2.9", "", "", "1"]
    filled = [[index for index, sign in enumerate(line.partition("▕")[2]) if dots(sign)] for line in plot]
    assert all(min(upper) < min(lower) for upper, lower in pairwise(filled))
    assert filled[0][0] == 0
    assert axis.split() == ["1", "20"]


def test_no_line_is_wider_than_asked_for():
    for width in range(1, 90):
        lines = chart_lines([(step, math.sin(step)) for step in range(500)], width, height=5)
        assert all(len(line) <= width for line in lines)
        assert len(lines) in {0, 6}


@pytest.mark.parametrize(
    "points", [[], [(1, 2.0)], [(1, math.nan), (2, math.inf), (3, 1.0)]], ids=["none", "one", "one that is finite"]
)
def test_what_is_no_line_is_not_drawn(points):
    assert chart_lines(points, 60, 5) == []


def test_a_level_line_and_a_sudden_jump_are_drawn_without_gaps():
    level = chart_lines([(step, 1.0) for step in range(10)], 40, 3)
    assert sum(map(dots, level)) == sum(len(line.partition("▕")[2]) for line in level[:3]) // 3 * 2
    jump = chart_lines([(step, float(step > 5)) for step in range(10)], 40, 3)
    assert all(dots(line) for line in jump[:3])


def test_a_curve_is_shown_once_there_is_something_to_see():
    curve = Curve()
    for step in range(1, 5):
        curve.hear(a_step(step, 2.0))
    curve.hear(a_step(5, None))
    assert curve.lines(60) == []
    curve.hear(a_step(6, 1.0))
    assert curve.lines(60)[0] == "training loss by optimizer step"
    assert len(curve.lines(60, height=4)) == 6


def test_a_long_run_is_kept_in_little_memory_and_keeps_its_course():
    curve = Curve()
    for step in range(1, 100_001):
        curve.hear(a_step(step, 1.0 + 1.0 / step))
    assert len(curve._points) <= 4096
    assert curve.lines(80)[-1].split()[-1] == "100,000"


def test_what_a_resumed_run_does_again_is_drawn_once():
    curve, straight = Curve(), Curve()
    for step in [*range(1, 9), *range(5, 11)]:
        curve.hear(a_step(step, float(step)))
    for step in range(1, 11):
        straight.hear(a_step(step, float(step)))
    assert curve.lines(50) == straight.lines(50)
