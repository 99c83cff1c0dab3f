"""Chooses the device of this machine from what `workers.probe` finds. Imports no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from backends.devices import GIB, Device, Machine, tier_for_memory
from backends.errors import BackendUnavailable

#: A path of a JSON file in the form that `workers.probe` prints: taken instead of probing. `submit --local`, which has
#: just looked, hands it to its worker; tests so stand a worker beside another one for a device that the machine lacks.
PROBE_FILE = "REPOTUNE_PROBE"

#: Among the versions of a machine: what its self-test said (`workers.device_test`).
SELF_TEST = "self-test"

#: The first import of torch from a cold disk takes minutes on a small machine.
_PROBE_SECONDS = 300

#: Best first: what a job runs fastest on.
_PREFERENCE = (Device.CUDA, Device.MPS, Device.CPU)


def find_machine(device: Device | None = None, memory_gib: float | None = None) -> Machine:
    """The machine as a worker offers it: `device`, or the best one found.

    Args:
        device: the device to offer; None takes cuda, else mps, else cpu.
        memory_gib: memory to offer in GiB, in place of what the device has.

    Raises:
        BackendUnavailable: the device is not there, or nothing can be probed.
    """
    return _choose(_probe(), device, memory_gib)


def _choose(found: dict[str, Any], device: Device | None, memory_gib: float | None = None) -> Machine:
    offers = {Device(offer["device"]): offer for offer in found["devices"]}
    chosen = device or next((candidate for candidate in _PREFERENCE if candidate in offers), None)
    if chosen is None or chosen not in offers:
        wanted = chosen or Device.CPU
        raise BackendUnavailable(f"No {wanted} device here: {found['absent'].get(wanted, 'nothing answers')}")
    offer = offers[chosen]
    return Machine(
        device=chosen,
        device_name=str(offer["device_name"]),
        memory_bytes=int(memory_gib * GIB) if memory_gib else int(offer["memory_bytes"]),
        reason=_reason(chosen, found, asked=device is not None),
        versions=dict(found["versions"]),
    )


def describe(machine: Machine) -> str:
    """One line for people, and what the self-test said where there was one.

    E.g. "Serving mps on Apple M1, 8 GB (tiers 8, 4, 2): no CUDA here, and Metal answers."
    """
    from backends.devices import TIERS_GIB

    top = tier_for_memory(machine.memory_bytes)
    tiers = ", ".join(str(tier) for tier in reversed(TIERS_GIB) if tier <= top) or "none"
    memory = f"{machine.memory_bytes / GIB:.0f} GB"
    line = f"Serving {machine.device} on {machine.device_name}, {memory} (tiers {tiers}): {machine.reason}"
    tested = machine.versions.get(SELF_TEST)
    return f"{line} Self-test: {tested}." if tested else line


def main() -> None:
    """Print what a worker of this machine would offer: `python -m workers.machine [DEVICE]`, for `repotune validate`.

    One JSON object: device, device_name, memory_bytes and reason, or a problem; and what was found of all devices.
    """
    told: dict[str, Any] = {}
    try:
        found = told["probe"] = _probe()
        machine = _choose(found, Device(sys.argv[1]) if len(sys.argv) > 1 else None)
        told |= {name: getattr(machine, name) for name in ("device", "device_name", "memory_bytes", "reason")}
    except BackendUnavailable as error:
        told["problem"] = str(error)
    print(json.dumps(told))  # noqa: T201 - its output is what it is started for


def _probe() -> dict[str, Any]:
    file = os.environ.get(PROBE_FILE)
    if file:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    # -P: a `workers` folder in the current directory is not ours.
    command = [sys.executable, "-P", "-W", "ignore", "-m", "workers.probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PROBE_SECONDS)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        said = f"no answer in {_PROBE_SECONDS} s"
    except (ValueError, IndexError):
        said = "its answer cannot be read"
    raise BackendUnavailable(f"Looking for devices failed ({said}): run `python -m workers.probe` to see why.")


def _reason(device: Device, found: dict[str, Any], *, asked: bool) -> str:
    """Why this device, as the end of a sentence."""
    if asked:
        return "as asked."
    absent = [name for name in _PREFERENCE[: _PREFERENCE.index(device)] if name in found["absent"]]
    best = {Device.CUDA: "CUDA answers", Device.MPS: "Metal answers", Device.CPU: "the processor does the work"}
    names = {Device.CUDA: "CUDA", Device.MPS: "Metal", Device.CPU: "CPU"}
    without = " and no ".join(names[name] for name in absent)
    return f"no {without} here, and {best[device]}." if absent else f"{best[device]}."


if __name__ == "__main__":
    main()
