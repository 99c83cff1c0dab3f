"""What a run notes of itself, with a real file and this process's real memory."""

import re
import sys

import pytest
import torch

from backends import calibration
from backends.contract import LoadedModel
from backends.devices import Device
from backends.memory import Recipe, estimate
from backends.peak import Peak
from backends.shape import read_shape
from jobs.expectation import Expectation
from jobs.planner import TrainingPlan

CONFIG = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LOADED = LoadedModel(model=None, torch_device=torch.device("cpu"), compute_dtype=torch.float32)


def make_plan(file=None):
    recipe = Recipe(rank=4, sequence_length=32)
    return TrainingPlan(
        recipe=recipe,
        shape=read_shape(CONFIG),
        modelled=estimate(CONFIG, recipe),
        measured=calibration.read(file, "kind"),
        kind="kind",
        notes=(),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="no other system resets its high-water mark")
def test_the_third_step_notes_memory_and_speed_once(tmp_path):
    file, told = tmp_path / calibration.FILE, []
    expectation = Expectation.of(make_plan(file), LOADED, 100, file)
    for _ in range(2):
        expectation.step_done(64, 0.1, told.append)
    assert calibration.read(file, "kind") == calibration.Measured()
    for _ in range(3):
        expectation.step_done(64, 0.1, told.append)
    known = calibration.read(file, "kind")
    assert 0.5 <= known.memory_factor <= 2
    assert 0 < known.rate_share <= 1.5
    assert len(told) == 1
    assert re.fullmatch(r"The first steps took .* GiB at their peak; .* GiB were expected \([+-]\d+%\)", told[0])


def test_the_first_step_does_not_count_for_the_speed(tmp_path):
    shares = []
    for first in (0.1, 100.0):
        file = tmp_path / str(first)
        expectation = Expectation(plan=make_plan(), product_rate=1e9, peak=Peak(Device.CPU), file=file)
        for seconds in (first, 0.1, 0.1):
            expectation.step_done(64, seconds, lambda _line: None)
        shares.append(calibration.read(file, "kind").rate_share)
    assert shares[0] == shares[1]


def test_the_time_is_a_range_that_narrows_once_this_machine_has_measured(tmp_path):
    file = tmp_path / calibration.FILE
    guess = Expectation(plan=make_plan(), product_rate=1e7, peak=Peak(Device.CPU), file=None).time_sentence(10**6, 1200)
    assert re.match(r"The training takes about .* to .* for 1,200 steps \(a first guess, from 0 GFLOP/s", guess)
    calibration.add(file, "kind", rate_share=0.5)
    known = Expectation(plan=make_plan(file), product_rate=1e7, peak=Peak(Device.CPU), file=None)
    assert "earlier trainings on this machine" in known.time_sentence(10**6, 1200)


def test_no_steps_and_no_sizes_give_no_sentence():
    expectation = Expectation(plan=make_plan(), product_rate=None, peak=Peak(Device.CPU), file=None)
    assert expectation.time_sentence(10, 1) is None
    assert Expectation.of(make_plan(), LOADED, 0, None).product_rate is None


@pytest.mark.skipif(sys.platform != "linux", reason="no other system resets its high-water mark")
def test_a_peak_is_what_was_held_at_a_time_though_it_is_gone():
    before = Peak(Device.CPU).bytes()
    peak = Peak(Device.CPU)
    block = torch.ones(50_000_000)
    held = peak.bytes()
    del block
    assert peak.bytes() - before > 190_000_000
    assert held - before > 190_000_000
