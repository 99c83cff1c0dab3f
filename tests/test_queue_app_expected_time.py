"""How long a training will take, told on the submitting side from what this machine measured before."""

import pytest

from backends import calibration
from backends.devices import Device
from backends.shape import read_shape
from backends.throughput import work_per_token
from jobs.config import load_config
from jobs.fitting import recipe_of
from queue_app.expected_time import expected_time

MODEL = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
RATE = 1e9


@pytest.fixture
def home(tmp_path):
    for libraries, rate in (("torch-1", RATE / 10), ("torch-2", RATE)):
        kind = calibration.kind_of("cpu", "a processor", "llama", "int8", {"torch": libraries})
        calibration.add(tmp_path / calibration.FILE, kind, work_rate=rate)
    return tmp_path


def config_with(*settings):
    return load_config(settings=["training.gradient_checkpointing='off'", *settings]).for_device(Device.CPU)


def seconds_per_token(config):
    return work_per_token(read_shape(MODEL), recipe_of(config, Device.CPU)).total / RATE


def test_steps_that_are_given_and_sure_to_come_give_a_time_that_is_no_guess(home):
    config = config_with("training.max_steps=10")
    told = expected_time(config, MODEL, Device.CPU, 10**9, home)
    truth = 10 * 16 * 1024 * seconds_per_token(config)
    assert (told.range.low, told.range.high) == pytest.approx((truth / 1.2, truth / 0.8))
    assert "guess" not in told.text


def test_epochs_over_a_repository_are_a_guess_from_its_bytes(home):
    config = config_with()
    told = expected_time(config, MODEL, Device.CPU, 10**6, home)
    assert told.range.low < 3 * 10**6 / 5 * seconds_per_token(config) < told.range.high
    assert "guess" in told.text


def test_recomputation_that_memory_will_decide_widens_the_time(home):
    steps = "training.max_steps=10"
    fixed = expected_time(config_with(steps), MODEL, Device.CPU, 10**9, home)
    left_open = config_with(steps, "training.gradient_checkpointing=auto")
    told = expected_time(left_open, MODEL, Device.CPU, 10**9, home)
    assert told.range.low == pytest.approx(fixed.range.low)
    assert told.range.high > 1.1 * fixed.range.high


@pytest.mark.parametrize(
    ("settings", "model", "device", "size"),
    [
        ((), None, Device.CPU, 10**6),
        ((), MODEL, Device.CPU, None),
        (("dataset.also=[{repository: ../core}]",), MODEL, Device.CPU, 10**6),
        ((), MODEL | {"model_type": "starcoder2"}, Device.CPU, 10**6),
        ((), MODEL | {"hidden_size": "wide"}, Device.CPU, 10**6),
        (("quantization.kind=none",), MODEL, Device.CPU, 10**6),
        ((), MODEL, Device.MPS, 10**6),
    ],
)
def test_what_nobody_measured_or_knows_is_not_told(home, settings, model, device, size):
    assert expected_time(config_with(*settings), model, device, size, home) is None


def test_a_machine_that_never_trained_tells_nothing(tmp_path):
    assert expected_time(config_with(), MODEL, Device.CPU, 10**6, tmp_path) is None
