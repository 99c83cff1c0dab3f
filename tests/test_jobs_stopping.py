"""What the losses of a run say: go on, stop early, diverged; and that a resumed run remembers what it saw."""

import json
import random

import pytest

from jobs.evaluation import HeldOut
from jobs.spec import Config
from jobs.stopping import Verdict, Watchdog, suggestion

GO_ON, STOP_EARLY, DIVERGED = Verdict.GO_ON, Verdict.STOP_EARLY, Verdict.DIVERGED


def make_config(patience=None, delta=0.0, **optimization):
    training = {"evaluate_every_steps": 1, "early_stopping": patience, "early_stopping_delta": delta}
    return Config.model_validate({"training": training, "optimization": optimization})


def measure(watchdog, losses, base=2.0):
    return [watchdog.measured(HeldOut(step=step, loss=loss, tokens=9), base) for step, loss in enumerate(losses, 1)]


def train(watchdog, losses, base=2.0):
    return [watchdog.stepped(loss, base) for loss in losses]


def test_a_run_stops_after_so_many_measurements_in_a_row_without_a_gain():
    watchdog = Watchdog.of(make_config(2), {})
    assert measure(watchdog, [1.9, 1.8, 1.85, 1.7, 1.7, 1.75]) == [*[GO_ON] * 5, STOP_EARLY]
    assert watchdog.has_stopped


def test_a_fall_below_the_delta_is_no_gain_but_several_together_are():
    assert measure(Watchdog.of(make_config(2, 0.1), {}), [1.9, 1.85, 1.81]) == [GO_ON, GO_ON, STOP_EARLY]
    assert measure(Watchdog.of(make_config(2, 0.1), {}), [1.9, 1.85, 1.79, 1.75]) == [GO_ON] * 4


def test_nobody_stops_early_who_did_not_ask():
    watchdog = Watchdog.of(make_config(), {})
    assert set(measure(watchdog, [1.9, *[1.95] * 50])) == {GO_ON}
    assert not watchdog.has_stopped


def test_what_was_seen_survives_a_checkpoint_to_the_last_bit():
    numbers = random.Random(3)
    losses = [2.0 + numbers.gauss(0, 0.1) for _ in range(30)]
    straight, before = (Watchdog.of(make_config(3), {}) for _ in range(2))
    train(straight, losses)
    train(before, losses[:13])
    resumed = Watchdog.of(make_config(3), json.loads(json.dumps(before.saved())))
    train(resumed, losses[13:])
    assert measure(straight, [1.9, 1.95, 1.96, 1.97]) == measure(resumed, [1.9, 1.95, 1.96, 1.97])
    assert straight.saved() == resumed.saved()
    assert Watchdog.of(make_config(3), resumed.saved() | {"of a newer program": 1}).has_stopped


def fresh():
    return Watchdog.of(make_config(), {})


def test_a_training_loss_far_above_that_of_the_base_is_divergence():
    verdicts = train(fresh(), [*[2.0] * 20, *[4.0] * 20])
    assert verdicts.index(DIVERGED) == 30  # the mean of the newest 20 is more than a nat above
    assert DIVERGED in train(fresh(), [2.0, *[9.0] * 19])
    assert train(fresh(), [*[2.0] * 20, *[2.9] * 40]) == [GO_ON] * 60


def test_an_easy_first_step_or_easy_held_out_rows_are_no_divergence():
    assert train(fresh(), [0.1, *[2.0] * 40]) == [GO_ON] * 41
    assert train(fresh(), [2.0] * 40, base=0.1) == [GO_ON] * 40
    assert train(fresh(), [0.1, *[2.0] * 40], base=None) == [GO_ON] * 41  # the base is not measured yet


def test_a_spike_and_steps_without_a_number_are_no_divergence():
    assert DIVERGED not in train(fresh(), [*[2.0] * 30, 15.0, float("nan"), *[2.0] * 30])


def test_losses_that_differ_much_from_row_to_row_are_no_divergence():
    numbers = random.Random(5)
    assert DIVERGED not in train(fresh(), [3.0 + numbers.gauss(0, 1.0) for _ in range(2000)], base=3.0)


def test_held_out_loss_far_above_the_base_is_divergence_unless_the_run_still_learns():
    diverging = fresh()
    train(diverging, [2.0, 2.5, 5.0])
    assert measure(diverging, [3.5]) == [DIVERGED]
    overfitting = fresh()
    train(overfitting, [*[2.0] * 20, *[0.1] * 20])
    assert measure(overfitting, [3.5]) == [GO_ON]


def test_the_measurement_of_the_base_itself_counts_for_nothing():
    watchdog = Watchdog.of(make_config(1), {})
    assert watchdog.measured(HeldOut(step=0, loss=2.0, tokens=9), 2.0) is GO_ON
    assert measure(watchdog, [2.5, 2.6]) == [GO_ON, STOP_EARLY]


@pytest.mark.parametrize(("changes", "said"), [({}, "7e-05 instead of 0.0002"), ({"lora_plus_ratio": 16}, "than 16")])
def test_a_lower_rate_is_suggested(changes, said):
    assert said in suggestion(make_config(**changes))
