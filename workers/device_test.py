"""Has a device compared with the CPU before it serves, in a process of its own: the worker never loads torch.

A GPU that computes wrongly gives no error; its adapters are worthless after a night. See `backends.self_test`.
"""

import os
import subprocess
import sys
from dataclasses import replace

from backends.devices import Device, Machine
from backends.errors import BackendUnavailable
from backends.self_test import Verdict
from workers.machine import PROBE_FILE, SELF_TEST

#: Most of it is the import of torch and transformers from a cold disk.
_SECONDS = 300


def proven(machine: Machine, when: str) -> Machine:
    """The machine with what the test said among its versions; as it is where there is nothing to test.

    Args:
        machine: what is to serve.
        when: "always", "never", or "auto": all but the CPU, which is what others are compared with.

    Raises:
        BackendUnavailable: the device computes wrongly; the sentence says what and by how much.
    """
    # A device that a test pretends cannot be asked to compute.
    needless = machine.device is Device.CPU or bool(os.environ.get(PROBE_FILE))
    if when == "never" or (when == "auto" and needless):
        return machine
    verdict = _test(machine.device)
    if verdict.fault:
        raise BackendUnavailable(verdict.fault)
    return replace(machine, versions=machine.versions | {SELF_TEST: verdict.summary})


def _test(device: Device) -> Verdict:
    # -P: a `backends` folder in the current directory is not ours.
    command = [sys.executable, "-P", "-W", "ignore", "-m", "backends.self_test", device.value]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
        if done.returncode == 0:
            return Verdict.from_json(done.stdout.splitlines()[-1])
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        said = f"no answer in {_SECONDS} s"
    except (ValueError, IndexError):
        said = "its answer cannot be read"
    raise BackendUnavailable(
        f"The self-test of {device} ended without a verdict ({said}): run `python -m backends.self_test {device}` to "
        "see why, or set REPOTUNE_SELF_TEST=never to serve untested."
    )
