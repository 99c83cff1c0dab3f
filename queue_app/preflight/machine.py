"""Is this machine fit for hours of work: its device, mains power, temperature.

Torch is asked in a process of its own.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends.devices import ANY, GIB, Device, tier_for_memory, tier_for_need
from backends.errors import ExitCode
from queue_app.plan import Need
from queue_app.preflight.line import CheckLine, Place, passed, warned
from queue_app.tables import size_text

#: The first import of torch from a cold disk takes minutes on a small machine.
_PROBE_SECONDS = 300
_ASK_SECONDS = 5
#: A processor that names no limit of its own throttles at about this, degrees Celsius.
_HOT_CELSIUS = 95.0
#: Of NVML: the clocks are held down by heat, or by want of power.
_GPU_SLOWDOWN = {0x08: "the hardware", 0x20: "heat", 0x40: "heat", 0x80: "want of power"}
_THROTTLE_COUNTS = "devices/system/cpu/cpu*/thermal_throttle/*_throttle_count"


class Looking:
    """Looks for devices while other checks run."""

    def __init__(self, device: str) -> None:
        # -P: a `workers` folder in the current directory is not ours.
        command = [sys.executable, "-P", "-W", "ignore", "-m", "workers.machine"]
        self._process = subprocess.Popen(
            [*command, *([] if device == ANY else [device])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def found(self) -> dict[str, Any]:
        """`{"device": …, "device_name": …, "memory_bytes": …, "reason": …}`, or `{"problem": sentence}`."""
        try:
            text, _ = self._process.communicate(timeout=_PROBE_SECONDS)
            return dict(json.loads(text.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            return {"problem": f"Looking for devices took more than {_PROBE_SECONDS} s: try again."}
        except (ValueError, IndexError):
            return {"problem": "Looking for devices failed: run `python -m workers.probe` to see why."}
        finally:
            self.stop()

    def stop(self) -> None:
        """End the looking."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def hardware_line(found: dict[str, Any], needs: tuple[Need, ...], place: Place) -> CheckLine:
    """Whether the device is there and large enough for the training."""
    if "problem" in found:
        return CheckLine(
            name="hardware",
            grade=place.lacking,
            text=str(found["problem"]),
            remedy="" if place is Place.HERE else "a worker elsewhere must run the job",
            exit_code=ExitCode.DEVICE_UNAVAILABLE,
        )
    device, memory = Device(found["device"]), int(found["memory_bytes"])
    text = f"{device} on {found['device_name']}, {memory / GIB:.0f} GB: {found['reason'].rstrip('.')}"
    need = next((need for need in needs if need.device is device), None)
    if need is None:
        return passed("hardware", text)
    tier = need.tier or tier_for_need(need.total_bytes, device)
    if tier is None or tier > tier_for_memory(memory):
        needed = f"a machine of {tier} GB" if tier else f"{size_text(need.total_bytes)}, more than any machine has"
        return CheckLine(
            name="hardware",
            grade=place.lacking,
            text=f"{text}; the training needs {needed}",
            remedy="take a smaller model or dataset.sequence_length, quantization.kind int4, or a larger machine",
            exit_code=ExitCode.DEVICE_UNAVAILABLE,
        )
    return _with_what_is_free(text, need)


def _with_what_is_free(text: str, need: Need) -> CheckLine:
    import psutil

    free = int(psutil.virtual_memory().available)
    if need.device is not Device.CUDA and free < need.total_bytes:
        return warned(
            "hardware",
            f"{text}; {size_text(free)} are free now and the training needs {size_text(need.total_bytes)}",
            "close other programs, or it takes smaller steps or waits",
        )
    return passed("hardware", text)


# ---- Power -----------------------------------------------------------------------------------------------------------


def power_line() -> CheckLine:
    """Whether a laptop hangs on the mains."""
    import psutil

    try:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    except (OSError, RuntimeError):
        battery = None
    if battery is None:
        return passed("power", "no battery found")
    if battery.power_plugged is False:
        return warned(
            "power",
            f"on battery, {battery.percent:.0f} % left",
            "plug it in: a training takes hours, and most laptops are slower on battery",
        )
    return passed("power", "on mains")


# ---- Temperature -----------------------------------------------------------------------------------------------------


def temperature_line(system: Path = Path("/sys")) -> CheckLine:
    """Whether processor or GPU is too hot, or held down because of heat, as far as that can be read."""
    hot: list[str] = []
    cool: list[str] = []
    for is_hot, text in (*_sensors(), *_gpu(), *_mac()):
        (hot if is_hot else cool).append(text)
    if hot:
        return warned("temperature", "; ".join(hot), "let it cool down and give it air, or the training runs slower")
    return passed("temperature", "; ".join([*cool, *_throttled_before(system)]) or "not readable on this machine")


def _sensors() -> Iterator[tuple[bool, str]]:
    """The hottest sensor, and each that is above its limit."""
    import psutil

    try:
        chips = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    except (OSError, ValueError):
        return
    all_of_them = [(chip, one) for chip, some in chips.items() for one in some if one.current is not None]
    for chip, one in all_of_them:
        limit = one.high if one.high and one.high > 0 else _HOT_CELSIUS
        if one.current >= limit:
            yield True, f"{one.label or chip} is at {one.current:.0f} °C, its limit is {limit:.0f} °C"
    if all_of_them:
        chip, hottest = max(all_of_them, key=lambda pair: pair[1].current)
        yield False, f"{hottest.label or chip} at {hottest.current:.0f} °C"


def _throttled_before(system: Path) -> list[str]:
    """A count since the machine started: it says that it can happen, not that it happens now."""
    count = 0
    for file in system.glob(_THROTTLE_COUNTS):
        try:
            count = max(count, int(file.read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return [f"slowed down by heat {count} times since it started"] if count else []


def _gpu() -> Iterator[tuple[bool, str]]:
    """Of the first NVIDIA GPU; nothing without nvidia-ml-py or a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - not installed, or no driver: then there is nothing to tell
        return
    try:
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        reasons = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
        celsius = int(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return
    finally:
        pynvml.nvmlShutdown()
    for cause in sorted({cause for bit, cause in _GPU_SLOWDOWN.items() if reasons & bit}):
        yield True, f"the GPU, at {celsius} °C, is slowed down by {cause}"
    yield False, f"GPU at {celsius} °C"


def _mac() -> Iterator[tuple[bool, str]]:
    """What macOS says of its thermal state: a speed limit on Intel, a warning level on Apple silicon."""
    if sys.platform != "darwin" or not shutil.which("pmset"):
        return
    try:
        done = subprocess.run(
            ["pmset", "-g", "therm"], capture_output=True, text=True, check=False, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    yield from read_pmset(done.stdout)


def read_pmset(text: str) -> Iterator[tuple[bool, str]]:
    """Read what `pmset -g therm` prints: whether each line is bad news, and the news."""
    for line in text.splitlines():
        key, separator, value = (part.strip() for part in line.partition("="))
        if not separator or not value.isdigit():
            continue
        if key == "CPU_Speed_Limit":
            limit = int(value)
            yield limit < 100, f"macOS holds the processor at {limit} % of its speed"  # noqa: PLR2004 - per cent
        elif key.lower().replace("_", " ").startswith("thermal warning level") and int(value):
            yield True, f"macOS warns of heat (level {value})"
