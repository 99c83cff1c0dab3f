"""Which device is chosen, and what is said about it."""

import json

import pytest

from backends.devices import GIB, Device
from backends.errors import BackendUnavailable, ExitCode
from workers.machine import PROBE_FILE, describe, find_machine
from workers.memory import free_bytes, shortage
from workers.probe import versions

OFFERS = {
    Device.CUDA: {"device": "cuda", "device_name": "NVIDIA RTX 2060", "memory_bytes": 6 * GIB},
    Device.MPS: {"device": "mps", "device_name": "Apple M1", "memory_bytes": 8 * GIB},
    Device.CPU: {"device": "cpu", "device_name": "EPYC", "memory_bytes": 24 * GIB},
}


@pytest.fixture
def probe_finds(tmp_path, monkeypatch):
    """Stand a file with the probe's answer in place of the probe."""

    def stand_in(*devices):
        absent = {device: f"no {device}: do something" for device in Device if device not in devices}
        file = tmp_path / "probe.json"
        file.write_text(json.dumps({"devices": [OFFERS[d] for d in devices], "absent": absent, "versions": {}}))
        monkeypatch.setenv(PROBE_FILE, str(file))

    return stand_in


def test_the_best_device_is_taken_and_the_line_says_why(probe_finds):
    probe_finds(Device.MPS, Device.CPU)
    line = describe(find_machine())
    assert line == "Serving mps on Apple M1, 8 GB (tiers 8, 4, 2): no CUDA here, and Metal answers."
    probe_finds(Device.CPU)
    assert find_machine().reason == "no CUDA and no Metal here, and the processor does the work."
    probe_finds(*Device)
    assert describe(find_machine()).endswith(": CUDA answers.")


def test_the_device_asked_for_is_taken(probe_finds):
    probe_finds(*Device)
    assert find_machine(Device.CPU).device is Device.CPU


def test_a_device_that_is_absent_is_refused_with_the_reason(probe_finds):
    probe_finds(Device.CPU)
    with pytest.raises(BackendUnavailable, match="No cuda device here: no cuda: do something") as error:
        find_machine(Device.CUDA)
    assert error.value.exit_code == ExitCode.DEVICE_UNAVAILABLE


def test_memory_can_be_offered_in_part(probe_finds):
    probe_finds(Device.CPU)
    assert find_machine(memory_gib=4.5).memory_bytes == 4.5 * GIB


def test_the_real_probe_finds_a_processor_here(monkeypatch):
    monkeypatch.delenv(PROBE_FILE, raising=False)
    machine = find_machine(Device.CPU)
    assert machine.memory_bytes > GIB
    assert machine.device_name
    assert machine.versions["torch"]


def test_a_probe_that_dies_is_told_in_a_sentence(monkeypatch):
    monkeypatch.delenv(PROBE_FILE, raising=False)
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(BackendUnavailable, match="Looking for devices failed"):
        find_machine()


def test_versions_name_what_is_installed():
    assert {"python", "system", "celery"} <= set(versions())


def test_a_job_that_fits_what_is_free_meets_no_shortage(probe_finds):
    probe_finds(Device.CPU)
    machine = find_machine()
    assert shortage(machine, 1) == ""
    sentence = shortage(machine, 1 << 50)
    assert "1048576.0 GiB" in sentence
    assert "another program uses it" in sentence


def test_free_memory_of_a_gpu_that_nobody_can_ask_about_is_unknown():
    pytest.importorskip("pynvml")
    if free_bytes(Device.CUDA) is not None:
        pytest.skip("there is an NVIDIA GPU here")
    assert free_bytes(Device.CPU) > 0
