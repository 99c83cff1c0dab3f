"""A device that computes wrongly does not serve; one that was tested says so."""

import stat

import pytest

from backends.devices import GIB, Device, Machine
from backends.errors import BackendUnavailable, ExitCode
from backends.self_test import Verdict
from workers.device_test import proven
from workers.machine import PROBE_FILE, describe


@pytest.fixture(autouse=True)
def _no_pretended_probe(monkeypatch):
    monkeypatch.delenv(PROBE_FILE, raising=False)


def machine(device):
    return Machine(
        device=device, device_name="Apple M1", memory_bytes=8 * GIB, reason="Metal answers.", versions={"torch": "2.13"}
    )


@pytest.fixture
def tester(tmp_path, monkeypatch):
    """Stand a script in place of Python: the process that tests prints `answer` and leaves with `code`."""

    def stand_in(answer, code=0):
        script = tmp_path / "python"
        (tmp_path / "answer").write_text(answer)
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat {tmp_path}/answer\necho last words >&2\nexit {code}\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr("sys.executable", str(script))
        return tmp_path / "calls"

    return stand_in


GOOD = Verdict(device="mps", dtype="float16", seconds=2.7, differences={"gradient": 0.0021})


def test_a_device_that_agrees_serves_and_its_line_says_so(tester):
    calls = tester("a library's chatter\n" + GOOD.to_json())
    tested = proven(machine(Device.MPS), "auto")
    assert describe(tested).endswith("Metal answers. Self-test: agrees with the CPU within 0.21% in float16, 2.7 s.")
    assert tested.versions["torch"] == "2.13"
    assert calls.read_text().split()[-3:] == ["-m", "backends.self_test", "mps"]


def test_a_device_that_does_not_is_refused_with_what_differs(tester):
    tester(Verdict(device="mps", fault="mps computes wrongly here: the gradient differs by 28.0%.").to_json())
    with pytest.raises(BackendUnavailable, match=r"gradient differs by 28\.0%") as refused:
        proven(machine(Device.MPS), "auto")
    assert refused.value.exit_code is ExitCode.DEVICE_UNAVAILABLE


@pytest.mark.parametrize(("answer", "code"), [("", 3), ("", 0), ("not json", 0), ('{"other": 1}', 0)])
def test_a_test_without_a_verdict_is_a_refusal(tester, answer, code):
    tester(answer, code)
    with pytest.raises(BackendUnavailable, match="ended without a verdict"):
        proven(machine(Device.CUDA), "auto")


def test_the_last_words_of_a_test_that_died_are_told(tester):
    tester("", 1)
    with pytest.raises(BackendUnavailable, match="last words"):
        proven(machine(Device.CUDA), "auto")


def test_the_cpu_is_tested_only_when_asked_for(tester):
    calls = tester(GOOD.to_json())
    assert proven(machine(Device.CPU), "auto") == machine(Device.CPU)
    assert proven(machine(Device.MPS), "never") == machine(Device.MPS)
    assert not calls.exists()
    proven(machine(Device.CPU), "always")
    assert calls.exists()


def test_a_device_that_is_pretended_is_not_tested(tester, monkeypatch):
    calls = tester(GOOD.to_json())
    monkeypatch.setenv(PROBE_FILE, "probe.json")
    proven(machine(Device.MPS), "auto")
    assert not calls.exists()


def test_without_a_test_the_line_is_as_before():
    assert describe(machine(Device.CPU)).endswith("Metal answers.")


@pytest.mark.slow
def test_the_real_test_runs_in_a_process_of_its_own_and_passes_on_a_cpu(monkeypatch, only_worker_extra):
    monkeypatch.setenv("PYTHONPATH", only_worker_extra)
    assert "agrees with the CPU" in describe(proven(machine(Device.CPU), "always"))
